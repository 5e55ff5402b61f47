"""SharedHandle: an array in shared memory, as something small that any pickler carries."""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from shmarray.core import Name, Reference, refer, resolve


class SharedHandle:
    """A reference to an array in shared memory, or to any view of one, to send to other processes.

    Parameters
    ----------
    array : ndarray
        What `create`, `attach` or `scoped` gave, or a view of it.

    Raises
    ------
    TypeError
        If `array` is not in shared memory, or is a subclass of ndarray.

    Notes
    -----
    Pickled, it takes a few hundred bytes, however large the array.  It attaches while it
    is unpickled: from then on the receiver has the memory, whatever is deleted.  The
    receiver's array is the same view (shape, strides, mode); writes are seen by all who
    share it.  One of mode ``'c'`` (private) begins with the shared content: what was
    written to it before stays with its writer.

    If the array is gone by then, unpickling still succeeds, and `array` raises: an error
    inside unpickling would hang a `multiprocessing.Pool` for good.

    It holds the array, so the memory lives as long as it does.  It does not keep the name:
    the sender must not delete that before the receiver has unpickled.  Safe to use from
    many threads, and across fork.

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
            If the array was gone when the handle was unpickled, or cannot be reached from
            this process.
        ArrayPermissionError, ArrayFormatError
            If this user may not open it, or it is shorter than it was.
        OSError
            Whatever else stood in the way then: ENOMEM, EMFILE.
        """
        if self._view is None:
            # The traceback of the last time would hold its frames, and their arrays.
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
        return (host, tuple(name), *rest)  # plain values pickle smaller, and three times as fast

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
