"""Arrays that a caller creates in the memory for tasks' arguments, so that giving them away needs no copy.

They use the memory of an open pool of this process: in the thread in which a pool reads the
user's iterables, that pool's; elsewhere, that of the pool opened last.
"""

import threading

from shmarray.pool.arrays.allocator import BlockAllocator
from shmarray.pool.arrays.buffers import Octets
from shmarray.pool.threads import WeakObjects

_allocators: WeakObjects[BlockAllocator] = WeakObjects()
_this_thread = threading.local()


def offer(allocator: BlockAllocator) -> None:
    """Let arrays be made in this memory, until it is closed."""
    _allocators.add(allocator)


def prefer(allocator: BlockAllocator) -> None:
    """Have this thread make its arrays there."""
    _this_thread.allocator = allocator


def allocate(nbytes: int) -> Octets | None:
    """Memory of so many bytes in an open pool; None if there is none, or it cannot be had.

    Raises
    ------
    SharedMemoryFullError
    """
    preferred: BlockAllocator | None = getattr(_this_thread, "allocator", None)
    for allocator in (preferred, *reversed(_allocators.alive())):
        if allocator is not None and allocator.is_open:
            return allocator.lend(nbytes)
    return None
