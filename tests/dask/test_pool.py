"""Pool and ProcessPoolExecutor on a cluster: the interfaces of multiprocessing and concurrent.futures."""

import concurrent.futures
import multiprocessing

import numpy as np
import pytest

import shmarray

pytest.importorskip("distributed", reason="needs distributed (the extra dask)")

from shmarray.dask import Pool, ProcessPoolExecutor, share
from tests.dask import tasks


@pytest.fixture
def pool(client):
    with Pool(client) as made:
        yield made


@pytest.fixture
def executor(client):
    with ProcessPoolExecutor(client) as made:
        yield made


# --- Pool ---


def test_methods_return_the_same_as_in_multiprocessing(pool):
    expected = [x * x for x in range(10)]
    assert pool.map(tasks.square, range(10)) == expected
    assert pool.map(tasks.square, range(10), chunksize=3) == expected
    assert pool.map(tasks.square, []) == []
    assert pool.starmap(pow, [(2, 3), (3, 2)]) == [8, 9]
    assert list(pool.imap(tasks.square, iter(range(10)))) == expected
    assert list(pool.imap(tasks.square, range(10), 4)) == expected
    assert sorted(pool.imap_unordered(tasks.square, range(10), 3)) == expected
    assert pool.apply(tasks.square, (3,)) == 9
    assert pool.apply(int, ("11",), {"base": 2}) == 3


def test_asynchronous_results(pool):
    got = []
    result = pool.map_async(tasks.square, [1, 2], callback=got.append)
    assert result.get(20) == [1, 4]
    assert result.ready()
    assert result.successful()
    assert pool.starmap_async(pow, [(2, 3)]).get(20) == [8]
    assert pool.apply_async(tasks.square, (3,), callback=got.append).get(20) == 9


def test_an_error_is_raised_and_passed_to_the_callback(pool):
    with pytest.raises(ValueError, match="three"):
        pool.map(tasks.fail_at_three, range(5), 1)
    errors = []
    result = pool.map_async(tasks.fail_at_three, range(5), error_callback=errors.append)
    with pytest.raises(ValueError, match="three"):
        result.get(20)
    assert not result.successful()
    assert str(errors) == "[ValueError('three')]"


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_an_iterator_goes_on_after_an_error(pool, method):
    results, got, errors = getattr(pool, method)(tasks.fail_at_three, range(6)), [], 0
    while True:
        try:
            got.append(next(results))
        except StopIteration:
            break
        except ValueError:
            errors += 1
    assert (sorted(got), errors) == ([0, 1, 2, 4, 5], 1)


def test_waiting_ends_in_time(pool, tmp_path):
    path = tmp_path / "go"
    result = pool.apply_async(tasks.wait_for_file, (str(path),))
    iterator = pool.imap(tasks.wait_for_file, [str(path)])
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(0.01)
    with pytest.raises(multiprocessing.TimeoutError):
        iterator.next(0.01)
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    path.touch()
    assert result.get(20) is None
    assert iterator.next(20) is None


def test_imap_takes_items_as_results_are_taken(pool):
    taken = []
    results = pool.imap(tasks.square, (taken.append(number) or number for number in range(1000)))
    next(results)
    assert len(taken) < 100


def test_a_closed_pool_takes_no_calls(client):
    pool = Pool(client)
    with pytest.raises(ValueError, match="still running"):
        pool.join()
    pool.close()
    pool.join()
    for call in (pool.map, pool.imap, pool.map_async):
        with pytest.raises(ValueError, match="not running"):
            call(tasks.square, [1])


def test_progress_is_shown(pool, capsys):
    pytest.importorskip("tqdm")
    assert pool.map(tasks.square, range(4), 1, progress="squares") == [0, 1, 4, 9]
    assert list(pool.imap(tasks.square, range(4), progress=True)) == [0, 1, 4, 9]
    shown = capsys.readouterr().err
    assert "squares" in shown
    assert "4/4" in shown
    with pytest.raises(TypeError, match="label"):
        pool.map(tasks.square, [1], progress=3)


def test_each_task_has_a_writable_array_of_its_own(pool):
    arrays = [np.full(size, 1.0) for size in (10, 1 << 18)]
    for array in arrays:
        got = pool.map(tasks.double, [array, array + 1], 1)
        assert [result[0] for result in got] == [2.0, 4.0]
        assert array[0] == 1.0
        assert all(result.flags.writeable for result in got)


def test_an_array_in_many_tasks_is_shared_but_private_to_each_task(pool):
    table = tasks.large()
    assert pool.starmap(tasks.take_and_spoil, [(table, 5)] * 20, 1) == [5.0] * 20
    assert table[5] == 5.0
    (kind,) = set(pool.starmap(tasks.what_it_is_of, [(table, n) for n in range(4)], 1))
    assert kind == ("ndarray", True)


def test_a_generator_may_reuse_one_buffer(pool):
    buffer = tasks.large()

    def frames():
        for number in range(4):
            buffer[0] = number
            yield buffer

    assert list(pool.imap(tasks.first_item, frames())) == [0.0, 1.0, 2.0, 3.0]


def test_a_share_is_an_array_in_its_tasks(client, pool, executor):
    with share(client, tasks.large()) as shared:
        assert set(pool.map(tasks.what_it_is, [shared, shared], 1)) == {("ndarray", False, True)}
        assert executor.submit(tasks.what_it_is, shared).result() == ("ndarray", False, True)


def test_an_array_in_shared_memory_arrives_with_its_content(pool):
    with shmarray.scoped(data=tasks.large()) as array:
        assert pool.starmap(tasks.take_and_spoil, [(array, 5)] * 4, 1) == [5.0] * 4
        assert array[5] == 5.0


def test_lambdas_can_be_sent(pool):
    assert pool.map(lambda x: x + 1, [1, 2]) == [2, 3]


def test_a_task_whose_worker_dies_runs_again(client, pool, tmp_path):
    table = tasks.large()
    items = [(str(tmp_path / "died"), table)] * 4
    assert [len(result) for result in pool.starmap(tasks.kill_oneself_once, items, 1)] == [1 << 18] * 4
    client.wait_for_workers(2)


# --- ProcessPoolExecutor ---


def test_an_executor_does_what_the_stdlib_s_does(executor):
    assert executor.submit(tasks.square, 3).result(20) == 9
    assert executor.submit(int, "11", base=2).result(20) == 3
    assert list(executor.map(pow, [2, 3], [3, 2, 1])) == [8, 9]
    assert list(executor.map(tasks.square, range(10), chunksize=4)) == [x * x for x in range(10)]
    assert isinstance(executor.submit(tasks.fail_at_three, 3).exception(20), ValueError)
    futures = [executor.submit(tasks.square, x) for x in range(4)]
    assert sum(future.result() for future in concurrent.futures.as_completed(futures, 20)) == 14


def test_an_array_in_many_calls_of_a_map_is_shared(executor):
    table = tasks.large()
    assert list(executor.map(tasks.take_and_spoil, [table] * 20, [5] * 20)) == [5.0] * 20
    assert table[5] == 5.0


def test_a_map_that_is_dropped_or_too_slow_releases_its_array(executor, tmp_path):
    table, path = tasks.large(), tmp_path / "go"
    executor.map(tasks.take_and_spoil, [table] * 4, [5] * 4)
    with pytest.raises(concurrent.futures.TimeoutError):
        list(executor.map(tasks.wait_for_file_with, [table] * 2, [str(path)] * 2, timeout=0.01))
    path.touch()


def test_an_executor_that_was_shut_down_takes_no_calls(client, tmp_path):
    executor, path = ProcessPoolExecutor(client), tmp_path / "go"
    waiting = [executor.submit(tasks.wait_for_file, str(path)) for _ in range(20)]
    executor.shutdown(wait=False, cancel_futures=True)
    path.touch()
    assert any(future.cancelled() for future in waiting)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(tasks.square, 1)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.map(tasks.square, [1])
