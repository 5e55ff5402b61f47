"""A caller that keeps one of many results keeps only its memory, both while the pool runs and afterwards."""

import gc
import os
import threading

import numpy as np
import pytest

from tests.helpers.processes import wait_until
from tests.pool import tasks
from tests.pool.tasks import allocator_of, make

ITEMS = 20_000
SIZE = 8 * ITEMS  # bytes of a result


def big_and_small(number):
    return {"big": np.full(2 << 17, number), "small": np.full(ITEMS, number)}


def several(number):
    return [np.full(ITEMS, number + place) for place in range(20)]


def full(number):
    return np.full(ITEMS, number)


def allocated(files):
    return sum(512 * os.fstat(fd).st_blocks for fd in files)


class Memory:
    """The memory of a pool, even after it has ended and only arrays of its results exist."""

    def __init__(self, pool):
        self._files = [os.dup(file.fd) for file in allocator_of(pool).files]

    def __call__(self):
        return allocated(self._files)

    def close(self):
        for fd in self._files:
            os.close(fd)


def keep_one_in_thirty(pool):
    return [array for array in pool.map(full, range(300), chunksize=30) if array[0] % 30 == 0]


def keep_one_of_each(pool):
    return [arrays[7] for arrays in pool.map(several, range(10), chunksize=1)]


def keep_the_small_ones(pool):
    return [both["small"] for both in pool.map(big_and_small, range(10), chunksize=1)]


def keep_those_of_their_arguments(pool):
    """Return results that are in the blocks in which the arguments came."""
    given = [[np.full(ITEMS, number) for _ in range(20)] for number in range(10)]
    return [arrays[3] for arrays in pool.map(tasks.identity, given, chunksize=1)]


def keep_views(pool):
    return [array[:100] for array in keep_one_in_thirty(pool)]


KEEPERS = [keep_one_in_thirty, keep_one_of_each, keep_the_small_ones, keep_those_of_their_arguments, keep_views]


@pytest.mark.parametrize("keeper", KEEPERS)
def test_what_is_in_use_is_bounded_by_what_is_kept(kind, keeper):
    pool = make(kind, "fork")
    memory = Memory(pool)
    kept = keeper(pool)
    content = [array.copy() for array in kept]
    gc.collect()
    # The results; a page at either end is shared with neighbours, and the words of tasks take some space.
    most = len(kept) * (SIZE + 2 * 4096) + (64 << 10)
    wait_until(lambda: memory() <= most)
    assert len(kept) == 10
    # Blocks with holes are reused.
    for _ in range(2):
        assert all((array == array[0]).all() for array in pool.map(full, range(60), chunksize=6))
    wait_until(lambda: memory() <= most)
    end(pool)
    assert memory() <= most
    assert all((array == before).all() for array, before in zip(kept, content, strict=True))
    del kept[5:]
    wait_until(lambda: memory() <= most - 5 * (SIZE - 2 * 4096))
    kept.clear()
    del pool
    gc.collect()
    # Pages that two results share are freed with the file, which now is open only here.
    wait_until(lambda: memory() <= most - 10 * SIZE)
    memory.close()


def end(pool):
    if hasattr(pool, "terminate"):
        pool.close()
        pool.join()
    else:
        pool.shutdown()


class Waiting:
    """Waits in its pickling until that is allowed."""

    def __init__(self, allowed):
        self._allowed = allowed

    def __reduce__(self):
        assert self._allowed.wait(20)
        return int, ()


def test_the_array_of_a_map_is_given_back_though_the_map_is_garbage_before_its_last_task_is_packed():
    allowed = threading.Event()
    with make("Executor", "fork") as executor:
        lending = executor._scheduler._state.lending
        lending.allocator.wake = lending.trim  # immediately, not in another thread
        array = np.ones(1 << 17)
        results = executor.map(tasks.total_item, [(array, 0), (array, Waiting(allowed))])
        allowed.set()
        assert list(results) == [((1.0, 1.0), 0), ((1.0, 1.0), 0)]
        wait_until(lambda: tasks.all_blocks_are_free(executor))
