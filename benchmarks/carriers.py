"""Which objects benefit from shmarray's pool: many kinds, compared with `multiprocessing.Pool`.

    python -m benchmarks.carriers [--rounds N]

Each kind consists of 16 objects of about 8 MB, sent one by one to two workers, which return them.  Both
pools take turns in every round; the ratio is the median over the rounds.  A kind whose library is not
installed is reported and left out.
"""

import argparse
import importlib
import multiprocessing
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import shmarray
from benchmarks.workloads import MB, identity

SIZE = 8 * MB
COUNT = 16
ITEMS = SIZE // 8


def _array() -> Any:
    return np.arange(float(ITEMS))


def _structured() -> Any:
    return np.zeros(SIZE // 16, [("time", "M8[ns]"), ("value", "f8")])


def _masked() -> Any:
    return np.ma.masked_less(_array(), 5)


def _frame() -> Any:
    pandas = importlib.import_module("pandas")
    return pandas.DataFrame(_array().reshape(-1, 8), columns=list("abcdefgh"))


def _frame_of_strings() -> Any:
    pandas = importlib.import_module("pandas")
    return pandas.DataFrame({"name": [f"item {i}" for i in range(SIZE // 64)]}, dtype=object)


def _sparse() -> Any:
    sparse = importlib.import_module("scipy.sparse")
    return sparse.random_array((20_000, 20_000), density=SIZE / 12 / 4e8, format="csr", rng=np.random.default_rng(1))


def _arrow() -> Any:
    pyarrow = importlib.import_module("pyarrow")
    return pyarrow.table({name: _array()[: ITEMS // 8] for name in "abcdefgh"})


def _polars() -> Any:
    polars = importlib.import_module("polars")
    return polars.DataFrame({name: _array()[: ITEMS // 8] for name in "abcdefgh"})


def _tensor() -> Any:
    torch = importlib.import_module("torch")
    return torch.arange(float(ITEMS), dtype=torch.float64)


def _dict_of_arrays() -> Any:
    return {"image": _array().reshape(1024, -1), "label": 3, "weights": [np.ones(1000), np.ones(10)]}


def _small_arrays() -> Any:
    return [np.arange(128.0) for _ in range(SIZE // 1024)]


def _bytes() -> Any:
    return bytes(SIZE)


def _bytearray() -> Any:
    return bytearray(SIZE)


def _numbers() -> Any:
    return list(range(SIZE // 64))


KINDS: dict[str, Callable[[], Any]] = {
    "numpy array": _array,
    "structured array": _structured,
    "masked array": _masked,
    "dict with one large array": _dict_of_arrays,
    "pandas frame of numbers": _frame,
    "pandas frame of strings": _frame_of_strings,
    "scipy sparse matrix": _sparse,
    "Arrow table": _arrow,
    "polars frame": _polars,
    "torch tensor": _tensor,
    "list of 8192 arrays of 1 kB": _small_arrays,
    "bytes": _bytes,
    "bytearray": _bytearray,
    "list of numbers": _numbers,
}


def seconds(pool: Any, things: list[Any]) -> float:
    start = time.perf_counter()
    for _ in pool.imap(identity, things):
        pass
    return time.perf_counter() - start


def ratio(things: list[Any], stock: Any, ours: Any, rounds: int) -> tuple[float, float, float]:
    """Return the seconds per object with either pool, and how many times as fast ours is."""
    turns = [(seconds(stock, things), seconds(ours, things)) for _ in range(rounds + 1)][1:]
    theirs, mine = (statistics.median(times) / len(things) for times in zip(*turns, strict=True))
    return theirs, mine, statistics.median(a / b for a, b in turns)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=COUNT)
    options = parser.parse_args(arguments)
    context = multiprocessing.get_context("spawn")  # torch and polars may fail in forked processes
    print("| there and back, 8 MB each | multiprocessing | shmarray | times as fast |\n|---|---|---|---|")
    with context.Pool(2) as stock, shmarray.Pool(2, context=context) as ours:
        for name, make in KINDS.items():
            try:
                things = [make() for _ in range(options.count)]
            except ImportError as error:
                print(f"| {name} | {error.name} is not installed | | |")
                continue
            theirs, mine, times = ratio(things, stock, ours, options.rounds)
            print(f"| {name} | {1000 * theirs:.1f} ms | {1000 * mine:.1f} ms | {times:.1f} |", flush=True)
            del things


if __name__ == "__main__":
    main()
