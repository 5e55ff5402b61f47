"""Files that numpy has mapped: which file that is, and how another process maps the same and no other.

A path alone will not do: when the other process opens it, it may be another file's, because
careful programs save to a new file and rename it.  So device, inode and time of birth go
with it, and are compared before anything is mapped or written.  If the name is gone by then,
the other process opens this one's descriptor, for as long as the memory map is in use here.
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

# The file may be there; what is missing is this process's.
_SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class FileReference(NamedTuple):
    """A file, for other processes.

    Attributes
    ----------
    path : str
        Its name when it was mapped; for messages too.
    identity : tuple of int
        Device and inode.
    born : int or None
        When it was made, in nanoseconds: inodes are used again.
    descriptors : tuple of str
        Paths to descriptors of it: this process's, if it is known, and that of the process
        that sent it here, to which it may be on its way back.
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


# To find one takes milliseconds where thousands of files are mapped or open.
_sources: WeakKeyDictionary[mmap.mmap, _Source] = WeakKeyDictionary()
# The descriptor in the process that sent it first.
_origins: WeakKeyDictionary[mmap.mmap, str] = WeakKeyDictionary()


def refer_to_file(mapped: mmap.mmap, address: int, path: str | None, *, writable: bool) -> FileReference | None:
    """Say how another process finds the file of a memory map; None if its data must be sent instead.

    Parameters
    ----------
    mapped : mmap.mmap
    address : int
        Of any byte in it.
    path : str or None
        What it was opened as.
    writable : bool
        Whether the other process is to write to the file.

    Raises
    ------
    ArrayNotFoundError
        If it is writable, its name is another file's and its descriptor cannot be found: what
        the other process wrote to a copy would be lost.
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
    """Raise ArrayFormatError if the file ends before `end`, in bytes: to read what was cut off is a bus error."""
    try:
        size = mapped.size()
    except (OSError, ValueError):  # it keeps no descriptor, or is closed
        return
    if size < end and not _is_device(path):
        raise _cut_off(path or "", size, end)


def map_referred_file(reference: FileReference, start: int, size: int, *, writable: bool) -> mmap.mmap:
    """Map `size` bytes of the file that is meant, from `start`, a multiple of the allocation granularity.

    The file is never made longer.

    Raises
    ------
    ArrayNotFoundError
        If the name is gone or another file's, and the sender has let go of its memory map.
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
    except ValueError as error:  # mmap compares with the file's size itself
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
    """The descriptor that the memory map keeps, or at least the file."""
    wanted = maps.file_at(address)
    if wanted is None:
        return None
    descriptors = _own_descriptors()
    for fd, status in descriptors:
        if files.identity(status) == (wanted.device, wanted.inode) and (source := _source_at(fd, status)):
            return source
    # On btrfs and overlays the kernel's numbers in maps are others than in stat: by name then.
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
    """The file of a descriptor; None if that is closed by now, as when another map of the file became garbage."""
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
    """Whether it is what has no size."""
    try:
        mode = 0 if path is None else os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def _cut_off(path: str, size: int, end: int) -> ArrayFormatError:
    return ArrayFormatError(f"{path!r} was cut off: it has {size} bytes, and a memory map of it goes to {end}", path)
