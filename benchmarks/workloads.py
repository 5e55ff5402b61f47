"""The work.  The functions run in workers, so they must be in a module that can be imported."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

import shmarray
from benchmarks.records import OUR_EXECUTOR, OURS

KB, MB = 1 << 10, 1 << 20

# --- the functions -------------------------------------------------------------------


def double(x: Any) -> Any:
    return x * 2


def total(x: Any) -> float:
    return float(x.sum())


def double_in_result(x: Any) -> Any:
    return np.multiply(x, 2, out=shmarray.empty_like(x))  # with other peers, this is numpy's empty_like


def in_place(x: Any) -> Any:
    x *= 2
    return x


def look(array: Any, place: int) -> float:
    return float(array[place])


def identity(x: Any) -> Any:
    return x


def scale_frames(job: Any) -> Any:
    return {"table": job["table"] * 2, "parts": [part + 1 for part in job["parts"]]}


def scale_matrix(matrix: Any) -> Any:
    return matrix * 2


# --- the arguments -------------------------------------------------------------------


def arrays(count: int, nbytes: int) -> list[Any]:
    return [np.full(nbytes // 8, float(k)) for k in range(count)]


def numbers(count: int) -> list[Any]:
    return list(range(count))


def filled(number: int, empty: Callable[[int], Any], nbytes: int) -> Any:
    """Return an array that is made during the call, in memory from the peer."""
    array = empty(nbytes // 8)
    array[:] = float(number)
    return array


def frames(count: int, nbytes: int) -> list[Any]:
    import pandas as pd

    rows = nbytes // 64
    table = pd.DataFrame({f"column {k}": np.arange(float(rows)) + k for k in range(4)})
    return [
        {"table": table + k, "parts": [pd.Series(np.arange(2.0 * rows) + k) for _ in range(2)]} for k in range(count)
    ]


def matrices(count: int, nbytes: int) -> list[Any]:
    from scipy import sparse

    rows, row = nbytes // 1200, 100  # 12 bytes per element
    random = np.random.default_rng(0)
    indices = random.integers(0, 1000, rows * row, dtype=np.int32)
    pointers = np.arange(0, rows * row + 1, row, dtype=np.int32)
    return [sparse.csr_matrix((random.random(rows * row), indices, pointers), (rows, 1000)) for _ in range(count)]


def fingerprint(value: Any) -> float:
    """Return a number that differs if the work was not done."""
    if isinstance(value, dict):
        return sum(fingerprint(part) for part in value.values())
    if isinstance(value, list):
        return sum(fingerprint(part) for part in value)
    if hasattr(value, "nnz"):
        value = value.data
    return float(np.asarray(value).sum())


# --- the table -----------------------------------------------------------------------


@dataclass(frozen=True)
class Workload:
    """One piece of work for several peers.

    Attributes
    ----------
    group : str
        The table that it belongs to.
    name : str
    function : callable
    make : partial
        Makes the items, separately for each peer; its arguments are the count and the bytes of each item.
    peers : sequence of str
        The peers that do it; the first is ours.
    chunksize : int or None
        None for the peer's own choice.
    array : callable or None
        Makes the array that is passed to all tasks together with the item.
    produce : callable or None
        Makes the argument of a task during the call, from an item and a function that provides memory.
    at : int
        Position on the axis of the group.
    workers : int
    watched : bool
        Whether to measure memory.
    needs : tuple of str
        Modules that it requires.
    left_out : dict of str to str
        Peers that do not take part, with the reasons.
    """

    group: str
    name: str
    function: Callable[..., Any]
    make: partial[list[Any]]
    peers: Sequence[str]
    chunksize: int | None = 1
    array: Callable[[], Any] | None = None
    produce: Callable[[Any, Callable[[int], Any]], Any] | None = None
    at: int = 0
    workers: int = 2
    watched: bool = False
    needs: tuple[str, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def own(self) -> str:
        return self.peers[0]

    @property
    def count(self) -> int:
        return self.make.args[0]

    @property
    def nbytes(self) -> int:
        count, *nbytes = self.make.args
        return count * sum(nbytes)

    @property
    def absent(self) -> list[str]:
        return [module for module in self.needs if importlib.util.find_spec(module) is None]


@dataclass(frozen=True)
class Scale:
    """The amount of everything; sizes are in bytes.

    Attributes
    ----------
    at_each_size : int
        Total bytes of the arrays, for each size.
    rounds, firsts : int
        How often to measure later calls and first calls.
    budget : float
        Seconds of calls after which a slow peer skips further rounds.
    anew : bool
        Whether to start new hosts for work whose memory is measured, so that it does not include
        memory of earlier work.
    """

    name: str
    arrays: int
    nbytes: int
    big: int
    places: int
    tiny: int
    sizes: tuple[int, ...]
    at_each_size: int
    tasks: tuple[int, ...]
    workers: tuple[int, ...]
    copies: tuple[int, ...]
    rounds: int
    firsts: int
    budget: float
    anew: bool = False


FULL = Scale(
    name="full",
    arrays=24,
    nbytes=16 * MB,
    big=256 * MB,
    places=100,
    tiny=5000,
    sizes=(64 * KB, 256 * KB, MB, 4 * MB, 16 * MB, 64 * MB, 256 * MB),
    at_each_size=128 * MB,
    tasks=(10, 100, 1000, 10_000, 100_000),
    workers=(1, 2, 4, 8),
    copies=(64 * KB, MB, 16 * MB, 64 * MB, 256 * MB, 1024 * MB),
    rounds=7,
    firsts=3,
    budget=9.0,
    anew=True,
)
QUICK = Scale(
    name="quick",
    arrays=8,
    nbytes=16 * MB,
    big=64 * MB,
    places=50,
    tiny=1000,
    sizes=(64 * KB, MB, 16 * MB),
    at_each_size=32 * MB,
    tasks=(10, 1000),
    workers=(1, 4),
    copies=(64 * KB, MB, 64 * MB),
    rounds=2,
    firsts=1,
    budget=1.5,
)
SMALLEST = Scale(
    name="smallest",
    arrays=2,
    nbytes=128 * KB,
    big=MB,
    places=4,
    tiny=8,
    sizes=(64 * KB,),
    at_each_size=128 * KB,
    tasks=(10,),
    workers=(1,),
    copies=(64 * KB,),
    rounds=1,
    firsts=1,
    budget=1.0,
)

BY_HAND = "shared_memory by hand"
POOLS = (OURS, "multiprocessing", "joblib", "torch", "Ray", "mpire", "dask")
EXECUTORS = (OUR_EXECUTOR, "concurrent.futures", "Ray")
# Except torch, because these objects are not tensors.
_NO_TENSORS = tuple(peer for peer in POOLS if peer != "torch")
_PICKLES = dict.fromkeys(("multiprocessing", "mpire"), "pickles the array for each task: minutes")


def table(scale: Scale) -> list[Workload]:
    return [*_maps(scale), *_executors(scale), *_growth(scale)]


def _maps(scale: Scale) -> Iterator[Workload]:
    large = partial(arrays, scale.arrays, scale.nbytes)
    nested = {"make": partial(frames, scale.arrays, scale.nbytes // 2), "needs": ("pandas",)}
    sparse = {"make": partial(matrices, scale.arrays, scale.nbytes // 2), "needs": ("scipy",)}
    tiny = partial(numbers, scale.tiny)
    size = f"{scale.arrays} x {size_text(scale.nbytes)}"
    half = f"{scale.arrays} x {size_text(scale.nbytes // 2)}"
    one = f"{size_text(scale.big)} in {scale.places} tasks"
    limited = (*POOLS, "limit")
    yield Workload("maps", f"{size}, `x * 2`", double, large, limited, watched=True)
    yield Workload(
        "maps", f"{size}, `multiply(x, 2, out=empty_like(x))`", double_in_result, large, limited, watched=True
    )
    yield Workload("maps", f"{size}, `x.sum()`", total, large, limited, watched=True)
    yield Workload("maps", f"{size}, `x *= 2; return x`", in_place, large, limited, watched=True)
    yield from _pipelines(scale, size)
    big = partial(np.ones, scale.big // 8)
    places = partial(numbers, scale.places)
    yield Workload("maps", one, look, places, POOLS, array=big, watched=True, left_out=_PICKLES)
    yield Workload("maps", f"{half}, nested frames", scale_frames, peers=_NO_TENSORS, watched=True, **nested)
    yield Workload("maps", f"{half}, sparse matrices", scale_matrix, peers=_NO_TENSORS, watched=True, **sparse)
    yield Workload("maps", f"{scale.tiny} tiny tasks, one by one", identity, tiny, _NO_TENSORS)
    yield Workload("maps", f"{scale.tiny} tiny tasks, default chunks", identity, tiny, _NO_TENSORS, None)


def _pipelines(scale: Scale, size: str) -> Iterator[Workload]:
    """Yield work on arrays that the caller makes one after the other and does not need once they are sent."""
    made = {"make": partial(numbers, scale.arrays), "produce": partial(filled, nbytes=scale.nbytes)}
    peers = (*POOLS, BY_HAND)
    yield Workload("maps", f"{size} made in the call, `x.sum()`", total, peers=peers, **made)
    name = f"{size} made in the call, `multiply(x, 2, out=empty_like(x))`"
    yield Workload("maps", name, double_in_result, peers=peers, **made)


def _executors(scale: Scale) -> Iterator[Workload]:
    size = f"{scale.arrays} x {size_text(scale.nbytes)}"
    large, tiny = partial(arrays, scale.arrays, scale.nbytes), partial(numbers, scale.tiny)
    yield Workload("executor", f"{size}, `x * 2`", double, large, (*EXECUTORS, "limit"), watched=True)
    yield Workload("executor", f"{scale.tiny} tiny tasks", identity, tiny, EXECUTORS)


def _growth(scale: Scale) -> Iterator[Workload]:
    for nbytes in scale.sizes:
        # At most 256 small arrays, and at least two large ones, one for each worker.
        make = partial(arrays, min(256, max(2, scale.at_each_size // nbytes)), nbytes)
        peers = (*POOLS, "concurrent.futures", "limit")
        yield Workload("sizes", f"{size_text(nbytes)}, `x * 2`", double, make, peers, at=nbytes)
    for count in scale.tasks:
        yield Workload("tasks", f"{count} tiny tasks", identity, partial(numbers, count), _NO_TENSORS, at=count)
    few = partial(arrays, scale.arrays, scale.nbytes // 4)
    for workers in scale.workers:
        name = f"{workers} workers, {scale.arrays} x {size_text(scale.nbytes // 4)}, `x * 2`"
        alone = {"joblib": "one worker is the caller itself"} if workers == 1 else {}
        yield Workload("workers", name, double, few, POOLS, at=workers, workers=workers, left_out=alone)


def size_text(nbytes: int) -> str:
    return f"{nbytes // MB} MB" if nbytes >= MB else f"{nbytes // KB} kB"
