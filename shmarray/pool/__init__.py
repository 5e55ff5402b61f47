"""Pools that send arrays between processes.  Imports core only through its facades.

From top to bottom; each imports only those below it::

    executor        ProcessPoolExecutor: the stdlib's methods on this library's engine
    executor_calls  the calls of an executor that are not complete
    pool            Pool: the same
    pool_calls      the calls of a Pool that are not complete
    progress        progress bars for some of Pool's methods
    buffered        imap that does not run ahead of its consumer
    engine/         processes that run tasks; knows nothing of arrays
    creation        empty, zeros: arrays in memory that need not be copied
    arrays/         sends arrays between processes; knows nothing of processes
    scoped          scoped: a shared array for the duration of a with block
    name_reaper     deletes the names of a process that was killed
    handle          SharedHandle: a small reference to a view of shared memory
    missing         replaces an array that is gone, in multiprocessing's pools, queues and pipes
    forks           objects that are notified of forks
    interrupts      sections that signal handlers must not interrupt
    main_module     whether other processes can import the caller's __main__
    threads         objects that threads share without a lock
    _stdlib         the private names of the stdlib that are used
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Not imported lazily, because it makes multiprocessing's pickler send shared arrays by handle.
from shmarray.pool.arrays import by_reference  # noqa: F401
from shmarray.pool.handle import SharedHandle

# Imported early, because its exit handlers must be registered before those of its users.
from shmarray.pool.scoped import scoped

if TYPE_CHECKING:
    from shmarray.pool.creation import empty, empty_like, zeros, zeros_like
    from shmarray.pool.executor import ProcessPoolExecutor
    from shmarray.pool.pool import Pool
else:
    # Imported on first use, as concurrent.futures does with its pools, because programs that only
    # use named arrays, and spawned workers, do not need them.
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
