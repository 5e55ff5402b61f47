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

# flock has no timeout, and a signal to interrupt it would affect the whole program.
# The delay between two attempts doubles from the first to the longest.
_FIRST_WAIT, _LONGEST_WAIT = 0.0005, 0.02  # seconds

# Descriptors that hold a lock or wait for one.  A forked child inherits copies, which would
# keep the lock after the parent's death, so it closes them.
_open_fds: set[int] = set()
# Prevents a fork between an open and its entry above.  Reentrant, for a signal handler that forks.
_opening = threading.RLock()


def _close_inherited() -> None:
    while _open_fds:
        os.close(_open_fds.pop())
    _opening.release()


os.register_at_fork(before=_opening.acquire, after_in_parent=_opening.release, after_in_child=_close_inherited)


def lock(
    array: NDArray[Any] | str, *, shared: bool = False, timeout: float | None = None
) -> AbstractContextManager[None]:
    """Hold an array's lock, which excludes other threads, processes and unrelated programs.

    Parameters
    ----------
    array : ndarray or str
        An array from `create`, `attach` or `scoped`, a view of one (the lock is that of the
        whole array), or a name.
    shared : bool, optional
        Whether to take a shared lock, for reading.  Any number of holders can share the lock,
        but only one can hold it exclusively.
    timeout : float, optional
        Maximum number of seconds to wait; 0 tries once; None waits forever.

    Raises
    ------
    LockTimeoutError
        If the lock was not released in time.
    ArrayNotFoundError
        If there is no such name, or the array's name was deleted, so that no other process
        could lock it.
    TypeError, ValueError
        If the array is not in shared memory, or `timeout` is not a number of seconds >= 0.

    Notes
    -----
    The lock is advisory: it only excludes other users of the lock.  It is an flock(2) on the
    array's file, so ``flock /dev/shm/x command`` uses the same lock.  It is not reentrant: a
    thread that takes it twice deadlocks.  It uses a file descriptor while it is held or
    waited for.  A forked child does not inherit it.

    Examples
    --------
    >>> import shmarray
    >>> with shmarray.scoped(3) as a, shmarray.lock(a, timeout=1.0):
    ...     a += 1
    """
    if timeout is not None and not timeout >= 0:  # also rejects nan
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
        # All in one function, because Ctrl-C between two functions would leave it locked.  Not with "with", either:
        # Python 3.14 checks for signals after __enter__ has returned, before __exit__ is guaranteed.
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
                (entered,) = enter_to_close  # no fork between removing the entry and the close
            finally:
                try:
                    if fd in _open_fds:  # not in a child forked in the meantime
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
    """Lock the file; False if it was deleted while waiting, so that the name's new file must be locked instead."""
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
