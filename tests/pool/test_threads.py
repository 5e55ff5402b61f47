"""Threads of the pool layer that switch very often: what they share stays consistent with and without the GIL."""

import gc
import sys
import threading
from collections import Counter
from multiprocessing.pool import ApplyResult, MapResult
from queue import SimpleQueue
from types import SimpleNamespace

import numpy as np
import pytest

import shmarray
from shmarray.pool._stdlib import CLOSE, RUN, TERMINATE
from shmarray.pool.arrays.allocator import BlockAllocator
from shmarray.pool.arrays.free_list import Use
from shmarray.pool.arrays.lending import Lending, SharedBlock
from shmarray.pool.engine.state import PoolState
from shmarray.pool.engine.workers import WorkerHandle
from shmarray.pool.executor_calls import ExecutorCalls
from shmarray.pool.pool_calls import CallCache, PoolCalls
from shmarray.pool.threads import Fence, WeakObjects
from tests.core.test_threads import at_once

SIZE = 300_000  # bytes


@pytest.fixture(autouse=True)
def often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def allocator():
    allocator = BlockAllocator.create(3)
    yield allocator
    allocator.close()


def deliver_parts(allocator, number):
    """Deliver a block with a result of three arrays, as a worker leaves it, to its receiver."""
    block = allocator.allocate(Use.RESULT)
    parts = [np.full(SIZE, number, np.uint8)] * 3
    offsets, block.reserved = allocator.fill(block.index, block.reserved, parts, 4096)
    return allocator.deliver(block, [(offset, SIZE) for offset in offsets])


class Interrupted(list):
    """The leases of a block; at their first use, another thread tries to take back what has ended."""

    def __init__(self, leases, allocator, parts):
        super().__init__(leases)
        self.end_another = lambda: self._take_back(allocator, parts)

    def _take_back(self, allocator, parts):
        self.end_another = bool
        parts.pop(0)
        self.thread = threading.Thread(target=allocator._take_back)
        self.thread.start()
        self.thread.join(0.3)  # it has to wait, because this thread holds the lock

    def remove(self, lease):
        super().remove(lease)
        self.end_another()

    def __iter__(self):
        for lease in super().__iter__():
            yield lease
            self.end_another()


def interrupt(allocator, parts):
    block = next(iter(allocator._blocks.values()))
    block.leases = Interrupted(block.leases, allocator, parts)
    return block


def test_a_block_whose_last_parts_end_in_two_threads_is_given_back_once(allocator):
    """If it were given back twice, two tasks would write to it."""
    parts = deliver_parts(allocator, 7)[:2]
    allocator._take_back()
    block = interrupt(allocator, parts)
    parts.pop()
    allocator._take_back()
    block.leases.thread.join()
    allocator._take_back()
    assert list(allocator._free_lists[Use.RESULT].full) == [block]


def test_holes_are_released_beside_what_is_held_though_a_part_ends_meanwhile(allocator):
    """A loop over a list that another thread shortens skips an item, whose memory was then taken for a hole."""
    parts = deliver_parts(allocator, 7)
    block = interrupt(allocator, parts)
    allocator._partly_free[block.index] = block
    allocator._release_unused(float("inf"))
    block.leases.thread.join()
    assert [(part == 7).all() for part in parts] == [True, True]


def test_blocks_are_given_back_once_by_many_threads(allocator):
    held = [deliver_parts(allocator, number) for number in range(8)]

    def work(number):
        for turn in range(60):
            mine = held[number]
            while mine:
                mine.pop()
            allocator._take_back()
            held[number] = deliver_parts(allocator, (number + turn) % 251)
            assert all((part == (number + turn) % 251).all() for part in held[number])

    at_once(work)
    held.clear()
    allocator._take_back()
    free = Counter(
        block.index for free in allocator._free_lists for blocks in (free.full, free.empty) for block in blocks
    )
    assert set(free.values()) == {1}
    assert set(free) == set(allocator._blocks)
    assert not allocator._held


def test_memory_that_is_held_stays_while_other_parts_of_its_block_end(allocator):
    """One thread releases holes while others give parts back."""
    stop = threading.Event()

    def trim():
        while not stop.is_set():
            allocator._release_unused(float("inf"))

    def work(number):
        for turn in range(40):
            first, middle, last = deliver_parts(allocator, 1 + (number + turn) % 250)
            value = first[0]
            del first
            allocator._take_back()
            assert (middle == value).all()
            del middle
            allocator._take_back()
            assert (last == value).all()

    trimmer = threading.Thread(target=trim)
    trimmer.start()
    try:
        at_once(work, 3)
    finally:
        stop.set()
        trimmer.join()


def test_the_ends_of_files_are_cut_off_while_blocks_there_are_handed_out(allocator):
    """Nothing can free memory in the middle of a file here."""
    allocator.can_free = False
    stop = threading.Event()

    def cut():
        while not stop.is_set():
            allocator._trim_free(float("inf"))

    def work(number):
        for turn in range(40):
            block = allocator.allocate(Use.ARGUMENT)
            value = (number + turn) % 251
            allocator.load(block, [np.full(SIZE, value, np.uint8)])
            seen = np.empty(SIZE, np.uint8)
            allocator.copy_out(block, 0, seen)
            assert (seen == value).all()
            allocator.give_back(block)

    cutter = threading.Thread(target=cut)
    cutter.start()
    try:
        at_once(work, 3)
    finally:
        stop.set()
        cutter.join()
    allocator._trim_free(float("inf"))
    assert allocator.can_cut
    assert allocator.memory() < SIZE


def test_a_block_of_many_tasks_is_given_back_once_though_a_finalizer_ends_its_group():
    """The finalizer runs while the use by the last task is being counted down."""
    given = []
    fake = SimpleNamespace(give_back=given.append, wake=bool)
    lending = Lending(fake, Exception)
    shared = SharedBlock(SimpleNamespace(retain_count=0))
    lending._shared[1, 2] = shared

    class LastUse(int):
        def __sub__(self, other):
            lending.exhausted(1)
            return 0

    shared.in_use = LastUse(1)
    lending._give_back_shared(SimpleNamespace(shared=[shared]))
    lending._give_back_exhausted()
    assert given == [shared.block]
    assert not lending._shared


def test_a_worker_may_answer_between_two_checks_of_its_tasks():
    class Emptied:
        """A deque that the collecting thread empties after the check whether it has items."""

        def __bool__(self):
            return True

        def __getitem__(self, index):
            raise IndexError("deque index out of range")

    worker = WorkerHandle(None, None, None, -1)
    worker.in_flight = Emptied()
    assert not worker.has_long_task()


def test_no_thread_undoes_the_end_of_a_pool():
    state = PoolState.__new__(PoolState)
    state._is_closed = state.is_terminated = False
    assert state.phase == RUN
    state.phase = TERMINATE
    state.phase = CLOSE
    assert state.phase == TERMINATE


@pytest.mark.parametrize("kind", ["map", "apply"])
def test_a_call_that_fails_while_its_results_arrive_is_completed_once(kind, monkeypatch):
    """Regression: a map could succeed with None in the places of some results, and an error was printed."""
    reported = []
    monkeypatch.setattr(threading, "excepthook", reported.append)
    cache = CallCache()
    cache.notifier = SimpleQueue()
    calls = PoolCalls(cache)
    pool = SimpleNamespace(_cache=cache, _state=RUN)
    completed = []
    size = 20 if kind == "map" else 1
    made = []
    for _ in range(5000):
        done, failed = completed.append, completed.append
        made.append(MapResult(pool, 1, size, done, failed) if kind == "map" else ApplyResult(pool, done, failed))

    together = threading.Barrier(2)

    def work(number):
        for result in made:
            together.wait()
            if number:
                calls.fail(result._job, None, OSError())
            else:
                for index in range(size):
                    calls.set_result(result._job, index, (True, [1] if kind == "map" else 1))

    at_once(work, 2)
    assert len(completed) == len(made)
    for result in made:
        assert result.ready()
        if result.successful():
            assert result.get() == ([1] * size if kind == "map" else 1)
    assert not reported


def test_a_map_that_fails_while_it_is_made_fails(monkeypatch):
    """Regression: it was complete, with None in the place of each result."""
    made = ApplyResult.__init__
    failing = []

    def registered(self, *args, **options):
        made(self, *args, **options)
        thread = threading.Thread(target=pool._scheduler._state.fail_all, args=(OSError("no worker"),))
        thread.start()
        thread.join(0.5)  # it waits for this thread, which would have time to fail a call that is half made
        failing.append(thread)

    with shmarray.Pool(1) as pool:
        monkeypatch.setattr(ApplyResult, "__init__", registered)
        result = pool.map_async(abs, [1, 2, 3])
        failing[0].join()
        with pytest.raises(OSError, match="no worker"):
            result.get(20)


def test_answers_are_counted_while_calls_are_added():
    calls = ExecutorCalls()
    lock = threading.Lock()

    def work(number):
        for turn in range(2000):
            if number:
                with lock:
                    calls.add((number, turn), None)
            else:
                calls.set_result(-1, 0, (True, None))

    at_once(work, 4)
    assert calls.unanswered == 2000 * 2


def test_objects_are_added_and_end_while_others_iterate():
    class Item:
        pass

    objects = WeakObjects()

    def work(number):
        for _ in range(300):
            items = [Item() for _ in range(5)]
            for item in items:
                objects.add(item)
            assert set(items) <= set(objects.alive())

    at_once(work)
    gc.collect()
    assert objects.alive() == []


def test_a_fence_may_be_passed_by_a_finalizer_of_the_thread_that_passes():
    fence = Fence()
    with fence._lock:
        fence()
