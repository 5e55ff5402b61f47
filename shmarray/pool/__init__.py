"""Carrying arrays between processes.  Imports core through its facade only.

From top to bottom; each module imports only those below it::

    executor    ProcessPoolExecutor: the stdlib's engine, our parcels
    manager     the managing thread of an executor, and deaths there
    recruiter   starts the workers of an executor
    pool        Pool: the stdlib's face on our engine
    progress    bars over some of Pool's methods
    engine      the feeding and the collecting thread, deaths
    crew        the workers: started, given tasks, buried
    traffic     the caller's side of parcels: boxes lent, and taken back
    serve       how a worker process starts, gets its tasks, ends
    worker      what runs in a worker: open the parcel, call, pack the result
    calls       calls as they travel: functions named once
    link        messages over a pair of sockets
    obituary    how a process ended, and what tells of it
    interrupts  what Ctrl-C must not interrupt
    arena       boxes: lent, taken back, given back to the system
    boxes       the shared memory of a pool, as one process sees it; forks
    parcel      objects -> (pickle, buffers) -> objects; no processes
    references  arrays that go by reference; the registration with ForkingPickler
    sharing     which arrays of a call are copied once for all its tasks
    wakeup      what wakes the managing thread of an executor
    scope       scoped: a shared array for the length of a with-block
    watcher     deletes the names of a process that is killed
    handle      SharedHandle: a view of shared memory, as something small to send
    missing     what the stdlib's carriers deliver in place of an array that is gone
    forks       who is told of forks
    stdlib      the private names of the stdlib that are used
"""

from shmarray.pool.executor import ProcessPoolExecutor
from shmarray.pool.handle import SharedHandle
from shmarray.pool.pool import Pool
from shmarray.pool.scope import scoped

__all__ = ["Pool", "ProcessPoolExecutor", "SharedHandle", "scoped"]
