"""Share numpy arrays between processes without copying them.

From top to bottom; each layer imports only those below it::

    shmarray.command  the command line: list, info, delete, doctor, demo; above this module
    shmarray.pool     arrays between processes: Pool, ProcessPoolExecutor, SharedHandle, scoped
    shmarray.core     named arrays: create, attach, require, delete, list, lock
    shmarray.errors   the exceptions

All public names are here.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from shmarray import pool
from shmarray.core import (
    MS_ASYNC,
    MS_INVALIDATE,
    MS_SYNC,
    ArrayInfo,
    attach,
    create,
    delete,
    list,  # noqa: A004 - the name used by SharedArray
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
    ArrayPermissionError,
    InvalidNameError,
    LockTimeoutError,
    SharedMemoryFullError,
    ShmArrayError,
    TaskTimeoutError,
    UnsendableError,
    WorkerDiedError,
)
from shmarray.pool import SharedHandle, scoped

if TYPE_CHECKING:
    from shmarray.pool import Pool, ProcessPoolExecutor, empty, empty_like, zeros, zeros_like
else:

    def __getattr__(name: str) -> Any:
        # Names that the pool layer imports on first use.
        if name not in pool.__all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(pool, name)
        return value

    def __dir__() -> Iterable[str]:
        return {*globals(), *__all__} - {"Any", "Iterable", "TYPE_CHECKING"}


__version__ = "0.1.0"

__all__ = [
    "MS_ASYNC",
    "MS_INVALIDATE",
    "MS_SYNC",
    "ArrayExistsError",
    "ArrayFormatError",
    "ArrayInfo",
    "ArrayNotFoundError",
    "ArrayPermissionError",
    "InvalidNameError",
    "LockTimeoutError",
    "Pool",
    "ProcessPoolExecutor",
    "SharedHandle",
    "SharedMemoryFullError",
    "ShmArrayError",
    "TaskTimeoutError",
    "UnsendableError",
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
