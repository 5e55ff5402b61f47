"""Arrays that a task makes where its result goes, so that returning them copies nothing.

They lie in the block that is named for the task's result, each above a lease of its own.
What is not returned is free with the end of the task, or retained as an argument may be.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shmarray.core.posix import Part
from shmarray.errors import SharedMemoryFullError
from shmarray.pool import forks
from shmarray.pool.arrays.blocks import PAGE, BlockMap, LeaseRef, whole_pages
from shmarray.pool.arrays.buffers import Octets
from shmarray.pool.arrays.messages import Span

# The caller copies smaller results out of their block anyway (lending._COPY_OUT).
_WORTH_PLACING = 128 << 10

_current: "ResultMemory | None" = None


def allocate(nbytes: int) -> Octets | None:
    """Memory where the result of the running task goes; None if no task runs here, or so little is not worth it.

    Raises
    ------
    SharedMemoryFullError
    """
    if _current is None or nbytes < _WORTH_PLACING:
        return None
    return _current.allocate(nbytes)


class ResultMemory:
    """The block for the result of the task that a worker runs.

    Safe to use from the threads of the task.

    Attributes
    ----------
    index : int
        Of the block; 0 if there is none.
    reserved : int
        Bytes of memory that it has, from its beginning.
    parts : list of LeaseRef
        What the task has made there.
    """

    def __init__(self, blocks: BlockMap) -> None:
        self._blocks = blocks
        self._is_open = False
        self._end = 0
        self.index = 0
        self.reserved = 0
        self.parts: list[LeaseRef] = []

    def open(self, index: int, reserved: int) -> None:
        """Begin with the block of another task."""
        global _current  # noqa: PLW0603 - a worker runs one task at a time
        self.index = index
        self.reserved = reserved
        self.parts = []
        self._end = 0
        self._is_open = index != 0
        _current = self

    def close(self) -> None:
        """Give out no more of it: threads that the task has left may go on asking."""
        with forks.lock:
            self._is_open = False

    def allocate(self, nbytes: int) -> Octets | None:
        """Memory of so many bytes; None if it cannot be had here."""
        with forks.lock:
            if not self._is_open:
                return None
            try:
                return self._allocate(nbytes)
            except SharedMemoryFullError:
                raise
            except OSError:  # ulimit -f, no address space, or a child that the task has forked
                return None

    def _allocate(self, nbytes: int) -> Octets:
        size = whole_pages(nbytes)
        offset = self._room_for(size)
        end = offset + size
        if end > self.reserved:
            self._blocks.reserve(self.index, self.reserved, end)
            self.reserved = end
        lease, reference = self._blocks.lease(self.index, self._blocks.ready(self.index, end), offset, nbytes)
        self.parts.append(reference)
        self._end = max(self._end, end)
        return lease.octets()

    def _room_for(self, size: int) -> int:
        """Behind all that was made; or where parts were that are garbage, before new memory is taken."""
        if self._end + size <= self.reserved:
            return self._end
        self.parts = [part for part in self.parts if part() is not None or part.sentinels]
        hole = 0
        for part in sorted(self.parts, key=lambda part: part.offset):
            if hole + size <= part.offset:
                return hole
            hole = whole_pages(part.offset + part.size)
        self._end = hole
        return hole

    def append(self, buffers: Sequence[NDArray[Any]]) -> list[Span]:
        """Copy arrays behind what was made; raises as `BlockMap.fill` does."""
        # Each buffer has pages of its own, so that the caller can release them one by one.
        offsets, self.reserved = self._blocks.fill(self.index, self.reserved, buffers, PAGE, self._end)
        self._end = whole_pages(offsets[-1] + buffers[-1].nbytes)
        return [(self.index, offset, buffer.nbytes, False) for buffer, offset in zip(buffers, offsets, strict=True)]


class Place(NamedTuple):
    """Where an array lies in a block, without keeping it."""

    reference: LeaseRef
    part: Part
    offset: int
    nbytes: int
    kind: tuple[Any, ...]

    def span(self) -> Span:
        return self.reference.index, self.offset, self.nbytes, False

    def array(self) -> NDArray[Any]:
        """The array again, lying in the mapping, which outlives the lease."""
        shape, dtype, order = self.kind
        return np.ndarray(shape, dtype, self.part.octets()[self.offset : self.offset + self.nbytes], 0, None, order)


def places(buffers: Sequence[NDArray[Any]], references: Sequence[LeaseRef]) -> dict[int, Place]:
    """Which of these arrays lie in leased memory that the caller can read, and none over another; by position."""
    leased = []
    for reference in references:
        lease = reference()
        if lease is not None and not lease.part.private:
            leased.append((lease.part.address + reference.offset, reference, lease.part))
    leased.sort(key=lambda entry: entry[0])
    starts = [start for start, _, _ in leased]
    addresses = {
        position: buffer.__array_interface__["data"][0] for position, buffer in enumerate(buffers) if buffer.flags.forc
    }
    found = {}
    end = 0
    for position in sorted(addresses, key=addresses.__getitem__):
        address, buffer = addresses[position], buffers[position]
        number = bisect_right(starts, address) - 1
        if number < 0 or address < end:  # two arrays that share memory: one of them is copied
            continue
        start, reference, part = leased[number]
        if address + buffer.nbytes <= start + reference.size:
            end = address + buffer.nbytes
            kind = buffer.shape, buffer.dtype, "F" if buffer.flags.fnc else "C"
            found[position] = Place(reference, part, address - part.address, buffer.nbytes, kind)
    return found
