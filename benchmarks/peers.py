"""The peers: an adapter for each, all of them context managers with the same methods.

Each adapter follows the peer's own documentation; a comment says where that changes the work.
A peer that is not installed is reported and left out.
"""

import concurrent.futures
import importlib.metadata
import importlib.util
import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import repeat
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

import shmarray
from benchmarks.limit import Limit
from benchmarks.records import OUR_EXECUTOR, OURS
from benchmarks.workloads import BY_HAND

Function = Callable[..., Any]


class Peer:
    """The common interface.

    Parameters
    ----------
    workers : int

    Attributes
    ----------
    needs : str
        The module that must be installed.
    distribution : str
        The distribution that contains it.
    starts_slowly : bool
        Whether starting takes seconds: then one instance is kept for all workloads, so its first
        call may find memory that earlier workloads have allocated.
    """

    needs: ClassVar[str] = ""
    distribution: ClassVar[str] = ""
    starts_slowly: ClassVar[bool] = False

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.stack = ExitStack()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def prepare(self, function: Function, items: Sequence[Any]) -> None:
        """Prepare for the work before its first call, which is timed."""

    def start(self) -> None:
        raise NotImplementedError

    def map(self, function: Function, items: Sequence[Any], chunksize: int | None) -> list[Any]:
        """Return a list of the results of ``function(item)``; a `chunksize` of None means the peer's own choice."""
        raise NotImplementedError

    def spread(self, function: Function, array: Any, places: Sequence[Any]) -> list[Any]:
        """Return the results of ``function(array, place)``, with one array in many tasks."""
        raise NotImplementedError

    def stream(self, function: Function, produce: Function, items: Sequence[Any]) -> list[Any]:
        """Return the results of ``function(produce(item, empty))``; the produced arrays are not needed afterwards."""
        return self.map(function, [produce(item, np.empty) for item in items], 1)


class _Pool(Peer):
    pool: Any

    def map(self, function: Function, items: Sequence[Any], chunksize: int | None) -> list[Any]:
        return self.pool.map(function, items, chunksize)

    def spread(self, function: Function, array: Any, places: Sequence[Any]) -> list[Any]:
        return self.pool.starmap(function, [(array, place) for place in places], 1)

    def stream(self, function: Function, produce: Function, items: Sequence[Any]) -> list[Any]:
        return list(self.pool.imap(function, map(produce, items, repeat(self.empty))))

    @staticmethod
    def empty(size: int) -> Any:
        """Return memory for an array that is produced."""
        return np.empty(size)


class OurPool(_Pool):
    empty = staticmethod(shmarray.empty)

    def start(self) -> None:
        self.pool = self.stack.enter_context(shmarray.Pool(self.workers))


class StockPool(_Pool):
    def start(self) -> None:
        self.pool = self.stack.enter_context(multiprocessing.Pool(self.workers))


class ByHand(StockPool):
    """What one would write by hand for speed: segments for arguments and results, created once and reused."""

    def start(self) -> None:
        super().start()
        self.segments: dict[tuple[str, int], SharedMemory] = {}

    def stream(self, function: Function, produce: Function, items: Sequence[Any]) -> list[Any]:
        ahead = 2 * self.workers  # then wait for the oldest call
        calls: deque[Any] = deque()
        results: list[Any] = []
        for number, item in enumerate(items):
            if len(calls) == ahead:
                results.append(self._received(calls.popleft().get(), len(results)))
            argument = produce(item, partial(self._array, "argument", number % ahead))
            self._array("result", number, len(argument))
            names = self.segments["argument", number % ahead].name, self.segments["result", number].name
            calls.append(self.pool.apply_async(call_by_hand, (function, *names, len(argument))))
        for call in calls:
            results.append(self._received(call.get(), len(results)))
        return results

    def _array(self, use: str, place: int, size: int) -> Any:
        segment = self.segments.get((use, place))
        if segment is None:
            segment = self.segments[use, place] = SharedMemory(create=True, size=8 * size)
            self.stack.callback(segment.unlink)
        return np.ndarray(size, buffer=segment.buf)

    def _received(self, result: Any, place: int) -> Any:
        segment = self.segments["result", place]
        return np.ndarray(result[1], buffer=segment.buf) if isinstance(result, tuple) else result


_attached: dict[str, SharedMemory] = {}


def call_by_hand(function: Function, argument: str, target: str, size: int) -> Any:
    """Runs in a worker: writes the result to the segment `target` if it is an array."""
    for name in (argument, target):
        if name not in _attached:
            _attached[name] = SharedMemory(name)
    result = function(np.ndarray(size, buffer=_attached[argument].buf))
    if not isinstance(result, np.ndarray):
        return result
    np.ndarray(size, buffer=_attached[target].buf)[:] = result
    return "array", size


class _Executor(Peer):
    executor: concurrent.futures.Executor

    def map(self, function: Function, items: Sequence[Any], chunksize: int | None) -> list[Any]:
        return list(self.executor.map(function, items, chunksize=chunksize or 1))

    def spread(self, function: Function, array: Any, places: Sequence[Any]) -> list[Any]:
        return list(self.executor.map(function, repeat(array, len(places)), places))


class OurExecutor(_Executor):
    def start(self) -> None:
        self.executor = self.stack.enter_context(shmarray.ProcessPoolExecutor(self.workers))


class StockExecutor(_Executor):
    def start(self) -> None:
        self.executor = self.stack.enter_context(concurrent.futures.ProcessPoolExecutor(self.workers))


class Joblib(Peer):
    """Uses a new Parallel for each call: a reused one identifies arrays by identity, and sends workers their
    first content.  The workers themselves are kept anyway.
    """

    needs = distribution = "joblib"

    def start(self) -> None:
        import joblib
        from joblib.externals import loky

        self.joblib = joblib
        self.stack.callback(lambda: loky.get_reusable_executor(self.workers, reuse=True).shutdown())

    def map(self, function: Function, items: Sequence[Any], chunksize: int | None) -> list[Any]:
        parallel = self.joblib.Parallel(self.workers, batch_size=chunksize or "auto")
        return parallel(self.joblib.delayed(function)(item) for item in items)

    def spread(self, function: Function, array: Any, places: Sequence[Any]) -> list[Any]:
        return self.joblib.Parallel(self.workers)(self.joblib.delayed(function)(array, place) for place in places)


class Torch(Peer):
    """Tensors go through shared memory, arrays do not, so arrays are converted to new tensors in each call: a tensor
    that was sent before is already in shared memory, and workers would write to the caller's own.
    """

    needs = distribution = "torch"

    def start(self) -> None:
        import torch
        import torch.multiprocessing

        self.torch = torch
        # One thread for each worker, as numpy uses for these functions.
        pool = torch.multiprocessing.Pool(self.workers, torch.set_num_threads, (1,))
        self.pool = self.stack.enter_context(pool)

    def map(self, function: Function, items: Sequence[Any], chunksize: int | None) -> list[Any]:
        return self._arrays(self.pool.map(function, [self._tensor(item) for item in items], chunksize))

    def spread(self, function: Function, array: Any, places: Sequence[Any]) -> list[Any]:
        tensor = self._tensor(array)
        return self._arrays(self.pool.starmap(function, [(tensor, place) for place in places], 1))

    def _tensor(self, item: Any) -> Any:
        return self.torch.from_numpy(item) if isinstance(item, np.ndarray) else item

    def _arrays(self, results: list[Any]) -> list[Any]:
        return [result.numpy() if isinstance(result, self.torch.Tensor) else result for result in results]


class Ray(_Pool):
    needs = distribution = "ray"
    starts_slowly = True

    def start(self) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
        _make_importable()
        import ray
        from ray.util.multiprocessing import Pool

        self.ray = ray
        # Half for the Pool, which keeps them, and half for the tasks of `spread`.
        cpus = 2 * self.workers
        ray.init(num_cpus=cpus, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        self.stack.callback(ray.shutdown)
        self.pool = Pool(self.workers)
        self.stack.callback(self.pool.terminate)

    def spread(self, function: Function, array: Any, places: Sequence[Any]) -> list[Any]:
        # Ray's Pool would store the array once for each chunk.
        remote, stored = self.ray.remote(function), self.ray.put(array)
        return self.ray.get([remote.remote(stored, place) for place in places])

    def stream(self, function: Function, produce: Function, items: Sequence[Any]) -> list[Any]:
        remote = self.ray.remote(function)
        return self.ray.get([remote.remote(self.ray.put(produce(item, np.empty))) for item in items])


class Mpire(Peer):
    needs = distribution = "mpire"

    def start(self) -> None:
        import mpire

        self.pool = self.stack.enter_context(mpire.WorkerPool(self.workers, keep_alive=True))

    def map(self, function: Function, items: Sequence[Any], chunksize: int | None) -> list[Any]:
        # Wrapped in tuples, because mpire would unpack dicts.
        alone = [(item,) for item in items]
        return self.pool.map(function, alone, chunk_size=chunksize, concatenate_numpy_output=False)

    def spread(self, function: Function, array: Any, places: Sequence[Any]) -> list[Any]:
        return self.pool.map(function, [(array, place) for place in places], chunk_size=1)


class Dask(Peer):
    needs, distribution = "distributed", "dask[distributed]"
    starts_slowly = True
    scattered = 1 << 20  # bytes from which dask warns about arrays in the graph

    def start(self) -> None:
        from distributed import Client

        options = {"processes": True, "dashboard_address": None, "memory_limit": 0, "silence_logs": 50}
        client = Client(n_workers=self.workers, threads_per_worker=1, **options)
        self.client = self.stack.enter_context(client)

    def map(self, function: Function, items: Sequence[Any], chunksize: int | None) -> list[Any]:
        # dask has no chunks, and recommends scattering large items first.  Without hash=False and pure=False it would
        # recognize items by their content, and not compute anything.
        large = getattr(items[0], "nbytes", self.scattered) >= self.scattered and not isinstance(items[0], int)
        given = self.client.scatter(list(items), hash=False) if large else items
        return self.client.gather(self.client.map(function, given, pure=False))

    def spread(self, function: Function, array: Any, places: Sequence[Any]) -> list[Any]:
        stored = self.client.scatter(array, hash=False, broadcast=True)
        return self.client.gather(self.client.map(function, [stored] * len(places), places, pure=False))


class AtBest(Peer):
    """Not a peer, but the limit that none of them can beat."""

    def prepare(self, function: Function, items: Sequence[Any]) -> None:
        limit = Limit(self.workers, function, list(items))
        self.call = self.stack.enter_context(limit.running())

    def start(self) -> None:
        self.call = list  # nothing to do without work

    def map(self, function: Function, items: Sequence[Any], chunksize: int | None) -> list[Any]:
        return self.call()


OWN = (OURS, OUR_EXECUTOR)
PEERS: dict[str, type[Peer]] = {
    OURS: OurPool,
    OUR_EXECUTOR: OurExecutor,
    "multiprocessing": StockPool,
    "concurrent.futures": StockExecutor,
    "joblib": Joblib,
    "torch": Torch,
    "Ray": Ray,
    "mpire": Mpire,
    "dask": Dask,
    BY_HAND: ByHand,
    "limit": AtBest,
}


def missing() -> dict[str, str]:
    """Return the peers that are not installed, and the commands that install them."""
    absent = {name: peer.distribution for name, peer in PEERS.items() if not _is_there(peer.needs)}
    if not _is_there("SharedArray"):
        absent["SharedArray"] = "SharedArray"
    return {name: f"pip install '{distribution}'" for name, distribution in absent.items()}


def versions() -> dict[str, str]:
    """Return the versions of everything that takes part."""
    names = ["numpy", "joblib", "torch", "ray", "mpire", "distributed", "SharedArray", "pandas", "scipy"]
    found = {name: importlib.metadata.version(name) for name in names if _is_there(name)}
    return {"Python": ".".join(map(str, sys.version_info[:3])), "shmarray": shmarray.__version__, **found}


def _is_there(module: str) -> bool:
    return not module or importlib.util.find_spec(module) is not None


def _make_importable() -> None:
    """Let processes that do not inherit our import path find the functions of the workloads."""
    root = str(Path(__file__).parent.parent)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if root not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, paths)])
