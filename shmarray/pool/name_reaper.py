"""Deletes the names of scoped arrays when their process ends, even by SIGKILL.

The kernel frees anonymous memory and closes descriptors, but it does not delete names.  So a
helper process holds one end of a socket pair and remembers the names that it receives.  When
the other end closes, it deletes those that still refer to the same files.  It is started for
the first name, in its own session, so that it survives Ctrl-C and signals to this process's
group.

multiprocessing's resource tracker cannot do this: it deletes any file that has the name by then,
accepts no paths and few characters, waits for all children of this process, and prints warnings.
"""

import _thread
import atexit
import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing import spawn

from shmarray.core import Removal
from shmarray.core.posix import send_all
from shmarray.pool import forks

# Seconds to wait for the helper, which has nothing else to do.
_PATIENCE = 5.0
# It imports only what is loaded already, so that it starts quickly.  A line holds a sign (whether
# the name is in use from now on), device, inode, and the path in hexadecimal digits.
_PROGRAM = """
import os
names = set()
with open(0, "rb") as lines:
    for line in lines:
        sign, name = line[:1], line[1:]
        names.add(name) if sign == b"+" else names.discard(name)
for name in names:
    device, inode, path = name.split()
    path = bytes.fromhex(path.decode())
    try:
        status = os.lstat(path)
        if (status.st_dev, status.st_ino) == (int(device), int(inode)):
            os.unlink(path)
    except OSError:
        pass
os._exit(0)
"""


class _Reaper:
    """The helper process, which is started once there is a name to delete."""

    def __init__(self) -> None:
        self._names: set[bytes] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._status: os.stat_result
        self._is_unavailable = False
        forks.register(self)
        # Registered before the scopes' exit handlers, so that it runs after them.
        atexit.register(self.stop)

    def add(self, name: bytes) -> None:
        self._names.add(name)
        if self._tell([b"+" + name]) or self._is_unavailable:
            return
        # The first name, or the helper was killed.  In a thread, where no signal handler raises,
        # because Ctrl-C would leave an untracked process.  Not with the threading module, whose
        # start() is Python code, in which Ctrl-C becomes a RuntimeError.
        started = _thread.allocate_lock()
        started.acquire()
        try:
            _thread.start_new_thread(self._start, (started,))
        except RuntimeError:  # no threads any more: the interpreter ends
            return
        started.acquire()

    def discard(self, name: bytes) -> None:
        self._names.discard(name)
        self._tell([b"-" + name])

    def _tell(self, lines: Iterable[bytes]) -> bool:
        own = self._socket  # another thread may set it to None
        if own is None:
            return False
        if not self._is_own():
            own.detach()
            self.stop()
            return False
        try:
            for line in lines:
                send_all(own, line)
        except OSError:
            self.stop()
            return False
        return True

    def _is_own(self) -> bool:
        """Whether the socket is still open; if not, its number may belong to a file that would get the names."""
        try:
            return self._socket is not None and os.path.samestat(os.fstat(self._socket.fileno()), self._status)
        except OSError:
            return False

    def _start(self, started: _thread.LockType) -> None:
        try:
            with forks.lock:  # no child gets what is not known yet
                if self._socket is None:
                    self._run()
                    self._is_unavailable = not self._tell([b"+" + name for name in list(self._names)])
        finally:
            started.release()

    def _run(self) -> None:
        program = spawn.get_executable()
        if not program or getattr(sys, "frozen", False):
            return  # there is no Python to run
        try:
            own, other = socket.socketpair()
        except OSError:  # refused: without it, kill -9 leaves the names
            return
        own.settimeout(_PATIENCE)
        # Not as socket.setdefaulttimeout says: the helper would read nothing, end, and delete names in use.
        other.settimeout(None)
        with other:
            try:
                self._process = subprocess.Popen(  # noqa: S603 - this Python, with a program of our own
                    [os.fsdecode(program), "-I", "-S", "-c", _PROGRAM],
                    stdin=other.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    start_new_session=True,
                )
                self._status = os.fstat(own.fileno())
                self._socket = own
            except (OSError, ValueError):
                own.close()

    def stop(self) -> None:
        """Close the socket; the helper then deletes the names that are left."""
        own, self._socket = self._socket, None
        if own is not None:
            own.close()
        process, self._process = self._process, None
        if process is not None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE)

    # --- forks ---

    def before_fork(self) -> None:
        pass

    def after_fork_in_child(self) -> None:
        """Close the socket: names and helper belong to the parent, and an open copy would hide the parent's end."""
        self._names.clear()
        self._is_unavailable = False
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.returncode = 0  # no child of this process's, to complain of at the end
            self._process = None


_reaper = _Reaper()


def add(removal: Removal) -> None:
    """Perform this removal when the process ends, unless `discard` is called first."""
    line = _line(removal)
    if line is not None:
        _reaper.add(line)


def discard(removal: Removal) -> None:
    """Forget a removal that was performed or is no longer wanted."""
    line = _line(removal)
    if line is not None:
        _reaper.discard(line)


def _line(removal: Removal) -> bytes | None:
    if removal.path is None:
        return None
    device, inode = removal.identity
    return b"%d %d %s\n" % (device, inode, os.fsencode(removal.path).hex().encode())
