"""All calls to the kernel; no other package depends on the operating system.

From top to bottom; each module imports only those below it::

    sparse   a sparse file in memory, which holds a pool's arrays
    packets  sends and receives without releasing the GIL
    space    checks how much memory is still available
    errors   the library's error for a failed system call
    maps     maps part of a file into the address space
    pages    reserves, writes and frees the memory of a file
    files    opens, names and locks files
    libc     calls and constants that Python does not provide

The capabilities of a system are found by trying, and remembered; its name is never checked.
Names in capitals hold these findings; tests set them to False to run the portable code.
"""

from shmarray.core.posix.dirty import fault_count
from shmarray.core.posix.packets import (
    PacketSpace,
    keeps_boundaries,
    message_socketpair,
    receive_now,
    receive_packets,
    send_all,
    send_packet,
)
from shmarray.core.posix.processes import (
    can_kill_at_hangup,
    has_hung_up,
    kill_at_hangup,
    open_process,
    signal_process,
)
from shmarray.core.posix.space import limits as memory_limits
from shmarray.core.posix.sparse import Part, SparseFile

__all__ = [
    "PacketSpace",
    "Part",
    "SparseFile",
    "can_kill_at_hangup",
    "fault_count",
    "has_hung_up",
    "keeps_boundaries",
    "kill_at_hangup",
    "memory_limits",
    "message_socketpair",
    "open_process",
    "receive_now",
    "receive_packets",
    "send_all",
    "send_packet",
    "signal_process",
]
