"""Map parts of a file into the address space of this process."""

import ctypes
import errno
import mmap
import operator
import os
import sys
import weakref
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from shmarray.core.posix import files, libc
from shmarray.core.posix.libc import munmap
from shmarray.core.posix.pages import HUGE_PAGE


def map_file(fd: int, size: int, writable: bool, private: bool, offset: int = 0) -> int:
    """Map part of a file and return its address; it holds no descriptor.

    Raises
    ------
    OSError
        ENOMEM: no address space (RLIMIT_AS) or no further mapping (vm.max_map_count) is to be had.
    """
    protection = libc.PROT_READ | (libc.PROT_WRITE if writable else 0)
    kind = libc.MAP_PRIVATE if private else libc.MAP_SHARED
    address = libc.at_once(libc.mmap, None, size, protection, kind, fd, offset)
    if address == libc.MAP_FAILED:
        raise _not_mapped(size, libc.last_error())
    if size >= HUGE_PAGE:
        try:
            # Advice: EINVAL where the kernel has no huge pages, and nothing is lost.
            libc.madvise(address, size, libc.MADV_HUGEPAGE)
        except BaseException:
            munmap(address, size)
            raise
    return address


def _not_mapped(size: int, error: OSError) -> OSError:
    if error.errno != errno.ENOMEM:
        return error
    why = (
        f"cannot map {size} bytes: the process has no address space left (ulimit -v) "
        f"or has reached the limit of mappings, vm.max_map_count ({_map_limit()})"
    )
    return OSError(errno.ENOMEM, why)


def make_private(address: int, size: int, fd: int, offset: int) -> None:
    """Replace a shared mapping of part of a file by a private, writable one, at the same place.

    The kernel does it in one step: threads that read or write there meanwhile see the one
    or the other, and no write is lost.
    """
    flags = libc.MAP_PRIVATE | libc.MAP_FIXED
    if libc.mmap(address, size, libc.PROT_READ | libc.PROT_WRITE, flags, fd, offset) == libc.MAP_FAILED:
        raise libc.last_error()


def discard_writes(address: int, size: int) -> None:
    """Make a private mapping show its file again; OSError with EINVAL if it is locked into memory."""
    libc.succeeded(libc.madvise(address, size, libc.MADV_DONTNEED))


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


class Freeing(Unmapping):
    """The same, but gives memory back to the system: other processes that map it see zeros."""

    __slots__ = ()

    @classmethod
    def of_pages(cls, owner: object, address: int, size: int) -> Self:
        return cls(owner, partial(libc.madvise, address, size, libc.MADV_REMOVE))

    @classmethod
    def of_file(cls, owner: object, fd: int, offset: int, size: int) -> Self:
        """As above, where there is no MADV_REMOVE; the owner keeps the descriptor open."""
        mode = libc.FALLOC_KEEP_SIZE | libc.FALLOC_PUNCH_HOLE
        return cls(owner, partial(libc.fallocate, fd, mode, offset, size))


def can_remove(address: int) -> bool:
    """Whether the system gives memory back that is mapped; of no bytes at this address, it is only asked."""
    return not libc.madvise(address, 0, libc.MADV_REMOVE)


if sys.version_info >= (3, 13):

    class Range(mmap.mmap):
        """A file from its beginning in the address space, until this is garbage; it holds no descriptor.

        Attributes
        ----------
        address, nbytes : int
            Bytes.  The address costs a microsecond at each look.
        """

        __slots__ = ("nbytes",)
        nbytes: int

        @classmethod
        def of_file(cls, fd: int, nbytes: int, writable: bool, private: bool) -> Self:
            """Map `nbytes`, which the file must have; raises as `map_file` does."""
            protection = libc.PROT_READ | (libc.PROT_WRITE if writable else 0)
            kind = libc.MAP_PRIVATE if private else libc.MAP_SHARED
            try:
                self = mmap.mmap.__new__(cls, fd, nbytes, kind, protection, trackfd=False)
            except ValueError as error:
                raise OSError(errno.EIO, f"the file was truncated while it was being opened: {error}") from None
            except OSError as error:
                raise _not_mapped(nbytes, error) from None
            self.nbytes = nbytes
            if nbytes >= HUGE_PAGE:
                libc.madvise(self.address, nbytes, libc.MADV_HUGEPAGE)  # see map_file
            return self

        @property
        def address(self) -> int:
            return int(self.octets().ctypes.data)

        def octets(self) -> NDArray[np.uint8]:
            """The whole range; the array keeps it mapped, not the other way round."""
            return np.frombuffer(self, np.uint8)

else:

    class Range:
        """As above.  Not an mmap.mmap: before 3.13 that holds a duplicate of the descriptor."""

        __slots__ = ("__array_interface__", "__weakref__", "_unmapping", "address", "nbytes")
        __array_interface__: dict[str, Any]
        _unmapping: Unmapping
        address: int
        nbytes: int

        @classmethod
        def of_file(cls, fd: int, nbytes: int, writable: bool, private: bool) -> Self:
            self = object.__new__(cls)
            self.address = address = map_file(fd, nbytes, writable, private)
            try:
                self._unmapping = Unmapping(self, partial(munmap, address, nbytes))
            except BaseException:  # a Ctrl-C
                munmap(address, nbytes)
                raise
            self.nbytes = nbytes
            self.__array_interface__ = {
                "version": 3,
                "typestr": "|u1",
                "shape": (nbytes,),
                "data": (address, not writable),
            }
            return self

        def octets(self) -> NDArray[np.uint8]:
            return np.asarray(self)


def msync(address: int, size: int, flags: int) -> None:
    libc.succeeded(libc.msync(address, size, operator.index(flags)))


def mlock(address: int, size: int) -> None:
    if libc.mlock(address, size):
        code = ctypes.get_errno()
        if code in (errno.ENOMEM, errno.EPERM, errno.EAGAIN):
            raise OSError(code, f"cannot lock {size} bytes into memory: raise the limit (ulimit -l)")
        raise libc.error_of(code)


def munlock(address: int, size: int) -> None:
    libc.succeeded(libc.munlock(address, size))


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


class MappedFile(NamedTuple):
    """What the kernel says of a file that is mapped.

    Attributes
    ----------
    device, inode : int
        On btrfs the device, and on an overlay before Linux 6.8 both, are not those that stat gives.
    path : str
        Its name now; with `` (deleted)`` behind it if it has none any more.
    """

    device: int
    inode: int
    path: str


def file_at(address: int) -> MappedFile | None:
    """The file that is mapped at an address of this process; None if there is none, or it cannot be known."""
    try:
        lines = files.text("/proc/self/maps").splitlines()
    except OSError:
        return None
    for line in lines:
        span, _, _, device, inode, *path = line.split(maxsplit=5)
        start, end = span.split("-")
        if int(start, 16) <= address < int(end, 16) and inode != "0":
            major, minor = device.split(":")
            # A newline is the only character that the kernel writes in another way.
            return MappedFile(
                os.makedev(int(major, 16), int(minor, 16)), int(inode), "".join(path).replace("\\012", "\n")
            )
    return None
