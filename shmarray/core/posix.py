"""The only module that talks to the kernel about segments: open, publish, reserve, map, unlink.

What a system can do is found out by trying, and remembered; nothing is decided by its name.
The names in capitals are such findings, and the tests turn them off to take the other way.
"""

import ctypes
import errno
import fcntl
import mmap
import operator
import os
import sys
import weakref
from collections.abc import Callable
from functools import lru_cache, partial
from importlib import import_module
from typing import Any

from shmarray.core.names import Name
from shmarray.errors import (
    ArrayExistsError,
    ArrayFormatError,
    ArrayNotFoundError,
    InvalidNameError,
    SharedMemoryFullError,
)

# glibc's and musl's shm_open is open() in this directory.  A system without it has
# shm_open alone, and no way to list what there is.
SHM_DIRECTORY: str | None = "/dev/shm" if os.path.isdir("/dev/shm") else None

# An unnamed file (O_TMPFILE, Linux 3.11) gets its name by `link`, which may need /proc.
UNNAMED_FILES = hasattr(os, "O_TMPFILE") and os.path.isdir("/proc/self/fd")
MEMFD = hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd")

PAGE = os.sysconf("SC_PAGESIZE")
# A huge page on x86-64, and on arm64 with pages of 4 kB.  Smaller arrays cannot hold one.
HUGE_PAGE = 2 << 20
# posix_fallocate of tmpfs gives up and starts again when a signal arrives: a program with
# an interval timer would never get through several GB in one call.
_SLICE = 16 << 20

# Values from sys/mman.h; Python has no names for them.
MS_ASYNC, MS_INVALIDATE, MS_SYNC = (1, 2, 4) if sys.platform == "linux" else (1, 2, 16)
_PROT_READ, _PROT_WRITE = 1, 2
_MAP_SHARED, _MAP_PRIVATE = 1, 2
_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000
_MAP_FIXED = 0x10
_MADV_DONTNEED, _MADV_REMOVE, _MADV_HUGEPAGE, _MADV_POPULATE_READ, _MADV_POPULATE_WRITE = 4, 9, 14, 22, 23
_FALLOC_KEEP_SIZE, _FALLOC_PUNCH_HOLE = 1, 2

# Not the mmap module: before 3.13 its objects hold a duplicate of the descriptor for as
# long as they live, and 20,000 arrays are not to need 20,000 descriptors.
_libc = ctypes.CDLL(None, use_errno=True)
_map = _libc.mmap
_map.restype = ctypes.c_void_p
_map.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
for _call in (_libc.munmap, _libc.mlock, _libc.munlock):
    _call.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
for _call in (_libc.madvise, _libc.msync):
    _call.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
if hasattr(_libc, "fallocate"):
    _libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
_libc.linkat.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
# Called as it is, at times when this module may be empty already.
munmap: Callable[[int, int], int] = _libc.munmap
_FAILED = ctypes.c_void_p(-1).value

Identity = tuple[int, int]
"""Device and inode: the same for every name and descriptor of one file, and not used
again while anything maps it."""


def identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


# --- opening and naming --------------------------------------------------------------


def open_existing(name: Name, flags: int) -> int:
    """Open what has this name; the caller closes it.

    O_NONBLOCK, because opening a fifo would wait for its other end; it means nothing to
    a regular file.  A symbolic link is followed for 'file' only, as by shm_open.
    """
    flags |= os.O_CLOEXEC | os.O_NONBLOCK
    if name.kind != "shm":
        return os.open(name.path, flags)
    if SHM_DIRECTORY is None:
        return _shm_open(name.path, flags)
    return os.open(_path(name), flags | os.O_NOFOLLOW)


def open_exclusive(name: Name, permissions: int) -> int:
    """Make an empty file under a name that must be free; it is visible at once."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    if name.kind == "file":
        return os.open(name.path, flags, permissions)
    if SHM_DIRECTORY is None:
        return _shm_open(name.path, flags, permissions)
    return os.open(_path(name), flags | os.O_NOFOLLOW, permissions)


def open_unnamed(name: Name, permissions: int) -> int | None:
    """Make an empty file without a name, where `name` will be; None if the system cannot.

    Unless `link` names it, it is gone with its last descriptor and mapping, however the
    process ends.
    """
    if not UNNAMED_FILES or (name.kind == "shm" and SHM_DIRECTORY is None):
        return None
    directory = SHM_DIRECTORY if name.kind == "shm" else os.path.dirname(name.path)
    try:
        return os.open(directory or ".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, permissions)
    except OSError as error:
        # EISDIR: a kernel that does not know O_TMPFILE sees an attempt to open the directory.
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            return None
        raise


def open_anonymous() -> int | None:
    """Make memory that has no name anywhere, neither bound by the size of /dev/shm; None if the system cannot."""
    return os.memfd_create("shmarray", os.MFD_CLOEXEC) if MEMFD else None


def link(fd: int, name: Name) -> None:
    """Give an unnamed file its name; fails if the name is taken, even by a dangling link."""
    path = _path(name)
    # Needs no /proc and is 2 us faster than going there.  Kernels before 6.10 want a
    # capability for it (CAP_DAC_READ_SEARCH) and say ENOENT.
    if not _libc.linkat(fd, b"", _AT_FDCWD, os.fsencode(path), _AT_EMPTY_PATH):
        return
    if ctypes.get_errno() != errno.ENOENT:
        raise _os_error(ctypes.get_errno())
    # Given a directory descriptor CPython calls linkat with AT_SYMLINK_FOLLOW; without one
    # it calls link, which links the symbolic link in /proc itself: EXDEV.  The source is
    # absolute, so that the kernel does not look at the descriptor.
    os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)


def unlink(name: Name) -> None:
    """Take the name away; the memory goes with its last mapping and descriptor."""
    if name.kind == "shm" and SHM_DIRECTORY is None:
        _posixshmem().shm_unlink(f"/{name.path}")
    else:
        os.unlink(_path(name))


def taken(name: Name) -> bool:
    """Whether anything has this name now: a hint, and False where one cannot look."""
    return not (name.kind == "shm" and SHM_DIRECTORY is None) and os.path.lexists(_path(name))


def identity_of(name: Name) -> Identity | None:
    """What file the name is now; None if it is none, or if one would have to open it to know."""
    if name.kind == "shm" and SHM_DIRECTORY is None:
        return None
    try:
        return identity(os.stat(_path(name), follow_symlinks=name.kind != "shm"))
    except OSError:
        return None


def is_name_of(name: Name, wanted: Identity) -> bool:
    """Whether the name is still that file's, neither gone nor another's.

    By stat where there is a directory: the array may be one that its owner may not read.
    """
    if name.kind != "shm" or SHM_DIRECTORY is not None:
        return identity_of(name) == wanted
    try:
        fd = open_existing(name, os.O_RDONLY)
    except PermissionError:
        return True  # not to be known: it may be ours, and the kernel keeps us from removing others'
    except OSError:
        return False
    try:
        return identity(os.fstat(fd)) == wanted
    finally:
        os.close(fd)


def _path(name: Name) -> str:
    return f"{SHM_DIRECTORY}/{name.path}" if name.kind == "shm" else name.path


def file_names() -> list[str]:
    """Names of the regular files in shared memory, in any order.

    Raises
    ------
    OSError
        With ENOTSUP, where the system has no list of them.
    """
    if SHM_DIRECTORY is None:
        raise OSError(
            errno.ENOTSUP, "this system cannot list its shared memory objects; attach them by the names you gave them"
        )
    with os.scandir(SHM_DIRECTORY) as entries:
        return [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]


def _shm_open(path: str, flags: int, permissions: int = 0) -> int:
    return int(_posixshmem().shm_open(f"/{path}", flags, mode=permissions))


def _posixshmem() -> Any:
    # What multiprocessing.shared_memory is made of; private, but unchanged from 3.8 to 3.14.
    return import_module("_posixshmem")


def read_start(fd: int, count: int) -> bytes:
    """The first `count` bytes of a file, or all if it has fewer."""
    try:
        return os.pread(fd, count, 0)
    except OSError as error:
        # macOS: a shared memory object can be mapped, and nothing else.
        size = os.fstat(fd).st_size
        if error.errno not in (errno.ENXIO, errno.EINVAL, errno.ENODEV, errno.EOPNOTSUPP) or not size:
            raise
        with mmap.mmap(fd, min(count, size), prot=mmap.PROT_READ) as view:
            return view[:]


# --- space ---------------------------------------------------------------------------


def reserve(fd: int, size: int, offset: int = 0) -> None:
    """Give the file `size` bytes from `offset` that are really there, zeroed; OSError with ENOSPC if they are not.

    ftruncate would succeed past the end of the space, and the first write die of SIGBUS.
    """
    try:
        for start in range(0, size, _SLICE):
            os.posix_fallocate(fd, offset + start, min(_SLICE, size - start))
    except (AttributeError, OSError) as error:
        # macOS has no such call, and FreeBSD's does not take shared memory objects: there
        # memory is not limited by a file system, and a size is all one can ask for.
        if isinstance(error, OSError) and error.errno not in (errno.EINVAL, errno.ENODEV, errno.EOPNOTSUPP):
            raise
        if os.fstat(fd).st_size < offset + size:
            os.ftruncate(fd, offset + size)


def punch(fd: int, size: int, offset: int) -> None:
    """Give the memory of part of a file back to the system; it reads as zeros then, for all who map it."""
    _succeeded(_libc.fallocate(fd, _FALLOC_KEEP_SIZE | _FALLOC_PUNCH_HOLE, offset, size))


def populate(address: int, size: int) -> bool:
    """Fault in the pages of a writable mapping, which reserves them; False if the kernel cannot (before 5.14)."""
    for start in range(0, size, _SLICE):
        if _libc.madvise(address + start, min(_SLICE, size - start), _MADV_POPULATE_WRITE):
            code = ctypes.get_errno()
            if code == errno.EINVAL:
                return False
            # EFAULT is how it says that a write there would be a SIGBUS: no space.
            raise _os_error(errno.ENOSPC if code == errno.EFAULT else code)
    return True


def fault_in(address: int, size: int) -> None:
    """Enter pages that exist already into the page table, in one call instead of a fault for each.

    Measured, 16 MB of a shared mapping: 1.2 ms, and writing it then 0.8; writing it without,
    5.1 (a fault for every page; reading takes them in by sixteen).  Populating for writing
    takes 3.5, and is not needed: pages of shared memory become writable when they are read.

    Advice: kernels before 5.14 refuse it, and nothing is lost.
    """
    _libc.madvise(address, size, _MADV_POPULATE_READ)


def write(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of it: a single pwrite stops at 2 GiB, or when a signal arrives."""
    done = os.pwrite(fd, data, offset)
    rest = memoryview(data)[done:]
    while rest:
        done = os.pwrite(fd, rest, offset := offset + done)
        rest = rest[done:]


def truncate(fd: int, size: int) -> None:
    """Set the size without reserving: what is not written or populated then is a SIGBUS."""
    os.ftruncate(fd, size)


def free_bytes(fd: int) -> int | None:
    """What the file system still has for this user; None if it has no limit of its own."""
    status = os.fstatvfs(fd)
    return status.f_bavail * status.f_frsize if status.f_blocks else None


@lru_cache(maxsize=2)
def huge_pages_on_advice(*, anonymous: bool) -> bool:
    """Whether shared memory has huge pages only for those who fault them in through an advised mapping.

    Measured, 64 MB in a tmpfs mounted huge=advise: reserved with posix_fallocate and
    copied into, 52 ms; advised, populated and copied into, 7 ms.  With huge=always or
    within_size, posix_fallocate and pwrite take huge pages by themselves (5 ms); with
    huge=never populating costs twice as much as posix_fallocate and gains nothing.
    """
    try:
        if anonymous:
            with open("/sys/kernel/mm/transparent_hugepage/shmem_enabled", encoding="utf-8") as setting:
                return "[advise]" in setting.read()
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            options = [line.rsplit(" ", 1)[1] for line in mounts if line.split()[4] == SHM_DIRECTORY]
    except OSError:
        return False
    return bool(options) and "huge=advise" in options[-1]


# --- mapping -------------------------------------------------------------------------


def map_file(fd: int, size: int, writable: bool, private: bool, offset: int = 0) -> int:
    """Map part of a file and return its address; it holds no descriptor.

    Raises
    ------
    OSError
        ENOMEM: no address space (RLIMIT_AS) or no further mapping (vm.max_map_count) is to be had.
    """
    protection = _PROT_READ | (_PROT_WRITE if writable else 0)
    address: int = _map(None, size, protection, _MAP_PRIVATE if private else _MAP_SHARED, fd, offset)
    if address == _FAILED:
        code = ctypes.get_errno()
        if code == errno.ENOMEM:
            raise OSError(
                code,
                f"cannot map {size} bytes: the process has no address space left (ulimit -v), "
                f"or as many mappings as vm.max_map_count allows ({_map_limit()})",
            )
        raise _os_error(code)
    if size >= HUGE_PAGE:
        # Advice: EINVAL where the kernel has no huge pages, and nothing is lost.
        _libc.madvise(address, size, _MADV_HUGEPAGE)
    return address


def make_private(address: int, size: int, fd: int, offset: int) -> None:
    """Replace a shared mapping of part of a file by a private, writable one, at the same place.

    The kernel does it in one step: threads that read or write there meanwhile see the one
    or the other, and no write is lost.
    """
    flags = _MAP_PRIVATE | _MAP_FIXED
    if _map(address, size, _PROT_READ | _PROT_WRITE, flags, fd, offset) == _FAILED:
        raise _os_error(ctypes.get_errno())


def discard_writes(address: int, size: int) -> None:
    """Make a private mapping show its file again; OSError with EINVAL if it is locked into memory."""
    _succeeded(_libc.madvise(address, size, _MADV_DONTNEED))


class Unmapping(weakref.ref[Any]):
    """Calls munmap when the owner of a range, which holds this, is gone.

    Not the owner's ``__del__``: weak references still answer while that runs, and could
    hand another thread an owner whose range is being unmapped.  Nor any function in Python:
    a Ctrl-C that came while it ran would be reported, and lost.  So the callback is munmap
    itself, which gets this reference as one argument too many, and for that as a number.

    Only for an owner that ndarrays alone refer to: they are no part of cycles for the
    garbage collector, which would drop owner and reference together, without the callback.
    """

    __slots__ = ()
    _as_parameter_ = 0

    @classmethod
    def of(cls, owner: object, address: int, size: int) -> "Unmapping":
        return cls(owner, partial(munmap, address, size))

    @classmethod
    def removing(cls, owner: object, address: int, size: int) -> "Unmapping":
        """Not unmap, but give the memory back to the system: who else maps it sees zeros."""
        return cls(owner, partial(_libc.madvise, address, size, _MADV_REMOVE))


def msync(address: int, size: int, flags: int) -> None:
    _succeeded(_libc.msync(address, size, operator.index(flags)))


def mlock(address: int, size: int) -> None:
    if _libc.mlock(address, size):
        code = ctypes.get_errno()
        if code in (errno.ENOMEM, errno.EPERM, errno.EAGAIN):
            raise OSError(code, f"cannot lock {size} bytes into memory: raise the limit (ulimit -l)")
        raise _os_error(code)


def munlock(address: int, size: int) -> None:
    _succeeded(_libc.munlock(address, size))


def _succeeded(result: int) -> None:
    """Raise what a call of libc left in errno, if it gave anything but 0."""
    if result:
        raise _os_error(ctypes.get_errno())


def _os_error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def _map_limit() -> str:
    try:
        # Not open(): its buffers would need memory, and none can be mapped just now.
        fd = os.open("/proc/sys/vm/max_map_count", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return "unknown"
    try:
        return os.read(fd, 32).decode().strip()
    finally:
        os.close(fd)


def inode_at(address: int) -> int | None:
    """Inode of the file that is mapped at an address of this process; None if that cannot be known."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                span, _, _, _, inode, *_ = line.split()
                start, end = span.split("-")
                if int(start, 16) <= address < int(end, 16):
                    return int(inode)
    except OSError:
        pass
    return None


# --- locking -------------------------------------------------------------------------


def flock(fd: int, *, shared: bool, wait: bool) -> bool:
    """Lock the open file; False if another has it and `wait` is False."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


# --- errors --------------------------------------------------------------------------


_EXPLANATIONS: dict[int, tuple[Callable[[str, str], OSError], str]] = {
    errno.ENOENT: (ArrayNotFoundError, "there is no shared array {!r}"),
    errno.EEXIST: (
        ArrayExistsError,
        "the name {!r} is taken: attach, require or delete it (a file that is no array: remove it)",
    ),
    errno.ENAMETOOLONG: (InvalidNameError, "the name {!r} is too long for this system"),
    errno.ELOOP: (ArrayFormatError, "{!r} is a symbolic link, not an array"),
    errno.EISDIR: (ArrayFormatError, "{!r} is a directory, not an array"),
    errno.ESPIPE: (ArrayFormatError, "{!r} is a pipe, not an array"),
    errno.ENXIO: (ArrayFormatError, "{!r} is a socket or a device, not an array"),
    errno.ENODEV: (ArrayFormatError, "{!r} cannot be mapped, so it is no array"),
    errno.ENOSPC: (SharedMemoryFullError, "no space for {!r}: the file system has no room for another file"),
}


def explained(error: OSError, name: Name) -> OSError:
    """The library's error for what a system call said about `name`."""
    code = error.errno or 0
    if name.kind == "anonymous":
        return _explained_anonymous(error, name)
    if code == errno.ENOENT and name.kind == "file" and os.path.islink(name.path):
        return ArrayFormatError(f"{name.text!r} is a symbolic link to nothing", name.text)
    if code in _EXPLANATIONS:
        kind, text = _EXPLANATIONS[code]
        return kind(text.format(name.text), name.text)
    # The same class (PermissionError, ...), about the name that the caller knows.
    return OSError(code, error.strerror, name.text)


def _explained_anonymous(error: OSError, name: Name) -> OSError:
    """Why another process's descriptor cannot be opened; its number may be another file's by now."""
    code = error.errno or 0
    if code in (errno.EACCES, errno.EPERM):
        why = (
            "anonymous memory can be opened by processes of the same user only, and not if its owner is "
            "not dumpable (PR_SET_DUMPABLE); give it a name"
        )
        return OSError(code, why, name.text)
    if code not in _EXPLANATIONS:
        return OSError(code, error.strerror, name.text)
    gone = "the process that made it has left its scope, or ended"
    return unreachable(name, gone if os.path.isdir("/proc/self/fd") else "/proc is not mounted here")


def unreachable(name: Name, why: str) -> ArrayNotFoundError:
    return ArrayNotFoundError(f"the shared array {name.text!r} cannot be reached: {why}", name.text)
