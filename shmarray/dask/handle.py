"""ClusterHandle: a small reference to an array that has one copy on each host of a cluster."""

import time
from typing import Any

import numpy as np
from distributed import get_worker
from numpy.typing import DTypeLike, NDArray

from shmarray.dask.copies import COPIES, Copy, Description, attached, open_register, update
from shmarray.dask.site import SITES, Site
from shmarray.errors import ArrayNotFoundError

# How often, and every how many seconds, to look into a register that another process has locked.
_ATTEMPTS, _PAUSE = 200, 0.005


class ClusterHandle:
    """A reference to an array that `share` has distributed to a cluster, as tasks receive it.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype
    ndim, size, nbytes : int
        As for an ndarray.
    writable : bool
        Whether `array` is copy-on-write instead of read-only.

    Notes
    -----
    A pickled handle takes a few hundred bytes, whatever the size of the array.  It does not keep
    the array alive: the host's copy remains until the `Share` is closed and no task depends on
    its ``future``.  Handles work in the cluster's workers, in processes that these start, and in
    the client.  `numpy.asarray` and `dask.array.from_array` accept them.
    Safe to use from many threads.
    """

    __slots__ = ("__weakref__", "_about", "_writable")

    def __init__(self, about: Description, *, writable: bool = False) -> None:
        self._about = about
        self._writable = writable

    @property
    def array(self) -> NDArray[Any]:
        """The array in this host's memory, fetched first if it is not there yet.

        It is read-only, and the same memory in all processes of the host.  If it was shared with
        ``writable=True``, it is copy-on-write: each use starts with the shared content, and
        writes stay with the task.

        Raises
        ------
        ArrayNotFoundError
            If the share is closed, its client has ended, or this process is not part of the cluster.
        SharedMemoryFullError
            If this host does not have enough memory for a copy.
        """
        copy = COPIES.get(self._about.key)
        if copy is not None:
            return self._view(copy)
        site = _site()
        if site is not None:
            return self._view(site.wait_for(self._about))
        copy = _attached_without_worker(self._about)
        try:
            return self._view(copy)
        finally:
            copy.withdraw()  # nobody would tell this process when it is to let go

    def _view(self, copy: Copy) -> NDArray[Any]:
        return copy.private(self._about) if self._writable else copy.shared(self._about)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._about.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._about.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return self.nbytes // (self.dtype.itemsize or 1)

    @property
    def nbytes(self) -> int:
        return self._about.nbytes

    @property
    def writable(self) -> bool:
        return self._writable

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        return self.array[index]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.array, dtype=dtype, copy=copy)

    def __dask_tokenize__(self) -> Any:
        return "shmarray.ClusterHandle", self._about.key, self._writable

    def __reduce__(self) -> Any:
        return _handle, (self._about, self._writable)

    def __repr__(self) -> str:
        mode = "copy-on-write" if self._writable else "read-only"
        return f"<{type(self).__name__} {self._about.key!r} shape={self.shape} dtype={self.dtype} {mode}>"


def _handle(about: Description, writable: bool) -> ClusterHandle:
    return ClusterHandle(about, writable=writable)


def _site() -> Site | None:
    """The worker that runs this task, or any worker in this process."""
    try:
        site = SITES.get(get_worker())
    except ValueError:  # no task
        site = None
    return site or next(iter(SITES.values()), None)


def _attached_without_worker(about: Description) -> Copy:
    """The copy on the worker's host, for a process that a task has started."""
    copy = None
    for _ in range(_ATTEMPTS):
        register = open_register(about.key)
        if register is not None:
            with register:
                copy = attached(register, about.nbytes)
                update(register, None)
            break
        time.sleep(_PAUSE)
    if copy is None:
        raise ArrayNotFoundError(
            f"the shared array {about.key!r} is not in this host's memory: its share is closed, or this process is "
            "neither a worker of the cluster nor a child of one (in a child, get handle.array in the task first)",
            about.key,
        )
    return copy
