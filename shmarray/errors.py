"""What can go wrong, as exceptions.

::

    ShmArrayError
    +-- ArrayExistsError        FileExistsError          the name is taken
    +-- ArrayNotFoundError      FileNotFoundError        there is no such array, or not any more
    +-- ArrayFormatError        OSError, ValueError      what lies under the name is no array
    +-- InvalidNameError        OSError, ValueError      no array can have this name
    +-- ArrayPermissionError    PermissionError          this user may not do that with the array
    +-- SharedMemoryFullError   OSError, MemoryError     the space cannot be had
    +-- LockTimeoutError        TimeoutError             the lock was not to be had in time
    +-- UnsendableError         PicklingError            a function or class that workers cannot import
    +-- WorkerDiedError         BrokenProcessPool        a worker died while it ran a task
    +-- TaskTimeoutError        TimeoutError             a task took longer than it may

Every class is also the builtin that a caller would already catch.  All of them
survive a pickle: an exception that does not breaks the pool that carries it.
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
    """Base of every error that shmarray defines; raised only as one of its subclasses."""


class _NamedError(ShmArrayError, OSError):
    """An OSError about one array.

    Parameters
    ----------
    message : str
        The whole sentence; it names the array and says what to do.
    name : str
        The array's name, as the caller gave it.  Also in `filename`, where
        code that catches the builtin looks for it.
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
    """Raised when the name is taken: by another array, or by a file that is none."""

    code = errno.EEXIST


class ArrayNotFoundError(_NamedError, FileNotFoundError):
    """Raised when there is no array of that name, or not any more."""

    code = errno.ENOENT


class ArrayFormatError(_NamedError, ValueError):
    """Raised when what lies under the name is not a complete array: damaged, hostile, or another thing."""

    code = errno.EINVAL


class InvalidNameError(_NamedError, ValueError):
    """Raised, before anything is touched, for a name that no array can have."""

    code = errno.EINVAL


class ArrayPermissionError(_NamedError, PermissionError):
    """Raised when the system does not let this user read, write, make or delete an array.

    Its `errno` is EACCES, EPERM or EROFS.
    """

    def __init__(self, message: str, name: str = "", code: int = errno.EACCES) -> None:
        self.code = code
        super().__init__(message, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.strerror, self.name, self.code), self.__dict__


class LockTimeoutError(_NamedError, TimeoutError):
    """Raised by `lock` when another held it all the time."""

    code = errno.ETIMEDOUT


class SharedMemoryFullError(_NamedError, MemoryError):
    """Raised, with nothing left behind, when the space for an array cannot be had.

    Attributes
    ----------
    asked, free : int
        Bytes that the array needs, and bytes that could have been had.
    """

    code = errno.ENOSPC

    def __init__(self, message: str, name: str = "", asked: int = 0, free: int = 0) -> None:
        super().__init__(message, name)
        self.asked = asked
        self.free = free


class UnsendableError(ShmArrayError, PicklingError, AttributeError):
    """Raised for a function or class that workers cannot import, where it cannot go by value.

    Also an AttributeError, which pickle raises for local functions before Python 3.14.
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
        Its exit code, negative for the signal that killed it (as
        `multiprocessing.Process.exitcode`); None if the system no longer knew.
    task : str
        What it was running.
    items : range or None
        Which items of the iterable the task had, to run them again; None if it was no part of
        a map.
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
    """Raised for a task that ran longer than the `task_timeout` of its pool; its worker was ended.

    Attributes
    ----------
    pid : int or None
        The worker.
    timeout : float
        The limit of the task, seconds.
    task : str
        What it was running.
    items : range or None
        As of `WorkerDiedError`.
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
