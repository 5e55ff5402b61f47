"""Reserve, write and free the memory of a file."""

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from shmarray.core.posix import files, libc

PAGE = os.sysconf("SC_PAGESIZE")
# A huge page on x86-64, and on arm64 with pages of 4 kB.  Smaller arrays cannot hold one.
HUGE_PAGE = 2 << 20
# posix_fallocate of tmpfs gives up and starts again when a signal arrives: a program with
# an interval timer would never get through several GB in one call.
_SLICE = 16 << 20


def reserve(fd: int, size: int, offset: int = 0) -> None:
    """Give the file `size` bytes from `offset` that are really there, zeroed; OSError with ENOSPC if they are not.

    ftruncate would succeed past the end of the space, and the first write die of SIGBUS.
    """
    try:
        for start in range(0, size, _SLICE):
            os.posix_fallocate(fd, offset + start, min(_SLICE, size - start))
    except AttributeError:
        _reserve_otherwise(fd, size, offset)
    except OSError as error:
        if error.errno not in libc.REFUSALS:
            raise
        _reserve_otherwise(fd, size, offset)


def _reserve_otherwise(fd: int, size: int, offset: int) -> None:
    """Without posix_fallocate: macOS has none, FreeBSD's takes no shared memory objects."""
    end = offset + size
    if os.fstat(fd).st_size < end:  # macOS lets it be set once
        os.ftruncate(fd, end)
    offset -= offset % PAGE
    with _mapped(fd, end - offset, offset) as address:
        if populate(address, end - offset):
            return
    try:
        for page in range(offset, end, PAGE):
            os.pwrite(fd, os.pread(fd, 1, page), page)
    except OSError as error:
        # macOS neither reads nor writes shared memory objects.  Memory is not limited by a
        # file system there, and a size is all one can ask for.
        if error.errno not in libc.REFUSALS:
            raise


@contextmanager
def _mapped(fd: int, size: int, offset: int) -> Iterator[int]:
    """Part of a file, mapped for a moment."""
    address = libc.mmap(None, size, libc.PROT_READ | libc.PROT_WRITE, libc.MAP_SHARED, fd, offset)
    if address == libc.MAP_FAILED:
        raise libc.last_error()
    try:
        yield address
    finally:
        libc.munmap(address, size)


def punch(fd: int, size: int, offset: int) -> None:
    """Return the memory of part of a file to the system; all processes that map it then read zeros.

    Raises
    ------
    OSError
        If the system cannot: the memory, and what is in it, stays.
    """
    if not libc.fallocate(fd, libc.FALLOC_KEEP_SIZE | libc.FALLOC_PUNCH_HOLE, offset, size):
        return
    if ctypes.get_errno() not in libc.REFUSALS:
        raise libc.last_error()
    with _mapped(fd, size, offset) as address:
        libc.succeeded(libc.madvise(address, size, libc.MADV_REMOVE))


def populate(address: int, size: int) -> bool:
    """Fault in the pages of a writable mapping, which reserves them; False if the kernel cannot, as before 5.14."""
    for start in range(0, size, _SLICE):
        if libc.madvise(address + start, min(_SLICE, size - start), libc.MADV_POPULATE_WRITE):
            code = ctypes.get_errno()
            if code in libc.REFUSALS:
                return False
            # EFAULT is how it says that a write there would be a SIGBUS: no space.
            raise libc.error_of(errno.ENOSPC if code == errno.EFAULT else code)
    return True


def fault_in(address: int, size: int) -> None:
    """Enter pages that exist already into the page table, in one call instead of a fault for each.

    For reading, which takes pages in by sixteen: pages of shared memory become writable when they
    are read, and populating for writing takes three times as long.

    Advice: kernels before 5.14 refuse it, and nothing is lost.
    """
    libc.madvise(address, size, libc.MADV_POPULATE_READ)


def page_entries(address: int, size: int) -> bytes:
    """What the kernel tells of each page of this process in a range: 8 bytes each (``man 5 proc``, pagemap).

    Raises
    ------
    OSError
        Where there is no such file.
    """
    first, end = address // PAGE, -(-(address + size) // PAGE)
    parts = []
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(8 * first)
        while first < end:
            part = pagemap.read(8 * (end - first))
            if not part:
                break
            parts.append(part)
            first += len(part) // 8
    return b"".join(parts)


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
    """What the file system still has for this user; None if it has no limit of its own, or none that it tells."""
    try:
        status = os.fstatvfs(fd)
    except OSError:  # a shared memory object of a system where that is no file
        return None
    return status.f_bavail * status.f_frsize if status.f_blocks else None


@lru_cache(maxsize=2)
def huge_pages_on_advice(*, anonymous: bool) -> bool:
    """Whether shared memory has huge pages only for those who fault them in through an advised mapping.

    Then an advised mapping is worth it.  With huge=always or within_size, posix_fallocate and
    pwrite take huge pages by themselves; with huge=never, populating gains nothing.
    """
    try:
        if anonymous:
            with open("/sys/kernel/mm/transparent_hugepage/shmem_enabled", encoding="utf-8") as setting:
                return "[advise]" in setting.read()
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            options = [line.rsplit(" ", 1)[1] for line in mounts if line.split()[4] == files.SHM_DIRECTORY]
    except OSError:
        return False
    return bool(options) and "huge=advise" in options[-1]
