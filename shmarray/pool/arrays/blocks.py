"""Blocks: the parts of a pool's shared memory, as one process sees them.

A pool has a few sparse files in memory, which are created before its workers and inherited by
them.  Block k starts at ``k << 36`` in file ``k % n``; one process uses it at a time.  The caller
allocates blocks (see allocator); a worker maps those that a task names.

The arrays that a user gets are based on a `Lease`.  As long as it lives, its part of the block
belongs to the user.
"""

import os
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shmarray.core.posix import Part, SparseFile
from shmarray.pool import forks
from shmarray.pool.arrays.buffers import Octets, copy_all_into, layout, octets_of
from shmarray.pool.forks import ForkSentinel

# 64 GB for each: more than any array, and 2**27 blocks in a file of 2**63 bytes.
_STRIDE = 36
BLOCK_SIZE = 1 << _STRIDE
# Seconds after which the memory of an unused block is released, so what was used less than
# that ago is there still (benchmarks/constants.py: IDLE).
IDLE = 1.0
PAGE = os.sysconf("SC_PAGESIZE")
# Rounding lets a mapping serve again for sizes that differ a little; a huge page fits.
_ROUND = 2 << 20
# Block 0 holds a control word for each of the first so many blocks.
_WORDS = 1 << 16


def offset_of(index: int) -> int:
    return index << _STRIDE


def whole_pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


class Lease:
    """The base of the arrays that a user holds, for all or part of a block.

    numpy collapses chains of bases down to the last object that is no array: only such an
    object can tell that none of a block's arrays is left.  It holds the block map, which
    prepares forks for as long as there is a lease, also when the pool is long gone.
    """

    __slots__ = ("__array_interface__", "__weakref__", "_blocks", "at_end", "file", "part")

    def __init__(self, part: Part, offset: int, size: int, file: SparseFile, blocks: "BlockMap") -> None:
        self.part = part
        self.file = file
        self._blocks = blocks
        self.at_end: object = None
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "typestr": "|u1",
            "shape": (size,),
            "data": (part.address + offset, False),
        }

    def octets(self) -> Octets:
        return np.asarray(self)


class LeaseRef(weakref.ref[Lease]):
    """What remembers a lease: whether it still lives, and which forks happened meanwhile.

    `pages` are the first byte and the end of the pages of its block that are this lease's alone.
    `is_claimed` says that the block is not to be given back when the lease ends.
    """

    __slots__ = ("index", "is_claimed", "is_private", "offset", "pages", "sentinels", "size")
    index: int
    offset: int
    size: int
    pages: tuple[int, int]
    is_claimed: bool
    is_private: bool
    sentinels: list[ForkSentinel | None]

    def is_in_use(self) -> bool:
        """Whether a holder here, or a child forked meanwhile, may still use the memory."""
        return self() is not None or self.is_used_by_children()

    def free_at_end(self) -> bool:
        """Have the memory freed when the lease ends, as nothing will take it back; False if it has ended."""
        lease = self()
        if lease is not None and not lease.part.private:
            start, end = self.pages
            if start < end:
                lease.at_end = lease.part.free_with(lease, lease.file, start, end - start)
        return lease is not None

    def is_used_by_children(self) -> bool:
        return any(sentinel is None or sentinel.is_alive() for sentinel in self.sentinels)


class BlockMap:
    """The blocks that this process has mapped, and those that it has leased to its user.

    Safe to use from many threads.  A forked child may go on using the arrays that it
    inherited, and nothing else of this.
    """

    def __init__(self, files: Sequence[SparseFile]) -> None:
        self.files = tuple(files)
        self._pid = os.getpid()
        self._shared: dict[int, Part] = {}
        self._private: dict[int, Part] = {}
        self._leased: dict[int, LeaseRef] = {}
        # Ended leases.  deque.append itself is the callback of their weak references, because a
        # Python function could run in any thread, inside any allocation, and a Ctrl-C during it
        # would be printed and lost.
        self._ended: deque[LeaseRef] = deque()
        self._words: memoryview | None = None
        # The block for the result of the task that this process, a worker, runs.
        self.current = 0
        self.has_forked = False
        forks.register(self)

    def file(self, index: int) -> SparseFile:
        return self.files[index % len(self.files)]

    # --- mapping ---

    def shared(self, index: int, size: int) -> Part:
        """A block, of at least so many bytes, that others write too; it is kept mapped for the next time."""
        return self._mapped(self._shared, index, size, private=False)

    def ready(self, index: int, size: int) -> Part:
        """The same, when that many bytes of it have memory and are about to be used."""
        part = self.shared(index, size)
        part.fault_in(size, IDLE)
        return part

    def private(self, index: int, size: int) -> Part:
        """A block of which this process's writes are its own."""
        return self._mapped(self._private, index, size, private=True)

    def _mapped(self, parts: dict[int, Part], index: int, size: int, *, private: bool) -> Part:
        part = parts.get(index)
        if part is None or part.size < size:
            if part is not None:
                size = max(size, 2 * part.size)  # it grows, perhaps by many small steps
            rounded = -(-size // _ROUND) * _ROUND
            part = parts[index] = self.file(index).map(offset_of(index), rounded, private=private)
        return part

    def forget(self, index: int) -> None:
        """Map that block again next time, because this mapping is still in use or not needed."""
        self._shared.pop(index, None)
        self._private.pop(index, None)

    # --- content ---

    def reserve(self, index: int, start: int, end: int) -> None:
        """Make a part of a block exist; raises as `SparseFile.reserve` does."""
        self.file(index).reserve(offset_of(index) + start, end - start)

    def fill(
        self, index: int, reserved: int, buffers: Sequence[NDArray[Any]], alignment: int, start: int = 0
    ) -> tuple[list[int], int]:
        """Copy arrays into a block that has memory for `reserved` bytes; returns their offsets, and its memory then.

        Memory that is not there yet is written to, not mapped, which is twice as fast as
        reserving, mapping and copying.

        Raises
        ------
        OSError, MemoryError
            If memory cannot be had.  How much the block has then is unknown.
        """
        offsets, end = layout(buffers, start, alignment)
        if end > reserved:
            if all(buffer.flags.forc for buffer in buffers):
                file = self.file(index)
                for buffer, offset in zip(buffers, offsets, strict=True):
                    file.write(offset_of(index) + offset, octets_of(buffer))
                return offsets, whole_pages(end)
            self.reserve(index, reserved, end)
            reserved = whole_pages(end)
        part = self.ready(index, end)
        copy_all_into(part.memory, buffers, offsets)
        return offsets, reserved

    def read(self, index: int, offset: int, target: NDArray[np.uint8]) -> None:
        """Copy from a block without mapping it."""
        self.file(index).read(offset_of(index) + offset, target)

    # --- leases ---

    def lease(self, index: int, part: Part, offset: int = 0, size: int | None = None) -> tuple[Lease, LeaseRef]:
        """Let the user have part of a block, until no array uses it."""
        size = part.size - offset if size is None else size
        with forks.lock:
            lease = Lease(part, offset, size, self.file(index), self)
            reference = LeaseRef(lease, self._ended.append)
            reference.index = index
            reference.offset = offset
            reference.size = size
            reference.pages = (0, 0)
            reference.is_claimed = False
            reference.is_private = part.private
            reference.sentinels = []
            self._leased[id(reference)] = reference
            return lease, reference

    def ended(self) -> list[LeaseRef]:
        """The leases that have ended since this was last called."""
        ended = []
        while self._ended:
            with suppress(IndexError):  # another thread was quicker
                reference = self._ended.popleft()
                self._leased.pop(id(reference), None)
                ended.append(reference)
        return ended

    # --- control words ---

    def word(self, index: int) -> int:
        """What a worker says about the task of a block.

        0 if it has not begun, then its pid; negative if it has forked.  A positive number
        that says nothing, if there is no word for so many blocks.
        """
        return self.control_words()[index] if index < _WORDS else os.getpid()

    def set_word(self, index: int, value: int) -> None:
        if index < _WORDS:
            (self._words or self.control_words())[index] = value

    def control_words(self) -> memoryview:
        """All words, mapped; of those whose memory was not reserved yet, none may be touched."""
        if self._words is None:
            self._words = memoryview(self.shared(0, 8 * _WORDS).octets()).cast("q")  # type: ignore[arg-type]
        return self._words

    # --- forks ---

    def before_fork(self) -> None:
        """Make sure that the user's plain arrays are not shared with the child, nor change in it later."""
        self.has_forked = True
        if self.current:
            self.set_word(self.current, -os.getpid())  # in case this process dies before it can say so
        for reference in list(self._leased.values()):
            lease = reference()
            if lease is not None:
                self.forget(reference.index)
                reference.sentinels.append(forks.sentinel())
                with suppress(OSError):  # no memory for it: the fork will hardly succeed
                    lease.part.make_private(lease.file.fd)

    def after_fork_in_child(self) -> None:
        self.current = 0  # the parent's task, of which a fork of this process says nothing
        for file in self.files:
            file.close()
        self._words = None
        self._shared.clear()
        self._private.clear()
        for reference in self._leased.values():
            lease = reference()
            if lease is not None:
                lease.file.close()
        self._leased.clear()  # they are private here, and so they are to children of this one
