"""Small tests with the real library: a named array between two processes, and a pool."""

import multiprocessing
import os
import secrets
import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

import shmarray
from shmarray.command import wording
from shmarray.command.interrupts import undisturbed

# A spawned interpreter that imports numpy from a slow disk takes seconds.
_PATIENCE = 30  # seconds
_ITEMS = 100_000  # 800 kB: through the pool's shared memory, not its pipe


def named_array() -> str | None:
    """Create an array, attach it in a child, delete it; return what went wrong, or None."""
    return _failure(_share_by_name)


def pool() -> str | None:
    """Send an array to a worker and back, and share another with it; return what went wrong, or None."""
    return _failure(_share_with_pool)


def _failure(test: Callable[[], None]) -> str | None:
    try:
        with undisturbed(), warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # a pool warns when it works without shared memory
            test()
    except Exception as error:  # noqa: BLE001 - the test reports any error
        return f"{type(error).__name__}: {wording.failure(error)}"
    return None


def _share_by_name() -> None:
    name = f"shmarray-doctor-{os.getpid()}-{secrets.token_hex(4)}"
    with shmarray.scoped(8, "int64", name=name) as array:
        child = multiprocessing.Process(target=_write_by_name, args=(name,))
        child.start()
        child.join(_PATIENCE)
        if child.exitcode is None:
            child.kill()
            child.join()
            raise TimeoutError(f"a child that attaches an array did not finish within {_PATIENCE} s")
        if child.exitcode:
            raise ChildProcessError(f"a child that attaches an array ended with exit code {child.exitcode}")
        if array.tolist() != list(range(8)):
            raise ValueError("what a child process wrote to an array is not visible here")


def _write_by_name(name: str) -> None:
    shmarray.attach(name)[:] = range(8)


def _share_with_pool() -> None:
    with shmarray.scoped(8, "int64") as seen, shmarray.Pool(1) as workers:
        doubled = workers.apply_async(_double, (np.arange(_ITEMS), seen)).get(_PATIENCE)
        if not np.array_equal(doubled, 2 * np.arange(_ITEMS)) or seen.tolist() != list(range(8)):
            raise ValueError("what a worker wrote to an array is not visible here")


def _double(array: NDArray[np.int64], seen: NDArray[np.int64]) -> NDArray[np.int64]:
    seen[:] = range(8)
    array *= 2
    return array
