"""Open, name, unlink and lock files."""

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct
from contextlib import suppress
from importlib import import_module
from typing import Any

from shmarray.core.names import Name
from shmarray.core.posix import libc

# glibc's and musl's shm_open is open() in this directory.  A system without it has
# shm_open alone, and no way to list what there is.
SHM_DIRECTORY: str | None = "/dev/shm" if os.path.isdir("/dev/shm") else None

# An unnamed file (O_TMPFILE, Linux 3.11) gets its name by `link`, which may need /proc.
UNNAMED_FILES = hasattr(os, "O_TMPFILE") and os.path.isdir("/proc/self/fd")
MEMFD = hasattr(os, "memfd_create")
# Through it other processes open what has no name, if they have not inherited it.
PROC = os.path.isdir("/proc/self/fd")

_OPENING = os.O_CLOEXEC | os.O_NONBLOCK
# struct statx
_STATX_SIZE, _MASK_AT, _BTIME_AT = 256, 0, 80

Identity = tuple[int, int]
"""Device and inode: the same for every name and descriptor of one file, and not used
again while anything maps it."""


def identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


def is_special(status: os.stat_result) -> bool:
    """Whether it is a device, a pipe, a socket, a directory; shared memory may be of no kind that POSIX names."""
    mode = status.st_mode
    return any(kind(mode) for kind in (stat.S_ISCHR, stat.S_ISBLK, stat.S_ISFIFO, stat.S_ISSOCK, stat.S_ISDIR))


def birth(place: str | int) -> int | None:
    """When a file was made, in nanoseconds since the epoch, by its path or descriptor; None if that is not kept.

    What tells a file from one that was made later: a file system may give the inode of a
    deleted file to the next one (ext4 does at once).
    """
    fd, path = (place, b"") if isinstance(place, int) else (libc.AT_FDCWD, os.fsencode(place))
    found = ctypes.create_string_buffer(_STATX_SIZE)
    if libc.statx is None or libc.statx(fd, path, libc.AT_EMPTY_PATH, libc.STATX_BTIME, found):
        return None
    (mask,) = struct.unpack_from("=I", found, _MASK_AT)
    seconds, nanoseconds = struct.unpack_from("=qI", found, _BTIME_AT)
    return int(seconds * 10**9 + nanoseconds) if mask & libc.STATX_BTIME else None


def is_open_to_others() -> bool:
    """Whether other processes of this user can open this one's descriptors, by `descriptor_path`."""
    # A process that has changed its user is not dumpable, and those of its user may not look into it.
    return PROC and (libc.prctl is None or libc.prctl(libc.PR_GET_DUMPABLE) == 1)


def own_descriptors() -> list[int]:
    """The open descriptors of this process, and that of the listing itself; none where the system has no list."""
    try:
        return [int(entry) for entry in os.listdir("/proc/self/fd")]
    except OSError:
        return []


def descriptor_path(fd: int) -> str:
    """Under which other processes of this user open what a descriptor of this process refers to, whatever its name."""
    return f"/proc/{os.getpid()}/fd/{fd}"


def close_if(fd: int, wanted: os.stat_result) -> None:
    """Close a descriptor, unless it was closed elsewhere, so that its number may belong to another file."""
    with suppress(OSError):
        if os.path.samestat(os.fstat(fd), wanted):
            os.close(fd)


def text(path: str) -> str:
    """The content of a small kernel file.

    Not by open(): its objects, left by a Ctrl-C in the middle, warn that they were not closed.
    """
    parts = []
    fd = libc.at_once(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while part := os.read(fd, 1 << 16):
            parts.append(part)
    finally:
        os.close(fd)
    return b"".join(parts).decode(errors="surrogateescape")


def open_existing(name: Name, flags: int) -> int:
    """Open what has this name; the caller closes it.

    O_NONBLOCK, because opening a fifo would wait for its other end; it means nothing to
    a regular file.  A symbolic link is followed for 'file' only, as by shm_open.
    """
    if name.kind != "shm":
        return _opened(name.path, flags | _OPENING)
    if SHM_DIRECTORY is None:
        return _shm_open(name.path, flags | _OPENING)
    return _opened(f"{SHM_DIRECTORY}/{name.path}", flags | _OPENING | os.O_NOFOLLOW)


def open_path(path: str, *, writable: bool) -> int:
    """Open a file by its path; whatever it is, that neither waits nor changes anything."""
    flags = os.O_RDWR if writable else os.O_RDONLY
    return _opened(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)


def open_exclusive(name: Name, permissions: int) -> int:
    """Make an empty file under a name that must be free; it is visible at once."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    if name.kind == "file":
        return _opened(name.path, flags, permissions)
    if SHM_DIRECTORY is None:
        return _shm_open(name.path, flags, permissions)
    return _opened(_path(name), flags | os.O_NOFOLLOW, permissions)


def open_unnamed(name: Name, permissions: int) -> int | None:
    """Make an empty file without a name, where `name` will be; None if the system cannot.

    Unless `link` names it, it is gone with its last descriptor and mapping, however the
    process ends.
    """
    if not UNNAMED_FILES or (name.kind == "shm" and SHM_DIRECTORY is None):
        return None
    directory = SHM_DIRECTORY if name.kind == "shm" else os.path.dirname(name.path)
    try:
        return _opened(directory or ".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, permissions)
    except OSError as error:
        # EISDIR: a kernel that does not know O_TMPFILE sees an attempt to open the directory.
        if error.errno in {*libc.REFUSALS, errno.EISDIR}:
            return None
        raise


def open_anonymous() -> int | None:
    """Make memory that has no name anywhere, neither bound by the size of /dev/shm; None if the system cannot."""
    if not MEMFD:
        return None
    try:
        return libc.at_once(os.memfd_create, "shmarray", os.MFD_CLOEXEC)
    except OSError as error:
        if error.errno in libc.REFUSALS:  # seccomp, vm.memfd_noexec
            return None
        raise


def open_unlinked() -> int | None:
    """Make shared memory whose name is gone at once; None if the system cannot.

    In place of `open_anonymous`: bounded by the size of /dev/shm, and only a process killed
    between two system calls leaves the name.
    """
    while True:
        path = f"shmarray-{os.getpid()}-{os.urandom(5).hex()}"  # macOS allows 30 characters
        name = Name(path, "shm", path)
        try:
            fd = open_exclusive(name, 0o600)
        except FileExistsError:
            continue
        except OSError:
            return None
        try:
            unlink(name)
        except BaseException:
            os.close(fd)
            raise
        return fd


def link(fd: int, name: Name) -> bool:
    """Give an unnamed file its name; False if the system does not do that.

    Raises
    ------
    FileExistsError
        If the name is taken, even by a dangling link.
    """
    path = _path(name)
    # Needs no /proc and is faster.  Kernels before 6.10 require a capability for it
    # (CAP_DAC_READ_SEARCH) and fail with ENOENT.
    if not libc.linkat(fd, b"", libc.AT_FDCWD, os.fsencode(path), libc.AT_EMPTY_PATH):
        return True
    if ctypes.get_errno() not in {*libc.REFUSALS, errno.ENOENT}:
        raise libc.last_error()
    try:
        # Given a directory descriptor CPython calls linkat with AT_SYMLINK_FOLLOW; without one
        # it calls link, which links the symbolic link in /proc itself: EXDEV.  The source is
        # absolute, so that the kernel does not look at the descriptor.
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)
    except OSError as error:
        # ENOENT: no /proc, or no such directory any more, as the other way will find out.
        if error.errno in {*libc.REFUSALS, errno.ENOENT, errno.EXDEV}:
            return False
        raise
    return True


def change_mode(fd: int, permissions: int) -> None:
    """Set the permissions; where shared memory objects refuse that, as on macOS, fewer stay: those the umask left."""
    try:
        os.fchmod(fd, permissions)
    except OSError as error:
        if error.errno not in libc.REFUSALS or os.fstat(fd).st_mode & 0o777 & ~permissions:
            raise


def unlink(name: Name) -> None:
    """Remove the name; the memory is freed with its last mapping and descriptor."""
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


def path_of(name: Name) -> str | None:
    """The file's path; None where shared memory is in no directory."""
    return None if name.kind == "shm" and SHM_DIRECTORY is None else _path(name)


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
            errno.ENOTSUP, "this system cannot list its shared memory objects; attach arrays by the names you gave them"
        )
    with os.scandir(SHM_DIRECTORY) as entries:
        return [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]


def _opened(path: str, flags: int, permissions: int = 0) -> int:
    return libc.at_once(os.open, path, flags, permissions)


def _shm_open(path: str, flags: int, permissions: int = 0) -> int:
    return libc.at_once(_posixshmem().shm_open, f"/{path}", flags, permissions)


def _posixshmem() -> Any:
    # The basis of multiprocessing.shared_memory; private, but unchanged from 3.8 to 3.14.
    return import_module("_posixshmem")


def read_start(fd: int, count: int) -> bytes:
    """The first `count` bytes of a file, or all if it has fewer."""
    try:
        return os.pread(fd, count, 0)
    except OSError as error:
        # macOS: a shared memory object can only be mapped.
        size = os.fstat(fd).st_size
        if error.errno not in libc.REFUSALS or not size:
            raise
        with mmap.mmap(fd, min(count, size), prot=mmap.PROT_READ) as view:
            return view[:]


def flock(fd: int, *, shared: bool, wait: bool) -> bool:
    """Lock the open file; False if another has it and `wait` is False."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in libc.REFUSALS:
            why = "this system cannot lock such a file: lock a file:// array or a file of your own instead"
            raise OSError(errno.ENOTSUP, why) from error
        raise
    return True
