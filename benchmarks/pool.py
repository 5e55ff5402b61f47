"""Arrays to workers and back: our Pool and executor against the stdlib's, joblib and Ray.

    python benchmarks/pool.py [--rounds N] [--workers N]

One line for each workload and peer: the time of the first call (the workers are there, no
memory is), the median of the later rounds, in which all take turns, and the median over
the rounds of how many times as fast shmarray was.  Each turn is two calls of which the
second is timed: an idle pool of ours gives its memory back after a second, which is about
as long as the others take for their turns.  A peer that is not installed is left out and
named.
"""

import argparse
import concurrent.futures
import importlib.util
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

import shmarray

Map = Callable[[Callable[[Any], Any], Any], Any]

ARRAYS = 24
ITEMS = 2_000_000  # 16 MB of float64
BIG = 32_000_000  # 256 MB
TASKS = 100
TINY = 5000


def double(x: Any) -> Any:
    return x * 2


def total(x: Any) -> float:
    return float(x.sum())


def in_place(x: Any) -> Any:
    x *= 2
    return x


def look(item: Any) -> float:
    big, place = item
    return float(big[place])


def identity(x: Any) -> Any:
    return x


# --- the peers -----------------------------------------------------------------------


@contextmanager
def ours(workers: int) -> Iterator[Map]:
    with shmarray.Pool(workers) as pool:
        yield lambda function, items: pool.map(function, items, chunksize=1)


@contextmanager
def stock(workers: int) -> Iterator[Map]:
    with multiprocessing.Pool(workers) as pool:
        yield lambda function, items: pool.map(function, items, chunksize=1)


@contextmanager
def our_executor(workers: int) -> Iterator[Map]:
    with shmarray.ProcessPoolExecutor(workers) as executor:
        yield lambda function, items: list(executor.map(function, items))


@contextmanager
def stock_executor(workers: int) -> Iterator[Map]:
    with concurrent.futures.ProcessPoolExecutor(workers) as executor:
        yield lambda function, items: list(executor.map(function, items))


@contextmanager
def with_joblib(workers: int) -> Iterator[Map]:
    import joblib  # noqa: PLC0415 - optional

    # A new Parallel for each call: one that is kept knows arrays again by their identity, and
    # gives workers what they held the first time.  The workers themselves are kept anyway.
    yield lambda function, items: joblib.Parallel(workers)(joblib.delayed(function)(item) for item in items)


@contextmanager
def with_ray(workers: int) -> Iterator[Map]:
    import ray  # noqa: PLC0415 - optional
    from ray.util.multiprocessing import Pool  # noqa: PLC0415

    ray.init(num_cpus=workers, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    try:
        pool = Pool(workers)
        yield lambda function, items: pool.map(function, items, chunksize=1)
        pool.terminate()
    finally:
        ray.shutdown()


PEERS: dict[str, Callable[[int], Any]] = {
    "Pool": ours,
    "multiprocessing": stock,
    "executor": our_executor,
    "concurrent.futures": stock_executor,
    "joblib": with_joblib,
    "ray": with_ray,
}


# --- the workloads -------------------------------------------------------------------


def arrays() -> list[Any]:
    return [np.full(ITEMS, float(i)) for i in range(ARRAYS)]


def one_big() -> list[Any]:
    big = np.zeros(BIG)
    return [(big, i) for i in range(TASKS)]


def nothing() -> list[Any]:
    return list(range(TINY))


# Name, function, items, ours, and for each peer how many times as fast we mean to be.  Left
# out: who refuses (arguments are read-only), and the stdlib where it would take minutes.
WORKLOADS: list[tuple[str, Any, Callable[[], list[Any]], str, dict[str, float]]] = [
    ("x * 2", double, arrays, "Pool", {"multiprocessing": 11, "joblib": 8, "ray": 3}),
    ("x.sum()", total, arrays, "Pool", {"multiprocessing": 13, "joblib": 0, "ray": 2.5}),
    ("x *= 2; return x", in_place, arrays, "Pool", {"multiprocessing": 15}),
    ("256 MB in 100 tasks", look, one_big, "Pool", {"joblib": 4, "ray": 1.2}),
    ("5000 tiny tasks", identity, nothing, "Pool", {"multiprocessing": 1}),
    ("x * 2", double, arrays, "executor", {"concurrent.futures": 5, "ray": 2.5}),
    ("5000 tiny tasks", identity, nothing, "executor", {"concurrent.futures": 1 / 1.2}),
]


def seconds(mapper: Map, function: Any, items: Iterable[Any]) -> float:
    start = time.perf_counter()
    result = mapper(function, items)
    elapsed = time.perf_counter() - start
    del result
    return elapsed


def measure(name: str, function: Any, items: list[Any], mappers: dict[str, Map], targets: Any, rounds: int) -> None:
    for mapper in mappers.values():
        mapper(identity, range(64))
    first = {peer: seconds(mapper, function, items) for peer, mapper in mappers.items()}
    times: dict[str, list[float]] = {peer: [] for peer in mappers}
    for _ in range(rounds):
        for peer, mapper in mappers.items():
            mapper(function, items)
            times[peer].append(seconds(mapper, function, items))
    own = next(iter(mappers))
    for peer in mappers:
        ratio = statistics.median(b / a for a, b in zip(times[own], times[peer], strict=True))
        wanted = f"{targets[peer]:.2g}" if targets.get(peer) else "-"
        figures = f"{1000 * first[peer]:9.1f}{1000 * statistics.median(times[peer]):9.1f}{ratio:8.2f}{wanted:>8}"
        print(f"{name:22}{peer:20}{figures}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    missing = [name for name in ("joblib", "ray") if importlib.util.find_spec(name) is None]
    print(f"Python {sys.version.split()[0]}, numpy {np.__version__}, {options.workers} workers")
    if missing:
        print(f"not installed, so left out: {', '.join(missing)} (pip install 'shmarray[bench]')")
    print(f"{'':42}{'first ms':>9}{'later ms':>9}{'ratio':>8}{'wanted':>8}")
    for name, function, make_items, own, targets in WORKLOADS:
        with ExitStack() as stack:
            peers = [own, *(peer for peer in targets if peer not in missing)]
            mappers = {peer: stack.enter_context(PEERS[peer](options.workers)) for peer in peers}
            measure(name, function, make_items(), mappers, targets, options.rounds)


if __name__ == "__main__":
    main()
