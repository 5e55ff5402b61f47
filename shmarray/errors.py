"""The exceptions of this library.

::

    ShmArrayError
    +-- ArrayExistsError        FileExistsError          the name is taken
    +-- ArrayNotFoundError      FileNotFoundError        the array does not exist, or no longer exists
    +-- ArrayFormatError        OSError, ValueError      the name does not refer to a complete array
    +-- InvalidNameError        OSError, ValueError      no array can have this name
    +-- ArrayPermissionError    PermissionError          this user may not do that with the array
    +-- SharedMemoryFullError   OSError, MemoryError     there is not enough space
    +-- LockTimeoutError        TimeoutError             the lock was not released in time
    +-- UnsendableError         PicklingError            workers cannot import a function or class
    +-- WorkerDiedError         BrokenProcessPool        a worker died while it was running a task
    +-- TaskTimeoutError        TimeoutError             a task exceeded its time limit

Each class is also the builtin that a caller would already catch.  All can be pickled, because an
exception that cannot be pickled breaks the pool that sends it.
"""

import errno
from concurrent.futures.process import BrokenProcessPool
from pickle import PicklingError
from typing import Any

__all__ = [
    "ArrayExistsError",
    "ArrayFormatError",
    "ArrayNotFoundError",
    "ArrayPermissionError",
    "InvalidNameError",
    "LockTimeoutError",
    "SharedMemoryFullError",
    "ShmArrayError",
    "TaskTimeoutError",
    "UnsendableError",
    "WorkerDiedError",
]


class ShmArrayError(Exception):
    """Base class of all exceptions that shmarray defines; only its subclasses are raised."""


class _NamedError(ShmArrayError, OSError):
    """An OSError about one array.

    Parameters
    ----------
    message : str
        The complete message, which names the array and the remedy.
    name : str
        The array's name, as the caller passed it.  It is also in `filename`, for code that
        catches the builtin.
    """

    code: int

    def __init__(self, message: str, name: str = "") -> None:
        super().__init__(self.code, message, name)
        self.name = name

    def __str__(self) -> str:
        return str(self.strerror)

    def __reduce__(self) -> tuple[Any, ...]:
        # OSError's own __reduce__ would call the class with (errno, message, filename).
        return type(self), (self.strerror, self.name), self.__dict__


class ArrayExistsError(_NamedError, FileExistsError):
    """Raised when the name is taken, by an array or by another file."""

    code = errno.EEXIST


class ArrayNotFoundError(_NamedError, FileNotFoundError):
    """Raised when there is no array of that name, or it no longer exists."""

    code = errno.ENOENT


class ArrayFormatError(_NamedError, ValueError):
    """Raised when the name does not refer to a complete array: the file is damaged, hostile or something else."""

    code = errno.EINVAL


class InvalidNameError(_NamedError, ValueError):
    """Raised for a name that no array can have, before anything is changed."""

    code = errno.EINVAL


class ArrayPermissionError(_NamedError, PermissionError):
    """Raised when this user may not read, write, create or delete an array.

    Its `errno` is EACCES, EPERM or EROFS.
    """

    def __init__(self, message: str, name: str = "", code: int = errno.EACCES) -> None:
        self.code = code
        super().__init__(message, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.strerror, self.name, self.code), self.__dict__


class LockTimeoutError(_NamedError, TimeoutError):
    """Raised by `lock` when the lock was not released in time."""

    code = errno.ETIMEDOUT


class SharedMemoryFullError(_NamedError, MemoryError):
    """Raised when there is not enough space for an array; nothing is left behind.

    Attributes
    ----------
    asked, free : int
        Bytes that the array needs, and bytes that are available.
    """

    code = errno.ENOSPC

    def __init__(self, message: str, name: str = "", asked: int = 0, free: int = 0) -> None:
        super().__init__(message, name)
        self.asked = asked
        self.free = free


class UnsendableError(ShmArrayError, PicklingError, AttributeError):
    """Raised when workers cannot import a function or class, and it cannot be sent by value.

    It is also an AttributeError, because pickle raises that for local functions before Python 3.14.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args


class WorkerDiedError(ShmArrayError, BrokenProcessPool):
    """Raised for the task that a worker was running when it died.

    Attributes
    ----------
    pid : int or None
        The worker.
    exitcode : int or None
        Its exit code, or the negative number of the signal that killed it (as in
        `multiprocessing.Process.exitcode`); None if it is unknown.
    task : str
        The task it was running.
    items : range or None
        The task's items in the iterable, for running them again; None if the task was not part
        of a map.
    """

    def __init__(
        self,
        message: str = "",
        pid: int | None = None,
        exitcode: int | None = None,
        task: str = "",
        items: range | None = None,
    ) -> None:
        super().__init__(message)
        self.pid = pid
        self.exitcode = exitcode
        self.task = task
        self.items = items

    @property
    def index(self) -> int | None:
        """The first of `items`, and the only one unless the task was a chunk; None if there are none."""
        return self.items[0] if self.items else None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.pid, self.exitcode, self.task, self.items)


class TaskTimeoutError(ShmArrayError, TimeoutError):
    """Raised for a task that ran longer than the `task_timeout` of its pool; its worker was killed.

    Attributes
    ----------
    pid : int or None
        The worker.
    timeout : float
        The task's time limit in seconds.
    task : str
        The task it was running.
    items : range or None
        As for `WorkerDiedError`.
    """

    def __init__(
        self,
        message: str = "",
        pid: int | None = None,
        timeout: float = 0.0,
        task: str = "",
        items: range | None = None,
    ) -> None:
        super().__init__(message)
        self.pid = pid
        self.timeout = timeout
        self.task = task
        self.items = items

    @property
    def index(self) -> int | None:
        """The first of `items`, and the only one unless the task was a chunk; None if there are none."""
        return self.items[0] if self.items else None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.pid, self.timeout, self.task, self.items)
