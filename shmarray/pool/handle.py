"""SharedHandle: a small reference to an array in shared memory, which any pickler can send."""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from shmarray.core import Name, Reference, refer, resolve


class SharedHandle:
    """A reference to an array in shared memory, or to a view of one, that can be sent to other processes.

    Parameters
    ----------
    array : ndarray
        An array from `create`, `attach` or `scoped`, or a view of it.

    Raises
    ------
    TypeError
        If `array` is not in shared memory, or is an instance of a subclass of ndarray.

    Notes
    -----
    A pickled handle takes a few hundred bytes, whatever the size of the array.  Unpickling it
    attaches the array: from then on the receiver has the memory, even if the name is deleted.
    The receiver's array is the same view (shape, strides, mode), and every process that shares
    it sees writes to it.  An array of mode ``'c'`` (private) starts with the shared content;
    earlier private writes stay with the sender.

    If the array is already gone, unpickling still succeeds, but `array` raises an exception: an
    exception during unpickling would hang a `multiprocessing.Pool` forever.

    A handle keeps the array's memory alive, but not its name: the sender must not delete the
    name before the receiver has unpickled the handle.  Safe to use from many threads, and
    across fork.

    Examples
    --------
    >>> import pickle
    >>> import shmarray
    >>> with shmarray.scoped(1_000_000) as a:
    ...     handle = pickle.loads(pickle.dumps(shmarray.SharedHandle(a[::2])))
    ...     handle.array[0] = 1  # here, or in any other process
    ...     float(a[0])
    1.0
    """

    __slots__ = ("__weakref__", "_error", "_reference", "_view")
    _error: Exception

    def __init__(self, array: NDArray[Any]) -> None:
        self._reference = refer(array)
        self._view: NDArray[Any] | None = array

    @property
    def array(self) -> NDArray[Any]:
        """The view itself, not a copy.

        Raises
        ------
        ArrayNotFoundError
            If the array was gone when the handle was unpickled, or this process cannot
            access it.
        ArrayPermissionError, ArrayFormatError
            If this user may not open it, or it is shorter than before.
        OSError
            Any other error during unpickling, such as ENOMEM or EMFILE.
        """
        if self._view is None:
            # An earlier traceback would keep its frames and their arrays alive.
            raise self._error.with_traceback(None)
        return self._view

    @property
    def name(self) -> str:
        """The array's name, as `delete` takes it, or ``'anonymous array'``."""
        name = self._reference.name
        return "anonymous array" if name.kind == "anonymous" else name.text

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.array, dtype=dtype, copy=copy)

    def __getstate__(self) -> tuple[Any, ...]:
        host, name, *rest = self._reference
        return (host, tuple(name), *rest)  # plain values are smaller and faster to pickle

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        host, name, *rest = state
        self._reference = Reference(host, Name(*name), *rest)
        self._view = None
        try:
            self._view = resolve(self._reference)
        except (OSError, MemoryError) as error:
            self._error = error

    def __repr__(self) -> str:
        reference = self._reference
        return f"<SharedHandle {self.name!r} shape={reference.shape} dtype={np.dtype(reference.dtype)}>"
