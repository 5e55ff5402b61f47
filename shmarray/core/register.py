"""A register of this host's processes that have an object: a small file, accessed under its lock."""

import errno
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Self

from shmarray.core.posix import files

# Far more than all processes of a host can write.
_LONGEST = 1 << 20

# A lock lives on in a forked child, which would keep it until it ends.
_held: "set[Register]" = set()


class Register:
    """The open, locked file.

    Parameters
    ----------
    name : str
        The same in all processes that are to agree, and in no others.

    Attributes
    ----------
    entries : list
        What the processes wrote, as JSON gives it back; changed in place, and kept by `store`.

    Notes
    -----
    The kernel drops the lock when its holder dies.  The file itself is removed when it is
    stored without entries; `sweep` removes what processes that were killed have left.
    """

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self._path = path
        _held.add(self)
        self.entries: list[Any] = _read(fd)

    @classmethod
    def try_open(cls, name: str) -> "Register | None":
        """Open and lock the file, making it if need be; None while another process or thread has the lock.

        Raises
        ------
        OSError
            If the file cannot be made: no inode is left, or the directory cannot be written to.
        """
        fd, path = _opened(name)
        return cls._locked(fd, path)

    @classmethod
    def _locked(cls, fd: int, path: str) -> "Register | None":
        try:
            # Without a link it is one that its last holder has just removed.
            if files.flock(fd, shared=False, wait=False) and os.fstat(fd).st_nlink:
                return cls(fd, path)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None

    def store(self) -> None:
        """Write the entries; without any, remove the file."""
        if not self.entries:
            with suppress(FileNotFoundError):
                os.unlink(self._path)
            return
        # What was longer before stays behind the newline, where nobody reads.
        try:
            os.pwrite(self._fd, json.dumps(self.entries).encode() + b"\n", 0)
        except OSError as error:
            # The others do not find what this process has, and get one of their own.
            if error.errno != errno.ENOSPC:
                raise

    def close(self) -> None:
        """Give the lock back."""
        fd, self._fd = self._fd, -1
        _held.discard(self)
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def sweep(prefix: str, is_valid: Callable[[Any], bool]) -> None:
    """Remove the files of which no entry is valid any more.

    Parameters
    ----------
    prefix : str
        With which the names begin.
    is_valid : callable
        Called with an entry.
    """
    for path in _paths(prefix):
        with suppress(OSError):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                os.close(fd)
                continue
            register = Register._locked(fd, path)  # noqa: SLF001 - the class of this module
            if register is not None:
                with register:
                    register.entries[:] = filter(is_valid, register.entries)
                    register.store()


def _opened(name: str) -> tuple[int, str]:
    error = None
    for directory in _directories():
        path = os.path.join(directory, name)
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), path
        except OSError as failure:  # read-only, or full of files
            error = failure
    raise error or FileNotFoundError(errno.ENOENT, "no directory for temporary files", name)


def _paths(prefix: str) -> Iterator[str]:
    for directory in _directories():
        with suppress(OSError):
            yield from (f"{directory}/{name}" for name in os.listdir(directory) if name.startswith(prefix))


def _directories() -> Iterator[str]:
    """Where to look for a file, and make it; the same for all processes of a host."""
    if files.SHM_DIRECTORY is not None:
        yield files.SHM_DIRECTORY
    yield tempfile.gettempdir()


def _read(fd: int) -> list[Any]:
    try:
        found = json.loads(os.pread(fd, _LONGEST, 0).partition(b"\n")[0])
    except ValueError:  # empty, or not written to its end
        return []
    return found if isinstance(found, list) else []


def _close_inherited() -> None:
    for register in tuple(_held):
        register.close()


os.register_at_fork(after_in_child=_close_inherited)
