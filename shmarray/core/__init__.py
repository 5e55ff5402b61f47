"""Named arrays in POSIX shared memory.  Knows nothing of multiprocessing.

From top to bottom; each module imports only those below it::

    register     which processes of this host have a thing
    sparse       a file in memory, in parts: what a pool's arrays travel in
    temporary    arrays that are to end, with a name or without
    references   where a view is, as values that can travel
    locks        lock
    memory       msync, mlock, munlock
    arrays       create, attach, require, delete, list: the order of the steps, undo on failure
    segment      a complete array in an empty file; the layout in a file of unknown content
    copying      bringing the bytes in
    mapping      Mapping: the one owner of an address range
    space        how much memory can still be had
    posix        the only package that talks to the kernel about segments
    layout       header bytes <-> dtype, shape, order, offset; pure
    names        what a name may be; pure
"""

from shmarray.core.arrays import (
    ArrayInfo,
    Removal,
    attach,
    create,
    delete,
    require,
)
from shmarray.core.arrays import list_arrays as list  # noqa: A004 - the name that SharedArray's users know
from shmarray.core.instant import PacketSpace, receive_packet, send_packet
from shmarray.core.locks import lock
from shmarray.core.mapping import Mapping, Mode, owner
from shmarray.core.memory import mlock, msync, munlock
from shmarray.core.names import Name
from shmarray.core.names import parse as parse_name
from shmarray.core.posix.files import identity_of
from shmarray.core.posix.libc import MS_ASYNC, MS_INVALIDATE, MS_SYNC
from shmarray.core.posix.maps import inode_at
from shmarray.core.references import Reference, host_of_memory, refer, resolve
from shmarray.core.register import Register
from shmarray.core.register import sweep as sweep_registers
from shmarray.core.segment import Order, Shape
from shmarray.core.space import limits as memory_limits
from shmarray.core.sparse import Part, SparseFile
from shmarray.core.temporary import Undo, create_temporary

__all__ = [
    "MS_ASYNC",
    "MS_INVALIDATE",
    "MS_SYNC",
    "ArrayInfo",
    "Mapping",
    "Mode",
    "Name",
    "Order",
    "PacketSpace",
    "Part",
    "Reference",
    "Register",
    "Removal",
    "Shape",
    "SparseFile",
    "Undo",
    "attach",
    "create",
    "create_temporary",
    "delete",
    "host_of_memory",
    "identity_of",
    "inode_at",
    "list",
    "lock",
    "memory_limits",
    "mlock",
    "msync",
    "munlock",
    "owner",
    "parse_name",
    "receive_packet",
    "refer",
    "require",
    "resolve",
    "send_packet",
    "sweep_registers",
]
