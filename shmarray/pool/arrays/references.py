"""Arrays that travel as references: those in shared memory, and those in files that numpy has mapped.

Importing this teaches multiprocessing's pickler to send shared arrays by handle.
"""

import mmap
import os
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds
from numpy.typing import NDArray

from shmarray.core import owner
from shmarray.core.posix import inode_at
from shmarray.pool._stdlib import registered
from shmarray.pool.handle import SharedHandle

Reduction = tuple[Callable[..., NDArray[Any]], tuple[Any, ...]]


def by_reference(array: NDArray[Any]) -> Reduction | None:
    """How to pickle an array so that its receiver has the same memory; None if its data must go.

    Private attachments (mode ``'c'``) are data: what was written to them is in no file.
    """
    if array.base is None:
        return None
    return _shared(array) or _mapped(array)


def _shared(array: NDArray[Any]) -> Reduction | None:
    mapping = owner(array)
    if mapping is None or mapping.mode == "c":
        return None
    try:
        handle = SharedHandle(array.view(np.ndarray))
    except ValueError:  # reaches outside the memory
        return None
    return _attached, (handle, None if type(array) is np.ndarray else type(array))


def _attached(handle: SharedHandle, cls: type | None) -> NDArray[Any]:
    array = handle.array
    return array if cls is None else array.view(cls)


# --- numpy.memmap --------------------------------------------------------------------


def _mapped(array: NDArray[Any]) -> Reduction | None:
    root = _root(array)
    if root is None or root.mode not in ("r", "r+", "w+"):
        return None
    low, high = byte_bounds(array)
    start = root.offset + low - byte_bounds(root)[0]
    # A file that was removed, replaced or cut can be read by those who mapped it before, no others.
    if not _is_still(str(root.filename), inode_at(low), start + high - low):
        return None
    place = start, high - low, array.ctypes.data - low
    mode = "r" if root.mode == "r" else "r+"
    view = array.dtype, array.shape, array.strides, array.flags.writeable
    return _map, (type(array), str(root.filename), mode, place, view)


def _root(array: Any) -> Any:
    """The memmap that numpy made of the file, of which this is a view."""
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap):
            return array if array.filename is not None else None
        array = array.base
    return None


def _is_still(path: str, inode: int | None, size: int) -> bool:
    try:
        status = os.stat(path)
    except OSError:
        return False
    return status.st_size >= size and inode in (status.st_ino, None)


def _map(
    cls: type,
    path: str,
    mode: Any,
    place: tuple[int, int, int],
    view: tuple[np.dtype[Any], tuple[int, ...], tuple[int, ...], bool],
) -> NDArray[Any]:
    start, size, first = place
    dtype, shape, strides, writeable = view
    octets: Any = np.memmap(path, np.uint8, mode, start, (size,)) if size else np.empty(0, np.uint8)
    array: Any = np.ndarray(shape, dtype, octets, first, strides)
    if cls is not np.ndarray:
        array = array.view(cls)
    if issubclass(cls, np.memmap):
        for name in ("_mmap", "filename", "offset", "mode"):
            setattr(array, name, getattr(octets, name, None))
    if not writeable:
        array.flags.writeable = False
    return array  # type: ignore[no-any-return]


# --- the stdlib's own pools, queues and pipes ----------------------------------------

_earlier = registered.get(np.ndarray)


def _reduce(array: NDArray[Any]) -> Any:
    if array.base is not None:
        reduction = _shared(array)
        if reduction is not None:
            return reduction
    return array.__reduce__() if _earlier is None else _earlier(array)


ForkingPickler.register(np.ndarray, _reduce)
