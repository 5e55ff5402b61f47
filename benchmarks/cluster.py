"""One large array in many tasks on worker processes of one host: Dask's own methods, Ray's, and ours.

python -m benchmarks.cluster                    512 MB in 100 tasks on four workers, three rounds
python -m benchmarks.cluster --megabytes 64     a smaller array

All contestants take turns in every round, each in its own process with its own cluster, whose workers have already
run a task.  The time is from the array in the caller to the last result; the memory is the peak of all processes
together, minus their memory before.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import processes

ROOT = Path(__file__).parent.parent
Call = Callable[[np.ndarray, list[int]], list[float]]


def item(table: Any, place: int) -> float:
    """Read a hundredth of the table, and return an item."""
    array = np.asarray(table)
    part = len(array) // 100
    return float(array[place]) + 0.0 * float(array[place % 100 * part :][:part].sum())


# --- contestants ---------------------------------------------------------------------


@contextmanager
def _dask(workers: int) -> Iterator[Any]:
    from distributed import Client

    options = {"processes": True, "dashboard_address": ":0", "memory_limit": 0, "silence_logs": 50}
    with Client(n_workers=workers, threads_per_worker=1, **options) as client:
        client.wait_for_workers(workers)
        client.gather(client.map(item, [np.ones(10)] * 4 * workers, [0] * 4 * workers, pure=False))
        yield client


@contextmanager
def dask_broadcast(workers: int) -> Iterator[Call]:
    with _dask(workers) as client:

        def call(array: np.ndarray, places: list[int]) -> list[float]:
            stored = client.scatter(array, hash=False, broadcast=True)
            return client.gather(client.map(item, [stored] * len(places), places, pure=False))

        yield call


@contextmanager
def dask_scatter(workers: int) -> Iterator[Call]:
    with _dask(workers) as client:

        def call(array: np.ndarray, places: list[int]) -> list[float]:
            stored = client.scatter(array, hash=False)
            return client.gather(client.map(item, [stored] * len(places), places, pure=False))

        yield call


@contextmanager
def our_share(workers: int) -> Iterator[Call]:
    from shmarray.dask import install, share

    with _dask(workers) as client:
        install(client)

        def call(array: np.ndarray, places: list[int]) -> list[float]:
            with share(client, array) as shared:
                return client.gather(client.map(item, [shared.future] * len(places), places, pure=False))

        yield call


@contextmanager
def our_pool(workers: int) -> Iterator[Call]:
    from shmarray.dask import Pool

    with _dask(workers) as client, Pool(client) as pool:
        yield lambda array, places: pool.starmap(item, [(array, place) for place in places], 1)


@contextmanager
def ray_put(workers: int) -> Iterator[Call]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    import ray

    ray.init(num_cpus=workers, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    remote = ray.remote(item)
    ray.get([remote.remote(np.ones(10), 0) for _ in range(4 * workers)])

    def call(array: np.ndarray, places: list[int]) -> list[float]:
        stored = ray.put(array)
        return ray.get([remote.remote(stored, place) for place in places])

    try:
        yield call
    finally:
        ray.shutdown()


CONTESTANTS: dict[str, tuple[str, Any]] = {
    "shmarray.dask.share": ("distributed", our_share),
    "shmarray.dask.Pool.starmap": ("distributed", our_pool),
    "dask scatter": ("distributed", dask_scatter),
    "dask scatter(broadcast=True)": ("distributed", dask_broadcast),
    "Ray put": ("ray", ray_put),
}
OURS = next(iter(CONTESTANTS))


# --- one turn ------------------------------------------------------------------------


def turn(name: str, megabytes: int, tasks: int, workers: int) -> dict[str, float]:
    """Run one contestant's call in its own process; return the seconds and bytes."""
    arguments = [sys.executable, "-m", "benchmarks.cluster", "--turn", name]
    arguments += [f"--megabytes={megabytes}", f"--tasks={tasks}", f"--workers={workers}"]
    done = subprocess.run(  # noqa: S603 - runs this module
        arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=600
    )
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _take_turn(options: argparse.Namespace) -> None:
    array = np.arange(options.megabytes << 17, dtype=np.float64)
    with CONTESTANTS[options.turn][1](options.workers) as call:
        memory = processes.Memory(os.getpid())
        before = memory.peak
        ended = threading.Event()
        looker = threading.Thread(target=lambda: [memory.look() for _ in iter(lambda: ended.wait(0.02), True)])
        looker.start()
        start = time.perf_counter()
        results = call(array, list(range(options.tasks)))
        seconds = time.perf_counter() - start
        ended.set()
        looker.join()
    if results != [float(place) for place in range(options.tasks)]:
        raise SystemExit("the results are wrong")
    print(json.dumps({"seconds": seconds, "bytes": memory.peak - before}))


# --- the command ---------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turn", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.turn:
        _take_turn(options)
        return
    present = [name for name, (module, _) in CONTESTANTS.items() if importlib.util.find_spec(module)]
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in present}
    for _ in range(options.rounds):
        for name in present:
            figures[name].append(turn(name, options.megabytes, options.tasks, options.workers))
    print(f"{options.megabytes} MB in {options.tasks} tasks on {options.workers} workers, {options.rounds} rounds")
    for name, turns in figures.items():
        seconds = statistics.median(each["seconds"] for each in turns)
        ratio = statistics.median(
            theirs["seconds"] / ours["seconds"] for theirs, ours in zip(turns, figures[OURS], strict=True)
        )
        memory = statistics.median(each["bytes"] for each in turns) / 1e6
        print(f"{name:30} {seconds:7.2f} s {ratio:6.1f} x {memory:8.0f} MB")


if __name__ == "__main__":
    main()
