"""Arena: the caller's side of the boxes.  It alone lends them and takes them back.

Boxes are used again at once: their memory is there, and mapped on both sides, which is
where the speed comes from.  Memory that nobody has used for a second goes back to the
system, so an idle pool holds only what its caller still has.
"""

import os
import threading
import time
from collections import deque
from contextlib import suppress
from queue import Empty, SimpleQueue

import numpy as np
from numpy.typing import NDArray

from shmarray.core import Part, SparseFile
from shmarray.pool.boxes import BOX_SIZE, Boxes, Lent, offset_of, rounded

# Seconds after which unused memory goes back.
IDLE = 1.0
_WORDS_PER_PAGE = 512


class Box:
    """A box that is lent, or free to be.

    Attributes
    ----------
    index : int
    reserved : int
        Bytes of memory that it has.
    freed_at : float
        When it was last given back, by the monotonic clock.
    holders : int
        How many workers look at it although its task is done.
    is_due : bool
        Whether it is to be given back when they no longer do.
    """

    __slots__ = ("freed_at", "holders", "index", "is_due", "reserved")

    def __init__(self, index: int) -> None:
        self.index = index
        self.reserved = 0
        self.freed_at = 0.0
        self.holders = 0
        self.is_due = False


class Arena(Boxes):
    """Lends boxes and takes them back.

    Safe to use from many threads.  Closing gives back all memory except what the caller
    of the pool still holds, and that when it is dropped.
    """

    def __init__(self, file: SparseFile) -> None:
        super().__init__(file)
        self._closed = True  # for __del__, if the next line fails
        self._control()
        self._made = 1  # box 0 holds the words
        self._making = threading.Lock()
        # With memory and without: the newest of the first is used first, its pages are warm.
        self._free: deque[Box] = deque()
        self._empty: deque[Box] = deque()
        # Nobody here looks at these any more, but a forked child may.
        self._seen: deque[tuple[Box, Lent]] = deque()
        self._boxes: dict[int, Box] = {}
        self._wake: SimpleQueue[bool] = SimpleQueue()
        self._asleep = False
        self._janitor: threading.Thread | None = None
        self._closed = False

    @classmethod
    def create(cls) -> "Arena | None":
        """Make one; None if the system cannot."""
        file = SparseFile.create()
        if file is None:
            return None
        try:
            return cls(file)
        except OSError:  # no address space
            return None

    def lend(self) -> Box:
        """A box that nobody uses, with or without memory."""
        for source in (self._free, self._empty):
            if source:
                with suppress(IndexError):  # another thread was quicker
                    return source.pop()
        with self._making:
            index = self._made
            if (index - 1) % _WORDS_PER_PAGE == 0:
                self.file.reserve(8 * index, 8 * _WORDS_PER_PAGE)
            self._made += 1
        box = self._boxes[index] = Box(index)
        return box

    def box(self, index: int) -> Box:
        return self._boxes[index]

    def room(self, box: Box, size: int) -> Part:
        """Give a lent box so much memory; OSError if it cannot be had."""
        if box.reserved < size:
            self.file.reserve(offset_of(box.index) + box.reserved, rounded(size) - box.reserved)
            box.reserved = rounded(size)
        part = self.shared(box.index, box.reserved)
        self._start_janitor()
        return part

    def give_back(self, box: Box) -> None:
        """Take a box back; called in any thread, also by finalizers."""
        if self._closed:
            return
        if not box.reserved:
            self._empty.append(box)
            return
        box.freed_at = time.monotonic()
        self._free.append(box)
        if self._asleep:
            self._asleep = False
            self._wake.put(True)  # made for finalizers: it takes no lock that one could hold

    def lose(self, box: Box) -> None:
        """Take back a box in which a worker was writing when it died: how much memory it has is unknown."""
        with suppress(OSError):
            self.file.free(offset_of(box.index), BOX_SIZE)
        box.reserved = 0
        self.give_back(box)

    def copy_out(self, box: Box, offset: int, target: NDArray[np.uint8]) -> None:
        """Copy part of a box, through its mapping if there is one."""
        try:
            octets = self.shared(box.index, box.reserved).octets()
        except OSError:
            self.read(box.index, offset, target)
        else:
            np.copyto(target, octets[offset : offset + len(target)])

    def deliver(self, box: Box) -> NDArray[np.uint8]:
        """The whole box for the user of the pool; taken back when all arrays over it are garbage."""
        self._start_janitor()
        lease, _ = self.lease(box.index, self.shared(box.index, box.reserved), self._returned)
        return lease.octets()

    def _returned(self, lent: Lent) -> None:
        if self._closed:
            self._drop(lent)
            return
        box = self._boxes[lent.index]
        if lent.witnesses:
            self._seen.append((box, lent))
        else:
            self.give_back(box)

    def _drop(self, lent: Lent) -> None:
        if not lent.part.private:
            with suppress(OSError):
                lent.part.free()
        if not self.is_lending():
            self.file.close()

    # --- memory back to the system ---

    def _start_janitor(self) -> None:
        if self._janitor is None and not self._closed:
            self._janitor = threading.Thread(target=self._look_after, name="shmarray-janitor", daemon=True)
            try:
                self._janitor.start()
            except RuntimeError:
                self._janitor = None  # no threads any more: the interpreter ends, and the memory with it

    def _look_after(self) -> None:
        while not self._closed:
            try:
                self._wake.get(timeout=self._patience())
            except Empty:
                self._give_memory_back(time.monotonic() - IDLE)

    def _patience(self) -> float | None:
        """Seconds until there may be something to give back; None for until somebody wakes us."""
        self._asleep = True
        try:
            oldest = self._free[0]
        except IndexError:
            return IDLE if self._seen else None
        self._asleep = False
        return max(0.01, oldest.freed_at + IDLE - time.monotonic())

    def _give_memory_back(self, before: float) -> None:
        while self._free and self._free[0].freed_at <= before:
            with suppress(IndexError):  # lent meanwhile
                self._empty_out(self._free.popleft(), before)
        for _ in range(len(self._seen)):
            box, lent = self._seen.popleft()
            if lent.is_seen_by_children():
                self._seen.append((box, lent))
            else:
                self.give_back(box)

    def _empty_out(self, box: Box, before: float) -> None:
        if box.freed_at > before:
            self._free.append(box)  # another thread was quicker, and this is a newer one
            return
        try:
            self.file.free(offset_of(box.index), box.reserved)
        except OSError:
            box.freed_at = time.monotonic()
            self._free.append(box)
            return
        box.reserved = 0
        self.forget(box.index)
        self._empty.append(box)

    def close(self) -> None:
        """Give all memory back except what the user of the pool holds; no worker may be using any by now."""
        if self._closed:
            return
        self._closed = True
        self._wake.put(True)
        held = {lent.index for lent in tuple(self._lent.values())}
        held.update(box.index for box, lent in self._seen if lent.is_seen_by_children())
        if self._pid == os.getpid():
            self._free_all_except(held)
        self._shared.clear()
        self._words = None
        if not self.is_lending():
            self.file.close()
        if self._janitor is not None and self._janitor.ident not in {None, threading.get_ident()}:
            self._janitor.join()  # unstarted, as another thread may be about to do, it ends by itself

    def _free_all_except(self, held: set[int]) -> None:
        with suppress(OSError):
            for index in range(self._made):
                if index not in held:
                    self.file.free(offset_of(index), BOX_SIZE)

    def __del__(self) -> None:
        with suppress(AttributeError):
            self.close()
