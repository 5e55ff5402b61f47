"""What real programs do: many descriptors, objects that raise, handlers, stuck tasks, kept parts of results."""

import asyncio
import gc
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import time

import numpy as np
import pytest

import shmarray
from shmarray.pool import name_reaper
from shmarray.pool.engine.collector import Collector
from shmarray.pool.engine.feeder import Feeder
from tests.faults import deaths, programs
from tests.helpers.processes import in_child, wait_until
from tests.pool import tasks
from tests.pool.tasks import START_METHODS, call, call_each, make, shared_memory_of

LIMIT = 30
SIZE = 20_000  # items of 8 bytes


def executor_options(kind):
    return {"replace_workers": True} if kind == "Executor" else {}


# --- many descriptors ----------------------------------------------------------------


# Without forkserver: a forked child would use its parent's.
IN_CHILD = ["fork", "spawn"]


@pytest.mark.parametrize("method", IN_CHILD)
def test_a_program_with_5000_open_files_can_use_pools(kind, method):
    def program():
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 6000), hard))
        held = [os.open("/dev/null", os.O_RDONLY) for _ in range(5000)]
        with make(kind, method, **executor_options(kind)) as pool:
            totals = call_each(pool, tasks.total, [np.ones(SIZE)] * 3)
            try:
                call(pool, tasks.kill_self)
            except shmarray.WorkerDiedError:
                totals.append(call(pool, tasks.total, np.ones(SIZE)))
        return totals, len(held)

    assert in_child(program) == ([SIZE] * 4, 5000)


# --- a timeout of all sockets --------------------------------------------------------


@pytest.fixture
def socket_timeout():
    """Set the default timeout of new sockets, as download programs do."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(0.01)
    yield
    socket.setdefaulttimeout(before)


@pytest.mark.usefixtures("socket_timeout")
@pytest.mark.parametrize("method", IN_CHILD)
def test_a_timeout_of_all_sockets_ends_no_idle_worker(kind, method):
    with make(kind, method, 1) as pool:
        pid = call(pool, os.getpid)
        time.sleep(0.3)  # longer than the timeout
        assert call(pool, os.getpid) == pid
        assert call(pool, len, bytes(20_000_000)) == 20_000_000


@pytest.mark.usefixtures("socket_timeout")
def test_a_timeout_of_all_sockets_ends_no_scope(name):
    """Regression: the helper that deletes names after a kill took the timeout for the end of the program."""

    def program():
        with shmarray.scoped(10, name=name) as array:
            helper = name_reaper._reaper._process
            with pytest.raises(subprocess.TimeoutExpired):
                helper.wait(1)
            return bool(np.shares_memory(shmarray.attach(name), array))

    assert in_child(program)


# --- objects that raise --------------------------------------------------------------

ERRORS = [ValueError, RecursionError, KeyboardInterrupt, SystemExit]


@pytest.mark.parametrize("error", ERRORS)
def test_a_result_with_neither_pickle_nor_repr_fails_its_call_alone(kind, error):
    with make(kind, "fork", 1) as pool:
        pid = call(pool, tasks.pid)
        with pytest.raises((error, shmarray.ShmArrayError, multiprocessing.pool.MaybeEncodingError)):
            call(pool, programs.give_raising, "reduce", error)
        assert call(pool, tasks.pid) == pid


@pytest.mark.parametrize("error", ERRORS)
def test_an_argument_that_raises_on_any_access_fails_only_its_call(kind, error):
    with make(kind, "fork", 1) as pool:
        pid = call(pool, tasks.pid)
        with pytest.raises(error):
            call(pool, programs.give, programs.Raises("reduce", error))
        assert isinstance(call(pool, programs.give, programs.Raises("repr", error)), programs.Raises)
        assert call(pool, tasks.pid) == pid


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("function", ["method without a module", "name that raises"])
def test_a_worker_dies_in_a_function_that_cannot_be_named(kind, error, function):
    with make(kind, "fork", 2, **executor_options(kind)) as pool:
        deadly = {
            "name that raises": (programs.RaisesWhenNamed(error),),
            "method without a module": (str.format, "{}", tasks.DiesWhenFormatted()),
        }
        with pytest.raises(shmarray.WorkerDiedError):
            call(pool, *deadly[function])
        assert call(pool, abs, -1) == 1


@pytest.mark.parametrize("method", START_METHODS)
def test_an_exception_that_does_not_unpickle_still_says_what_was_raised_and_where(kind, method):
    with make(kind, method, 1) as pool:
        with pytest.raises(TypeError) as caught:
            call(pool, programs.raise_api_error)
        text = str(caught.value.__cause__)
        assert "ApiError: 503: the server is on fire" in text
        assert "in raise_api_error" in text
        with pytest.raises((ValueError, multiprocessing.pool.MaybeEncodingError)) as caught:
            call(pool, programs.raise_silent)
        assert "in raise_silent" in str(caught.value.__cause__)
        assert call(pool, abs, -1) == 1


@pytest.mark.parametrize("into", [(int, ("3",)), (type, (KeyError(),)), (list, ())])
def test_an_exception_that_does_not_unpickle_as_one_fails_only_its_call(kind, into):
    """Regression: setting its cause raised in the collecting thread, which ended the pool."""
    with make(kind, "fork", 1) as pool:
        for _ in range(2):
            with pytest.raises(TypeError, match=f"unpickles as no exception, but as {into[0].__name__}$") as caught:
                call(pool, programs.raise_what_turns, into)
            assert "in raise_what_turns" in str(caught.value.__cause__)
        assert call(pool, abs, -1) == 1


class Once:
    """Can be pickled a limited number of times."""

    left = 0

    def __reduce__(self):
        Once.left -= 1
        if Once.left < 0:
            raise ValueError("pickled too often")
        return int, (1,)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_initargs_that_stop_pickling_do_not_affect_existing_workers(kind, method, monkeypatch):
    monkeypatch.setattr(Once, "left", 2)
    with make(kind, method, 2, initializer=programs.give, initargs=(Once(),), **executor_options(kind)) as pool:
        call_each(pool, abs, range(4))
        with pytest.raises(shmarray.WorkerDiedError):
            call(pool, tasks.kill_self)
        for _ in range(3):
            assert call(pool, abs, -2) == 2


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_without_any_worker_calls_say_why_none_can_be_started(method, monkeypatch):
    monkeypatch.setattr(Once, "left", 1)
    with make("Pool", method, 1, initializer=programs.give, initargs=(Once(),)) as pool:
        for _ in range(3):
            with pytest.raises(shmarray.WorkerDiedError):
                call(pool, tasks.kill_self)
        with pytest.raises(shmarray.WorkerDiedError, match="pickled too often"):
            call(pool, abs, -2)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(("cls", "name"), [(Collector, "_answered"), (Feeder, "_place")])
def test_an_error_of_our_own_in_a_thread_fails_all_calls_and_later_ones(kind, cls, name, monkeypatch):
    with make(kind, "fork", 2) as pool:
        assert call(pool, abs, -1) == 1

        def broken(*_):
            raise AssertionError("an error of our own")

        monkeypatch.setattr(cls, name, broken)
        if kind == "Pool":
            gets = [pool.apply_async(abs, (-1,)).get for _ in range(3)] + [pool.map_async(abs, [1, 2]).get]
        else:
            gets = [pool.submit(abs, -1).result]
        for get in gets:
            with pytest.raises((AssertionError, RuntimeError)):
                get(LIMIT)
        if cls is Collector:
            wait_until(lambda: pool._scheduler.failure is not None)
            with pytest.raises(RuntimeError):
                call(pool, abs, -1)


# --- signals -------------------------------------------------------------------------


@pytest.mark.parametrize("method", IN_CHILD)
def test_workers_do_not_inherit_the_programs_handlers(kind, method):
    def program():
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer)
        called = []
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, lambda *_: called.append(_))
        with make(kind, method) as pool:
            found = call(pool, programs.handlers)
        os.set_blocking(reader, False)
        return found, [args[0] for args in called if args[0] != signal.SIGCHLD]

    assert in_child(program) == (([], -1), [])


def test_a_pool_inside_asyncio_does_not_end_the_server(kind):
    def program():
        told = []

        async def serve():
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGTERM, told.append, "SIGTERM")
            for _ in range(2):
                with make(kind, "fork") as pool:
                    assert call_each(pool, tasks.total, [np.ones(SIZE)] * 3) == [SIZE] * 3
            os.kill(os.getpid(), signal.SIGTERM)
            while not told:
                await asyncio.sleep(0.001)

        asyncio.run(serve())
        return told

    assert in_child(program) == ["SIGTERM"]


@pytest.mark.parametrize("how", ["ignored", "reaped elsewhere"])
@pytest.mark.parametrize("method", IN_CHILD)
def test_deaths_are_reported_and_pools_end_without_exit_statuses(kind, how, method):
    def reap(*_):
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass

    def program():
        signal.signal(signal.SIGCHLD, signal.SIG_IGN if how == "ignored" else reap)
        with make(kind, method, **executor_options(kind)) as pool:
            try:
                call(pool, tasks.kill_self)
            except shmarray.WorkerDiedError as error:
                told = error.task
            again = call(pool, abs, -1)
        return told, again, multiprocessing.active_children()

    assert in_child(program) == ("tests.pool.tasks.kill_self()", 1, [])


# --- stuck tasks ---------------------------------------------------------------------


@pytest.mark.parametrize("task", [programs.stay, programs.stay_or_go])
@pytest.mark.parametrize("method", START_METHODS)
def test_a_task_that_takes_too_long_fails_alone(kind, method, task):
    with make(kind, method, 2, task_timeout=1.0) as pool:
        before = {call(pool, tasks.pid) for _ in range(4)}
        start = pool.apply_async if kind == "Pool" else pool.submit
        stuck = start(task, (100,)) if kind == "Pool" else start(task, 100)
        others = [start(abs, (-i,)) if kind == "Pool" else start(abs, -i) for i in range(20)]
        get = (lambda result: result.get(LIMIT)) if kind == "Pool" else (lambda future: future.result(LIMIT))
        with pytest.raises(shmarray.TaskTimeoutError, match=task.__name__) as caught:
            get(stuck)
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.timeout == 1.0
        assert caught.value.items is None
        assert [get(other) for other in others] == list(range(20))
        assert call(pool, abs, -1) == 1
        assert before


def test_the_limit_of_a_chunk_is_that_of_its_items(kind):
    with make(kind, "fork", 2, task_timeout=0.5) as pool:
        seconds = [0.2] * 6
        quick = pool.map(programs.stay_or_go, seconds, chunksize=3)
        assert list(quick) == seconds
        with pytest.raises(shmarray.TaskTimeoutError) as caught:
            list(pool.map(programs.stay_or_go, [0, 0, 0, 0, 30, 0], chunksize=2))
        assert caught.value.items == range(4, 6)
        assert caught.value.index == 4


@pytest.mark.parametrize("limit", [0, -1, float("nan"), "1", True])
def test_bad_limits_are_refused_before_anything_is_there(kind, limit):
    with pytest.raises((TypeError, ValueError), match="task_timeout"):
        make(kind, "fork", task_timeout=limit)


@pytest.mark.parametrize("ahead", [0, 1.5, "2", True])
def test_a_bad_number_of_tasks_ahead_is_refused(ahead):
    with pytest.raises((TypeError, ValueError), match="tasks_ahead"):
        shmarray.Pool(1, tasks_ahead=ahead)


# --- what errors say -----------------------------------------------------------------


@pytest.mark.parametrize("how", ["map", "map in chunks", "imap", "imap in chunks", "executor", "executor in chunks"])
def test_the_error_of_a_dead_worker_names_the_items(how):
    kind = "Executor" if how.startswith("executor") else "Pool"
    with make(kind, "fork", 2, **executor_options(kind)) as pool:
        method = pool.imap if how.startswith("imap") else pool.map
        with pytest.raises(shmarray.WorkerDiedError) as got:
            list(method(programs.die_at_57, range(100), chunksize=4 if "chunks" in how else 1))
    items = range(56, 60) if "chunks" in how else range(57, 58)
    said = "items 56 to 59" if "chunks" in how else "item 57"
    assert got.value.items == items
    assert got.value.index == items[0]
    assert f"{said} of the map over tests.faults.programs.die_at_57()" in str(got.value)


# --- parts of results ----------------------------------------------------------------


@pytest.mark.parametrize("close", [False, True])
def test_results_kept_of_a_chunk_keep_only_their_memory(kind, close):
    with make(kind, "fork", 2) as pool:
        kept = [result for result in pool.map(tasks.ones, [SIZE] * 300, chunksize=50) if id(result)][::30]
        files = tasks.allocator_of(pool).files
        gc.collect()
        used = lambda: sum(file.allocated() for file in files)  # noqa: E731 - also works when the pool is closed
        if not close:
            wait_until(lambda: used() < 2 * 8 * SIZE * len(kept) + (1 << 20), LIMIT)
    if kind == "Pool":
        pool.join()
    assert used() < 2 * 8 * SIZE * len(kept) + (1 << 20)
    assert all((array == 1).all() for array in kept)
    before = used()
    del kept[1:]
    assert used() < before
    assert (kept[0] == 1).all()


def test_two_arrays_of_one_result_are_freed_separately(kind):
    with make(kind, "fork", 1) as pool:
        result = call(pool, tasks.big_and_small, 1_000_000, 20_000)
        small = result["small"]
        del result
        wait_until(lambda: shared_memory_of(pool) < 1 << 20, LIMIT)
        assert (small == 2).all()


def test_returned_parts_of_an_argument_are_freed_separately(kind):
    with make(kind, "fork", 1) as pool:
        parts = call(pool, tasks.halves, np.arange(1_000_000.0))
        assert parts[1][0] == 500_000
        second = parts.pop()
        del parts
        wait_until(lambda: shared_memory_of(pool) < 6 << 20, LIMIT)
        assert (second == np.arange(500_000.0, 1_000_000.0)).all()


# --- ends ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["terminate_workers", "kill_workers"])
def test_no_future_stays_pending_when_the_workers_are_ended(method):
    executor = make("Executor", "fork", 2)
    futures = [executor.submit(programs.stay_or_go, 100) for _ in range(10)]
    wait_until(lambda: sum(future.running() for future in futures) >= 2)
    getattr(executor, method)()
    deadline = time.monotonic() + LIMIT
    for future in futures:
        with pytest.raises((shmarray.WorkerDiedError, asyncio.CancelledError, futures_cancelled())):
            future.result(max(0.0, deadline - time.monotonic()))
    with pytest.raises(RuntimeError):
        executor.submit(abs, 1)
    executor.shutdown()


def futures_cancelled():
    from concurrent.futures import CancelledError

    return CancelledError


def test_calls_of_a_terminated_pool_do_not_wait_for_ever():
    pool = make("Pool", "fork", 1)
    waiting = [pool.apply_async(programs.stay_or_go, (100,)) for _ in range(3)]
    pool.terminate()
    for result in waiting:
        with pytest.raises(RuntimeError, match="terminated"):
            result.get(LIMIT)
    pool.join()


def test_a_forked_child_cannot_use_its_parents_executor():
    executor = make("Executor", "fork", 1)
    assert executor.submit(abs, -1).result(LIMIT) == 1

    def child():
        try:
            executor.submit(abs, -1)
        except RuntimeError as error:
            executor.shutdown()
            return str(error)

    assert "forked" in in_child(child)
    assert executor.submit(abs, -2).result(LIMIT) == 2
    executor.shutdown()


@pytest.mark.parametrize("method", START_METHODS)
def test_a_slow_task_does_not_hold_up_the_calls_behind_it(method, tmp_path):
    with make("Executor", method, 2) as executor:
        call_each(executor, abs, range(200))  # makes the scheduler send many tiny tasks to each worker
        slow = executor.submit(tasks.wait_for_file, str(tmp_path / "go"))
        assert [executor.submit(abs, -i).result(LIMIT) for i in range(50)] == list(range(50))
        (tmp_path / "go").touch()
        assert slow.result(LIMIT) is None


@pytest.mark.parametrize("cancels", [True, False])
def test_calls_that_wait_at_a_shutdown_are_cancelled_on_request(tmp_path, cancels):
    executor = make("Executor", "fork", 1)
    slow = executor.submit(deaths.wait_for, f"{tmp_path}/go")
    futures = [executor.submit(abs, -number) for number in range(50)]
    wait_until(slow.running)
    executor.shutdown(wait=False, cancel_futures=cancels)
    (tmp_path / "go").touch()
    executor.shutdown(wait=True)
    assert slow.done()
    assert not slow.cancelled()
    assert all(future.done() for future in futures)
    assert all(future.cancelled() for future in futures[5:]) is cancels


def test_calls_behind_a_slow_one_go_to_the_worker_that_is_idle_first(kind, tmp_path):
    with make(kind, "fork", 2) as pool:
        start = pool.apply_async if kind == "Pool" else lambda func, args: pool.submit(func, *args)
        results = [start(deaths.wait_for, (f"{tmp_path}/{number}",)) for number in range(2)]
        results += [start(abs, (-number,)) for number in range(2)]
        first, second, *quick = (result.get if kind == "Pool" else result.result for result in results)
        workers = pool._scheduler._state.workers.workers
        wait_until(lambda: [len(worker.in_flight) for worker in list(workers)] == [2, 2])
        (tmp_path / "1").touch()
        second(LIMIT)
        try:
            assert [get(LIMIT) for get in quick] == [0, 1]  # one of them was queued behind the first
        finally:
            (tmp_path / "0").touch()
        first(LIMIT)


def test_slow_calls_can_be_cancelled_until_they_are_sent(tmp_path):
    with make("Executor", "fork", 2) as executor:
        futures = [executor.submit(tasks.wait_for_file, str(tmp_path / "go")) for _ in range(12)]
        wait_until(futures[0].running)
        cancelled = [future.cancel() for future in futures]
        (tmp_path / "go").touch()
        assert sum(cancelled) >= 8  # each worker has one, and another one ahead
        assert [future.cancelled() for future in futures] == cancelled


@pytest.mark.parametrize("by_map", [False, True], ids=["submit", "map"])
def test_a_burst_of_slow_calls_after_tiny_ones_can_be_cancelled(tmp_path, by_map):
    """How many calls a worker has ahead depends on how long the calls of the same function took."""
    with make("Executor", "fork", 1) as executor:
        list(executor.map(abs, range(300), chunksize=1 + by_map))
        futures = []
        if by_map:
            submit = executor.submit
            executor.submit = lambda *args: futures.append(submit(*args)) or futures[-1]
            executor.map(tasks.wait_for_file, [str(tmp_path / "go")] * 40, chunksize=2)
        else:
            futures += [executor.submit(tasks.wait_for_file, str(tmp_path / "go")) for _ in range(20)]
        wait_until(futures[1].running)
        time.sleep(0.05)  # more calls would be sent in this time
        try:
            assert all(future.cancel() for future in futures[2:])
        finally:
            (tmp_path / "go").touch()


def test_after_tiny_calls_those_behind_a_slow_one_can_be_cancelled(tmp_path):
    """A worker that answers quickly has many calls ahead; one that has been silent for a while has few."""
    with make("Executor", "fork", 1) as executor:
        call_each(executor, abs, range(300))
        slow = executor.submit(tasks.wait_for_file, str(tmp_path / "go"))
        try:
            wait_until(slow.running)
            time.sleep(0.05)  # much longer than a tiny call takes
            later = [executor.submit(abs, -number) for number in range(10)]
            wait_until(later[0].running)
            time.sleep(0.05)  # the other calls would be sent in this time
            assert all(future.cancel() for future in later[2:])
        finally:
            (tmp_path / "go").touch()
