"""An anonymous file in memory, of any size, in which only the requested parts take memory."""

import ctypes
import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shmarray.core.names import Name
from shmarray.core.posix import dirty, files, libc, maps, pages, space

# Several processes reserve at once, and need some for themselves: were they let come to the
# very limit of a control group, the kernel would end one of them.
_SPARE = 16 << 20
# Of a file that must have its size from the beginning: the largest that the system takes.
_SIZES = (1 << 50, 1 << 46, 1 << 42, 1 << 38)  # bytes
_NAME = Name("shared memory of a pool", "anonymous", "")


def _bounded(size: int) -> OSError:
    """What the size of /dev/shm allows is all of this file, not all of the memory."""
    return OSError(errno.EFBIG, f"no {size} bytes are free in the directory of shared memory, where this file lies")


def _is_sized(fd: int) -> bool:
    """Give a shared memory object its size, which macOS allows once; close it if it takes none."""
    for size in _SIZES:
        with suppress(OSError):
            pages.truncate(fd, size)
            return True
    os.close(fd)
    return False


class SparseFile:
    """Memory to share with the processes that have its descriptor.

    Parameters
    ----------
    fd : int
        The open file; this object closes it.

    Notes
    -----
    It has no name, so there is nothing to leak: the kernel frees it with its last
    descriptor and mapping, however the processes end.
    """

    def __init__(self, fd: int) -> None:
        self._fds = [fd] if fd >= 0 else []

    @property
    def fd(self) -> int:
        """The open file; -1 after `close`."""
        return next(iter(self._fds), -1)

    @classmethod
    def create(cls) -> "SparseFile | None":
        """Make an empty one; None if the system cannot."""
        try:
            fd = files.open_anonymous()
            if fd is not None:
                return cls(fd)
            fd = files.open_unlinked()
        except OSError:
            return None
        return cls(fd) if fd is not None and _is_sized(fd) else None

    def reserve(self, offset: int, size: int) -> None:
        """Make `size` bytes from `offset` exist, all of them or none.

        Raises
        ------
        SharedMemoryFullError
            If memory does not suffice.  A write to a part that was not reserved would be
            a bus error, or past a control group's limit the end of the process.
        OSError
            EFBIG beyond ``ulimit -f``, or, for a file that lies in /dev/shm, beyond what is
            free there: there may be memory elsewhere.
        """
        with self._new_memory(offset, size):
            pages.reserve(self.fd, size, offset)

    def write(self, offset: int, octets: NDArray[np.uint8]) -> None:
        """Write there, with new memory where there is none; raises as `reserve` does."""
        with self._new_memory(offset, octets.nbytes):
            try:
                pages.write(self.fd, octets.data, offset)
            except OSError as error:
                if error.errno not in libc.REFUSALS:
                    raise
                # macOS: shared memory objects can be mapped, and nothing else.
                pages.reserve(self.fd, octets.nbytes, offset)
                self._mapped(offset, octets.nbytes)[:] = octets

    def read(self, offset: int, target: NDArray[np.uint8]) -> None:
        """Fill `target` with what is there, without a mapping if the system can do that."""
        view: Any = memoryview(target)  # type: ignore[arg-type]
        try:
            while view:
                done = os.preadv(self.fd, [view], offset)
                view, offset = view[done:], offset + done
        except (AttributeError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in libc.REFUSALS:
                raise
            size = len(view)
            target[len(target) - size :] = self._mapped(offset, size)

    def _mapped(self, offset: int, size: int) -> NDArray[np.uint8]:
        """That part, for a moment."""
        before = offset % pages.PAGE
        return self.map(offset - before, before + size).octets()[before:]

    @contextmanager
    def _new_memory(self, offset: int, size: int) -> Iterator[None]:
        # None for memory that no file system bounds.
        free = pages.free_bytes(self.fd)
        if free is not None and size > free:
            raise _bounded(size)
        space.check(_NAME, self.fd, size, _SPARE)
        try:
            yield
        except OSError as error:
            with suppress(OSError):
                self.free(offset, size)
            if error.errno == errno.EFBIG:
                raise
            if error.errno == errno.ENOSPC and free is not None:
                raise _bounded(size) from error
            raise space.explained(error, _NAME, self.fd, size) from error

    def allocated(self) -> int:
        """Bytes of memory that the whole file has."""
        fd = self.fd
        return 512 * os.fstat(fd).st_blocks if fd >= 0 else 0

    def free(self, offset: int, size: int) -> None:
        """Return the memory to the system; processes that map it then see zeros.

        Raises
        ------
        OSError
            If the system cannot: the memory stays as it is.
        """
        pages.punch(self.fd, size, offset)

    def cut(self, offset: int) -> None:
        """Give the memory from there to the end back to the system.

        In place of `free`, for systems without it.  Nobody may be using that part: an access
        to it is a bus error until it is reserved or written again.

        Raises
        ------
        OSError
            If the system cannot.
        """
        if os.fstat(self.fd).st_size > offset:
            pages.truncate(self.fd, offset)

    def map(self, offset: int, size: int, *, private: bool = False) -> "Part":
        """Map a part; OSError with ENOMEM if there is no address space for it."""
        return Part(self.fd, offset, size, private)

    def close(self) -> None:
        """Close the descriptor; parts that are mapped stay."""
        with suppress(IndexError):
            # Of threads that close it at once, one gets the number: another's file may have it next.
            os.close(self._fds.pop())

    def __del__(self) -> None:
        self.close()


class Part:
    """Part of a sparse file in the address space of this process, until it is garbage.

    Attributes
    ----------
    address, size : int
        Bytes.
    memory : memoryview
        All its bytes; it does not keep the part mapped.
    private : bool
        Whether writes stay in this process (copy-on-write).
    """

    __slots__ = ("__weakref__", "_entered", "_entered_at", "_offset", "address", "memory", "private", "size")

    def __init__(self, fd: int, offset: int, size: int, private: bool) -> None:
        self.size = 0
        self.address = maps.map_file(fd, size, writable=True, private=private, offset=offset)
        self.size = size
        self.memory = memoryview((ctypes.c_char * size).from_address(self.address)).cast("B")
        self.private = private
        self._offset = offset
        self._entered = 0
        self._entered_at = 0.0

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {"version": 3, "typestr": "|u1", "shape": (self.size,), "data": (self.address, False)}

    def fault_in(self, size: int, lifetime: float) -> None:
        """Have the first `size` bytes in the page table; they must exist, or they would from now on.

        What was used less than `lifetime` seconds ago is taken to be there still: to ask
        the kernel costs half as much as entering it.
        """
        now = time.monotonic()
        entered = self._entered if now - self._entered_at < lifetime else 0
        if size > entered:
            pages.fault_in(self.address + entered, size - entered)
            entered = -(-size // pages.PAGE) * pages.PAGE
        self._entered = entered
        self._entered_at = now

    def octets(self) -> NDArray[np.uint8]:
        """All of it; the array keeps the part mapped, not the other way round."""
        return np.asarray(self)

    def make_private(self, fd: int) -> None:
        """From now on writes of this process are not seen by others, nor those of forked children by it."""
        if not self.private:
            maps.make_private(self.address, self.size, fd, self._offset)
            self.private = True

    def discard_writes(self) -> None:
        """Make a private part show the file again; OSError if the kernel will not (under mlockall)."""
        maps.discard_writes(self.address, self.size)

    def free_with(self, owner: object, file: SparseFile, offset: int, size: int) -> object:
        """Free whole pages of a shared part when their owner, which keeps the file and what this returns, is gone."""
        if maps.can_remove(self.address):
            return maps.Freeing.of_pages(owner, self.address + offset, size)
        return maps.Freeing.of_file(owner, file.fd, self._offset + offset, size)

    def is_clean(self) -> bool:
        """Whether this process has written nothing to a private part; False if one cannot know."""
        return dirty.is_clean(self.address, self.size)

    # Not maps.Unmapping: parts are held by objects that can be in a cycle, and the garbage
    # collector calls no weak reference's callback that is garbage itself.
    def __del__(self, munmap: Callable[[int, int], int] = libc.munmap) -> None:
        if self.size:
            munmap(self.address, self.size)
