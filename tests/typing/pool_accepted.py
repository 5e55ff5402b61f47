"""Uses of pools that a type checker accepts, and the types that it infers."""

from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import ProcessPoolExecutor as StockExecutor
from multiprocessing.pool import IMapIterator
from multiprocessing.pool import Pool as StockPool
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import shmarray


def length(text: str) -> int:
    return len(text)


def total(a: NDArray[np.float64], scale: int = 1) -> float:
    return float(a.sum() * scale)


def with_a_pool(arrays: list[NDArray[np.float64]]) -> StockPool:
    with shmarray.Pool(2, maxtasksperchild=5, tasks_ahead=3, task_timeout=1.5) as pool:
        assert_type(pool.map(total, arrays), list[float])
        assert_type(pool.map(length, ["a"], 3, progress=True), list[int])
        assert_type(pool.starmap(total, [(arrays[0], 2)], chunksize=1), list[float])
        assert_type(pool.imap(total, iter(arrays), buffersize=4), IMapIterator[float])
        assert_type(pool.imap_unordered(length, "ab", 2, progress="label").next(timeout=1), int)
        assert_type(pool.apply(total, (arrays[0],), {"scale": 3}), float)
        assert_type(pool.apply_async(total, (arrays[0],)).get(5), float)
        assert_type(pool.map_async(length, ["a"]).get(), list[int])
        pool.close()
        pool.join()
        pool.terminate()
    return pool


def with_an_executor(arrays: list[NDArray[np.float64]]) -> StockExecutor:
    with shmarray.ProcessPoolExecutor(2, replace_workers=True, task_timeout=2) as executor:
        assert_type(executor.submit(total, arrays[0], scale=2), Future[float])
        assert_type(executor.submit(length, "a").result(), int)
        assert_type(executor.map(total, arrays, chunksize=2), Iterator[float])
        executor.shutdown(wait=True, cancel_futures=True)
        executor.kill_workers()
        executor.terminate_workers()
    return executor


def shared(pixels: NDArray[np.uint8]) -> None:
    with shmarray.scoped((2, 3)) as table, shmarray.scoped(data=pixels, name="x") as named:
        handle = shmarray.SharedHandle(table[1:])
        array: NDArray[np.float64] = handle.array
        also: NDArray[np.uint8] = named
        print(array, also)


def made(a: NDArray[np.float32]) -> NDArray[Any]:
    assert_type(shmarray.zeros((2, 3)), NDArray[Any])
    assert_type(shmarray.empty_like(a), NDArray[Any])
    shmarray.zeros_like(a, order="F")
    return shmarray.empty(3, np.float32)


def failed(error: shmarray.WorkerDiedError, late: shmarray.TaskTimeoutError) -> None:
    assert_type(error.items, range | None)
    assert_type(error.pid, int | None)
    assert_type(late.index, int | None)
