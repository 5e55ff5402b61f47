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
    forks       who is told of forks
    stdlib      the private names of the stdlib that are used
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Teaches multiprocessing's pickler to send shared arrays by handle, so it is not put off.
from shmarray.pool import references  # noqa: F401
from shmarray.pool.handle import SharedHandle

# What it does at exit has to be registered before what its users register.
from shmarray.pool.scope import scoped

if TYPE_CHECKING:
    from shmarray.pool.executor import ProcessPoolExecutor
    from shmarray.pool.pool import Pool
else:
    # Imported at first use, as concurrent.futures does with its pools: programs that use named
    # arrays alone, and spawned workers, need none of it.
    _MODULES = {"Pool": "pool", "ProcessPoolExecutor": "executor"}

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *_MODULES})


__all__ = ["Pool", "ProcessPoolExecutor", "SharedHandle", "scoped"]
