"""The location of a view of shared memory, as plain values that can be sent to another process."""

import os
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.array_utils import byte_bounds
from numpy.typing import NDArray

from shmarray.core import mapping as mappings
from shmarray.core.mapping import Mapping, Mode
from shmarray.core.names import Name
from shmarray.core.posix import files
from shmarray.core.posix.errors import READING, WRITING, explained, unreachable
from shmarray.errors import ArrayFormatError


class Reference(NamedTuple):
    """A view, and the memory that it is a view of.

    Attributes
    ----------
    host : str
        The running kernel and, for anonymous memory, the pid namespace: where the rest
        means something.
    name : Name
        Under which to open the memory.
    identity : tuple of int
        Its device and inode, so that another array under the same name is not taken for it.
    born : int or None
        When a file was made, in nanoseconds: its inode may be another's by now.  Those of
        shared memory are not used again.
    mode : {'r+', 'r', 'c'}
    size : int
        Bytes to map, from the beginning of the file.
    offset : int
        Bytes from the beginning of the file to the view's first item.
    shape, strides : tuple of int
        Items, and bytes, along each axis.
    dtype : str or numpy.dtype
        As str where that says it all, which pickles smaller and faster.
    writeable : bool
        A view may be read-only although its memory is not.
    """

    host: str
    name: Name
    identity: files.Identity
    born: int | None
    mode: Mode
    size: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str | np.dtype[Any]
    writeable: bool


def refer(array: NDArray[Any]) -> Reference:
    """Describe a view of shared memory.

    Raises
    ------
    TypeError
        If it is not in shared memory, or is an instance of a subclass of ndarray, whose other state
        would be lost.
    ValueError
        If it reaches outside the memory, as `as_strided` views can.
    """
    mapping = mappings.require_owner(array)
    if type(array) is not np.ndarray:
        raise TypeError(f"this {type(array).__name__} has state besides its memory: pass array.view(numpy.ndarray)")
    low, high = byte_bounds(array)
    start = mapping.address
    if array.size and not start <= low <= high <= start + mapping.nbytes:
        raise ValueError(f"this view of {mapping.name.text!r} reaches outside its memory")
    kind = array.dtype
    return Reference(
        host_of_memory(mapping.name.kind == "anonymous"),
        mapping.name,
        mapping.identity,
        files.birth(mapping.name.path) if mapping.name.kind == "file" else None,
        mapping.mode,
        mapping.nbytes,
        array.ctypes.data - start if array.size else 0,
        array.shape,
        array.strides,
        kind.str if kind.isbuiltin == 1 else kind,
        array.flags.writeable,
    )


def resolve(reference: Reference) -> NDArray[Any]:
    """The view again, in whatever process this is.

    Over the mapping that this process has already, if it has one; that needs no name any
    more.  In mode 'c' it is always one of its own.

    Raises
    ------
    ArrayNotFoundError
        If the memory cannot be reached, with the reason.
    ArrayFormatError
        If the file is shorter than it was.
    ArrayPermissionError
        If this user may not open it.
    """
    host, name, identity, _, mode, size, offset, shape, strides, dtype, writeable = reference
    here = host == host_of_memory(name.kind == "anonymous")
    mapping = mappings.live(identity, mode) if here else None
    if mapping is None or mapping.nbytes < size:
        mapping = _opened(reference)
    array = mapping.array(shape, np.dtype(dtype), offset, strides)
    if not writeable:
        array.flags.writeable = False
    return array


def check_is_there(mapping: Mapping) -> None:
    """Raise ArrayFormatError if the file is known to be shorter by now: to read what was cut off is a bus error."""
    path = files.path_of(mapping.name)
    try:
        status = None if path is None else os.stat(path)
    except OSError:
        return
    if status is not None and files.identity(status) == mapping.identity and status.st_size < mapping.nbytes:
        raise _cut_off(mapping.name, status.st_size, mapping.nbytes)


def is_closed(mapping: Mapping) -> bool:
    """Whether this is memory without a name that this process has made, and made unreachable for others since."""
    name = mapping.name
    if name.kind != "anonymous":
        return False
    fd = int(name.path.rpartition("/")[2])
    if name.path != files.descriptor_path(fd):
        return False
    try:
        return files.identity(os.fstat(fd)) != mapping.identity
    except OSError:
        return True


def _opened(reference: Reference) -> Mapping:
    name, wanted, mode = reference.name, reference.identity, reference.mode
    if reference.host != host_of_memory(name.kind == "anonymous"):
        raise unreachable(name, _elsewhere(reference.host))
    try:
        fd = files.open_existing(name, os.O_RDWR if mode == "r+" else os.O_RDONLY)
    except OSError as error:
        raise explained(error, name, WRITING if mode == "r+" else READING) from error
    try:
        status = os.fstat(fd)
        if files.identity(status) != wanted or (reference.born is not None and files.birth(fd) != reference.born):
            raise unreachable(name, "it was deleted or its scope has ended, and another array has replaced it")
        if status.st_size < reference.size:
            raise _cut_off(name, status.st_size, reference.size)
        return mappings.Mapping(fd, reference.size, mode, name, wanted)
    finally:
        os.close(fd)


def _cut_off(name: Name, size: int, wanted: int) -> ArrayFormatError:
    return ArrayFormatError(f"{name.text!r} was truncated: it has {size} of {wanted} bytes", name.text)


def _elsewhere(host: str) -> str:
    kernel, _, namespace = host.partition("/")
    if kernel != _kernel():
        return (
            "it is in the memory of another host; send the data instead (numpy.array), or, to the workers of a "
            "Dask cluster, the handle that shmarray.dask.share returns"
        )
    return f"it belongs to a process in another PID namespace ({namespace or 'unknown'}); give it a name"


def host_of_memory(anonymous: bool) -> str:
    """The running kernel and, for anonymous memory, the pid namespace: within it, processes can share."""
    return f"{_kernel()}/{_pid_namespace(os.getpid())}" if anonymous else _kernel()


@lru_cache(maxsize=1)
def _kernel() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return os.uname().nodename


@lru_cache(maxsize=4)
def _pid_namespace(pid: int) -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
