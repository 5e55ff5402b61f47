"""Blocks, in use and free."""

from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from enum import IntEnum

from shmarray.pool.arrays.blocks import LeaseRef


class Use(IntEnum):
    """The purpose of a block, which never changes.

    Mixed, results would take the memory that the next arguments need, which is mapped in
    the caller; and the caller, alone, would have to ask for new.
    """

    ARGUMENT = 0
    RESULT = 1


class Block:
    """A block that is in use, or free.

    Attributes
    ----------
    index : int
    use : Use
    reserved : int
        Bytes of memory that it has, from its beginning; where `has_holes`, at most.
    freed_at : float
        When it, or a part of it, was last given back, by the monotonic clock.
    leases : list of LeaseRef
        The parts of it that the user holds.
    retain_count : int
        How many workers use it although its task is done.
    release_pending : bool
        Whether it is to be given back when they no longer do.
    """

    __slots__ = ("freed_at", "has_holes", "index", "leases", "release_pending", "reserved", "retain_count", "use")

    def __init__(self, index: int, use: Use) -> None:
        self.index = index
        self.use = use
        self.reserved = 0
        self.freed_at = 0.0
        self.leases: list[LeaseRef] = []
        self.has_holes = False
        self.retain_count = 0
        self.release_pending = False


class FreeList:
    """The free blocks of one use, with memory and without, and how many there are in all.

    Of those with memory the newest is used first: its pages are warm.
    """

    def __init__(self, first: int, stride: int, wide: int) -> None:
        self.full: deque[Block] = deque()
        self.empty: deque[Block] = deque()
        self._made = 0
        self._first = first
        self._stride = stride
        self._wide = wide

    def next_index(self) -> int:
        """The number of a new block; they go through the files of their use in turn."""
        row, column = divmod(self._made, self._wide)
        self._made += 1
        return row * self._stride + self._first + column

    def take_all(self) -> Iterator[Block]:
        """Take all blocks, although other threads may add some."""
        for blocks in (self.full, self.empty):
            with suppress(IndexError):
                for _ in range(len(blocks)):
                    yield blocks.popleft()
