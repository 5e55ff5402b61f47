"""Arrays in memory that need not be copied on their way between processes: numpy's empty, zeros and their likes.

Their arguments are numpy's, which decides what the array is; only where it lies is ours.
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
    """`numpy.empty`, in the memory of a pool: neither a result nor an argument made with it need be copied.

    Parameters
    ----------
    shape, dtype, order, device, like
        As for `numpy.empty`.

    Returns
    -------
    ndarray
        Plain and writable, with whatever content.  It is its holder's alone, as any array that
        numpy makes, and ends when it is garbage.

    Raises
    ------
    SharedMemoryFullError
        If the memory of the pool does not suffice; nothing has changed then.
    TypeError, ValueError, MemoryError
        As `numpy.empty` does.

    Notes
    -----
    In a task of a `Pool` or a `ProcessPoolExecutor` the array lies in the pool's own memory.
    Returned, by itself or anywhere inside the result, it is the caller's without a copy; so is
    any view or part of it that is contiguous, and that overlaps no other array of the result.
    Everything else in the result is copied, as usual.  A part keeps its own pages, not the whole.

    Arrays that the task does not return are freed with it, or as soon as nothing refers to
    them.  One that it keeps, in a global for instance, stays valid; returned as well, it is
    copied, because the caller's must not change with it.

    In a process with an open pool the array lies in the memory of the pool that was opened last,
    or, in a generator that a pool reads, of that pool.  Sent with a task of that pool, it goes to
    the worker without a copy if nothing else refers to it or to a view of it by then: so keep
    no reference, as ``pool.imap(func, map(make, items))`` keeps none.  Otherwise it is copied.

    Everywhere else, for arrays below 128 kB, for dtypes with objects, and where shared memory
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
    """`numpy.zeros`, in the memory of a pool: see `empty`.

    Parameters
    ----------
    shape, dtype, order, device, like
        As for `numpy.zeros`.

    Returns
    -------
    ndarray
        As `empty` gives it, zeroed.

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
    """`numpy.empty_like`, in the memory of a pool: see `empty`.

    Parameters
    ----------
    prototype, dtype, order, subok, shape, device
        As for `numpy.empty_like`.

    Returns
    -------
    ndarray
        As `empty` gives it.  A subclass of ndarray is as `numpy.empty_like` gives it.

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
    """`numpy.zeros_like`, in the memory of a pool: see `empty`.

    Parameters
    ----------
    a, dtype, order, subok, shape, device
        As for `numpy.zeros_like`.

    Returns
    -------
    ndarray
        As `empty` gives it, zeroed.  A subclass of ndarray is as `numpy.zeros_like` gives it.

    Raises
    ------
    SharedMemoryFullError, TypeError, ValueError, MemoryError
        As `empty` does.
    """
    like = np.empty_like(a, dtype, order, subok, shape, device=device)
    placed = _placed(like, zeroed=True)
    return placed if placed is not like else np.zeros_like(a, dtype, order, subok, shape, device=device)


def _placed(array: NDArray[Any], *, zeroed: bool = False) -> NDArray[Any]:
    """The same array in shared memory, if there is any for it; or itself.

    numpy has not touched its memory yet, so it costs nothing.
    """
    if type(array) is not np.ndarray or not is_plain(array.dtype):
        return array
    octets = allocate(array.nbytes)
    if octets is None:
        return array
    if zeroed:
        octets[:] = 0
    return np.ndarray(array.shape, array.dtype, octets, 0, array.strides)
