"""All that talks to the kernel; no other package asks what system this is.

From top to bottom; each module imports only those below it::

    sparse   a file in memory, in parts: what a pool's arrays travel in
    packets  sending and receiving without letting go of the interpreter's lock
    space    how much memory can still be had
    errors   the library's error for what a system call said
    maps     part of a file in the address space
    pages    the memory of a file: reserved, written, given back
    files    opening, naming, locking
    libc     the calls and constants that Python does not offer

What a system can do is found out by trying, and remembered; nothing is decided by its name.
The names in capitals are such findings, and the tests turn them off to take the other way.
"""

from shmarray.core.posix.dirty import fault_count
from shmarray.core.posix.packets import (
    PacketSpace,
    keeps_boundaries,
    message_socketpair,
    receive_now,
    receive_packet,
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
    "receive_packet",
    "send_all",
    "send_packet",
    "signal_process",
]
