"""Carrying arrays between processes.  Imports core through its facades only.

From top to bottom; each imports only those below it::

    executor     ProcessPoolExecutor: the stdlib's methods on our engine
    pool         Pool: likewise
    progress     bars over some of Pool's methods
    engine/      processes that carry out tasks; never sees an array
    creation     empty, zeros: arrays in memory that need not be copied on the way
    arrays/      arrays on their way between processes; never sees a process
    scoped       scoped: a shared array for the length of a with-block
    name_reaper  deletes the names of a process that is killed
    handle       SharedHandle: a view of shared memory, as something small to send
    forks        what is told of forks
    _stdlib      the private names of the stdlib that are used
"""

from shmarray.pool.creation import empty, empty_like, zeros, zeros_like
from shmarray.pool.executor import ProcessPoolExecutor
from shmarray.pool.handle import SharedHandle
from shmarray.pool.pool import Pool
from shmarray.pool.scoped import scoped

__all__ = [
    "Pool",
    "ProcessPoolExecutor",
    "SharedHandle",
    "empty",
    "empty_like",
    "scoped",
    "zeros",
    "zeros_like",
]
