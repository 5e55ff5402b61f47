"""Boxes: the parts of a pool's shared memory, as one process sees them.

A pool has a few sparse files in memory, made before its workers, which inherit them.  Box k
is what lies in file ``k % n`` from ``k << 36``; a box has one user at a time.  The caller
lends them (see arena), the worker maps those that a task names.

The arrays that a user gets lie above a `Lease`.  While that lives, the box is the user's.
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
from shmarray.pool import forks, parcel
from shmarray.pool.forks import Witness

# 64 GB for each: more than any array, and 2**27 boxes in a file of 2**63 bytes.
_STRIDE = 36
BOX_SIZE = 1 << _STRIDE
# Seconds after which the memory of a box that nobody used goes back; so whoever used one
# less than that ago knows that it is there.  Calls farther apart pay for fresh memory each
# time (benchmarks/constants.py: IDLE).
IDLE = 1.0
_PAGE = os.sysconf("SC_PAGESIZE")
# Rounding lets a mapping serve again for sizes that differ a little; a huge page fits.
_ROUND = 2 << 20
# Box 0 holds a word for each of the first so many boxes.
_WORDS = 1 << 16


def offset_of(index: int) -> int:
    return index << _STRIDE


def whole_pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


class Lease:
    """What lies below the arrays that a user holds.

    numpy collapses chains of bases down to the last object that is no array: only such an
    object can tell that none of a box's arrays is left.  It holds the boxes, which prepare
    forks for as long as there is a lease, also when the pool is long gone.
    """

    __slots__ = ("__array_interface__", "__weakref__", "_boxes", "at_end", "file", "part")

    def __init__(self, part: Part, file: SparseFile, boxes: "Boxes") -> None:
        self.part = part
        self.file = file
        self._boxes = boxes
        self.at_end: object = None
        self.__array_interface__: dict[str, Any] = part.__array_interface__

    def octets(self) -> NDArray[np.uint8]:
        return np.asarray(self)


class Lent(weakref.ref[Lease]):
    """What the lender keeps of a lease: whether it still lives, and what forked meanwhile."""

    __slots__ = ("index", "is_private", "witnesses")
    index: int
    is_private: bool
    witnesses: list[Witness | None]

    def is_seen(self) -> bool:
        """Whether anybody may still look at the box: a holder here, or a forked child of that time."""
        return self() is not None or self.is_seen_by_children()

    def free_at_end(self) -> bool:
        """Have the box's memory freed when the lease ends, as nobody will take it back; False if it has ended."""
        lease = self()
        if lease is not None and not lease.part.private:
            lease.at_end = lease.part.free_with(lease)
        return lease is not None

    def is_seen_by_children(self) -> bool:
        return any(witness is None or witness.is_alive() for witness in self.witnesses)


class Boxes:
    """The boxes that this process has mapped, and those that it has lent to its user.

    Safe to use from many threads.  A forked child may go on using the arrays that it
    inherited, and nothing else of this.
    """

    def __init__(self, files: Sequence[SparseFile]) -> None:
        self.files = tuple(files)
        self._pid = os.getpid()
        self._shared: dict[int, Part] = {}
        self._private: dict[int, Part] = {}
        self._lent: dict[int, Lent] = {}
        # Leases that are over.  Their weak references are put here by deque.append itself: a
        # function in Python would run in any thread, inside any allocation, and a Ctrl-C
        # that came while it ran would be reported, and lost.
        self._over: deque[Lent] = deque()
        self._words: memoryview | None = None
        # The box named for the result of the task that this process, a worker, runs.
        self.errand = 0
        self.has_forked = False
        forks.register(self)

    def file(self, index: int) -> SparseFile:
        return self.files[index % len(self.files)]

    # --- mapping ---

    def shared(self, index: int, size: int) -> Part:
        """A box, of at least so many bytes, that others write too; it is kept mapped for the next time."""
        return self._mapped(self._shared, index, size, private=False)

    def ready(self, index: int, size: int) -> Part:
        """The same, when that many bytes of it have memory and are about to be used."""
        part = self.shared(index, size)
        part.fault_in(size, IDLE)
        return part

    def private(self, index: int, size: int) -> Part:
        """A box of which this process's writes are its own."""
        return self._mapped(self._private, index, size, private=True)

    def _mapped(self, parts: dict[int, Part], index: int, size: int, *, private: bool) -> Part:
        part = parts.get(index)
        if part is None or part.size < size:
            rounded = -(-size // _ROUND) * _ROUND
            part = parts[index] = self.file(index).map(offset_of(index), rounded, private=private)
        return part

    def forget(self, index: int) -> None:
        """Map that box anew next time: somebody still looks at this mapping, or it is not needed."""
        self._shared.pop(index, None)
        self._private.pop(index, None)

    # --- content ---

    def fill(self, index: int, reserved: int, pieces: Sequence[NDArray[Any]]) -> tuple[list[int], int]:
        """Copy arrays into a box that has memory for `reserved` bytes; returns their offsets, and its memory then.

        Memory that is not there yet is written to, not mapped: 16 MB take 6.6 ms, while
        reserving, mapping and copying take 12.8.  What is mapped already takes 0.8.

        Raises
        ------
        OSError, MemoryError
            If memory cannot be had.  How much the box has then is unknown.
        """
        offsets, end = parcel.plan(pieces)
        if end <= reserved:
            parcel.fill(self.ready(index, end).octets(), pieces, offsets)
            return offsets, reserved
        file = self.file(index)
        if all(piece.flags.forc for piece in pieces):
            for piece, offset in zip(pieces, offsets, strict=True):
                file.write(offset_of(index) + offset, parcel.octets_of(piece))
        else:
            file.reserve(offset_of(index) + reserved, end - reserved)
            parcel.fill(self.ready(index, end).octets(), pieces, offsets)
        return offsets, whole_pages(end)

    def read(self, index: int, offset: int, target: NDArray[np.uint8]) -> None:
        """Copy from a box without mapping it."""
        view: Any = memoryview(target)  # type: ignore[arg-type]
        while view:
            done = os.preadv(self.file(index).fd, [view], offset_of(index) + offset)
            view, offset = view[done:], offset + done

    # --- leases ---

    def lease(self, index: int, part: Part) -> tuple[Lease, Lent]:
        """Let the user have a box's arrays, until they are garbage."""
        with forks.lock:
            lease = Lease(part, self.file(index), self)
            lent = Lent(lease, self._over.append)
            lent.index = index
            lent.is_private = part.private
            lent.witnesses = []
            self._lent[id(lent)] = lent
            return lease, lent

    def returned(self) -> list[Lent]:
        """The leases that have ended since it was last asked."""
        ended = []
        while self._over:
            with suppress(IndexError):  # another thread was quicker
                lent = self._over.popleft()
                self._lent.pop(id(lent), None)
                ended.append(lent)
        return ended

    # --- words ---

    def word(self, index: int) -> int:
        """What a worker says that it does with the task of a box.

        0 if it has not begun, then its pid; negative if it has forked.  A positive number
        that says nothing, if there is no word for so many boxes.
        """
        return self._control()[index] if index < _WORDS else os.getpid()

    def set_word(self, index: int, value: int) -> None:
        if index < _WORDS:
            self._control()[index] = value

    def _control(self) -> memoryview:
        if self._words is None:
            self._words = memoryview(self.shared(0, 8 * _WORDS).octets()).cast("q")  # type: ignore[arg-type]
        return self._words

    # --- forks ---

    def before_fork(self) -> None:
        """What the user sees as plain arrays must not be shared with the child, nor change in it later."""
        self.has_forked = True
        if self.errand:
            self.set_word(self.errand, -os.getpid())  # in case this process dies before it can say so
        for lent in tuple(self._lent.values()):
            lease = lent()
            if lease is not None:
                self.forget(lent.index)
                lent.witnesses.append(forks.witness())
                with suppress(OSError):  # no memory for it: the fork will hardly succeed
                    lease.part.make_private(lease.file.fd)

    def after_fork_in_child(self) -> None:
        for file in self.files:
            file.close()
        self._words = None
        self._shared.clear()
        self._private.clear()
        for lent in self._lent.values():
            lease = lent()
            if lease is not None:
                lease.file.close()
        self._lent.clear()  # they are private here, and so they are to children of this one
