"""The complete contract of both kinds of pool in a few tests, on the system that the interpreter was started with.

test_portable_pools.py runs them once for each call that is removed.
"""

import gc
import inspect
import os
import signal
import subprocess
import sys
import threading
from contextlib import nullcontext
from unittest.mock import patch

import numpy as np
import pytest

import shmarray
from shmarray.core.posix import SparseFile
from tests.helpers.processes import ROOT, WARNINGS, runs, wait_until
from tests.pool import tasks, test_contract
from tests.pool.tasks import all_blocks_are_free, allocator_of, call, call_each, finish, make

LIMIT = 20  # seconds
BIG = 50_000  # items
MB = 1 << 20

CONTRACT = [
    function
    for name, function in vars(test_contract).items()
    if name.startswith("test_") and "pool" in inspect.signature(function).parameters
]


@pytest.fixture(params=["fork", "spawn"])
def method(request):
    return request.param


@pytest.fixture(params=["memory", "pipe"])
def carrier(request):
    """With shared memory, and without any, when everything goes through the sockets."""
    return nullcontext() if request.param == "memory" else patch.object(SparseFile, "create", lambda: None)


def workers(pool):
    return pool._scheduler._state.workers.workers


def ready(pool):
    return [worker.pid for worker in list(workers(pool)) if worker.is_ready]


def test_the_system_lacks_what_it_is_to_lack():
    lacks = [name for name in os.environ["SHMARRAY_TEST_LACKS"].split(",") if name]
    with make("Pool", "spawn") as pool:
        for taken in (what_was_taken(), call(pool, what_was_taken)):
            assert taken == lacks
        finish(pool)


def what_was_taken():
    return sys.modules["sitecustomize"].taken


# --- the contract ------------------------------------------------------------------------


def test_the_tables_of_the_contract(kind, method, name, tmp_path, monkeypatch):
    """Run every test of test_contract.py, one after the other, with the same workers."""
    given = {"name": name, "tmp_path": tmp_path, "monkeypatch": monkeypatch}
    # Without /proc nothing tells which file is mapped, so the data is sent as a copy.
    lacks_proc = "proc" in os.environ["SHMARRAY_TEST_LACKS"].split(",")
    with make(kind, method) as given["pool"]:
        for function in CONTRACT:
            if lacks_proc and "memory_maps_go_by_reference" in function.__name__:
                continue
            wanted = inspect.signature(function).parameters
            for mode in ("r", "r+", "c") if "mode" in wanted else (None,):
                with monkeypatch.context() as given["monkeypatch"]:
                    function(**{key: value for key, value in (given | {"mode": mode}).items() if key in wanted})
        finish(given["pool"])


def test_arrays_in_many_tasks_are_written_to_by_each_alone(kind):
    """The arrays are mapped copy-on-write, and the mapping is used again by the next task."""
    with make(kind, "fork") as pool:
        array = np.full(MB, 5.0)
        for _ in range(2):
            items = [(array, number) for number in range(8)]
            assert call_each(pool, tasks.total_item, items) == [((5.0, 5.0), number) for number in range(8)]
        assert (array == 5).all()
        finish(pool)


def test_messages_of_all_lengths(kind, carrier):
    """Lengths near the size of a packet and of a length field, and longer than any socket buffer."""
    lengths = [0, 1, 7, 8, 9, *range(32_600, 32_900, 37), 65_536, 300_000, 4 * MB]
    with carrier, make(kind, "fork") as pool:
        for length in lengths:
            assert call(pool, tasks.identity, b"x" * length) == b"x" * length
        back = call_each(pool, tasks.identity, [bytes([number]) * (number * 9000) for number in range(40)])
        assert back == [bytes([number]) * (number * 9000) for number in range(40)]
        finish(pool)


@pytest.mark.filterwarnings("ignore:arrays go to and from workers through a pipe:RuntimeWarning")
def test_arrays_through_the_sockets(kind):
    with patch.object(SparseFile, "create", lambda: None), make(kind, "fork") as pool:
        array = np.arange(MB / 2)
        assert np.array_equal(call(pool, tasks.double, array), 2 * array)
        finish(pool)


def test_many_small_tasks(kind):
    with make(kind, "fork") as pool:
        assert call_each(pool, tasks.identity, range(2000)) == list(range(2000))
        assert sum(pool.map(abs, range(-500, 0), chunksize=7)) == sum(range(501))
        finish(pool)


def test_the_methods_of_pool():
    with make("Pool", "fork", maxtasksperchild=3) as pool:
        assert pool.apply(tasks.identity, (3,)) == 3
        assert pool.starmap(divmod, [(7, 2), (9, 4)]) == [(3, 1), (2, 1)]
        assert list(pool.imap(tasks.double, range(20))) == list(range(0, 40, 2))
        assert sorted(pool.imap_unordered(tasks.double, iter(range(20)), 3)) == list(range(0, 40, 2))
        assert len(set(pool.map(tasks.pid, range(20), chunksize=1))) > 2
        finish(pool)


def test_errors_are_their_calls_own(kind):
    with make(kind, "fork") as pool:
        for function, argument, error in (
            (tasks.fail, np.ones(BIG), KeyError),
            (tasks.unpicklable_result, 0, Exception),
            (tasks.hostile_result, "unpickle", RuntimeError),
            (tasks.identity, tasks.Hostile("pickle"), RuntimeError),
            (tasks.identity, tasks.Hostile("unpickle"), RuntimeError),
        ):
            with pytest.raises(error):
                call(pool, function, argument)
            assert call(pool, tasks.identity, 5) == 5
        finish(pool)


# --- memory ------------------------------------------------------------------------------


def test_memory_comes_back_when_it_is_not_used(kind):
    """The words of the tasks remain: one page for every 512 blocks."""
    with make(kind, "fork") as pool:
        allocator = allocator_of(pool)
        results = call_each(pool, tasks.double, [np.ones(MB)] * 4)
        assert allocator.memory() > 8 * MB
        results.clear()
        if allocator.can_free or allocator.can_cut:
            wait_until(lambda: allocator.memory() < MB or not (allocator.can_free or allocator.can_cut), LIMIT)
        wait_until(lambda: all_blocks_are_free(pool), LIMIT)
        most = allocator.memory()
        assert call_each(pool, tasks.double, [np.ones(MB)] * 4)[3][0] == 2
        assert allocator.can_free or allocator.can_cut or allocator.memory() <= 1.5 * most  # memory is reused
        finish(pool)
    assert allocator.memory() == 0


def test_results_outlive_their_pool(kind):
    with make(kind, "fork") as pool:
        allocator = allocator_of(pool)
        results = call_each(pool, tasks.double, [np.full(MB, number) for number in range(4)])
        finish(pool)
    assert allocator.memory() == 0
    assert [(result == 2 * number).all() for number, result in enumerate(results)] == [True] * 4


def test_what_a_task_keeps_stays(kind):
    with make(kind, "fork", 1) as pool:
        for number in range(8):
            kept, whole = call(pool, tasks.keep_argument, np.full(BIG, float(number)))
            assert kept == [float(one) for one in range(max(0, number - 3), number + 1)]
            assert whole
        finish(pool)


# --- deaths ------------------------------------------------------------------------------


def test_a_worker_that_dies_fails_its_call_alone(kind, method):
    with make(kind, method) as pool:
        with pytest.raises(shmarray.WorkerDiedError, match="SIGKILL"):
            call(pool, tasks.kill_self)
        if kind == "Executor":
            with pytest.raises(shmarray.WorkerDiedError, match="SIGKILL"):
                call(pool, tasks.pid)
            return
        assert call(pool, tasks.double, 4) == 8
        wait_until(lambda: len(ready(pool)) == 2, LIMIT)
        idle = ready(pool)[0]
        os.kill(idle, signal.SIGKILL)
        wait_until(lambda: len(ready(pool)) == 2 and idle not in ready(pool), LIMIT)
        assert call_each(pool, tasks.double, range(50)) == list(range(0, 100, 2))
        finish(pool)


def test_a_worker_dies_with_half_a_message_to_it(kind, tmp_path):
    """The message goes to the other worker; it is longer than the socket buffer."""
    options = {"replace_workers": True} if kind == "Executor" else {}
    with patch.object(SparseFile, "create", lambda: None), make(kind, "fork", 1, **options) as pool:
        victim = call(pool, tasks.pid)
        os.kill(victim, signal.SIGSTOP)
        get = start(pool, len, b"x" * (4 * MB))
        wait_until(lambda: any(worker.in_flight for worker in workers(pool)), LIMIT)
        os.kill(victim, signal.SIGKILL)
        assert get(LIMIT) == 4 * MB
        finish(pool)


def test_a_worker_dies_with_half_a_message_from_it(kind):
    """The thread that collects answers is blocked meanwhile, so nobody reads the rest."""
    reached, go = threading.Event(), threading.Event()

    def hold(_):
        reached.set()
        go.wait(LIMIT)

    options = {"replace_workers": True} if kind == "Executor" else {}
    with patch.object(SparseFile, "create", lambda: None), make(kind, "fork", 1, **options) as pool:
        victim = call(pool, tasks.pid)
        told = start(pool, tasks.identity, 1, callback=hold)
        get = start(pool, bytes, 4 * MB)
        try:
            assert reached.wait(LIMIT)
            wait_until(lambda: is_waiting_to_write(victim), LIMIT)
            os.kill(victim, signal.SIGKILL)
        finally:
            go.set()
        assert told(LIMIT) == 1
        with pytest.raises(shmarray.WorkerDiedError):
            get(LIMIT)
        assert call(pool, tasks.identity, b"x" * MB) == b"x" * MB
        finish(pool)


def start(pool, function, *args, callback=None):
    """Start a call; return a function that waits for its result."""
    if isinstance(pool, shmarray.Pool):
        return pool.apply_async(function, args, callback=callback).get
    future = pool.submit(function, *args)
    if callback is not None:
        future.add_done_callback(callback)
    return future.result


def is_waiting_to_write(pid):
    with open(f"/proc/{pid}/syscall", encoding="ascii") as file:
        return file.read().split()[0] in {"44", "206"}  # sendto, on x86-64 and arm64


def test_the_end_of_a_worker_is_seen_while_a_child_of_its_task_lives(kind, tmp_path):
    options = {"replace_workers": True} if kind == "Executor" else {}
    with make(kind, "fork", **options) as pool:
        with pytest.raises(shmarray.WorkerDiedError, match="SIGKILL"):
            start(pool, fork_and_die, f"{tmp_path}/child")(LIMIT)
        try:
            assert call(pool, tasks.double, 2) == 4
        finally:
            os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)
        finish(pool)


def fork_and_die(path):
    child = os.fork()
    if not child:
        signal.pause()
    with open(path, "w", encoding="ascii") as file:
        file.write(str(child))
    tasks.kill_self()


def test_a_task_that_takes_too_long_is_ended(kind):
    options = {"replace_workers": True} if kind == "Executor" else {}
    with make(kind, "fork", task_timeout=0.5, **options) as pool:
        with pytest.raises(shmarray.TaskTimeoutError):
            call(pool, signal.pause)
        assert call(pool, tasks.double, 2) == 4
        finish(pool)


def test_an_initializer_that_raises_is_the_calls_error(kind):
    with make(kind, "fork", initializer=tasks.fail, initargs=(0,)) as pool:
        with pytest.raises(shmarray.WorkerDiedError, match="KeyError"):
            call(pool, tasks.pid)
        finish(pool)


CALLER = """
import os, signal, sys, time
import numpy as np
import shmarray
from tests.helpers import processes
from tests.pool import tasks
if __name__ == "__main__":
    pool = tasks.make(sys.argv[1], sys.argv[2])
    pids = sorted(set(tasks.call_each(pool, tasks.slow_pid, range(4))))
    if sys.argv[1] == "Pool":
        pool.apply_async(tasks.block, (sys.argv[3],))
    else:
        pool.submit(tasks.block, sys.argv[3])
    processes.wait_until(lambda: os.path.exists(sys.argv[3]))
    print(*pids, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_their_caller(kind, method, tmp_path):
    """One of them is in the middle of a task."""
    script = tmp_path / "caller.py"
    script.write_text(CALLER, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), ROOT])}
    command = [sys.executable, *WARNINGS, str(script), kind, method, str(tmp_path / "blocks")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    pids = [int(word) for word in done.stdout.split()]
    assert pids
    wait_until(lambda: not any(map(runs, pids)), LIMIT)


def test_no_signal_for_a_reader_that_is_gone():
    """In a program that leaves SIGPIPE at its default action, as filters do."""
    script = """
import os, signal
from tests.helpers import processes
from tests.pool import tasks
if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    import shmarray
    from unittest.mock import patch
    with patch("shmarray.core.posix.SparseFile.create", lambda: None), tasks.make("Pool", "fork", 1) as pool:
        for _ in range(5):
            pid = tasks.call(pool, tasks.pid)
            os.kill(pid, signal.SIGSTOP)
            result = pool.apply_async(len, (bytes(4 << 20),))
            processes.wait_until(lambda: any(worker.in_flight for worker in pool._scheduler._state.workers.workers))
            os.kill(pid, signal.SIGKILL)
            assert result.get(20) == 4 << 20
    assert signal.getsignal(signal.SIGPIPE) == signal.SIG_DFL and signal.SIGPIPE not in signal.sigpending()
    with shmarray.scoped(3, name=f"t{os.getpid()}-pipe"):
        from shmarray.pool import name_reaper
        if name_reaper._reaper._process is not None:  # there is none if names are not in a directory
            name_reaper._reaper._process.kill()
            name_reaper._reaper._process.wait()
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), ROOT])}
    command = [sys.executable, *WARNINGS, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- cancelling, ending, forks -------------------------------------------------------------


def test_calls_that_wait_can_be_cancelled(tmp_path):
    with make("Executor", "fork", 1) as pool:
        blocked = pool.submit(tasks.block, str(tmp_path / "blocks"))
        futures = [pool.submit(tasks.double, np.ones(BIG)) for _ in range(10)]
        wait_until((tmp_path / "blocks").exists, LIMIT)
        assert futures[-1].cancel()
        pool.kill_workers()
        with pytest.raises(shmarray.WorkerDiedError):
            blocked.result(LIMIT)
        assert all(future.done() for future in futures)


def test_terminate_ends_all_at_once(tmp_path):
    pool = make("Pool", "fork")
    try:
        pool.map_async(tasks.block, [str(tmp_path / "first"), str(tmp_path / "second")], chunksize=1)
        waiting = pool.map_async(tasks.double, (np.ones(BIG) for _ in range(1000)), chunksize=1)
        wait_until((tmp_path / "first").exists, LIMIT)
        pids = [worker.pid for worker in workers(pool)]
        allocator = allocator_of(pool)
    finally:
        pool.terminate()
        pool.join()
    with pytest.raises(RuntimeError, match="terminated"):
        waiting.get(LIMIT)
    assert not any(map(runs, pids))
    assert allocator.memory() == 0


def test_a_pool_that_nobody_holds_ends():
    pool = make("Executor", "fork")
    assert call(pool, tasks.double, 3) == 6
    pids, threads = [worker.pid for worker in workers(pool)], threading.active_count()
    del pool
    gc.collect()
    wait_until(lambda: not any(map(runs, pids)) and threading.active_count() == threads - 2, LIMIT)


def test_children_of_tasks_see_what_was_there(kind):
    with make(kind, "fork", 1) as pool:
        for number in range(4):
            assert call(pool, tasks.fork_and_look, np.full(BIG, float(number))) == number + 1
        assert call(pool, tasks.reap, 0) == [b"1"] * 4
        finish(pool)


def test_children_of_the_caller_see_what_was_there(kind):
    with make(kind, "fork") as pool:
        held = call(pool, tasks.double, np.ones(MB))
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0 if (held == 2).all() else 1)
        held[:] = 7
        del held
        for _ in range(4):
            call(pool, tasks.double, np.full(MB, 5.0))
        os.close(reader)
        os.close(writer)
        assert os.waitpid(child, 0)[1] == 0
        finish(pool)


def test_scoped_arrays_reach_processes_that_have_not_inherited_them(kind):
    with make(kind, "fork") as pool:
        call(pool, tasks.pid)
        with shmarray.scoped(BIG) as array:
            call(pool, tasks.write_first, array)
            assert array[0] == 99
        finish(pool)
