"""task_timeout: the worker of a task that takes too long is replaced, and only that call fails."""

import ctypes
import os
import pickle
import select
import signal
import threading
import time

import numpy as np
import pytest

import shmarray
from shmarray import TaskTimeoutError
from shmarray.core.posix import SparseFile
from tests.helpers.processes import wait_until
from tests.pool import tasks
from tests.pool.tasks import all_blocks_are_free, call, make

DOORS = ("Pool", "Executor")


def in_c(_=None):
    """Block while holding the GIL, so that nothing in the process itself can end the task."""
    ctypes.PyDLL(None).sleep(60)


def ignoring_sigterm(_=None):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Event().wait(60)


def second_is_stuck(item):
    array, is_stuck = item
    if is_stuck:
        threading.Event().wait(60)
    return array * 2


def slow(seconds):
    time.sleep(seconds)
    return seconds


def slow_start(seconds):
    """Initializer that takes some time."""
    time.sleep(seconds)


def close(pool):
    if isinstance(pool, shmarray.Pool):
        pool.terminate()
        pool.join()
    else:
        pool.shutdown()


@pytest.mark.parametrize("stuck", [in_c, ignoring_sigterm])
@pytest.mark.parametrize("kind", DOORS)
def test_a_stuck_task_of_an_idle_pool_is_ended(kind, stuck, start_method):
    """Nothing else wakes the thread that watches the limit."""
    pool = make(kind, start_method, task_timeout=1)
    assert call(pool, tasks.double, 2) == 4
    with pytest.raises(TaskTimeoutError, match=rf"{stuck.__name__}.*limit of 1 s") as caught:
        call(pool, stuck)
    error = caught.value
    assert isinstance(error, TimeoutError)
    assert isinstance(error, shmarray.ShmArrayError)
    assert error.timeout == 1
    assert error.items is None
    assert error.index is None
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert call(pool, tasks.double, 3) == 6
    close(pool)


@pytest.mark.parametrize("kind", DOORS)
def test_others_do_not_notice_and_no_block_is_lost(kind):
    # A replacement worker that is forked would keep the results that its caller has at that moment.
    pool = make(kind, "spawn", task_timeout=2)
    items = [(np.ones(20_000), place == 5) for place in range(40)]
    if kind == "Pool":
        stuck = pool.map_async(second_is_stuck, items, chunksize=1).get
        other = pool.map_async(tasks.double, [np.ones(20_000)] * 40, chunksize=1).get
    else:
        futures = [pool.submit(second_is_stuck, item) for item in items]
        others = [pool.submit(tasks.double, np.ones(20_000)) for _ in range(40)]
        stuck = futures[5].result
        other = lambda _: [future.result(30) for future in others]  # noqa: E731
    with pytest.raises(TaskTimeoutError) as caught:
        stuck(30)
    assert caught.value.index == (5 if kind == "Pool" else None)
    assert all((result == 2).all() for result in other(30))
    if kind == "Executor":
        assert all((future.result(30) == 2).all() for place, future in enumerate(futures) if place != 5)
        del futures, others
    del caught, stuck, other
    tasks.collect()  # an error and its frames are a cycle
    wait_until(lambda: all_blocks_are_free(pool))
    close(pool)


@pytest.mark.parametrize("kind", DOORS)
def test_the_start_of_a_worker_is_no_part_of_a_task(kind, start_method):
    pool = make(kind, start_method, task_timeout=1, initializer=slow_start, initargs=(1.2,))
    assert call(pool, slow, 0) == 0
    with pytest.raises(TaskTimeoutError):
        call(pool, slow, 60)
    assert call(pool, slow, 0) == 0  # by a new worker, which starts as slowly
    close(pool)


def test_tasks_behind_a_stuck_one_go_to_others_with_time_of_their_own():
    with make("Pool", "fork", 1, task_timeout=0.4, tasks_ahead=8) as pool:
        first = pool.apply_async(slow, (60,))
        behind = [pool.apply_async(slow, (0.2,)) for _ in range(6)]
        with pytest.raises(TaskTimeoutError):
            first.get(30)
        assert [result.get(30) for result in behind] == [0.2] * 6
    pool.join()


def test_an_executor_is_not_broken_by_a_task_that_is_stuck():
    with make("Executor", "fork", 1, task_timeout=0.3) as executor:
        for _ in range(3):
            with pytest.raises(TaskTimeoutError):
                executor.submit(slow, 60).result(30)
        assert executor.submit(slow, 0).result(30) == 0


def test_imap_goes_on_after_an_item_that_was_stuck():
    with make("Pool", "fork", task_timeout=0.3) as pool:
        results = pool.imap(slow, [0, 60, 0.01])
        assert next(results) == 0
        with pytest.raises(TaskTimeoutError) as caught:
            next(results)
        assert caught.value.index == 1
        assert list(results) == [0.01]
    pool.join()


def test_sending_a_long_argument_is_no_part_of_its_task(monkeypatch):
    """Otherwise an argument that takes longer would be sent again and again."""
    monkeypatch.setattr(SparseFile, "create", classmethod(lambda _: None))
    with make("Pool", "fork", 1, task_timeout=1) as pool:
        worker = pool.apply_async(tasks.pid).get(20)
        os.kill(worker, signal.SIGSTOP)
        result = pool.apply_async(length_and_pid, (b"x" * (4 << 20),))
        time.sleep(1.5)  # longer than the limit
        os.kill(worker, signal.SIGCONT)
        assert result.get(20) == (4 << 20, worker)
    pool.join()


def length_and_pid(data):
    return len(data), os.getpid()


@pytest.mark.parametrize("limit", [1e9, 1e300, 2**70, float("inf"), np.float64(3)])
def test_limits_that_are_never_reached(limit):
    with make("Pool", "fork", 1, task_timeout=limit) as pool:
        assert pool.apply_async(slow, (0.05,)).get(20) == 0.05
    pool.join()


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_no_worker_has_more_large_tasks_than_tasks_ahead(ahead):
    taken = []

    def items():
        for number in range(30):
            taken.append(number)
            yield 0.0 if number else 1.0, np.ones(2 << 17)

    with make("Pool", "fork", 1, tasks_ahead=ahead) as pool:
        results = pool.imap(first_is_slow, items())
        time.sleep(0.5)
        # One more is packed and waits for room.
        assert ahead <= len(taken) <= ahead + 2
        assert len(list(results)) == 30
    pool.join()


def first_is_slow(item):
    time.sleep(item[0])


def test_the_time_of_a_task_begins_while_the_collecting_thread_waits_for_ever(kind):
    options = {"replace_workers": True} if kind == "Executor" else {}
    with make(kind, "fork", task_timeout=0.3, **options) as pool:
        assert call(pool, tasks.double, 2) == 4
        collector = pool._scheduler._collector
        wait_until(lambda: collector._patience() is None)
        with pytest.raises(TaskTimeoutError, match="took longer than the limit"):
            call(pool, signal.pause)
        assert call(pool, tasks.double, 2) == 4
        if kind == "Pool":
            pool.close()
            pool.join()


def test_a_worker_whose_answer_is_not_read_in_time_is_not_ended(tmp_path):
    """A callback blocks the thread that takes results."""
    go = tmp_path / "go"
    with make("Pool", "fork", 2, task_timeout=60) as pool:
        late = pool.apply_async(tasks.wait_for_file, (str(go),))
        workers = pool._scheduler._state.workers.workers
        wait_until(lambda: any(worker.in_flight for worker in list(workers)))
        (busy,) = (worker for worker in list(workers) if worker.in_flight)

        def hold_up(_):
            go.touch()
            wait_until(lambda: select.select([busy.channel.sock], [], [], 0)[0])
            pool._scheduler._collector._task_timeout = 1e-9

        pool.apply_async(abs, (-1,), callback=hold_up)
        assert late.get(60) is None
        pool.close()
        pool.join()
    assert busy.process.exitcode == 0
