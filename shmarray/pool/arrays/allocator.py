"""The caller's side of the blocks: only the caller allocates and releases them.

Blocks are reused at once, which is fast because their memory exists and is mapped on both
sides.  Memory that was not used for a second is returned to the system, so an idle pool holds
only what its caller still uses.
"""

import errno
import gc
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shmarray.core.posix import SparseFile
from shmarray.errors import SharedMemoryFullError
from shmarray.pool import forks
from shmarray.pool.arrays.blocks import BLOCK_SIZE, IDLE, PAGE, BlockMap, Lease, LeaseRef, offset_of, whole_pages
from shmarray.pool.arrays.buffers import ALIGNMENT, Octets, copy_bytes
from shmarray.pool.arrays.free_list import Block, FreeList, Use
from shmarray.pool.arrays.leased_arrays import Place, places
from shmarray.pool.threads import Fence

_WORDS_PER_PAGE = 512
# Files for results: a write that allocates memory holds its file's lock, so two workers that
# write to one file wait for each other (benchmarks/constants.py: _FILES_FOR_RESULTS).
_FILES_FOR_RESULTS = 8
# Blocks of results that the user may hold; more are copied out.  Each is a mapping, of which the
# kernel lets a process have 65,530 (vm.max_map_count), and the program needs some for itself.
_MOST_HELD = 16 << 10


class BlockAllocator(BlockMap):
    """Allocates and releases blocks.

    Safe to use from many threads.  `trim` must be called now and then, by the thread that
    `wake` wakes.  Closing releases all memory except what the user of the pool still holds,
    and that when it is dropped.
    """

    def __init__(self, files: Sequence[SparseFile]) -> None:
        super().__init__(files)
        self._closed = True  # for __del__, if the next line fails
        self.control_words()
        count = len(self.files)
        # Block 0 holds the words, so arguments begin in the second row of file 0.
        self._free_lists = FreeList(count, count, 1), FreeList(1, count, count - 1)
        self._words_made = 0
        # Protects the ended leases, the blocks, and the truncation of files, during which no thread
        # may start to use a block there.  Finalizers must not take it.
        self._lock = threading.RLock()
        # Between giving a block back and looking whether `wake` is to be called, and the reverse.
        self._fence = Fence()
        # Whether the system can free memory in the middle of a file.  If not, files are truncated, and
        # users get no blocks, because each would keep all blocks before it.
        self.can_free = self._tries_to_free()
        self.can_cut = True
        # Not used here any more, but perhaps by a forked child.
        self._in_children: deque[LeaseRef] = deque()
        # Blocks of which parts are leased and parts are not.
        self._partly_free: dict[int, Block] = {}
        self._blocks: dict[int, Block] = {}
        # Numbers of the blocks that the user holds parts of.
        self._held: set[int] = set()
        # Whether `trim` is not called again before `wake` is.
        self._wake_needed = True
        self.wake: Callable[[], object] = bool
        # Gives back what is not used but not given back yet, when memory runs out.
        self.reclaim: Callable[[], object] = bool
        self._closed = False

    @classmethod
    def create(cls, workers: int) -> "BlockAllocator | None":
        """Create an allocator; None if the system cannot."""
        files = [SparseFile.create() for _ in range(1 + min(workers, _FILES_FOR_RESULTS))]
        try:
            return cls([file for file in files if file is not None]) if all(files) else None
        except OSError:  # no address space
            return None

    def _tries_to_free(self) -> bool:
        try:
            self.files[0].free(BLOCK_SIZE, PAGE)
        except OSError:
            return False
        return True

    # --- handing out ---

    def allocate(self, use: Use) -> Block:
        """A block that nothing uses, with or without memory."""
        if self._ended:
            self._take_back()
        if self.can_free:
            return self._allocated(use)
        with self._lock:
            return self._allocated(use)

    def _allocated(self, use: Use) -> Block:
        free = self._free_lists[use]
        for source in (free.full, free.empty):
            if source:
                try:
                    return source.pop()
                except IndexError:  # another thread was quicker
                    continue
        return self._new(free, use)

    def _new(self, free: FreeList, use: Use) -> Block:
        with self._lock:
            index = free.next_index()
            while self._words_made <= index:
                self.files[0].reserve(8 * self._words_made, 8 * _WORDS_PER_PAGE)
                self._words_made += _WORDS_PER_PAGE
        block = self._blocks[index] = Block(index, use)
        return block

    def block(self, index: int) -> Block:
        return self._blocks[index]

    def load(self, block: Block, buffers: Sequence[NDArray[Any]]) -> list[int]:
        """Copy arrays into a block; returns their offsets.

        Raises
        ------
        OSError, MemoryError
            If memory cannot be had; the block has none then.
        """
        try:
            try:
                offsets, block.reserved = self.fill(block.index, block.reserved, buffers, ALIGNMENT)
            except SharedMemoryFullError:
                self._make_room()
                offsets, block.reserved = self.fill(block.index, 0, buffers, ALIGNMENT)
        except BaseException:
            self._release_memory(block)
            raise
        return offsets

    def _make_room(self) -> None:
        gc.collect()  # a call that failed is in a cycle with its error, and its results with it
        self.reclaim()
        self._take_back()
        self._trim_free(time.monotonic())

    def give_back(self, block: Block) -> None:
        """Release a block."""
        if self._closed:
            return
        free = self._free_lists[block.use]
        if block.has_holes and not self._release_memory(block):
            block.reserved = 0  # it will be written to, not mapped, which fills the holes
        if not block.reserved:
            free.empty.append(block)
            return
        block.freed_at = time.monotonic()
        free.full.append(block)
        self._expect_trim()

    # --- arguments that the user makes in place ---

    @property
    def is_open(self) -> bool:
        """Whether blocks are handed out: not any more, or in a forked child, they are not."""
        return not self._closed and self._pid == os.getpid()

    def lend(self, nbytes: int) -> Octets | None:
        """Memory for the user in a block of its own, as of `deliver`; None if it cannot be had here.

        Raises
        ------
        SharedMemoryFullError
        """
        if not self.can_free or len(self._held) >= _MOST_HELD:
            return None
        try:
            return self._lent(nbytes)
        except SharedMemoryFullError:
            raise
        except OSError:  # ulimit -f, or no address space
            return None

    def _lent(self, nbytes: int) -> Octets:
        block = self.allocate(Use.ARGUMENT)
        try:
            file = self.file(block.index)
            self._reserve(block, whole_pages(nbytes))
            self.shared(block.index, block.reserved).fault_in(nbytes, IDLE)
            with forks.lock, self._lock:
                if self._closed:  # meanwhile: what was reserved since then nothing else would free
                    file.free(offset_of(block.index), BLOCK_SIZE)
                    raise OSError(errno.EBADF, "the pool has ended")
                return self.deliver(block, [(0, nbytes)])[0]
        except BaseException:
            self.give_back(block)
            raise

    def _reserve(self, block: Block, size: int) -> None:
        if size <= block.reserved:
            return
        try:
            self.reserve(block.index, block.reserved, size)
        except SharedMemoryFullError:
            self._make_room()
            self.reserve(block.index, block.reserved, size)
        block.reserved = size

    def claim(self, buffers: Sequence[object]) -> dict[int, Place]:
        """Which of these arrays are all that lies in their blocks, and none over another; by position.

        Their blocks are not released until `unclaim` is called for their references.
        """
        if not self._held:
            return {}
        leases = enumerate(map(self._sole_lease, buffers))
        leased = {position: reference for position, reference in leases if reference is not None}
        if not leased:
            return {}
        positions = list(leased)
        arrays: list[Any] = [buffers[position] for position in positions]
        claimed = places(arrays, list({id(reference): reference for reference in leased.values()}.values()))
        for place in claimed.values():
            place.reference.is_claimed = True
        return {positions[number]: place for number, place in claimed.items()}

    def _sole_lease(self, buffer: object) -> LeaseRef | None:
        """The lease in which an array lies, if its block has no other."""
        base: Any = buffer
        while isinstance(base, np.ndarray):
            base = base.base
        if type(base) is not Lease:
            return None
        for weak in weakref.getweakrefs(base):
            reference = self._leased.get(id(weak))
            if reference is not None and self._blocks[reference.index].leases == [reference]:
                return reference
        return None

    def take(self, reference: LeaseRef) -> Block | None:
        """The block of a lease that was claimed, for good, if nothing uses it; it is not given back then."""
        with self._lock:
            if reference() is not None or reference.sentinels:
                return None
            block = self._blocks[reference.index]
            block.leases.clear()
            self._held.discard(block.index)
            self._partly_free.pop(block.index, None)
            return block

    def unclaim(self, reference: LeaseRef) -> None:
        """Give the block back when the lease ends; that may have happened."""
        with self._lock:
            reference.is_claimed = False
            if id(reference) not in self._leased:
                self._give_back_leased(reference)

    def discard(self, block: Block) -> None:
        """Take back a block in which a worker was writing when it died: how much memory it has is unknown."""
        self._release_memory(block)
        self.give_back(block)

    # --- results ---

    def has_memory(self, block: Block, size: int) -> None:
        """Note that a worker has written so many bytes there."""
        block.reserved = max(block.reserved, whole_pages(size))

    def copy_out(self, block: Block, offset: int, target: NDArray[np.uint8]) -> None:
        """Copy part of a block, through its mapping if there is one."""
        try:
            part = self.shared(block.index, block.reserved)
        except OSError:
            self.read(block.index, offset, target)
        else:
            copy_bytes(target.data, part.memory[offset : offset + len(target)])

    def deliver(self, block: Block, ranges: Sequence[tuple[int, int]]) -> list[NDArray[np.uint8]]:
        """Parts of a block, (offset, size) each, for the user; taken back when no array uses any of them.

        Each is released by itself: of a list of results, those that are kept keep no others.

        Raises
        ------
        OSError
            ENOMEM: no further mapping is to be had.  EOPNOTSUPP: the system gives no memory back
        but that of the ends of files.
        """
        if len(self._held) >= _MOST_HELD:
            raise OSError(errno.ENOMEM, f"{len(self._held)} results are already in use")
        if not self.can_free:
            raise OSError(errno.EOPNOTSUPP, "the system cannot free memory in the middle of a file")
        part = self.shared(block.index, block.reserved)
        leases = [self.lease(block.index, part, offset, size) for offset, size in ranges]
        self._held.add(block.index)
        block.leases = sorted((reference for _, reference in leases), key=lambda reference: reference.offset)
        _share_pages(block)
        if block.reserved > 2 * sum(whole_pages(size) for _, size in ranges):
            # Most of it is not the user's: if it is held for long, the rest is released.
            block.freed_at = time.monotonic()
            self._partly_free[block.index] = block
        self._expect_trim()
        return [lease.octets() for lease, _ in leases]

    def _take_back(self) -> None:
        # If two leases of one block end at once, one of the threads must see that none is left.
        with self._lock:
            for reference in self.ended():
                if not reference.is_claimed:
                    self._give_back_leased(reference)

    def _give_back_leased(self, reference: LeaseRef) -> None:
        if reference.sentinels:
            self._in_children.append(reference)
        else:
            self._lease_ended(reference)

    def _lease_ended(self, reference: LeaseRef) -> None:
        block = self._blocks[reference.index]
        with suppress(ValueError):
            block.leases.remove(reference)
        if block.leases:
            block.freed_at = time.monotonic()
            self._partly_free[block.index] = block
        else:
            self._held.discard(block.index)
            self._partly_free.pop(block.index, None)
            self.give_back(block)

    # --- memory back to the system ---

    def _expect_trim(self) -> None:
        self._fence()
        if self._wake_needed:
            self._wake_needed = False
            self.wake()

    def trim(self) -> float | None:
        """Free memory that was not used for a second; return the number of seconds until the next call.

        None: not before `wake` is called.
        """
        self._wake_needed = False
        if self._closed:
            return None
        self._take_back()
        self._release_unused(time.monotonic() - IDLE)
        self._wake_needed = True  # before looking, or a block that is given back meanwhile would not be seen
        self._fence()
        patience = self._until_due()
        self._wake_needed = patience is None
        return patience

    def _until_due(self) -> float | None:
        if not (self.can_free or self.can_cut):
            return None
        oldest = [block.freed_at for block in list(self._partly_free.values())]
        for free in self._free_lists:
            with suppress(IndexError):
                oldest.append(free.full[0].freed_at)
        if oldest:
            return max(0.01, min(oldest) + IDLE - time.monotonic())
        return IDLE if self._in_children or self._leased else None

    def _release_unused(self, before: float) -> None:
        self._trim_free(before)
        with self._lock:
            for block in list(self._partly_free.values()):
                if block.freed_at <= before:
                    self._release_holes(block)
            for _ in range(len(self._in_children)):
                reference = self._in_children.popleft()
                if reference.is_used_by_children():
                    self._in_children.append(reference)
                else:
                    self._lease_ended(reference)

    def _trim_free(self, before: float) -> None:
        if not self.can_free:
            self._cut_ends(before)
            return
        for free in self._free_lists:
            with suppress(IndexError):  # handed out meanwhile
                while free.full and free.full[0].freed_at <= before:
                    self._retire(free.full.popleft(), before)

    def _retire(self, block: Block, before: float) -> None:
        free = self._free_lists[block.use]
        if block.freed_at > before:
            free.full.append(block)  # another thread was quicker, and this is a newer one
        elif self._release_memory(block):
            free.empty.append(block)
        else:
            block.freed_at = time.monotonic()
            free.full.append(block)

    def _cut_ends(self, before: float) -> None:
        """Release the memory of unused blocks, where no block follows that is used, or was just now."""
        with self._lock:
            unused = [(free, block) for free in self._free_lists for block in free.take_all()]
            old = {block.index for _, block in unused if not block.reserved or block.freed_at <= before}
            used = [0, *(index for index in list(self._blocks) if index not in old)]
            count = len(self.files)
            ends = [max((index + 1 for index in used if index % count == column), default=0) for column in range(count)]
            self.can_cut = self._has_cut(ends)
            for free, block in reversed(unused):
                if block.index in old:
                    block.freed_at = time.monotonic()  # to be looked at again
                    if self.can_cut and block.index >= ends[block.index % count]:
                        block.reserved = 0
                        self.forget(block.index)
                (free.full if block.reserved else free.empty).appendleft(block)

    def _has_cut(self, ends: Sequence[int]) -> bool:
        try:
            for file, end in zip(self.files, ends, strict=True):
                file.cut(offset_of(end))
        except OSError:  # macOS: the size is set once
            return False
        return True

    def _release_memory(self, block: Block) -> bool:
        """Release a block's memory, however much it is."""
        try:
            self.file(block.index).free(offset_of(block.index), BLOCK_SIZE)
        except OSError:
            return False
        block.reserved = 0
        block.has_holes = False
        self.forget(block.index)
        return True

    def _release_holes(self, block: Block) -> None:
        """Release the parts of a block that are no longer leased."""
        self._partly_free.pop(block.index, None)
        block.has_holes = True
        leased = sorted((reference.offset, reference.offset + reference.size) for reference in block.leases)
        hole = 0
        with suppress(OSError):
            for start, end in (*leased, (block.reserved, block.reserved)):
                first = start // PAGE * PAGE
                if hole < first:
                    self.file(block.index).free(offset_of(block.index) + hole, first - hole)
                hole = max(hole, whole_pages(end))

    def memory(self) -> int:
        """Bytes of memory in use, by all blocks."""
        return sum(file.allocated() for file in self.files)

    def close(self) -> None:
        """Release all memory except what the user of the pool holds; no worker may be using any by now."""
        if self._closed:
            return
        self._take_back()
        self._closed = True
        if self._pid == os.getpid():
            with self._lock:
                self._release_all()
        self._shared.clear()
        self._words = None
        self.wake = self.reclaim = bool  # the user's arrays keep this object, and need not keep the engine
        self.files = tuple(SparseFile(-1) for _ in self.files)  # each lease holds its own

    def _release_all(self) -> None:
        held: set[int] = set()
        for reference in (*list(self._leased.values()), *self._in_children):
            if reference.free_at_end() or reference.is_used_by_children():
                held.add(reference.index)
        with suppress(OSError):
            for index in {0, *list(self._blocks)} - held:
                self.file(index).free(offset_of(index), BLOCK_SIZE)
        for index in held:
            self._release_holes(self._blocks[index])
        for reference in (*list(self._leased.values()), *self._in_children):
            reference.sentinels.clear()  # they have descriptors, and nobody asks them any more
        self._in_children.clear()

    def after_fork_in_child(self) -> None:
        super().after_fork_in_child()
        # Some thread of the parent may have had them.
        self._lock = threading.RLock()
        self._fence = Fence()

    def __del__(self) -> None:
        with suppress(AttributeError):
            self.close()


def _share_pages(block: Block) -> None:
    """Say which pages belong to one lease alone: a page in which another begins or ends does not."""
    starts = [reference.offset // PAGE * PAGE for reference in block.leases[1:]]
    end = 0
    for reference, limit in zip(block.leases, [*starts, BLOCK_SIZE], strict=True):
        first = max(reference.offset // PAGE * PAGE, end)
        end = whole_pages(reference.offset + reference.size)
        reference.pages = first, min(end, limit)
