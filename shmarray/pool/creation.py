"""Arrays in memory that need not be copied between processes: empty, zeros, empty_like and zeros_like.

They take numpy's arguments, and numpy determines the array; only its memory differs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from shmarray.core import Shape
from shmarray.pool.arrays import allocate, is_plain


def empty(
    shape: Shape, dtype: DTypeLike | None = None, order: Any = "C", *, device: Any = None, like: Any = None
) -> NDArray[Any]:
    """As `numpy.empty`, in a pool's memory: as a result or as an argument, the array need not be copied.

    Parameters
    ----------
    shape, dtype, order, device, like
        As for `numpy.empty`.

    Returns
    -------
    ndarray
        Plain and writable, with arbitrary content.  It belongs to its holder alone, as any numpy
        array does, and is freed when it is garbage-collected.

    Raises
    ------
    SharedMemoryFullError
        If the pool's memory is full; nothing has changed.
    TypeError, ValueError, MemoryError
        As `numpy.empty` does.

    Notes
    -----
    In a task of a `Pool` or `ProcessPoolExecutor`, the array is in the pool's own memory.  If
    the task returns it, by itself or anywhere in the result, the caller gets it without a copy.
    The same is true of contiguous views of it that overlap no other array in the result.
    Everything else in the result is copied, as usual.  A view keeps only its own pages.

    Arrays that the task does not return are freed when the task ends, or as soon as they are no
    longer referenced.  If the task keeps one, for example in a global, it stays valid; if the
    task also returns it, it is copied, so that the caller's array is independent.

    In a process with an open pool, the array is in the memory of the pool that was opened last;
    in a generator that a pool reads, it is in that pool's memory.  If it is sent with a task of
    that pool, and nothing else refers to it or to a view of it by then, the worker gets it without
    a copy: so keep no reference, as in ``pool.imap(func, map(make, items))``.  Otherwise it is
    copied.

    In all other cases, for arrays below 128 kB, for dtypes with objects, and where shared memory
    cannot be had, this is `numpy.empty`.

    Safe to use from many threads.  A child that the task forks has a private copy.

    Examples
    --------
    >>> import numpy, shmarray
    >>> def double(x):
    ...     return numpy.multiply(x, 2, out=shmarray.empty_like(x))
    >>> double(numpy.arange(3))
    array([0, 2, 4])
    """
    if like is not None:
        return np.empty(shape, dtype, order, device=device, like=like)
    return _placed(np.empty(shape, dtype, order, device=device))


def zeros(
    shape: Shape, dtype: DTypeLike | None = None, order: Any = "C", *, device: Any = None, like: Any = None
) -> NDArray[Any]:
    """As `numpy.zeros`, in a pool's memory: see `empty`.

    Parameters
    ----------
    shape, dtype, order, device, like
        As for `numpy.zeros`.

    Returns
    -------
    ndarray
        As returned by `empty`, filled with zeros.

    Raises
    ------
    SharedMemoryFullError, TypeError, ValueError, MemoryError
        As `empty` does.
    """
    if like is not None:
        return np.zeros(shape, dtype, order, device=device, like=like)
    return _placed(np.zeros(shape, dtype, order, device=device), zeroed=True)


def empty_like(
    prototype: ArrayLike,
    dtype: DTypeLike | None = None,
    order: Any = "K",
    subok: bool = True,  # noqa: FBT002 - numpy's own
    shape: Shape | None = None,
    *,
    device: Any = None,
) -> NDArray[Any]:
    """As `numpy.empty_like`, in a pool's memory: see `empty`.

    Parameters
    ----------
    prototype, dtype, order, subok, shape, device
        As for `numpy.empty_like`.

    Returns
    -------
    ndarray
        As returned by `empty`.  Subclasses of ndarray are as returned by `numpy.empty_like`.

    Raises
    ------
    SharedMemoryFullError, TypeError, ValueError, MemoryError
        As `empty` does.
    """
    return _placed(np.empty_like(prototype, dtype, order, subok, shape, device=device))


def zeros_like(
    a: ArrayLike,
    dtype: DTypeLike | None = None,
    order: Any = "K",
    subok: bool = True,  # noqa: FBT002 - numpy's own
    shape: Shape | None = None,
    *,
    device: Any = None,
) -> NDArray[Any]:
    """As `numpy.zeros_like`, in a pool's memory: see `empty`.

    Parameters
    ----------
    a, dtype, order, subok, shape, device
        As for `numpy.zeros_like`.

    Returns
    -------
    ndarray
        As returned by `empty`, filled with zeros.  Subclasses of ndarray are as returned by
        `numpy.zeros_like`.

    Raises
    ------
    SharedMemoryFullError, TypeError, ValueError, MemoryError
        As `empty` does.
    """
    like = np.empty_like(a, dtype, order, subok, shape, device=device)
    placed = _placed(like, zeroed=True)
    return placed if placed is not like else np.zeros_like(a, dtype, order, subok, shape, device=device)


def _placed(array: NDArray[Any], *, zeroed: bool = False) -> NDArray[Any]:
    """The same array in shared memory, if available; otherwise the array itself.

    The original costs nothing, because numpy has not touched its memory yet.
    """
    if type(array) is not np.ndarray or not is_plain(array.dtype):
        return array
    octets = allocate(array.nbytes)
    if octets is None:
        return array
    if zeroed:
        octets[:] = 0
    return np.ndarray(array.shape, array.dtype, octets, 0, array.strides)
