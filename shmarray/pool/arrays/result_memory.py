"""Arrays that a task creates in its result's memory, so that returning them needs no copy.

They are in the block for the task's result, and each has its own lease.  Arrays that are not
returned are freed when the task ends, unless the task retains them, as with arguments.
"""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from shmarray.errors import SharedMemoryFullError
from shmarray.pool import forks
from shmarray.pool.arrays import argument_memory
from shmarray.pool.arrays.blocks import PAGE, BlockMap, LeaseRef, whole_pages
from shmarray.pool.arrays.buffers import Octets
from shmarray.pool.arrays.messages import Span
from shmarray.pool.interrupts import deferred

# The caller copies smaller results out of their block anyway (lending._COPY_OUT); a small argument takes
# less time to copy than to be given a block.
_WORTH_PLACING = 128 << 10

_current: "ResultMemory | None" = None


def allocate(nbytes: int) -> Octets | None:
    """Memory where the result of the running task goes, or in a caller the arguments of tasks.

    None if there is none to be had, or so little is not worth it.

    Raises
    ------
    SharedMemoryFullError
    """
    if nbytes < _WORTH_PLACING:
        return None
    with deferred():  # interrupted, it would leave a block that is neither free nor in use
        return argument_memory.allocate(nbytes) if _current is None else _current.allocate(nbytes)


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
