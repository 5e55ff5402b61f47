"""Locks on arrays, held by the kernel, which releases those of a process that dies."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import starmap
from typing import Any

from numpy.typing import NDArray

from shmarray.core import names
from shmarray.core.mapping import require_owner
from shmarray.core.names import Name
from shmarray.core.posix import files
from shmarray.core.posix.errors import explained, unreachable
from shmarray.errors import LockTimeoutError

# flock has no timeout of its own, and a signal to end it would hit the whole program.
# The waits between two tries double from 0.5 to 20 ms.
_FIRST_WAIT, _LONGEST_WAIT = 0.0005, 0.02  # seconds

# Descriptors that hold a lock or wait for one.  A forked child has copies of them, and a
# lock lives until the last copy is closed: it would hold what its parent died with.
_open_fds: set[int] = set()
# No fork between an open and its entry above.  Reentrant, for a signal handler that forks.
_opening = threading.RLock()


def _close_inherited() -> None:
    while _open_fds:
        os.close(_open_fds.pop())
    _opening.release()


os.register_at_fork(before=_opening.acquire, after_in_parent=_opening.release, after_in_child=_close_inherited)


def lock(
    array: NDArray[Any] | str, *, shared: bool = False, timeout: float | None = None
) -> AbstractContextManager[None]:
    """Hold an array's lock: between threads, processes and unrelated programs.

    Parameters
    ----------
    array : ndarray or str
        An array that `create`, `attach` or `scoped` gave, or a view of one (the lock is
        that of the whole array), or a name.
    shared : bool, optional
        Several may hold it shared at a time, for reading; only one exclusive.
    timeout : float, optional
        Seconds to wait at most; 0 tries once; None waits for ever.

    Raises
    ------
    LockTimeoutError
        If another held it all the time.
    ArrayNotFoundError
        If there is no such name, or the array's name was deleted: there is nothing left
        under which others could lock it.
    TypeError, ValueError
        If the array is not in shared memory, or `timeout` is no number of seconds from 0 on.

    Notes
    -----
    Advisory: it keeps out those who lock, and nobody else.  It is an flock(2) on the
    array's file, so ``flock /dev/shm/x command`` takes part.  Not reentrant: a thread that
    takes it twice waits for itself.  It takes a descriptor while it is held or waited for.
    A forked child does not hold what its parent holds.

    Examples
    --------
    >>> import shmarray
    >>> with shmarray.scoped(3) as a, shmarray.lock(a, timeout=1.0):
    ...     a += 1
    """
    if timeout is not None and not timeout >= 0:  # nan is not, either
        raise ValueError(f"timeout must be at least 0 seconds, or None to wait forever, not {timeout!r}")
    if isinstance(array, str):
        return _held(names.parse(array).absolute(), None, shared, timeout)
    mapping = require_owner(array)
    return _held(mapping.name, mapping.identity, shared, timeout)


@contextmanager
def _held(name: Name, wanted: files.Identity | None, shared: bool, timeout: float | None) -> Iterator[None]:
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        fd, entered = -1, False
        enter_to_open, enter_to_close = (starmap(_opening.acquire, ((),)) for _ in range(2))
        # All in one function: a Ctrl-C between this and another one would leave it locked.  Nor "with": Python 3.14
        # looks for signals when __enter__ has returned, before it knows that it must leave.
        try:
            try:
                (entered,) = enter_to_open
                fd = _opened(name)
                _open_fds.add(fd)
            finally:
                if entered:
                    _opening.release()
            if _is_locked(fd, name, wanted, shared, deadline):
                yield
                return
        finally:
            entered = False
            try:
                (entered,) = enter_to_close  # nor a fork between the entry's end and the close
            finally:
                try:
                    if fd in _open_fds:  # not in a child forked meanwhile
                        try:
                            _open_fds.remove(fd)
                        finally:
                            os.close(fd)
                finally:
                    if entered:
                        _opening.release()


def _opened(name: Name) -> int:
    try:
        return files.open_existing(name, os.O_RDONLY)
    except OSError as error:
        raise explained(error, name) from error


def _is_locked(fd: int, name: Name, wanted: files.Identity | None, shared: bool, deadline: float | None) -> bool:
    """Lock the file; False if it was deleted while we waited: then what has the name now is to be locked."""
    found = files.identity(os.fstat(fd))
    if wanted is not None and found != wanted:
        raise unreachable(name, "it was deleted, and another array now has its name")
    _wait(fd, name, shared, deadline)
    return files.is_name_of(name, found)


def _wait(fd: int, name: Name, shared: bool, deadline: float | None) -> None:
    if deadline is None:
        files.flock(fd, shared=shared, wait=True)
        return
    wait = _FIRST_WAIT
    while not files.flock(fd, shared=shared, wait=False):
        left = deadline - time.monotonic()
        if left <= 0:
            raise LockTimeoutError(
                f"the lock of {name.text!r} is held by another process or thread, or by this thread itself", name.text
            )
        time.sleep(min(wait, left))
        wait = min(2 * wait, _LONGEST_WAIT)
