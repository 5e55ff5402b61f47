"""Arrays that are sent as references: those in shared memory, and numpy memory maps of files.

Importing this module makes multiprocessing's pickler send shared arrays by handle.
"""

import mmap
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds
from numpy.typing import NDArray

from shmarray.core import (
    FileReference,
    check_is_there,
    check_is_whole,
    is_closed,
    map_referred_file,
    owner,
    refer_to_file,
)
from shmarray.pool import forks
from shmarray.pool._stdlib import registered
from shmarray.pool.handle import SharedHandle
from shmarray.pool.missing import MissingArray

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
    if mapping is None:
        return None
    if mapping.mode == "c":
        check_is_there(mapping)  # its data will be read, here
        return None
    # A task may return an array from its own with block, which no other process has.  In the
    # caller, the array would be an argument, and the task's writes would be lost: an error.
    if forks.is_child() and is_closed(mapping):
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
    if root is None or not array.size:
        return None
    low, high = byte_bounds(array)
    start = root.offset + low - byte_bounds(root)[0]
    path = None if root.filename is None else str(root.filename)
    check_is_whole(root.base, start + high - low, path)
    if root.mode == "c":  # what was written to it is in no file
        return None
    mode = "r" if root.mode == "r" else "r+"
    reference = refer_to_file(root.base, low, path, writable=mode == "r+" and array.flags.writeable)
    if reference is None:
        return None
    place = start, high - low, array.ctypes.data - low
    view = array.dtype, array.shape, array.strides, array.flags.writeable
    return _map, (type(array), reference, mode, place, view)


def _root(array: Any) -> Any:
    """The memmap that numpy made of the file, of which this is a view."""
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap):
            return array
        array = array.base
    return None


def _map(
    cls: type,
    reference: FileReference,
    mode: str,
    place: tuple[int, int, int],
    view: tuple[np.dtype[Any], tuple[int, ...], tuple[int, ...], bool],
) -> NDArray[Any]:
    start, size, first = place
    dtype, shape, strides, writeable = view
    before = start % mmap.ALLOCATIONGRANULARITY
    mapped = map_referred_file(reference, start - before, before + size, writable=mode == "r+")
    # Not numpy.memmap(path), which opens any file at the path, and extends it if it is too short.
    octets: Any = np.ndarray.__new__(np.memmap, (size,), np.uint8, mapped, before)
    octets._mmap, octets.filename, octets.offset, octets.mode = mapped, reference.path, start, mode  # noqa: SLF001
    array: Any = np.ndarray(shape, dtype, octets, first, strides)
    if cls is not np.ndarray:
        array = array.view(cls)
    if issubclass(cls, np.memmap):
        for name in ("_mmap", "filename", "offset", "mode"):
            setattr(array, name, getattr(octets, name))
    if not writeable:
        array.flags.writeable = False
    return array  # type: ignore[no-any-return]


# --- the stdlib's own pools, queues and pipes ----------------------------------------

_earlier = registered.get(np.ndarray)


def _reduce(array: NDArray[Any]) -> Any:
    if array.base is not None:
        reduction = _shared(array)
        if reduction is not None:
            return _attached_if_there, reduction[1][:1]
    return array.__reduce__() if _earlier is None else _earlier(array)


def _attached_if_there(handle: SharedHandle) -> NDArray[Any] | MissingArray:
    try:
        return handle.array
    except (OSError, MemoryError) as error:
        return MissingArray(error)


ForkingPickler.register(np.ndarray, _reduce)
