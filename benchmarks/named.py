"""Named arrays: attach, create and copy in, compared with SharedArray and multiprocessing.shared_memory.

Everything runs in this process.
"""

import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
from numpy.typing import NDArray

import shmarray
from benchmarks.records import OURS, Record
from benchmarks.workloads import MB, Scale, size_text

with suppress(ImportError):
    import SharedArray

_ITEMS = 1000  # 8 kB of float64
# Minimum seconds of a turn: it makes enough calls that the clock's resolution does not matter.
_TURN = 0.01
_OURS, _THEIRS, _BLOCK = (f"shmarray-bench-{os.getpid()}-{end}" for end in ("ours", "theirs", "block"))

Job = Callable[[], Any]


def latencies(scale: Scale, missing: dict[str, str]) -> Iterator[list[Record]]:
    """Yield the records of each workload."""
    with _latencies() as jobs:
        for name, contestants in jobs.items():
            yield _compete(Record("latencies", name, ""), contestants, missing, 3 * scale.rounds)


def copies(scale: Scale, missing: dict[str, str]) -> Iterator[list[Record]]:
    """Yield the records of each size."""
    for nbytes in scale.copies:
        record = Record("copies", f"{size_text(nbytes)} of data", "", at=nbytes)
        if _free() < 2 * nbytes:  # the other libraries would die with a bus error
            record.peer, record.note = OURS, "/dev/shm is too small"
            yield [record]
            continue
        data = np.random.default_rng(0).random(nbytes // 8)
        rounds = scale.rounds if nbytes > MB else 3 * scale.rounds
        yield _compete(record, _copies(data), missing, rounds)


def _free() -> int:
    status = os.statvfs("/dev/shm")
    return status.f_bavail * status.f_frsize


@contextmanager
def _latencies() -> Iterator[dict[str, dict[str, Job]]]:
    """A context with the calls by workload and peer, in which the arrays exist that they attach."""
    with ExitStack() as stack:
        for name in (_OURS, _OURS + "-free"):
            held = shmarray.create(name, _ITEMS)
            stack.callback(shmarray.delete, name)
        held = shmarray.attach(_OURS)
        handle = pickle.dumps(shmarray.SharedHandle(held))
        if "SharedArray" in globals():
            SharedArray.create(_THEIRS, _ITEMS)
            stack.callback(SharedArray.delete, _THEIRS)
        block = SharedMemory(_BLOCK, create=True, size=8 * _ITEMS)
        stack.callback(block.unlink)
        stack.callback(block.close)
        theirs = {"SharedArray": lambda: SharedArray.attach(_THEIRS), "shared_memory": _attach_block}
        new = np.zeros(_ITEMS)
        yield {
            "attach, mapped already": {OURS: lambda: shmarray.attach(_OURS), **theirs},
            "attach, not mapped yet": {OURS: lambda: shmarray.attach(_OURS + "-free"), **theirs},
            "unpickle a handle, mapped already": {OURS: lambda: pickle.loads(handle).array, **theirs},
            "create and delete, 8 kB": _copies(new, is_copied=False),
        }
        del held


def _attach_block() -> None:
    block = SharedMemory(_BLOCK)
    array: Any = np.ndarray(_ITEMS, buffer=block.buf)
    del array  # before its memory is unmapped
    block.close()


def _copies(data: NDArray[Any], *, is_copied: bool = True) -> dict[str, Job]:
    """Return, by peer, calls that create an array like `data` and delete it."""

    def ours() -> None:
        name = _OURS + "-new"
        array = shmarray.create(name, data=data) if is_copied else shmarray.create(name, data.shape)
        shmarray.delete(name)
        del array

    def theirs() -> None:
        array = SharedArray.create(_THEIRS + "-new", data.shape)
        if is_copied:
            array[:] = data
        SharedArray.delete(_THEIRS + "-new")

    def block() -> None:
        memory = SharedMemory(_BLOCK + "-new", create=True, size=data.nbytes)
        array: Any = np.ndarray(data.shape, buffer=memory.buf)
        if is_copied:
            array[:] = data
        del array
        memory.unlink()
        memory.close()

    return {OURS: ours, "SharedArray": theirs, "shared_memory": block}


def _compete(like: Record, jobs: dict[str, Job], missing: dict[str, str], rounds: int) -> list[Record]:
    records = [Record(like.group, like.workload, peer, like.at, note=missing.get(peer, "")) for peer in jobs]
    present = [record for record in records if not record.note]
    calls = {}
    for record in present:
        record.first.append(_seconds(jobs[record.peer], 1))
        calls[record.peer] = max(1, round(_TURN / _seconds(jobs[record.peer], 1)))
    for _ in range(rounds):
        for record in present:
            record.later.append(_seconds(jobs[record.peer], calls[record.peer]))
    for record in present:
        record.compare(records[0])
    return records


def _seconds(job: Job, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        job()
    return (time.perf_counter() - start) / calls


GROUPS = {"latencies": latencies, "copies": copies}
