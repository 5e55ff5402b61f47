"""numpy arrays that several processes use at once, without copying them.

From top to bottom; each layer imports only those below it::

    shmarray.command  the command line: list, info, delete, doctor, demo; above this module
    shmarray.pool     arrays between processes: Pool, ProcessPoolExecutor, SharedHandle, scoped
    shmarray.core     named arrays: create, attach, require, delete, list, lock
    shmarray.errors   what can go wrong

All public names are here.
"""

from shmarray.core import (
    MS_ASYNC,
    MS_INVALIDATE,
    MS_SYNC,
    ArrayInfo,
    attach,
    create,
    delete,
    list,  # noqa: A004 - the name that SharedArray's users know
    lock,
    mlock,
    msync,
    munlock,
    require,
)
from shmarray.errors import (
    ArrayExistsError,
    ArrayFormatError,
    ArrayNotFoundError,
    InvalidNameError,
    SharedMemoryFullError,
    ShmArrayError,
    TaskTimeoutError,
    WorkerDiedError,
)
from shmarray.pool import (
    Pool,
    ProcessPoolExecutor,
    SharedHandle,
    empty,
    empty_like,
    scoped,
    zeros,
    zeros_like,
)

__version__ = "0.1.0"

__all__ = [
    "MS_ASYNC",
    "MS_INVALIDATE",
    "MS_SYNC",
    "ArrayExistsError",
    "ArrayFormatError",
    "ArrayInfo",
    "ArrayNotFoundError",
    "InvalidNameError",
    "Pool",
    "ProcessPoolExecutor",
    "SharedHandle",
    "SharedMemoryFullError",
    "ShmArrayError",
    "TaskTimeoutError",
    "WorkerDiedError",
    "__version__",
    "attach",
    "create",
    "delete",
    "empty",
    "empty_like",
    "list",
    "lock",
    "mlock",
    "msync",
    "munlock",
    "require",
    "scoped",
    "zeros",
    "zeros_like",
]
