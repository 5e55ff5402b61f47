"""Names that are deleted when this process ends, even by SIGKILL.

The kernel frees memory without a name, and closes descriptors; it deletes no names.  So a
process of its own holds one end of a socket pair, remembers the names that it is told, and
when the other end closes deletes those that are still the same files.  It is started for
the first name, in a session of its own, so that what kills this process's group, or a
Ctrl-C, does not end it too.

It also deletes the semaphores of executors' queues, if multiprocessing's resource tracker was
killed too, which else does that.

Not that tracker for all: it deletes whatever has the name by then, knows no
files and few characters, waits for all children of this process too, and complains.
"""

import _thread
import atexit
import os
import socket
import subprocess
import sys
import weakref
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing import spawn

from shmarray.core import Removal
from shmarray.pool import forks
from shmarray.pool.stdlib import tracker_pid

# Seconds that it may take to read what it is told: it has nothing else to do.
_PATIENCE = 5.0
# It imports nothing that is not there already: 10 ms to start.  In a line: whether the name
# is there from now on, device, inode, the path in hexadecimal digits, and the process that is
# to delete it; for that it waits five seconds, in case it serves others too.
_PROGRAM = """
import os
def wait(pid):
    import select
    poll = select.poll()
    try:
        poll.register(os.pidfd_open(pid))
    except (OSError, AttributeError):
        return
    poll.poll(5000)
names = set()
with open(0, "rb") as lines:
    for line in lines:
        sign, name = line[:1], line[1:]
        names.add(name) if sign == b"+" else names.discard(name)
for name in sorted(names, key=lambda name: len(name.split())):
    device, inode, path, *tracker = name.split()
    for pid in tracker:
        wait(int(pid))
    path = bytes.fromhex(path.decode())
    try:
        status = os.lstat(path)
        if (status.st_dev, status.st_ino) == (int(device), int(inode)):
            os.unlink(path)
    except OSError:
        pass
os._exit(0)
"""


class _Watcher:
    """The process that watches this one, once there is something to watch."""

    def __init__(self) -> None:
        self._names: set[bytes] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._status: os.stat_result
        self._is_hopeless = False
        forks.register(self)
        # Before all scopes', so that it runs after them.
        atexit.register(self.end)

    def add(self, name: bytes) -> None:
        self._names.add(name)
        if self._tell([b"+" + name]) or self._is_hopeless:
            return
        # The first name, or somebody has killed the watcher.  In a thread, in which no signal's
        # exception lands: a Ctrl-C would leave a process that nobody knows.  Not by the
        # threading module: its start() is Python, and a Ctrl-C in that becomes a RuntimeError.
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
        if self._socket is None:
            return False
        if not self._is_own():
            self._socket.detach()
            self.stop()
            return False
        try:
            for line in lines:
                self._socket.sendall(line, getattr(socket, "MSG_NOSIGNAL", 0))
        except OSError:
            self.stop()
            return False
        return True

    def _is_own(self) -> bool:
        """Whether nobody has closed the socket: its number may be another's by now, who would get the names."""
        try:
            return self._socket is not None and os.path.samestat(os.fstat(self._socket.fileno()), self._status)
        except OSError:
            return False

    def _start(self, started: _thread.LockType) -> None:
        try:
            with forks.lock:  # no child gets what is not known yet
                if self._socket is None:
                    self._run()
                    self._is_hopeless = not self._tell([b"+" + name for name in tuple(self._names)])
        finally:
            started.release()

    def _run(self) -> None:
        program = spawn.get_executable()
        if not program or getattr(sys, "frozen", False):
            return  # there is no Python to run
        own, other = socket.socketpair()
        own.settimeout(_PATIENCE)
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

    def end(self) -> None:
        """At the end of the interpreter, at which semaphores are deleted after this."""
        self._tell([b"-" + name for name in self._names if len(name.split()) > 3])
        self.stop()

    def stop(self) -> None:
        """Let it go; it deletes what is left."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_PATIENCE)
            self._process = None

    # --- forks ---

    def before_fork(self) -> None:
        pass

    def after_fork_in_child(self) -> None:
        """The names are the parent's, and so is the watcher; it must not think that the parent still lives."""
        self._names.clear()
        self._is_hopeless = False
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.returncode = 0  # no child of this process's, to complain of at the end
            self._process = None


_watcher = _Watcher()


def watch(removal: Removal) -> None:
    """Have this done when this process ends, if it was not forgotten by then."""
    line = _line(removal)
    if line is not None:
        _watcher.add(line)


def forget(removal: Removal) -> None:
    """It is done, or not to be done any more."""
    line = _line(removal)
    if line is not None:
        _watcher.discard(line)


def watch_semaphore(semaphore: object, path: str) -> None:
    """Have the file of a semaphore deleted when this process ends, and the tracker that would delete it is dead.

    It is forgotten when the semaphore is garbage.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:  # the start method is fork, or this no system with glibc
        return
    line = _line_of(path, (status.st_dev, status.st_ino), tracker_pid())
    _watcher.add(line)
    weakref.finalize(semaphore, _watcher.discard, line).atexit = False


def _line(removal: Removal) -> bytes | None:
    if removal.path is None:
        return None
    return _line_of(removal.path, removal.identity)


def _line_of(path: str, identity: tuple[int, int], *deleter: int) -> bytes:
    return " ".join(map(str, (*identity, os.fsencode(path).hex(), *deleter))).encode() + b"\n"
