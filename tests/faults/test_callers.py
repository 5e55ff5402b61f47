"""Callers whose generators and callbacks use or end the pool, many threads, and numbers that are too large."""

import os
import threading
from concurrent.futures import wait

import numpy as np
import pytest

import shmarray
from shmarray.pool.engine import waker
from tests.faults import deaths
from tests.helpers.processes import in_child
from tests.pool import tasks
from tests.pool.tasks import all_blocks_are_free, call, finish, make, wait_until

LIMIT = 20
SMALL = np.ones(10_000)


def run_in_threads(count, function):
    """Run ``function(number)`` in several threads at once; return the exceptions that they raised."""
    errors = []

    def run(number):
        try:
            function(number)
        except BaseException as error:  # noqa: BLE001 - the test checks them
            errors.append(repr(error))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive()
    return errors


def test_a_child_forked_while_a_pool_ends_keeps_its_own_descriptors(monkeypatch):
    """The number of a closed descriptor may belong to another file when another thread forks."""
    ending = waker.Waker()
    real = os.close
    kept = []

    def close(fd):
        real(fd)
        monkeypatch.setattr(os, "close", real)
        os.dup2(0, fd)
        kept.append(in_child(os.fstat, fd) == os.fstat(0))
        real(fd)

    monkeypatch.setattr(os, "close", close)
    ending.close()
    assert kept == [True]


def test_pools_are_made_and_ended_by_many_threads():
    def work(number):
        for turn in range(3):
            pool = make(("Pool", "Executor")[(number + turn) % 2], "fork")
            assert (call(pool, tasks.double, SMALL) == 2).all()
            finish(pool)

    assert not run_in_threads(6, work)


def test_sixteen_threads_share_a_pool(kind):
    pool = make(kind, "fork")
    several = pool.imap if kind == "Pool" else pool.map

    def work(number):
        array = np.full(10_000, number)
        for _ in range(4):
            assert (call(pool, tasks.double, array) == 2 * number).all()
            assert all((result == 2 * number).all() for result in pool.map(tasks.double, [array] * 3))
            assert all((result == 2 * number).all() for result in several(tasks.double, [array] * 3, buffersize=2))
            with pytest.raises(ZeroDivisionError):
                call(pool, divmod, number, 0)

    assert not run_in_threads(16, work)
    finish(pool)


def test_calls_that_many_threads_cancel_are_cancelled_or_done():
    executor = make("Executor", "fork")
    for _ in range(5):
        futures = [executor.submit(tasks.double, SMALL) for _ in range(60)]
        assert not run_in_threads(4, lambda part, futures=futures: [future.cancel() for future in futures[part::4]])
        assert not wait(futures, LIMIT).not_done
        assert all(future.cancelled() or (future.result() == 2).all() for future in futures)
    futures = None
    assert (call(executor, tasks.double, SMALL) == 2).all()
    wait_until(lambda: all_blocks_are_free(executor))
    finish(executor)


def test_calls_that_several_threads_cancel_at_the_end_are_notified_once(monkeypatch):
    """Regression: the executor notified the waiters of a future that another thread had already notified."""
    executor = make("Executor", "fork", 1)
    executor.submit(abs, -1).result(LIMIT)
    ended = threading.Event()
    futures = [executor.submit(tasks.slow_double, number) for number in range(20)]
    failed = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    for future in futures:
        future.add_done_callback(
            lambda _: ended.is_set() or (ended.set(), executor.shutdown(False, cancel_futures=True))
        )
    executor.shutdown(cancel_futures=True)
    assert not wait(futures, LIMIT).not_done
    assert not failed


def test_a_pool_is_ended_by_sixteen_threads_at_once():
    for _ in range(4):
        pool = make("Pool", "fork")
        results = [pool.apply_async(tasks.double, (SMALL,)) for _ in range(20)]
        barrier = threading.Barrier(16)

        def work(number, pool=pool, barrier=barrier):
            barrier.wait(LIMIT)
            try:
                (pool.close, pool.terminate, lambda: pool.apply_async(abs, (-1,)).get(LIMIT))[number % 3]()
            except (ValueError, RuntimeError) as error:
                assert "not running" in str(error) or "terminated" in str(error)  # noqa: PT017 - an error is optional

        assert not run_in_threads(16, work)
        for result in results:
            result.wait(LIMIT)
            assert result.ready()
        pool.join()


def test_a_generator_that_closes_or_joins_or_terminates_the_pool():
    for ways in (("close",), ("close", "join"), ("terminate",)):
        pool = make("Pool", "fork")

        def arrays(pool=pool, ways=ways):
            yield SMALL
            for way in ways:
                getattr(pool, way)()
            yield SMALL

        results = pool.imap(tasks.double, arrays())
        if ways[0] == "close":
            assert [results.next(LIMIT)[0] for _ in range(2)] == [2, 2]
        else:
            with pytest.raises(RuntimeError, match="terminated"):
                [results.next(LIMIT) for _ in range(2)]
        pool.join()
    with make("Executor", "fork") as executor:

        def more():
            yield SMALL
            executor.shutdown(wait=False)
            yield SMALL

        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.map(tasks.double, more())


def test_a_callback_of_a_call_that_was_not_sent_waits_for_another_call(tmp_path):
    """The thread that could not send it runs the callback, and the collecting thread completes the other."""
    go = str(tmp_path / "go")
    results = []
    with shmarray.Pool(1) as pool:
        other = pool.apply_async(deaths.wait_for, (go,))

        def failed(_):
            (tmp_path / "go").touch()
            results.append(other.get(LIMIT))

        with pytest.raises(TypeError, match="cannot pickle"):
            pool.apply_async(abs, (threading.Lock(),), error_callback=failed).get(LIMIT)
    assert results == [None]


def test_callbacks_that_call_the_pool():
    pool, executor = make("Pool", "fork"), make("Executor", "fork")
    done = threading.Event()

    def again(result):
        if result < 64:
            pool.apply_async(tasks.double, (result,), callback=again)
        else:
            pool.apply_async(divmod, (1, 0), error_callback=failed)

    def failed(error):
        assert isinstance(error, ZeroDivisionError)
        executor.submit(abs, -1).add_done_callback(submitted)

    def submitted(future):
        executor.submit(abs, -future.result()).add_done_callback(lambda _: done.set())

    again(1)
    assert done.wait(LIMIT)
    finish(pool)
    finish(executor)


def test_a_map_whose_list_of_results_cannot_be_made_leaves_no_call():
    """Otherwise `join` would wait for the call."""
    pool = make("Pool", "fork", 1)
    with pytest.raises(MemoryError):
        pool.map(abs, range(1 << 60))
    assert pool.map(abs, [-1]) == [1]
    finish(pool)


def test_numbers_that_are_too_large():
    pool, executor = make("Pool", "fork", 1), make("Executor", "fork", 1)
    large = 10**30
    for error, refused in (
        (OverflowError, lambda: pool.apply_async(abs, (-1,)).get(1e300)),
        (OverflowError, lambda: executor.submit(abs, -1).result(1e300)),
        (ZeroDivisionError, lambda: call(pool, divmod, 10**20_000, 0)),
    ):
        with pytest.raises(error):
            refused()
    assert pool.map_async(abs, [-1, -2], large).get(LIMIT) == [1, 2]
    assert list(pool.imap(abs, [-1], large)) == list(executor.map(abs, [-1], chunksize=large)) == [1]
    assert list(pool.imap(abs, [-1], 2, buffersize=large)) == [1]
    assert call(pool, abs, -(10**20_000)) == 10**20_000
    assert call(executor, len, "x" * 20_000_000) == 20_000_000
    assert len(call(pool, tasks.identity, b"x" * 20_000_000)) == 20_000_000
    finish(pool)
    finish(executor)
