"""Files of numpy memory maps: find a map's file, and map exactly the same file in another process.

A path alone is not enough: by the time the other process opens it, it may refer to another
file, because careful programs save to a new file and rename it.  So device, inode and birth
time are sent with it, and compared before anything is mapped or written.  If the name is gone
by then, the other process opens this one's descriptor while the memory map is in use here.
"""

import errno
import mmap
import os
import stat
from contextlib import suppress
from typing import NamedTuple
from weakref import WeakKeyDictionary

from shmarray.core.posix import files, maps
from shmarray.errors import ArrayFormatError, ArrayNotFoundError, ArrayPermissionError

# These mean that this process lacks a resource, not that the file is missing.
_SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class FileReference(NamedTuple):
    """A reference to a file, for other processes.

    Attributes
    ----------
    path : str
        Its name when it was mapped; also used in messages.
    identity : tuple of int
        Device and inode.
    born : int or None
        When it was created, in nanoseconds, because inodes are reused.
    descriptors : tuple of str
        Paths to its descriptors: this process's, if known, and that of the process that sent
        it here, to which it may be returning.
    """

    path: str
    identity: files.Identity
    born: int | None
    descriptors: tuple[str, ...]


class _Source(NamedTuple):
    """The file of a memory map, which never changes."""

    identity: files.Identity
    born: int | None
    descriptor: int | None


# Cached, because finding one is slow if thousands of files are mapped or open.
_sources: WeakKeyDictionary[mmap.mmap, _Source] = WeakKeyDictionary()
# The descriptor in the process that first sent it.
_origins: WeakKeyDictionary[mmap.mmap, str] = WeakKeyDictionary()


def refer_to_file(mapped: mmap.mmap, address: int, path: str | None, *, writable: bool) -> FileReference | None:
    """Describe how another process finds a memory map's file; None if the data must be sent instead.

    Parameters
    ----------
    mapped : mmap.mmap
    address : int
        The address of any byte in it.
    path : str or None
        The path it was opened with.
    writable : bool
        Whether the other process may write to the file.

    Raises
    ------
    ArrayNotFoundError
        If it is writable, its name refers to another file, and its descriptor cannot be found;
        writes to a copy would be lost.
    """
    there = _identity_of(path)
    if path is None or there is None:
        return None
    source = _source(mapped, address, path)
    if source is not None:
        descriptors = _descriptors(mapped, source)
        if source.identity == there or (writable and descriptors):
            return FileReference(path, source.identity, source.born, descriptors)
    if writable:
        raise ArrayNotFoundError(
            f"{path!r} is no longer the file of this memory map, or that cannot be checked because /proc is not "
            "mounted: send a copy, numpy.array(x), or a map opened with mode 'r'",
            path,
        )
    return None


def _descriptors(mapped: mmap.mmap, source: _Source) -> tuple[str, ...]:
    own = () if source.descriptor is None else (files.descriptor_path(source.descriptor),)
    origin = _origins.get(mapped)
    return own if origin is None else (*own, origin)


def check_is_whole(mapped: mmap.mmap, end: int, path: str | None) -> None:
    """Raise ArrayFormatError if the file ends before `end` (bytes); reading beyond its end is a bus error."""
    try:
        size = mapped.size()
    except (OSError, ValueError):  # it has no descriptor or is closed
        return
    if size < end and not _is_device(path):
        raise _cut_off(path or "", size, end)


def map_referred_file(reference: FileReference, start: int, size: int, *, writable: bool) -> mmap.mmap:
    """Map `size` bytes of the referenced file from `start`, a multiple of the allocation granularity.

    The file is never extended.

    Raises
    ------
    ArrayNotFoundError
        If the name is gone or refers to another file, and the sender has closed its memory map.
    ArrayFormatError
        If the file is shorter than it was.
    ArrayPermissionError
        If this user may not open it.
    OSError
        ENOMEM, EMFILE.
    """
    fd = _opened(reference, writable=writable)
    try:
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        mapped = mmap.mmap(fd, size, access=access, offset=start)
    except ValueError as error:  # mmap checks the file's size
        raise _cut_off(reference.path, os.fstat(fd).st_size, start + size) from error
    finally:
        os.close(fd)
    if reference.descriptors:
        _origins[mapped] = reference.descriptors[-1]
    return mapped


def _opened(reference: FileReference, *, writable: bool) -> int:
    denied: OSError | None = None
    for path in (reference.path, *reference.descriptors):
        try:
            fd = files.open_path(path, writable=writable)
        except OSError as error:
            if error.errno in _SCARCE:
                raise
            if isinstance(error, PermissionError):
                denied = error
            continue
        if files.identity(os.fstat(fd)) == reference.identity and files.birth(fd) == reference.born:
            return fd
        os.close(fd)
    if denied is not None:
        raise ArrayPermissionError(
            f"this user may not open {reference.path!r}, the file of a memory map, or may not write to it",
            reference.path,
        ) from denied
    raise ArrayNotFoundError(
        f"{reference.path!r} was deleted or replaced, and the process that sent a memory map of it has closed the "
        "map: keep the map until the task is done, or send a copy (numpy.array)",
        reference.path,
    )


def _source(mapped: mmap.mmap, address: int, path: str) -> _Source | None:
    known = _sources.get(mapped)
    if known is None or not _is_open(known):
        known = _found(address, path)
        if known is not None:
            _sources[mapped] = known
    return known


def _is_open(source: _Source) -> bool:
    if source.descriptor is None:
        return True
    try:
        return files.identity(os.fstat(source.descriptor)) == source.identity
    except OSError:
        return False


def _found(address: int, path: str) -> _Source | None:
    """The memory map's file, with the descriptor that the map keeps if it can be found."""
    wanted = maps.file_at(address)
    if wanted is None:
        return None
    descriptors = _own_descriptors()
    for fd, status in descriptors:
        if files.identity(status) == (wanted.device, wanted.inode) and (source := _source_at(fd, status)):
            return source
    # On btrfs and overlays the device and inode in maps differ from stat's, so compare names.
    is_named = not wanted.path.endswith(" (deleted)")
    for fd, status in descriptors:
        if (is_named or status.st_ino == wanted.inode) and _name_of(fd) == wanted.path:
            source = _source_at(fd, status)
            if source is not None:
                return source
    there = _identity_of(path)
    if there is not None and is_named and os.path.realpath(path) == wanted.path:
        return _Source(there, files.birth(path), None)
    return None


def _source_at(fd: int, status: os.stat_result) -> _Source | None:
    """The file of a descriptor; None if it was closed meanwhile, as when another map of the file was collected."""
    source = _Source(files.identity(status), files.birth(fd), fd)
    return source if _is_open(source) else None


def _own_descriptors() -> list[tuple[int, os.stat_result]]:
    found = []
    for fd in files.own_descriptors():
        with suppress(OSError):  # closed meanwhile
            found.append((fd, os.fstat(fd)))
    return found


def _name_of(fd: int) -> str:
    try:
        return os.readlink(files.descriptor_path(fd))
    except OSError:
        return ""


def _identity_of(path: str | None) -> files.Identity | None:
    try:
        return None if path is None else files.identity(os.stat(path))
    except OSError:
        return None


def _is_device(path: str | None) -> bool:
    """Whether it is a device, which has no size."""
    try:
        mode = 0 if path is None else os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def _cut_off(path: str, size: int, end: int) -> ArrayFormatError:
    return ArrayFormatError(f"{path!r} was truncated: it has {size} bytes, but a memory map of it needs {end}", path)
