"""Carrying arrays between processes.  Imports core through its facades only.

From top to bottom; each imports only those below it::

    executor     ProcessPoolExecutor: the stdlib's methods on our engine
    pool         Pool: likewise
    progress     bars over some of Pool's methods
    buffered     imap that takes no more items than its consumer keeps up with
    engine/      processes that carry out tasks; never sees an array
    creation     empty, zeros: arrays in memory that need not be copied on the way
    arrays/      arrays on their way between processes; never sees a process
    scoped       scoped: a shared array for the length of a with-block
    name_reaper  deletes the names of a process that is killed
    handle       SharedHandle: a view of shared memory, as something small to send
    missing      what multiprocessing's carriers deliver in place of an array that is gone
    forks        what is told of forks
    interrupts   what Ctrl-C must not interrupt
    main_module  the caller's __main__, as far as other processes can have it
    threads      what threads share without a lock
    _stdlib      the private names of the stdlib that are used
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Teaches multiprocessing's pickler to send shared arrays by handle, so it is not put off.
from shmarray.pool.arrays import by_reference  # noqa: F401
from shmarray.pool.handle import SharedHandle

# What it does at exit has to be registered before what its users register.
from shmarray.pool.scoped import scoped

if TYPE_CHECKING:
    from shmarray.pool.creation import empty, empty_like, zeros, zeros_like
    from shmarray.pool.executor import ProcessPoolExecutor
    from shmarray.pool.pool import Pool
else:
    # Imported at first use, as concurrent.futures does with its pools: programs that use named
    # arrays alone, and spawned workers, need none of it.
    _MODULES = {"Pool": "pool", "ProcessPoolExecutor": "executor"}
    _MODULES |= dict.fromkeys(("empty", "empty_like", "zeros", "zeros_like"), "creation")

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *_MODULES})


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
