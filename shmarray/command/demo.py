"""``shmarray demo``: an array shared by two processes, and a comparison of two pools."""

import multiprocessing
import os
import time
from argparse import Namespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import shmarray
from shmarray.command import wording
from shmarray.command.interrupts import undisturbed

_ARRAYS, _ITEMS = 12, 2_000_000  # of 16 MB each
_WORKERS = 2


def run(_: Namespace) -> int:
    _show_names()
    print()
    _show_pools()
    return 0


# --- one array, two processes --------------------------------------------------------


def _show_names() -> None:
    name = f"demo-{os.getpid()}"
    print("1. A named array, shared by two processes.\n")
    with shmarray.scoped((3, 4), name=name) as table:
        print(f"   process {os.getpid()}:  table = shmarray.create({name!r}, (3, 4))")
        # A fresh interpreter, which inherits nothing and receives only the name.
        child = multiprocessing.get_context("spawn").Process(target=_write, args=(name,))
        with undisturbed():
            child.start()
            child.join()
        print(f"   process {os.getpid()}:  print(table)\n")
        print("\n".join(f"      {line}" for line in str(table).splitlines()))


def _write(name: str) -> None:
    table = shmarray.attach(name)
    table[:] = np.arange(12).reshape(3, 4)
    print(
        f"   process {os.getpid()}:  table = shmarray.attach({name!r}); table[:] = np.arange(12).reshape(3, 4)",
        flush=True,
    )


# --- two pools -----------------------------------------------------------------------


def _show_pools() -> None:
    arrays = [np.full(_ITEMS, float(number)) for number in range(_ARRAYS)]
    each = wording.size(arrays[0].nbytes)
    print(f"2. A pool: x * 2 for {_ARRAYS} arrays of {each}, {_WORKERS} workers, second run.\n", flush=True)
    stock, expected = _seconds(multiprocessing.Pool, arrays)
    print(
        f"   multiprocessing.Pool  {1000 * stock:6.0f} ms   every array pickled through a pipe, both ways", flush=True
    )
    ours, found = _seconds(shmarray.Pool, arrays)
    print(f"   shmarray.Pool         {1000 * ours:6.0f} ms   {stock / ours:.1f} times as fast; only the import changes")
    if not all(map(np.array_equal, expected, found)):
        raise ArithmeticError("the two pools returned different results: please report this")
    print("\n   The results are equal; each is writable and belongs to the caller alone.")


def _seconds(pool_of: Any, arrays: list[NDArray[Any]]) -> tuple[float, list[NDArray[Any]]]:
    """Time the second of two maps, and return its results; the first one also allocates memory from the system."""
    with undisturbed(), pool_of(_WORKERS) as pool:
        pool.map(_double, arrays, chunksize=1)
        start = time.perf_counter()
        results = pool.map(_double, arrays, chunksize=1)
        return time.perf_counter() - start, results


def _double(x: NDArray[Any]) -> NDArray[Any]:
    doubled: NDArray[Any] = x * 2
    return doubled
