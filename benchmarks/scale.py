"""How many workers one caller keeps busy: the caller's cost per task and per byte, by the number of workers.

    python -m benchmarks.scale [--rounds N] [--workers N ...]

The caller feeds all workers, so its own processor time limits them.  Processor time is measured
instead of elapsed time, because it is the same on machines with few or busy processors.  The
workers do nothing with their arguments.

After that, it measures how fast one, two and four threads copy large arrays; the caller uses one.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np

import shmarray
from benchmarks.workloads import KB, MB, arrays, identity, numbers, size_text

WORKERS = (2, 4, 8, 16)
SIZES = (0, 8 * KB, 64 * KB, MB, 16 * MB)
THREADS = (1, 2, 4)
_TINY = 3000
_BYTES = 256 * MB  # total size of all arrays


def ignore(_: Any) -> None:
    """Ignore the argument and return nothing."""


def caller_seconds(pool: Any, function: Any, items: Sequence[Any]) -> tuple[float, float]:
    """Return the caller's processor time per task, in all its threads, and the elapsed time per task."""
    before, start = time.process_time(), time.perf_counter()
    pool.map(function, items, 1)
    used, elapsed = time.process_time() - before, time.perf_counter() - start
    return used / len(items), elapsed / len(items)


def measure(workers: int, rounds: int) -> dict[int, tuple[float, float]]:
    """Return, by size, the medians of the caller's processor time per task and of the elapsed time."""
    figures = {}
    with shmarray.Pool(workers, context=multiprocessing.get_context("fork")) as pool:
        for size in SIZES:
            items = arrays(min(400, max(2 * workers, _BYTES // size)), size) if size else numbers(_TINY)
            function = ignore if size else identity
            pool.map(function, items, 1)
            times = [caller_seconds(pool, function, items) for _ in range(rounds)]
            figures[size] = tuple(map(statistics.median, zip(*times, strict=True)))
            del items
    return figures  # type: ignore[return-value]


def copying_rate(threads: int, rounds: int) -> float:
    """Return the median bytes per second that the threads copy together, each with its own array."""
    sources = arrays(threads, 16 * MB)
    targets = [np.zeros_like(source) for source in sources]
    times = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(10 * rounds):
            start = time.perf_counter()
            list(pool.map(np.copyto, targets, sources))
            times.append(time.perf_counter() - start)
    return threads * sources[0].nbytes / statistics.median(times)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS)
    options = parser.parse_args(arguments)
    print(f"{os.cpu_count()} processors; the caller's processor time for a task, and the elapsed time in parentheses\n")
    print("workers" + "".join(f"{'no array' if not size else size_text(size):>24}" for size in SIZES))
    for workers in options.workers:
        figures = measure(workers, options.rounds)
        cells = [f"{1e6 * used:.0f} us ({1e6 * clock:.0f})" for used, clock in figures.values()]
        print(f"{workers:7}" + "".join(f"{cell:>24}" for cell in cells), flush=True)
        fed = [
            f"{size / figures[size][0] / 1e9:.1f} GB/s" if size else f"{1 / figures[size][0]:.0f}/s" for size in SIZES
        ]
        print(" " * 7 + "".join(f"{cell:>24}" for cell in fed), flush=True)
    print()
    for threads in THREADS:
        print(f"{threads} copying threads: {copying_rate(threads, options.rounds) / 1e9:.1f} GB/s")


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
