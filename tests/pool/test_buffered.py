"""imap with a buffersize: how much it takes from the iterable, the order of the results, and errors."""

import gc
import itertools
import multiprocessing
import threading

import numpy as np
import pytest

import shmarray
from tests.helpers.processes import wait_until
from tests.pool import tasks

BIG = 50_000


@pytest.fixture
def pool():
    with shmarray.Pool(2) as pool:
        yield pool


def counted(taken, count):
    for number in range(count):
        taken.append(number)
        yield number


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
@pytest.mark.parametrize("chunksize", [1, 3])
def test_no_more_items_are_taken_than_results_and_the_buffer(pool, method, chunksize):
    taken = []
    results = getattr(pool, method)(abs, counted(taken, 50), chunksize, buffersize=6)
    assert len(taken) == 6
    got = []
    for result in results:
        got.append(result)
        assert len(taken) <= len(got) + 6 + chunksize
    assert (got if method == "imap" else sorted(got)) == list(range(50))


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
@pytest.mark.parametrize("size", [10, BIG])
@pytest.mark.parametrize("buffersize", [1, 5, 30])
def test_a_producer_may_use_one_buffer_for_all_items(pool, method, size, buffersize):
    def frames():
        frame = np.empty(size)
        for number in range(20):
            frame[:] = number
            yield frame

    found = [result[[0, -1]].tolist() for result in getattr(pool, method)(np.copy, frames(), buffersize=buffersize)]
    assert sorted(found) == [[number, number] for number in range(20)]


def test_items_that_wait_for_a_worker_take_no_memory_once_their_call_has_failed(pool, tmp_path):
    """The items are packed, but not yet sent."""
    waiting = [pool.apply_async(tasks.wait_for_file, (str(tmp_path / "go"),)) for _ in range(4)]
    results = pool.imap(tasks.double, (np.full(BIG, i) for i in range(8)), buffersize=8)
    for job in [job for job in pool._cache if pool._cache[job] not in waiting]:
        pool._calls.fail(job, 0, KeyError(job))
    (tmp_path / "go").touch()
    for call in waiting:
        call.get(20)
    for _ in range(8):
        with pytest.raises(KeyError):
            next(results)
    del results
    wait_until(lambda: tasks.all_blocks_are_free(pool))


def test_large_arrays_in_flight_are_bounded(pool):
    results = pool.imap(tasks.double, (np.full(BIG, i) for i in range(40)), buffersize=4)
    for i, result in enumerate(results):
        assert (result == 2 * i).all()
        assert tasks.shared_memory_of(pool) < 40 * 8 * BIG
    del result, results
    gc.collect()


def test_other_calls_do_not_wait_for_the_consumer(pool):
    results = pool.imap(abs, range(100), buffersize=1)
    assert next(results) == 0
    assert pool.map(abs, [-1, -2]) == [1, 2]
    assert [pool.apply(abs, (-result,)) for result in results] == list(range(1, 100))


def test_an_error_of_a_task_comes_in_its_place_and_the_rest_follows(pool):
    results = pool.imap(tasks.reciprocal, [1, 0, 2], buffersize=2)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert next(results) == 0.5
    with pytest.raises(StopIteration):
        next(results)


def test_an_error_of_the_iterable_comes_after_the_results_before_it(pool):
    def items():
        yield 1
        yield 2
        raise KeyError("no more")

    results = pool.imap(abs, items(), buffersize=5)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(KeyError):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_next_has_a_timeout(pool, tmp_path):
    results = pool.imap(tasks.wait_for_file, [str(tmp_path / "go")], buffersize=1)
    with pytest.raises(multiprocessing.TimeoutError):
        results.next(0.01)
    (tmp_path / "go").touch()
    results.next(60)
    with pytest.raises(StopIteration):
        next(results)


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_a_dead_worker_names_the_item(pool, method):
    results = getattr(pool, method)(tasks.kill_self_at_7, range(20), buffersize=3)
    errors = []
    got = []
    while True:
        try:
            got.append(next(results))
        except shmarray.WorkerDiedError as error:
            errors.append(error.index)
        except StopIteration:
            break
    assert errors == [7]
    assert sorted(got) == [i for i in range(20) if i != 7]


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("3", TypeError)])
def test_bad_sizes_are_refused_before_anything_is_taken(pool, size, error):
    taken = []
    with pytest.raises(error, match="buffersize"):
        pool.imap(abs, counted(taken, 5), buffersize=size)
    assert taken == []


def test_many_threads_take_each_result_once(pool):
    results = pool.imap_unordered(abs, range(200), buffersize=8)
    got = []
    threads = [threading.Thread(target=lambda: got.extend(results)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(got) == list(range(200))


# --- the map of an executor ------------------------------------------------------------


@pytest.fixture(scope="module")
def executor():
    with tasks.make("Executor", "fork") as made:
        made.submit(abs, -1).result()  # starts the workers for all tests
        yield made


@pytest.mark.parametrize("buffersize", [1, 3, 100])
@pytest.mark.parametrize("chunksize", [1, 4])
def test_an_executors_map(executor, chunksize, buffersize):
    taken, results = [], []
    for result in executor.map(tasks.double, counted(taken, 30), chunksize=chunksize, buffersize=buffersize):
        # As in the stdlib: buffersize chunks, and one more while the next result is awaited.
        assert len(taken) <= len(results) + (buffersize + 1) * chunksize
        results.append(result)
    assert results == [2 * number for number in range(30)]


def test_an_executors_map_of_iterables_that_do_not_end(executor):
    results = executor.map(pow, itertools.count(), itertools.count(2), buffersize=2, chunksize=3)
    assert [next(results) for _ in range(5)] == [0, 1, 16, 243, 4096]


def test_an_executors_map_without_a_buffersize(executor):
    assert list(executor.map(tasks.double, range(3), buffersize=None)) == [0, 2, 4]


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (-1, ValueError), (1.0, TypeError)])
def test_an_executors_map_refuses_bad_sizes(executor, size, error):
    with pytest.raises(error, match="buffersize"):
        executor.map(abs, [1], buffersize=size)
    with pytest.raises(ValueError, match="chunksize"):
        executor.map(abs, [1], buffersize=1, chunksize=0)


def note_and_wait(number, place, fails):
    with open(f"{place}/{number}", "x", encoding="ascii"):
        pass
    if number == 1 and fails:
        raise ZeroDivisionError
    if number in (1, 2):
        tasks.wait_for_file(f"{place}/go")


@pytest.mark.parametrize("fails", [True, False])
def test_an_executors_map_that_fails_or_is_dropped_cancels_the_rest(tmp_path, fails):
    with tasks.make("Executor", "fork", 1) as executor:
        results = executor.map(note_and_wait, range(50), [tmp_path] * 50, [fails] * 50, buffersize=8)
        next(results)
        if fails:
            with pytest.raises(ZeroDivisionError):
                next(results)
            with pytest.raises(StopIteration):
                next(results)
        del results
        gc.collect()
        (tmp_path / "go").touch()
    assert (tmp_path / "1").exists()
    assert not (tmp_path / "8").exists()
