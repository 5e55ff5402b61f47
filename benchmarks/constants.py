"""Measurements behind the library's constants: each is set to other values, in interleaved rounds.

    python -m benchmarks.constants [NAME ...] [--rounds N]

Prints a table for each constant, with a row for each piece of work and a column for each value.  Cells contain the
median time of a call and, in parentheses, its ratio to the time with the library's value, or with the first column
if that value has none.  Choose the value where the faster column changes.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import shmarray
from benchmarks.report import seconds
from benchmarks.workloads import KB, MB, arrays, double, identity, look, numbers, size_text, total
from shmarray.core import copying
from shmarray.pool.arrays import allocator, blocks, buffers, calls, dedup, lending, pickling
from shmarray.pool.engine import collector, placement

# Where a constant is stored: several places if modules import it by name.
Places = tuple[tuple[Any, str], ...]
Job = Callable[[Any], Any]

_ALL, _NONE = 1, 1 << 40  # every size is above the first and below the second


@dataclass(frozen=True)
class Row:
    """One piece of work.

    Attributes
    ----------
    name : str
    make : callable
        Makes the job with its data; the job is a callable that receives the pool.
    workers : int
        0 if there is no pool.
    fresh : bool
        Whether to time the first call of a new pool.
    pause : float
        Seconds between calls.
    """

    name: str
    make: Callable[[], Job]
    workers: int = 2
    fresh: bool = False
    pause: float = 0.0


@dataclass(frozen=True)
class Constant:
    name: str
    question: str
    places: Places
    columns: dict[str, Any]
    rows: list[Row]


# --- what workers do -----------------------------------------------------------------


def ones(nbytes: int) -> Any:
    return np.ones(nbytes // 8)


def change(array: Any, place: int) -> float:
    array[place] += 1.0
    return float(array[place])


def busy(duration: float) -> None:
    end = time.perf_counter() + duration
    while time.perf_counter() < end:
        pass


def copies(*values_and_counts: Any) -> list[Any]:
    """Return a list that contains each value the given number of times."""
    pairs = zip(values_and_counts[::2], values_and_counts[1::2], strict=True)
    return [value for value, count in pairs for _ in range(count)]


# --- the jobs ------------------------------------------------------------------------


def _map(function: Callable[[Any], Any], make_items: Callable[..., Sequence[Any]], *arguments: Any) -> Job:
    items = make_items(*arguments)
    return lambda pool: pool.map(function, items, 1)


def _spread(function: Callable[..., Any], nbytes: int) -> Job:
    tasks = [(np.ones(nbytes // 8), 0)] * 100
    return lambda pool: pool.starmap(function, tasks, 1)


def _in_turn(count: int) -> Job:
    return lambda pool: [pool.apply(identity, (number,)) for number in range(count)]


def _create(nbytes: int) -> Job:
    data, name = np.ones(nbytes // 8), f"shmarray-bench-{os.getpid()}"

    def job(_: None) -> None:
        array = shmarray.create(name, data=data)
        shmarray.delete(name)
        del array

    return job


def constants() -> list[Constant]:
    kinds = (
        *(_small, _long, _short, _copy_out, _worth_sharing, _calls),
        *(_deep, _window_bytes, _window_seconds, _ahead, _balancing, _most_at_once),
        *(_idle, _files, _threads, _chunk),
    )
    return [kind() for kind in kinds]


def _small() -> Constant:
    rows = []
    for size in (8 * KB, 16 * KB, 32 * KB, 48 * KB, 55 * KB):
        items = arrays, 200, size
        rows += [Row(f"200 x {size_text(size)}, x.sum()", partial(_map, total, *items))]
        rows += [Row(f"200 x {size_text(size)}, x * 2", partial(_map, double, *items))]
    columns = {"in a message": _NONE, "in a block": _ALL}
    question = "the size from which arrays are in a block"
    return Constant("SMALL", question, ((pickling, "SMALL"),), columns, rows)


def _long() -> Constant:
    sizes = (4 * KB, 16 * KB, 32 * KB, 56 * KB, 64 * KB, 256 * KB)
    rows = [Row(f"200 x {size_text(size)} of text", partial(_map, len, copies, "x" * size, 200)) for size in sizes]
    columns = {"in the message": _NONE, "in a block": _ALL}
    return Constant("LONG", "the size from which pickles are in a block", ((pickling, "LONG"),), columns, rows)


def _short() -> Constant:
    rows = []
    for size in (64 * KB, 256 * KB, 512 * KB, MB, 4 * MB):
        items = arrays, 50, size
        rows += [Row(f"50 x {size_text(size)}, x.sum()", partial(_map, total, *items))]
        rows += [Row(f"50 x {size_text(size)}, x * 2", partial(_map, double, *items))]
    columns = {"releasing the GIL": 0, "holding it": _NONE}
    return Constant("_SHORT", "the size up to which a copy holds the GIL", ((buffers, "_SHORT"),), columns, rows)


def _copy_out() -> Constant:
    sizes = (64 * KB, 128 * KB, 256 * KB, 512 * KB, MB, 4 * MB)
    rows = [Row(f"100 results of {size_text(size)}", partial(_map, ones, copies, size, 100)) for size in sizes]
    columns = {"copied out": _NONE, "left in the block": 0}
    question = "the size from which results remain in their block"
    return Constant("_COPY_OUT", question, ((lending, "_COPY_OUT"),), columns, rows)


def _worth_sharing() -> Constant:
    rows = []
    for size in (256 * KB, 512 * KB, MB, 2 * MB, 8 * MB):
        rows += [Row(f"{size_text(size)} in 100 tasks, read", partial(_spread, look, size))]
        rows += [Row(f"{size_text(size)} in 100 tasks, written to", partial(_spread, change, size))]
    columns = {"a copy each": _NONE, "one, private": _ALL}
    question = "the size from which an array in many tasks is copied once"
    return Constant("_WORTH_SHARING", question, ((dedup, "_WORTH_SHARING"),), columns, rows)


def _deep() -> Constant:
    rows = [
        Row("5000 tiny tasks", partial(_map, identity, numbers, 5000)),
        Row("1000 tasks of 0.1 ms", partial(_map, busy, copies, 1e-4, 1000)),
        Row("one of 50 ms, then 1000 of 0.1 ms", partial(_map, busy, copies, 0.05, 1, 1e-4, 1000)),
    ]
    columns = {str(depth): depth for depth in (2, 8, 24, 64)}
    return Constant("DEEP", "unread tasks without arrays that a worker may have", ((placement, "DEEP"),), columns, rows)


def _ahead() -> Constant:
    rows = [
        Row("24 x 16 MB, x * 2", partial(_map, double, arrays, 24, 16 * MB)),
        Row("24 x 16 MB, x.sum()", partial(_map, total, arrays, 24, 16 * MB)),
        Row("100 x 1 MB, x * 2", partial(_map, double, arrays, 100, MB)),
    ]
    columns = {str(count): count for count in (1, 2, 3, 4)}
    return Constant(
        "tasks_ahead", "tasks with arrays for each worker", ((shmarray.Pool, "tasks_ahead"),), columns, rows
    )


def _calls() -> Constant:
    rows = [
        Row("5000 tiny tasks", partial(_map, identity, numbers, 5000)),
        Row("400 x 8 kB, x.sum()", partial(_map, total, arrays, 400, 8 * KB)),
    ]
    columns = {"pickled once": calls.FunctionCache.pickled, "with each task": _not_pickled}
    question = "whether to pickle a function once for all tasks of a call"
    return Constant("calls", question, ((calls.FunctionCache, "pickled"),), columns, rows)


def _not_pickled(_: Any, func: Any) -> None:
    """Replace FunctionCache.pickled, as for a function that must be pickled with each task."""


def _window_bytes() -> Constant:
    rows = [
        Row(f"{count} x {size_text(size)}, {name}", partial(_map, function, arrays, count, size))
        for count, size in ((400, 64 * KB), (200, 256 * KB), (100, MB))
        for name, function in (("x.sum()", total), ("x * 2", double))
    ]
    columns = {size_text(size): size for size in (MB, 4 * MB, 16 * MB)}
    question = "bytes that a worker may have ahead, if that is more than tasks_ahead tasks"
    return Constant("WINDOW_BYTES", question, ((placement, "WINDOW_BYTES"),), columns, rows)


def _window_seconds() -> Constant:
    rows = [
        Row("400 x 64 kB, x.sum()", partial(_map, total, arrays, 400, 64 * KB)),
        Row("1000 tasks of 0.1 ms", partial(_map, busy, copies, 1e-4, 1000)),
        Row("one of 50 ms, then 1000 of 0.1 ms", partial(_map, busy, copies, 0.05, 1, 1e-4, 1000)),
    ]
    columns = {f"{1000 * time_:g} ms": time_ for time_ in (0.0005, 0.002, 0.01)}
    question = "seconds of work that a worker may have ahead, if that is more than tasks_ahead tasks"
    return Constant("WINDOW_SECONDS", question, ((placement, "WINDOW_SECONDS"),), columns, rows)


def _balancing() -> Constant:
    rows = [
        Row("5000 tiny tasks", partial(_map, identity, numbers, 5000)),
        Row("40 of 5 ms, then 40 of 0.1 ms", partial(_map, busy, copies, 5e-3, 40, 1e-4, 40)),
        Row("one of 50 ms, then 100 of 1 ms", partial(_map, busy, copies, 0.05, 1, 1e-3, 100)),
    ]
    columns = {f"{1000 * wait:g} ms": wait for wait in (0.0005, 0.002, 0.01)}
    question = "seconds after which an idle worker gets another's unread tasks"
    return Constant("_BALANCING", question, ((collector, "_BALANCING"),), columns, rows)


def _most_at_once() -> Constant:
    rows = [
        Row("5000 tiny tasks", partial(_map, identity, numbers, 5000)),
        Row("1000 tiny calls, each after the result of the last", partial(_in_turn, 1000)),
    ]
    columns = {str(count): count for count in (1, 4, 16, 64)}
    question = "answers that are received with one system call"
    return Constant("_MOST_AT_ONCE", question, ((collector, "_MOST_AT_ONCE"),), columns, rows)


def _idle() -> Constant:
    rows = [
        Row(f"8 x 16 MB, x * 2, {pause} s apart", partial(_map, double, arrays, 8, 16 * MB), pause=pause)
        for pause in (0.3, 0.8, 1.5)
    ]
    columns = {f"{wait:g} s": wait for wait in (0.1, 1.0, 10.0)}
    question = "seconds after which unused memory is freed"
    return Constant("IDLE", question, ((blocks, "IDLE"), (allocator, "IDLE")), columns, rows)


def _files() -> Constant:
    rows = [
        Row(
            f"first call, {workers} workers, 24 x 16 MB, x * 2",
            partial(_map, double, arrays, 24, 16 * MB),
            workers,
            fresh=True,
        )
        for workers in (2, 4, 8)
    ]
    columns = {str(count): count for count in (1, 2, 8)}
    question = "number of files for results: a file is locked while a worker takes new memory in it"
    return Constant("_FILES_FOR_RESULTS", question, ((allocator, "_FILES_FOR_RESULTS"),), columns, rows)


def _threads() -> Constant:
    rows = [
        Row(f"create(data=), {size_text(size)}", partial(_create, size), 0)
        for size in (MB, 4 * MB, 8 * MB, 16 * MB, 64 * MB)
    ]
    columns = {"one thread": _NONE, "two": _ALL}
    return Constant("_TWO_THREADS", "the size from which two threads copy", ((copying, "_TWO_THREADS"),), columns, rows)


def _chunk() -> Constant:
    rows = [
        Row(f"create(data=), {size_text(size)}", partial(_create, size), 0) for size in (16 * MB, 64 * MB, 256 * MB)
    ]
    columns = {size_text(size): size for size in (MB, 4 * MB, 16 * MB)}
    return Constant("_CHUNK", "how much each of two threads copies at a time", ((copying, "_CHUNK"),), columns, rows)


# --- measuring -----------------------------------------------------------------------


@contextmanager
def set_to(places: Places, value: Any) -> Iterator[None]:
    """Temporarily set a constant to another value; workers that are forked meanwhile keep it."""
    before = [getattr(place, name) for place, name in places]
    for place, name in places:
        setattr(place, name, value)
    try:
        yield
    finally:
        for (place, name), old in zip(places, before, strict=True):
            setattr(place, name, old)


def measure(constant: Constant, row: Row, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each round, by column."""
    times: dict[str, list[float]] = {label: [] for label in constant.columns}
    job = row.make()
    with ExitStack() as stack:
        lasting = {}
        if not row.fresh:
            for label, value in constant.columns.items():
                with set_to(constant.places, value):
                    lasting[label] = stack.enter_context(_pool(row.workers))
        for _ in range(rounds):
            for label, value in constant.columns.items():
                with set_to(constant.places, value):
                    times[label].append(_fresh_turn(row, job) if row.fresh else _turn(row, job, lasting[label]))
    return times


def _pool(workers: int) -> Any:
    # Forked, so that workers inherit the values set here.
    return shmarray.Pool(workers, context=multiprocessing.get_context("fork")) if workers else ExitStack()


def _turn(row: Row, job: Job, pool: Any) -> float:
    """Make one call to allocate the memory, and one that is timed."""
    job(pool)
    time.sleep(row.pause)
    return _seconds(job, pool)


def _fresh_turn(row: Row, job: Job) -> float:
    with _pool(row.workers) as fresh:
        fresh.map(identity, range(16 * row.workers), 1)
        return _seconds(job, fresh)


def _seconds(job: Job, pool: Any) -> float:
    start = time.perf_counter()
    results = job(pool)
    elapsed = time.perf_counter() - start
    del results
    return elapsed


def show(constant: Constant, rounds: int) -> None:
    """Take the measurements for one table, and print it."""
    place, name = constant.places[0]
    value = getattr(place, name)
    where = getattr(place, "__module__", None) or place.__name__
    shown = constant.name if callable(value) else f"{constant.name} = {value}"
    print(f"\n{shown} ({where}): {constant.question}\n", flush=True)
    width = max(len(row.name) for row in constant.rows) + 2
    print(" " * width + "".join(f"{label:>22}" for label in constant.columns))
    reference = next(
        (label for label, tried in constant.columns.items() if tried == value), next(iter(constant.columns))
    )
    for row in constant.rows:
        times = measure(constant, row, rounds)
        cells = [_cell(times[label], times[reference]) for label in times]
        print(f"{row.name:{width}}" + "".join(f"{cell:>22}" for cell in cells), flush=True)


def _cell(times: list[float], reference: list[float]) -> str:
    ratio = statistics.median(mine / other for mine, other in zip(times, reference, strict=True))
    return f"{seconds(statistics.median(times))} ({ratio:.2f})"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="constants; all by default")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(arguments)
    for constant in constants():
        if not options.names or constant.name in options.names:
            show(constant, options.rounds)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
