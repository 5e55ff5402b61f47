"""Boxes: the parts of a pool's shared memory, as one process sees them.

A pool has one sparse file in memory, made before its workers, which inherit it.  Box k is
what lies in it from ``k << 36``; a box has one user at a time.  The caller lends them
(see arena), the worker maps those that a task names.

The arrays that a user gets lie above a `Lease`.  While that lives, the box is the user's.
"""

import os
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shmarray.core import Part, SparseFile
from shmarray.pool import forks
from shmarray.pool.forks import Witness

# 64 GB for each: more than any array, and 2**27 boxes in a file of 2**63 bytes.
_STRIDE = 36
BOX_SIZE = 1 << _STRIDE
# Rounding lets boxes be used again for sizes that differ a little; a huge page fits.
_ROUND = 2 << 20
# Box 0 holds a word for each of the first so many boxes.
_WORDS = 1 << 16


def offset_of(index: int) -> int:
    return index << _STRIDE


def rounded(size: int) -> int:
    return -(-size // _ROUND) * _ROUND


class Lease:
    """What lies below the arrays that a user holds.

    numpy collapses chains of bases down to the last object that is no array: only such an
    object can tell that none of a box's arrays is left.  It holds the boxes, which prepare
    forks for as long as there is a lease, also when the pool is long gone.
    """

    __slots__ = ("__array_interface__", "__weakref__", "_boxes", "part")

    def __init__(self, part: Part, boxes: "Boxes") -> None:
        self.part = part
        self._boxes = boxes
        self.__array_interface__: dict[str, Any] = part.__array_interface__

    def octets(self) -> NDArray[np.uint8]:
        return np.asarray(self)


class Lent(weakref.ref[Lease]):
    """What the lender keeps of a lease: whether it still lives, and what forked meanwhile."""

    __slots__ = ("ended", "index", "key", "part", "witnesses")
    index: int
    key: int
    part: Part
    ended: Callable[["Lent"], None] | None
    witnesses: list[Witness | None]

    def is_seen(self) -> bool:
        """Whether anybody may still look at the box: a holder here, or a forked child of that time."""
        return self() is not None or self.is_seen_by_children()

    def is_seen_by_children(self) -> bool:
        return any(witness is None or witness.is_alive() for witness in self.witnesses)


class Boxes:
    """The boxes that this process has mapped, and those that it has lent to its user.

    Safe to use from many threads.  A forked child may go on using the arrays that it
    inherited, and nothing else of this.
    """

    def __init__(self, file: SparseFile) -> None:
        self.file = file
        self._pid = os.getpid()
        self._shared: dict[int, Part] = {}
        self._private: dict[int, Part] = {}
        self._lent: dict[int, Lent] = {}
        self._words: memoryview | None = None
        # The box named for the result of the task that this process, a worker, runs.
        self.errand = 0
        self.has_forked = False
        forks.register(self)

    def shared(self, index: int, size: int) -> Part:
        """A box, of at least so many bytes, that others write too; it is kept mapped for the next time."""
        return self._mapped(self._shared, index, size, private=False)

    def private(self, index: int, size: int) -> Part:
        """A box of which this process's writes are its own."""
        return self._mapped(self._private, index, size, private=True)

    def _mapped(self, parts: dict[int, Part], index: int, size: int, *, private: bool) -> Part:
        part = parts.get(index)
        if part is None or part.size < size:
            part = parts[index] = self.file.map(offset_of(index), rounded(size), private=private)
        return part

    def forget(self, index: int) -> None:
        """Map that box anew next time: somebody still looks at this mapping, or it is not needed."""
        self._shared.pop(index, None)
        self._private.pop(index, None)

    def read(self, index: int, offset: int, target: NDArray[np.uint8]) -> None:
        """Copy from a box without mapping it."""
        view: Any = memoryview(target)  # type: ignore[arg-type]
        while view:
            done = os.preadv(self.file.fd, [view], offset_of(index) + offset)
            view, offset = view[done:], offset + done

    def lease(self, index: int, part: Part, ended: Callable[[Lent], None] | None = None) -> tuple[Lease, Lent]:
        """Let the user have a box's arrays, until they are garbage; then `ended` is called, in any thread."""
        with forks.lock:
            lease = Lease(part, self)
            lent = Lent(lease, self._end)
            lent.index = index
            lent.key = key = id(lent)
            lent.part = part
            lent.ended = ended
            lent.witnesses = []
            self._lent[key] = lent
            return lease, lent

    def _end(self, lent: Lent) -> None:
        # A finalizer: any thread, in the middle of anything.
        self._lent.pop(lent.key, None)
        if lent.ended is not None and self._pid == os.getpid():
            lent.ended(lent)

    def is_lending(self) -> bool:
        return bool(self._lent)

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
                    lease.part.make_private(self.file.fd)

    def after_fork_in_child(self) -> None:
        self.file.close()
        self._words = None
        self._shared.clear()
        self._private.clear()
