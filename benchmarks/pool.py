"""How fast arrays go to workers and back: Pool and ProcessPoolExecutor against the stdlib's, and peers if installed.

    python -m benchmarks.pool [--workers 2] [--repeat 5]

Ratios are what carries over to another machine.  Every figure is the best of the calls
after the first, in one run, with the implementations taking turns.
"""

import argparse
import concurrent.futures
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

import shmarray

ARRAYS = 24
ITEMS = 2_000_000  # 16 MB of float64
BIG = 32_000_000  # 256 MB
TINY = 5000

# Task, its target: at least so many times as fast as the stdlib.
TARGETS = {
    ("Pool", "x * 2"): 11.0,
    ("Pool", "x.sum()"): 13.0,
    ("Pool", "x *= 2; return x"): 15.0,
    ("Pool", "5000 tiny tasks"): 1.0,
    ("Executor", "x * 2"): 5.0,
    ("Executor", "5000 tiny tasks"): 1 / 1.2,
}


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


def best(call: Callable[[], Any], repeat: int) -> tuple[float, float]:
    """Seconds of the first call, and of the best of the others."""
    times = []
    for _ in range(1 + repeat):
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
        del result
    return times[0], min(times[1:])


@contextmanager
def pools(workers: int) -> Iterator[dict[str, Any]]:
    """What maps by multiprocessing.Pool's interface."""
    with ExitStack() as stack:
        yield {
            "shmarray": stack.enter_context(shmarray.Pool(workers)),
            "stdlib": stack.enter_context(multiprocessing.Pool(workers)),
        }


@contextmanager
def executors(workers: int) -> Iterator[dict[str, Any]]:
    with ExitStack() as stack:
        yield {
            "shmarray": stack.enter_context(shmarray.ProcessPoolExecutor(workers)),
            "stdlib": stack.enter_context(concurrent.futures.ProcessPoolExecutor(workers)),
        }


def report(door: str, task: str, times: dict[str, tuple[float, float]]) -> None:
    first, ours = times["shmarray"]
    ratio = times["stdlib"][1] / ours
    target = TARGETS.get((door, task))
    wanted = f"  (target {target:.2g})" if target else ""
    others = "  ".join(f"{name} {1000 * seconds:8.1f}" for name, (_, seconds) in times.items())
    print(f"{door:9} {task:26} ms: {others}  first {1000 * first:7.1f}  ratio {ratio:5.1f}{wanted}")


def measure_pool(workers: int, repeat: int) -> None:
    arrays = [np.full(ITEMS, float(i)) for i in range(ARRAYS)]
    for task, function in (("x * 2", double), ("x.sum()", total), ("x *= 2; return x", in_place)):
        with pools(workers) as found:
            times = {
                name: best(lambda pool=pool, f=function: pool.map(f, arrays, chunksize=1), repeat)
                for name, pool in found.items()
            }
        times |= peers(function, arrays, workers, repeat)
        report("Pool", task, times)
    with pools(workers) as found:
        times = {
            name: best(lambda pool=pool: pool.map(identity, range(TINY), chunksize=1), repeat)
            for name, pool in found.items()
        }
    report("Pool", "5000 tiny tasks", times)


def measure_big(workers: int, repeat: int) -> None:
    """One array in a hundred tasks; the stdlib gets ten and is reckoned up, it would take a minute."""
    big = np.zeros(BIG)
    with pools(workers) as found:
        items = [(big, i) for i in range(100)]
        ours = best(lambda: found["shmarray"].map(look, items, chunksize=1), repeat)
        first, _ = best(lambda: found["stdlib"].map(look, items[:10], chunksize=1), 1)
    report("Pool", "256 MB in 100 tasks", {"shmarray": ours, "stdlib": (10 * first, 10 * first)})


def measure_executor(workers: int, repeat: int) -> None:
    arrays = [np.full(ITEMS, float(i)) for i in range(ARRAYS)]
    cases: list[tuple[str, Callable[[Any], Any], Any]] = [
        ("x * 2", double, arrays),
        ("5000 tiny tasks", identity, range(TINY)),
    ]
    for task, function, items in cases:
        with executors(workers) as found:
            times = {
                name: best(lambda e=executor, f=function, i=items: list(e.map(f, i)), repeat)
                for name, executor in found.items()
            }
        report("Executor", task, times)


def peers(function: Any, arrays: Any, workers: int, repeat: int) -> dict[str, tuple[float, float]]:
    """The same with joblib, if it is there; it refuses tasks that write to their arguments."""
    try:
        import joblib  # noqa: PLC0415 - optional
    except ImportError:
        return {}
    if function is in_place:
        return {}
    with joblib.Parallel(workers) as parallel:
        return {"joblib": best(lambda: parallel(joblib.delayed(function)(x) for x in arrays), repeat)}


def main() -> None:
    """Print a line for each task."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    for name in ("joblib",):
        if not _is_installed(name):
            print(f"{name} is not installed: left out")
    print(f"Python {sys.version.split()[0]}, numpy {np.__version__}, {options.workers} workers")
    measure_pool(options.workers, options.repeat)
    measure_big(options.workers, options.repeat)
    measure_executor(options.workers, options.repeat)


def _is_installed(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    main()
