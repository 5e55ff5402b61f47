"""The memory behind an array: msync, mlock, munlock, as the system calls."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from shmarray.core.mapping import require_owner
from shmarray.core.posix import libc, maps


def msync(array: NDArray[Any], flags: int = libc.MS_SYNC) -> None:
    """Write a ``file://`` array, or the array that `array` is a view of, to its file.

    Parameters
    ----------
    array : ndarray
        Any view of an array from `create`, `attach` or `scoped`.
    flags : int, optional
        ``MS_SYNC`` waits until the data is written, ``MS_ASYNC`` does not; either can be combined with
        ``| MS_INVALIDATE``.

    Raises
    ------
    TypeError
        If `array` is not in shared memory.
    OSError
        As msync(2): EINVAL for other flags, EIO for a disk that fails.
    """
    mapping = require_owner(array)
    maps.msync(mapping.address, mapping.nbytes, flags)


def mlock(array: NDArray[Any]) -> None:
    """Keep an array, or the array that `array` is a view of, in physical memory.

    Parameters
    ----------
    array : ndarray
        Any view of an array from `create`, `attach` or `scoped`.

    Raises
    ------
    TypeError
        If `array` is not in shared memory.
    OSError
        ENOMEM or EPERM, if the size exceeds RLIMIT_MEMLOCK (``ulimit -l``).

    Notes
    -----
    Applies to this process and this attachment, until `munlock` or the end of the
    attachment.  A forked child does not inherit it.
    """
    mapping = require_owner(array)
    maps.mlock(mapping.address, mapping.nbytes)


def munlock(array: NDArray[Any]) -> None:
    """Undo `mlock`.

    Parameters
    ----------
    array : ndarray
        Any view of an array from `create`, `attach` or `scoped`.

    Raises
    ------
    TypeError
        If `array` is not in shared memory.
    """
    mapping = require_owner(array)
    maps.munlock(mapping.address, mapping.nbytes)
