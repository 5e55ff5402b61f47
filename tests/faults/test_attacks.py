"""Unexpected actions of programs; each of them was, or might have been, a bug."""

import errno
import gc
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor as StockExecutor
from concurrent.futures import wait
from unittest import mock

import numpy as np
import pytest

import shmarray
from shmarray.pool import forks
from shmarray.pool.engine.workers import WorkerSet
from tests.faults import deaths
from tests.helpers.processes import in_child, run_script, wait_until
from tests.pool import tasks
from tests.pool.tasks import all_blocks_are_free, make, start, terminate

LIMIT = 20
SMALL = 10_000  # items of 8 bytes: above the 32 KB from which arrays travel in blocks


def test_calls_fail_while_no_worker_can_be_started_and_later_succeed(kind, monkeypatch):
    """Regression: the feeding thread kept waiting for room for a call that had already failed."""
    pool = make(kind, "fork", **({} if kind == "Pool" else {"replace_workers": True}))
    assert start(pool, abs, -1)(LIMIT) == 1

    def refuse(_):
        raise BlockingIOError(errno.EAGAIN, "no more processes")

    with monkeypatch.context() as patch:
        patch.setattr(WorkerSet, "_spawn", refuse)
        for _ in range(2):
            with pytest.raises(shmarray.WorkerDiedError):
                start(pool, tasks.kill_self)(LIMIT)
        for _ in range(3):
            with pytest.raises(shmarray.WorkerDiedError, match="no worker could be started"):
                start(pool, abs, -1)(LIMIT)
            with pytest.raises(shmarray.WorkerDiedError, match="no worker could be started"):
                list(pool.map(tasks.double, [np.ones(SMALL)] * 10, chunksize=1))
    assert start(pool, abs, -2)(LIMIT) == 2
    wait_until(lambda: all_blocks_are_free(pool))
    terminate(pool)


def test_no_worker_is_started_for_a_call_that_has_failed(monkeypatch):
    started = []
    true = WorkerSet._spawn
    monkeypatch.setattr(WorkerSet, "_spawn", lambda workers: started.append(1) or true(workers))
    with make("Pool", "fork", initializer=deaths.arm_and_die, initargs=("exit",)) as pool:
        with pytest.raises(shmarray.WorkerDiedError):
            pool.map(tasks.double, [np.ones(SMALL)] * 300, chunksize=1)
        wait_until(lambda: not pool._scheduler._state.workers.workers)
        assert len(started) <= 2 + 5  # the initial workers and the retries
        assert not pool._scheduler._state.workers.is_willing
    pool.join()


def nest(depth):
    if not depth:
        return 0
    with make("Executor", "fork", 1) as executor:
        return 1 + executor.submit(nest, depth - 1).result(LIMIT)


def test_executors_in_tasks_of_executors():
    """Regression: in a grandchild, the preparation of a fork failed silently, with the grandparent's task."""
    out = run_script("from tests.faults.test_attacks import nest\nprint(nest(4))\n")
    assert out == "4\n"


def call_until_refused(pool, results, started):
    try:
        for number in range(2000):
            results.append(pool.apply_async(abs, (number,)))
            started.set()
    except ValueError:
        pass  # the pool is closed


def iterate_until_refused(pool):
    try:
        while True:
            list(pool.imap(abs, range(3)))
    except (ValueError, RuntimeError):
        pass  # the pool is closed, or was terminated meanwhile


def assert_all_end(threads):
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive()


@pytest.mark.parametrize("end_by", ["close", "terminate"])
def test_calls_that_race_with_the_end_of_a_pool_are_refused_or_done(end_by):
    """Regression: tasks queued behind the end of the pool made their call and join hang for ever."""
    for _ in range(15):
        pool = make("Pool", "fork")
        results, started = [], threading.Event()
        threads = [
            threading.Thread(target=call_until_refused, args=(pool, results, started)),
            threading.Thread(target=iterate_until_refused, args=(pool,)),
        ]
        for thread in threads:
            thread.start()
        assert started.wait(LIMIT)
        getattr(pool, end_by)()
        joiner = threading.Thread(target=pool.join, daemon=True)
        joiner.start()
        assert_all_end([*threads, joiner])
        for result in results:
            result.wait(LIMIT)
            assert result.ready()


def test_a_call_that_is_made_while_the_pool_is_closed_is_done(monkeypatch):
    """The pool is closed exactly between the check that it runs and the queuing of the tasks."""
    pool = make("Pool", "fork")
    true = pool._taskqueue.put

    class Queue:
        def put(self, item):
            if item is not None and not closed:
                closed.append(1)
                pool.close()
            true(item)

    closed = []
    monkeypatch.setattr(pool, "_taskqueue", Queue())
    assert pool.apply_async(abs, (-3,)).get(LIMIT) == 3
    pool.join()


def test_a_call_that_is_made_while_the_pool_ends_is_refused(monkeypatch):
    pool = make("Pool", "fork")
    monkeypatch.setattr(pool, "_check_running", pool.terminate)
    with pytest.raises(ValueError, match="not running"):
        pool.apply_async(abs, (-3,))
    pool.join()


def test_an_executor_that_breaks_while_a_call_is_made_fails_it_and_starts_no_worker(monkeypatch):
    executor = make("Executor", "spawn", 2)
    assert executor.submit(abs, -1).result(60) == 1
    collector = executor._scheduler._collector

    def breaks(true=executor._ensure_workers):
        executor._scheduler.fail_for_good(shmarray.WorkerDiedError("broken meanwhile"))
        collector.thread.join(LIMIT)
        true()

    monkeypatch.setattr(executor, "_ensure_workers", breaks)
    with pytest.raises(shmarray.WorkerDiedError, match="broken meanwhile"):
        executor.submit(abs, -1).result(LIMIT)
    assert not executor._scheduler._state.workers.workers
    executor.shutdown()


@pytest.mark.parametrize("cancel", [False, True])
def test_submits_of_many_threads_race_with_shutdown(cancel):
    for _ in range(15):
        executor = make("Executor", "fork")
        futures = []

        def submit(executor=executor, futures=futures):
            try:
                for number in range(300):
                    futures.append(executor.submit(abs, number))
            except RuntimeError:
                pass

        threads = [threading.Thread(target=submit) for _ in range(3)]
        threads += [threading.Thread(target=executor.shutdown, kwargs={"cancel_futures": cancel}) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
            assert not thread.is_alive()
        assert not wait(futures, LIMIT).not_done


def drop_privileges(_):
    os.setgid(65534)
    os.setuid(65534)
    return os.getuid()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_task_that_becomes_another_user(kind):
    def program():
        pool = make(kind, "fork", 1, task_timeout=1)
        assert start(pool, drop_privileges, 0)(LIMIT) == 65534
        assert (start(pool, tasks.double, np.ones(SMALL))(LIMIT) == 2).all()
        assert len(start(pool, tasks.ones, 1 << 20)(LIMIT)) == 1 << 20
        with pytest.raises(shmarray.TaskTimeoutError):
            start(pool, block, 60)(LIMIT)
        assert start(pool, drop_privileges, 0)(LIMIT) == 65534
        terminate(pool)
        return True

    assert in_child(program)


def block(seconds):
    threading.Event().wait(seconds)


def close_all_descriptors(first):
    os.closerange(first, 5000)


@pytest.mark.parametrize("first", [0, 3])
def test_a_task_that_closes_all_descriptors_kills_only_its_worker(kind, start_method, first, capfd):
    pool = make(kind, start_method, **({} if kind == "Pool" else {"replace_workers": True}))
    with pytest.raises(shmarray.WorkerDiedError, match="close_all_descriptors"):
        start(pool, close_all_descriptors, first)(LIMIT)
    for _ in range(4):
        assert (start(pool, tasks.double, np.ones(SMALL))(LIMIT) == 2).all()
    terminate(pool)
    assert capfd.readouterr().err == ""


def test_a_program_that_closes_all_descriptors_fails_its_calls(kind):
    """Regression: the calls of a Pool hung. Programs that become daemons close all descriptors."""

    def program():
        pool = make(kind, "fork", task_timeout=1)  # wakes the collecting thread
        waiting = start(pool, block, 60)
        assert start(pool, abs, -1)(LIMIT) == 1
        os.closerange(3, 5000)
        with pytest.raises((OSError, RuntimeError), match=r"Bad file|has ended|ended before"):
            waiting(LIMIT)
        with pytest.raises(RuntimeError, match="has ended because of an error"):
            start(pool, abs, -1)
        os._exit(0)

    child = os.fork()
    if not child:
        try:
            program()
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_thousands_of_arrays_in_one_argument(kind):
    pool = make(kind, "fork")
    arrays = [np.full(SMALL, number) for number in range(2000)]
    back = start(pool, tasks.identity, arrays)(60)
    assert all((array == number).all() for number, array in enumerate(back))
    del back
    terminate(pool)


def test_threads_that_fork_while_a_pool_runs():
    def program():
        with make("Pool", "fork") as pool:
            stop = threading.Event()

            def fork():
                while not stop.is_set():
                    child = os.fork()
                    if not child:
                        os._exit(0)
                    os.waitpid(child, 0)

            threads = [threading.Thread(target=fork) for _ in range(2)]
            for thread in threads:
                thread.start()
            for _ in range(10):
                assert all((array == 2).all() for array in pool.map(tasks.double, [np.ones(SMALL)] * 8))
            stop.set()
            for thread in threads:
                thread.join()
        pool.join()
        return True

    assert in_child(program)


def test_a_callback_ends_the_pool():
    """The callback runs in the collecting thread itself."""
    for method in ("terminate", "close"):
        pool = make("Pool", "fork")
        called = threading.Event()

        def callback(_, pool=pool, method=method, called=called):
            getattr(pool, method)()
            pool.join()
            called.set()

        pool.apply_async(abs, (-1,), callback=callback)
        assert called.wait(LIMIT)
        pool.join()
    executor = make("Executor", "fork")
    called = threading.Event()
    executor.submit(block, 0.2).add_done_callback(lambda _: (executor.shutdown(), called.set()))
    assert called.wait(LIMIT)
    executor.shutdown()
    assert isinstance(executor, StockExecutor)


def test_an_unknown_exit_status_delays_nothing():
    """A forkserver that has inherited a blocked SIGCHLD is not notified of the end of its children."""
    program = """
import signal
from multiprocessing import forkserver
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
forkserver.ensure_running()
""" + DIE_AND_END.format("forkserver")
    assert run_script(program) == "None\n1\nNone\n1\nended at once\n"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_program_that_blocks_all_signals(method):
    """Regression: its forkserver reported no exit statuses, and the end of the pool took a second for each worker."""
    program = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
""" + DIE_AND_END.format(method)
    assert run_script(program) == "-9\n1\n-9\n1\nended at once\n"


DIE_AND_END = """
import time
import shmarray
from tests.pool import tasks
with shmarray.Pool(8, context="{}") as pool:
    for _ in range(2):
        try:
            pool.apply_async(tasks.kill_self).get(20)
        except shmarray.WorkerDiedError as error:
            print(error.exitcode)
        print(pool.apply_async(abs, (-1,)).get(20))
    began = time.monotonic()
pool.join()
seconds = time.monotonic() - began
print("ended at once" if seconds < 5 else seconds)  # it took a second for each of the 8 workers
"""


def test_a_blocked_signal_of_a_child_waits_until_the_program_asks_for_it():
    run_script("""
import signal, subprocess
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
import shmarray
child = subprocess.Popen(["true"], stdout=subprocess.PIPE)
child.stdout.read()
while signal.SIGCHLD not in signal.sigpending():
    pass
with shmarray.Pool(1, context="forkserver") as pool:
    assert pool.apply(abs, (-1,)) == 1
    assert signal.sigtimedwait([signal.SIGCHLD], 20)
pool.join()
child.communicate()
""")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_another_thread_forks_while_workers_start(method):
    """Regression: with fork, each thread waited for a lock of the other.  The child must not keep the pool's memory."""
    run_script(f"""
import os
import shmarray
import concurrent.futures.thread  # a fork takes the lock of this module, and before that of shmarray, which is older

def links():
    for fd in os.listdir("/proc/self/fd"):
        try:
            yield os.readlink("/proc/self/fd/" + fd)
        except FileNotFoundError:  # the listing itself
            pass

if __name__ == "__main__":
    with shmarray.Pool(2, maxtasksperchild=1, context="{method}") as pool:
        result = pool.map_async(abs, range(-40, 0), chunksize=1)
        while not result.ready():
            child = os.fork()
            if not child:
                os._exit(any(link.startswith("/memfd:shmarray") for link in links()))
            assert os.waitpid(child, 0)[1] == 0
        assert result.get() == list(range(40, 0, -1))
    pool.join()
""")


def test_another_thread_forks_while_the_descriptors_for_a_worker_are_closed():
    """Regression: a child kept one that was not registered any more and not closed yet."""
    run_script("""
import os, threading
from shmarray.pool import forks

memory = os.memfd_create("memory")

def copies():
    return sum(os.path.sameopenfile(memory, fd) for fd in range(memory + 1, memory + 60) if is_open(fd))

def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True

def open_and_close():
    while not done:
        with forks.lock:
            descriptors = forks.DescriptorsForChild()
            for _ in range(50):
                descriptors.add(os.dup(memory))
        with descriptors:
            pass

done = []
thread = threading.Thread(target=open_and_close)
thread.start()
try:
    for _ in range(100):
        child = os.fork()
        if not child:
            os._exit(copies())
        assert os.waitpid(child, 0)[1] == 0
finally:
    done.append(True)
    thread.join()
""")


def test_a_blocked_signal_is_not_sent_if_no_child_has_ended():
    run_script("""
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
import shmarray
with shmarray.Pool(1, context="forkserver") as pool:
    assert pool.apply(abs, (-1,)) == 1
    assert not signal.sigpending()
pool.join()
""")


def test_an_excepthook_that_raises_ends_no_thread(monkeypatch):
    def hook(_):
        raise SystemExit

    monkeypatch.setattr(threading, "excepthook", hook)
    with make("Pool", "fork") as pool:
        called = threading.Event()

        def callback(_):
            called.set()
            raise ValueError

        pool.apply_async(abs, (-1,), callback=callback)
        assert called.wait(LIMIT)
        assert pool.apply_async(abs, (-2,)).get(LIMIT) == 2
    pool.join()


@pytest.mark.filterwarnings("ignore:unclosed running multiprocessing pool:ResourceWarning")
def test_a_pool_that_becomes_garbage_in_a_thread_that_forks():
    """Regression: the end of the pool waited for a thread that waited for the lock of forks."""
    pool = make("Pool", "fork")
    assert pool.apply(abs, (-1,)) == 1
    victim = pool._pool[0].pid
    collector = pool._scheduler._collector.thread
    workers = pool._scheduler._state.workers
    with forks.lock:
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: all(worker.pid != victim for worker in workers.workers))  # it is to be replaced
        cycle = [pool]
        cycle.append(cycle)
        del pool, cycle
        gc.collect()
        assert collector.is_alive()
    collector.join(LIMIT)
    assert not collector.is_alive()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_handler_that_raises_after_a_fork_leaves_no_lock_held(monkeypatch):
    """Regression: the pool hung after a handler like this one, for a SIGALRM that limits the time of a call."""

    class Sentinel:
        def close_writer(self):
            signal.raise_signal(signal.SIGALRM)

    def handler(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, handler)
    try:
        monkeypatch.setattr(forks, "_sentinel", Sentinel())
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
    other = threading.Thread(target=forks.register, args=(mock.Mock(),), daemon=True)  # acquires the lock
    other.start()
    other.join(LIMIT)
    assert not other.is_alive()
