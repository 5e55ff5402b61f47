"""The core layer against SharedArray, same work, same run, in interleaved rounds.

    make bench            or: python benchmarks/core.py [--rounds N]

Prints the median time of each and the median, over the rounds, of the ratio between them.
"""

import argparse
import os
import pickle
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

import shmarray

try:
    import SharedArray
except ImportError:
    SharedArray = None

OURS, THEIRS = f"shmarray-bench-{os.getpid()}", f"sharedarray-bench-{os.getpid()}"
SMALL = 1000  # items: 8 kB of float64


@dataclass
class Workload:
    name: str
    wanted: float | None  # times as fast as SharedArray; None: shown for honesty
    calls: int
    ours: Callable[[], object]
    theirs: Callable[[], object]


@contextmanager
def workloads() -> Iterator[list[Workload]]:
    """All workloads, while the arrays they attach are there."""
    held = shmarray.create(OURS, SMALL)
    handle = pickle.dumps(shmarray.SharedHandle(held))
    shmarray.create(OURS + "-free", SMALL)  # which nobody keeps mapped
    SharedArray.create(THEIRS, SMALL)
    one, many = (np.random.default_rng(0).random(megabytes << 17) for megabytes in (1, 64))

    def create_delete(data: np.ndarray | None = None) -> None:
        array = shmarray.create(OURS + "-new", None if data is not None else SMALL, data=data)
        shmarray.delete(OURS + "-new")
        del array

    def their_create_delete(data: np.ndarray | None = None) -> None:
        array = SharedArray.create(THEIRS + "-new", SMALL if data is None else data.shape)
        if data is not None:
            array[:] = data
        SharedArray.delete(THEIRS + "-new")

    def their_attach() -> object:
        return SharedArray.attach(THEIRS)

    try:
        yield [
            Workload("attach, mapped already", 1.1, 2000, lambda: shmarray.attach(OURS), their_attach),
            Workload("attach, not mapped yet", None, 2000, lambda: shmarray.attach(OURS + "-free"), their_attach),
            Workload("unpickle a handle, mapped already", 1.3, 2000, lambda: pickle.loads(handle).array, their_attach),
            Workload("create and delete, 8 kB", 1.1, 1000, create_delete, their_create_delete),
            Workload("create(data=), 1 MB", 1.5, 20, lambda: create_delete(one), lambda: their_create_delete(one)),
            Workload("create(data=), 64 MB", 1.6, 2, lambda: create_delete(many), lambda: their_create_delete(many)),
        ]
    finally:
        shmarray.delete(OURS)
        shmarray.delete(OURS + "-free")
        SharedArray.delete(THEIRS)


def seconds(job: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        job()
    return (time.perf_counter() - start) / calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    if SharedArray is None:
        sys.exit("SharedArray is not installed (pip install 'shmarray[bench]' needs a C compiler): nothing to compare")
    print(f"{'':36}{'shmarray':>12}{'SharedArray':>14}{'ratio':>8}{'wanted':>8}")
    with workloads() as table:
        for load in table:
            pairs = [(seconds(load.ours, load.calls), seconds(load.theirs, load.calls)) for _ in range(rounds)]
            ours, theirs = (statistics.median(column) * 1e6 for column in zip(*pairs, strict=True))
            ratio = statistics.median(b / a for a, b in pairs)
            wanted = "-" if load.wanted is None else f"{load.wanted:.1f}"
            print(f"{load.name:36}{ours:9.1f} us{theirs:11.1f} us{ratio:8.2f}{wanted:>8}")


if __name__ == "__main__":
    main()
