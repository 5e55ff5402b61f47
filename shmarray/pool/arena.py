"""Arena: the caller's side of the boxes.  It alone lends them and takes them back.

Boxes are used again at once: their memory is there, and mapped on both sides, which is
where the speed comes from.  Memory that nobody has used for a second goes back to the
system, so an idle pool holds only what its caller still has.
"""

import errno
import gc
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from enum import IntEnum
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shmarray.core.posix import SparseFile
from shmarray.errors import SharedMemoryFullError
from shmarray.pool.boxes import BOX_SIZE, IDLE, Boxes, Lent, offset_of, whole_pages

_WORDS_PER_PAGE = 512
# Files for results.  A write that takes new memory holds its file's lock: two workers on one
# file take 13.2 ms for 16 MB each, on two files 7.0
# (benchmarks/constants.py: _FILES_FOR_RESULTS).
_FILES_FOR_RESULTS = 8
# Results that its user may hold in boxes; more are copied out.  Each is a mapping, of which the
# kernel lets a process have 65,530 (vm.max_map_count), and the program needs some for itself.
_MOST_HELD = 16 << 10


class Use(IntEnum):
    """What a box is for, for good.

    Mixed, results would take the memory that the next arguments need, which is mapped in
    the caller; and the caller, alone, would have to ask for new.
    """

    ARGUMENT = 0
    RESULT = 1


class Box:
    """A box that is lent, or free to be.

    Attributes
    ----------
    index : int
    use : Use
    reserved : int
        Bytes of memory that it has.
    freed_at : float
        When it was last given back, by the monotonic clock.
    holders : int
        How many workers look at it although its task is done.
    is_due : bool
        Whether it is to be given back when they no longer do.
    """

    __slots__ = ("freed_at", "holders", "index", "is_due", "reserved", "use")

    def __init__(self, index: int, use: Use) -> None:
        self.index = index
        self.use = use
        self.reserved = 0
        self.freed_at = 0.0
        self.holders = 0
        self.is_due = False


class _Shelf:
    """The boxes of one use that are free, with memory and without, and how many there are in all.

    Of those with memory the newest is used first: its pages are warm.
    """

    def __init__(self, first: int, stride: int, wide: int) -> None:
        self.full: deque[Box] = deque()
        self.empty: deque[Box] = deque()
        self._made = 0
        self._first = first
        self._stride = stride
        self._wide = wide

    def next_index(self) -> int:
        """The number of a new box; they go through the files of their use in turn."""
        row, column = divmod(self._made, self._wide)
        self._made += 1
        return row * self._stride + self._first + column


class Arena(Boxes):
    """Lends boxes and takes them back.

    Safe to use from many threads.  Closing gives back all memory except what the caller
    of the pool still holds, and that when it is dropped.
    """

    def __init__(self, files: Sequence[SparseFile]) -> None:
        super().__init__(files)
        self._closed = True  # for __del__, if the next line fails
        self._control()
        count = len(self.files)
        # Box 0 holds the words, so arguments begin in the second row of file 0.
        self._shelves = _Shelf(count, count, 1), _Shelf(1, count, count - 1)
        self._words_made = 0
        self._making = threading.Lock()
        # Nobody here looks at these any more, but a forked child may.
        self._seen: deque[Lent] = deque()
        self._boxes: dict[int, Box] = {}
        self._wake: SimpleQueue[bool] = SimpleQueue()
        self._asleep = False
        self._janitor: threading.Thread | None = None
        self._closed = False

    @classmethod
    def create(cls, workers: int) -> "Arena | None":
        """Make one; None if the system cannot."""
        files = [SparseFile.create() for _ in range(1 + min(workers, _FILES_FOR_RESULTS))]
        try:
            return cls([file for file in files if file is not None]) if all(files) else None
        except OSError:  # no address space
            return None

    # --- lending ---

    def lend(self, use: Use) -> Box:
        """A box that nobody uses, with or without memory."""
        if self._over:
            self._take_back()
        shelf = self._shelves[use]
        for source in (shelf.full, shelf.empty):
            if source:
                with suppress(IndexError):  # another thread was quicker
                    return source.pop()
        return self._new(shelf, use)

    def _new(self, shelf: _Shelf, use: Use) -> Box:
        with self._making:
            index = shelf.next_index()
            while self._words_made <= index:
                self.files[0].reserve(8 * self._words_made, 8 * _WORDS_PER_PAGE)
                self._words_made += _WORDS_PER_PAGE
        box = self._boxes[index] = Box(index, use)
        return box

    def box(self, index: int) -> Box:
        return self._boxes[index]

    def load(self, box: Box, pieces: Sequence[NDArray[Any]]) -> list[int]:
        """Copy arrays into a lent box; returns their offsets.

        Raises
        ------
        OSError, MemoryError
            If memory cannot be had; the box has none then.
        """
        self._start_janitor()
        try:
            try:
                offsets, box.reserved = self.fill(box.index, box.reserved, pieces)
            except SharedMemoryFullError:
                self._make_room()
                offsets, box.reserved = self.fill(box.index, 0, pieces)
        except BaseException:
            self._empty_out(box)
            raise
        return offsets

    def _make_room(self) -> None:
        gc.collect()  # a call that failed is in a cycle with its error, and its results with it
        self._take_back()
        self._empty_unused(time.monotonic())

    def give_back(self, box: Box) -> None:
        """Take a box back."""
        if self._closed:
            return
        shelf = self._shelves[box.use]
        if not box.reserved:
            shelf.empty.append(box)
            return
        box.freed_at = time.monotonic()
        shelf.full.append(box)
        self._wake_janitor()

    def lose(self, box: Box) -> None:
        """Take back a box in which a worker was writing when it died: how much memory it has is unknown."""
        self._empty_out(box)
        self.give_back(box)

    # --- results ---

    def holds(self, box: Box, size: int) -> None:
        """A worker has written so many bytes there."""
        box.reserved = max(box.reserved, whole_pages(size))

    def copy_out(self, box: Box, offset: int, target: NDArray[np.uint8]) -> None:
        """Copy part of a box, through its mapping if there is one."""
        try:
            octets = self.shared(box.index, box.reserved).octets()
        except OSError:
            self.read(box.index, offset, target)
        else:
            np.copyto(target, octets[offset : offset + len(target)])

    def deliver(self, box: Box) -> NDArray[np.uint8]:
        """The whole box for the user of the pool; taken back when all arrays over it are garbage.

        Raises
        ------
        OSError
            ENOMEM: no further mapping is to be had.
        """
        if len(self._lent) >= _MOST_HELD:
            raise OSError(errno.ENOMEM, f"{len(self._lent)} results are held already")
        self._start_janitor()
        lease, _ = self.lease(box.index, self.shared(box.index, box.reserved))
        self._wake_janitor()
        return lease.octets()

    def _take_back(self) -> None:
        for lent in self.returned():
            if lent.witnesses:
                self._seen.append(lent)
            else:
                self.give_back(self._boxes[lent.index])

    # --- memory back to the system ---

    def _start_janitor(self) -> None:
        if self._janitor is None and not self._closed:
            self._janitor = threading.Thread(target=self._look_after, name="shmarray-janitor", daemon=True)
            try:
                self._janitor.start()
            except RuntimeError:
                self._janitor = None  # no threads any more: the interpreter ends, and the memory with it

    def _wake_janitor(self) -> None:
        if self._asleep:
            self._asleep = False
            self._wake.put(True)

    def _look_after(self) -> None:
        while not self._closed:
            try:
                self._wake.get(timeout=self._patience())
            except Empty:
                self._take_back()
                self._give_memory_back(time.monotonic() - IDLE)

    def _patience(self) -> float | None:
        """Seconds until there may be something to give back; None for until somebody wakes us."""
        self._asleep = True  # before looking, or who gives a box back meanwhile would not wake us
        patience = self._until_due()
        self._asleep = patience is None
        return patience

    def _until_due(self) -> float | None:
        oldest = []
        for shelf in self._shelves:
            with suppress(IndexError):
                oldest.append(shelf.full[0].freed_at)
        if oldest:
            return max(0.01, min(oldest) + IDLE - time.monotonic())
        return IDLE if self._seen or self._lent else None

    def _give_memory_back(self, before: float) -> None:
        self._empty_unused(before)
        for _ in range(len(self._seen)):
            lent = self._seen.popleft()
            if lent.is_seen_by_children():
                self._seen.append(lent)
            else:
                self.give_back(self._boxes[lent.index])

    def _empty_unused(self, before: float) -> None:
        for shelf in self._shelves:
            with suppress(IndexError):  # lent meanwhile
                while shelf.full and shelf.full[0].freed_at <= before:
                    self._retire(shelf.full.popleft(), before)

    def _retire(self, box: Box, before: float) -> None:
        shelf = self._shelves[box.use]
        if box.freed_at > before:
            shelf.full.append(box)  # another thread was quicker, and this is a newer one
        elif self._empty_out(box):
            shelf.empty.append(box)
        else:
            box.freed_at = time.monotonic()
            shelf.full.append(box)

    def _empty_out(self, box: Box) -> bool:
        """Free a box's memory, however much it is."""
        try:
            self.file(box.index).free(offset_of(box.index), BOX_SIZE)
        except OSError:
            return False
        box.reserved = 0
        self.forget(box.index)
        return True

    def memory(self) -> int:
        """Bytes of memory in use, by all boxes."""
        return sum(file.allocated() for file in self.files)

    def close(self) -> None:
        """Give all memory back except what the user of the pool holds; no worker may be using any by now."""
        if self._closed:
            return
        self._closed = True
        self._wake.put(True)
        if self._pid == os.getpid():
            held = [*self._lent.values(), *self._seen]
            self._free_all_except({lent.index for lent in held if lent.free_at_end() or lent.is_seen_by_children()})
        self._shared.clear()
        self._words = None
        self.files = tuple(SparseFile(-1) for _ in self.files)  # each lease holds its own
        if self._janitor is not None and self._janitor.ident not in {None, threading.get_ident()}:
            self._janitor.join()  # unstarted, as another thread may be about to do, it ends by itself

    def _free_all_except(self, held: set[int]) -> None:
        with suppress(OSError):
            for index in {0, *self._boxes} - held:
                self.file(index).free(offset_of(index), BOX_SIZE)

    def __del__(self) -> None:
        with suppress(AttributeError):
            self.close()
