"""Named arrays in POSIX shared memory.  Independent of multiprocessing.

From top to bottom; each module imports only those below it::

    mapped_files files of numpy memory maps, for other processes
    register     the processes of this host that have an object
    temporary    temporary arrays, with or without a name
    references   the location of a view, as values that can be sent
    locks        lock
    memory       msync, mlock, munlock
    listing      list
    arrays       create, attach, require, delete
    publishing   gives a complete array its name, and undoes everything on failure
    segment      writes a complete array to an empty file; reads the layout of an unknown file
    copying      copies the data into a new array
    mapping      Mapping: the only owner of an address range
    posix        the only package that calls the kernel, with its own facade
    layout       header bytes <-> dtype, shape, order, offset; pure
    names        valid names; pure
"""

from shmarray.core.arrays import attach, create, delete, require
from shmarray.core.listing import ArrayInfo
from shmarray.core.listing import list_arrays as list  # noqa: A004 - the name that SharedArray's users know
from shmarray.core.locks import lock
from shmarray.core.mapped_files import FileReference, check_is_whole, map_referred_file, refer_to_file
from shmarray.core.mapping import Mapping, Mode, owner
from shmarray.core.memory import mlock, msync, munlock
from shmarray.core.names import Name
from shmarray.core.names import parse as parse_name
from shmarray.core.posix.files import birth, identity_of
from shmarray.core.posix.libc import MS_ASYNC, MS_INVALIDATE, MS_SYNC
from shmarray.core.publishing import Removal
from shmarray.core.references import Reference, check_is_there, host_of_memory, is_closed, refer, resolve
from shmarray.core.register import Register
from shmarray.core.register import sweep as sweep_registers
from shmarray.core.segment import OWNER_ALONE, Order, Shape, is_masked
from shmarray.core.temporary import Undo, create_temporary

__all__ = [
    "MS_ASYNC",
    "MS_INVALIDATE",
    "MS_SYNC",
    "OWNER_ALONE",
    "ArrayInfo",
    "FileReference",
    "Mapping",
    "Mode",
    "Name",
    "Order",
    "Reference",
    "Register",
    "Removal",
    "Shape",
    "Undo",
    "attach",
    "birth",
    "check_is_there",
    "check_is_whole",
    "create",
    "create_temporary",
    "delete",
    "host_of_memory",
    "identity_of",
    "is_closed",
    "is_masked",
    "list",
    "lock",
    "map_referred_file",
    "mlock",
    "msync",
    "munlock",
    "owner",
    "parse_name",
    "refer",
    "refer_to_file",
    "require",
    "resolve",
    "sweep_registers",
]
