"""What a pool promises apart from correct results: fresh data, bounded memory, deaths and forks."""

import errno
import gc
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest

import shmarray
from shmarray.core.posix import SparseFile
from tests.helpers import processes
from tests.helpers.processes import run_script, wait_until
from tests.pool import tasks
from tests.pool.tasks import allocator_of, call, call_each, make, shared_memory_of


@pytest.fixture(params=tasks.START_METHODS)
def method(request):
    return request.param


# --- never stale ---


@pytest.mark.parametrize("base", [object, list])
def test_items_are_taken_as_they_are_when_a_generator_yields_them(base):
    """A single buffer, refilled for each item, in an iterable with a length."""

    class Frames(base):
        def __init__(self):
            self.buffer = np.empty(200_000)

        def __len__(self):
            return 12

        def __iter__(self):
            for i in range(12):
                self.buffer[:] = i
                yield self.buffer

    with make("Pool", "fork") as pool:
        expected = [i * 200_000.0 for i in range(12)]
        assert list(pool.imap(tasks.total, Frames())) == expected
        assert pool.map(tasks.total, Frames(), chunksize=1) == expected


def test_an_array_that_changes_between_calls_is_seen_changed(kind, method):
    with make(kind, method) as pool:
        array = np.empty(200_000)
        for i in range(8):
            array[:] = i
            assert call(pool, tasks.total, array) == i * 200_000


@pytest.mark.parametrize("task", [tasks.keep_argument, tasks.keep_memoryview])
def test_what_a_task_keeps_stays_as_it_was(kind, task):
    with make(kind, "fork", 1) as pool:
        for i in range(10):
            values, uniform = call(pool, task, np.full(100_000, float(i)))
            assert values[-1] == i
            assert values == sorted(values)
            assert np.all(uniform)


def test_what_a_thread_of_a_task_reads_stays_as_it_was(kind):
    with make(kind, "fork", 1) as pool:
        for i in range(6):
            call(pool, tasks.keep_in_thread, np.full(100_000, float(i)))
        for i in range(15):
            call(pool, tasks.double, np.full(100_000, 50.0 + i))
        assert call(pool, tasks.what_was_kept, 0) == []


def test_blocks_that_tasks_keep_for_a_while_are_freed(kind):
    """A task that caches its last argument must not cost one block per call."""
    with make(kind, "fork", 1) as pool:
        for i in range(60):
            call(pool, tasks.keep_last, np.full(100_000, float(i)))
            call(pool, tasks.keep_in_cycle, np.full(100_000, float(i)))
        assert len(allocator_of(pool)._blocks) < 16


@pytest.mark.parametrize(
    ("kind", "method", "options"),
    [("Pool", "fork", {"maxtasksperchild": 1}), ("Executor", "spawn", {"max_tasks_per_child": 1})],
)
def test_blocks_kept_by_a_worker_are_freed_after_its_last_task(kind, method, options):
    with tasks.make(kind, method, 1, **options) as pool:
        for i in range(3):
            call(pool, tasks.keep_last, np.full(100_000, float(i)))
        call(pool, abs, -1)  # its answer arrives after the worker's last block has been released
        processes.wait_until(lambda: tasks.all_blocks_are_free(pool))


def test_a_child_that_a_task_forks_sees_the_argument_as_it_was(kind):
    with make(kind, "fork", 1) as pool:
        for i in range(3):
            assert call(pool, tasks.fork_and_look, np.full(100_000, float(i))) == i + 1
            for j in range(4):
                call(pool, tasks.double, np.full(100_000, 10.0 + j))
        assert call(pool, tasks.reap, 0) == [b"1"] * 3


def test_tasks_that_fork_and_wait_cost_no_blocks(kind):
    with make(kind, "fork", 1) as pool:
        for i in range(30):
            assert call(pool, tasks.fork_child, np.full(100_000, float(i))) == i
        assert call_each(pool, tasks.fork_child, [np.full(200_000, 7.0)] * 4) == [7.0] * 4
        assert len(allocator_of(pool)._blocks) < 12


def test_a_forked_child_of_the_caller_has_results_of_its_own(kind):
    def look(channel):
        channel.recv()
        return bool((kept[0] == 2).all())

    with make(kind, "fork") as pool:
        kept = [call(pool, tasks.double, np.ones(200_000))]
        with processes.Child(look) as child:
            kept.pop()[:] = 5
            for i in range(6):
                call(pool, tasks.double, np.full(200_000, 10.0 + i))
            child.tell()
            assert child.result()
        if kind == "Pool":
            pool.terminate()


def test_results_written_to_after_a_fork_are_not_lost(kind):
    def write():
        kept[:] = 0

    with make(kind, "fork") as pool:
        kept = call(pool, tasks.double, np.ones(200_000))
        kept[:100] = 7
        processes.in_child(write)
        kept[100:200] = 8
        assert (kept[:100] == 7).all()
        assert (kept[100:200] == 8).all()
        assert (kept[200:] == 2).all()


def test_a_forked_child_can_have_its_own_pool(kind):
    with make(kind, "fork") as pool:
        call(pool, tasks.double, np.ones(100_000))
        assert processes.in_child(tasks.make_own_pool, "fork") == 600_000
        assert call(pool, tasks.total, np.ones(100_000)) == 100_000


def test_a_forked_child_cannot_use_its_parents_pool():
    with make("Pool", "fork") as pool, pytest.raises(ValueError, match="the process that forked this one"):
        processes.in_child(pool.map, abs, [1])


# --- one array in many tasks ---


CONTAINERS = {
    "item": lambda array: array,
    "tuple": lambda array: (array, 1),
    "list": lambda array: [array],
    "dict": lambda array: {"array": array},
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_an_array_in_the_containers_of_many_items_is_copied_once(kind, container):
    big = np.zeros(1_000_000)
    with make(kind, "fork") as pool:
        call_each(pool, tasks.slow_pid, [CONTAINERS[container](big) for _ in range(4)])  # two for each worker
        assert shared_memory_of(pool) < 2 * big.nbytes


def test_one_array_in_many_tasks_is_copied_once_and_private_to_each_chunk(method):
    big = np.zeros(1_000_000)
    big[-1] = 3
    with make("Pool", method) as pool:
        items = [(big, i + 1) for i in range(20)]
        for _ in range(2):
            assert pool.map(tasks.total_item, items, chunksize=1) == [((0.0, 3.0), i + 1) for i in range(20)]
        assert shared_memory_of(pool) < 3 * big.nbytes
        big[5] = 9
        assert pool.map(tasks.read_item, [(big, 5)] * 6, chunksize=1) == [9.0] * 6
        assert pool.map(tasks.total, [big] * 6, chunksize=2) == [12.0] * 6
        assert pool.starmap(tasks.total, [(big, np.ones(10))] * 6, chunksize=1) == [22.0] * 6
        assert big[0] == 0


def test_the_executors_map_copies_one_array_for_many_calls_once(method):
    big = np.zeros(1_000_000)
    big[-1] = 3
    with make("Executor", method) as pool:
        items = [(big, i + 1) for i in range(20)]
        for _ in range(2):
            assert list(pool.map(tasks.total_item, items)) == [((0.0, 3.0), i + 1) for i in range(20)]
            assert shared_memory_of(pool) < 3 * big.nbytes
        big[5] = 9
        assert list(pool.map(tasks.read_item, [(big, 5)] * 6)) == [9.0] * 6
        assert list(pool.map(tasks.total, [big] * 6, chunksize=2)) == [12.0] * 6
        assert list(pool.map(tasks.total, (big, big, big), [np.ones(10)] * 3)) == [22.0] * 3
        assert big[0] == 0


def test_an_array_that_many_calls_share_is_let_go_when_they_are_cancelled():
    with make("Executor", "fork", 1) as pool:
        big = np.zeros(1_000_000)
        reader, writer = os.pipe()
        blocked = pool.submit(os.read, reader, 1)
        results = pool.map(tasks.total, [big] * 20)
        os.write(writer, b"x")
        assert blocked.result(60) == b"x"
        assert next(results) == 0
        results.close()
        wait_until(lambda: shared_memory_of(pool) < 1 << 20, 5)
        os.close(reader)
        os.close(writer)


def test_an_array_in_many_tasks_that_tasks_keep_stays_as_it_was():
    with make("Pool", "fork", 1) as pool:
        for i in range(5):
            big = np.full(200_000, float(i))
            for values, uniform in pool.map(tasks.keep_argument, [big] * 3, chunksize=1):
                assert values[-1] == i
                assert uniform


# --- memory ---


def test_streaming_holds_a_few_blocks_and_not_the_stream(kind):
    with make(kind, "fork") as pool:
        highest = 0
        stream = (np.full(500_000, float(i)) for i in range(60))
        if kind == "Pool":
            for i, result in enumerate(pool.imap(tasks.total, stream)):
                assert result == i * 500_000.0
                highest = max(highest, shared_memory_of(pool))
        else:
            for i, array in enumerate(stream):
                assert pool.submit(tasks.total, array).result() == i * 500_000.0
                highest = max(highest, shared_memory_of(pool))
        assert highest <= 8 * (4 << 20)  # 2 workers with 2 tasks each, arguments and results


def test_an_idle_pool_gives_its_memory_back(kind):
    with make(kind, "fork") as pool:
        results = call_each(pool, tasks.double, [np.ones(500_000)] * 4)
        assert shared_memory_of(pool) > 4 * 4_000_000
        wait_until(lambda: shared_memory_of(pool) < 4 * (5 << 20), 4)  # the held result stays
        assert all((result == 2).all() for result in results)
        del results
        wait_until(lambda: shared_memory_of(pool) < 1 << 20, 4)
        assert call(pool, tasks.total, np.ones(500_000)) == 500_000


def test_a_closed_pool_keeps_only_what_its_caller_holds(kind):
    with make(kind, "fork") as pool:
        kept = call_each(pool, tasks.double, [np.ones(500_000)] * 3)[1]
        files = allocator_of(pool).files
    if kind == "Pool":
        pool.join()
    del pool
    gc.collect()
    assert 4_000_000 <= sum(file.allocated() for file in files) < 5 << 20
    assert (kept == 2).all()
    del kept
    assert not any(file.allocated() for file in files)


def _no_memory(monkeypatch):
    monkeypatch.setattr(SparseFile, "create", classmethod(lambda _: None))


def _full(monkeypatch):
    stock = SparseFile.reserve

    def reserve(self, offset, size):
        if size > 4096:
            raise OSError(errno.EFBIG, "no space")
        stock(self, offset, size)

    monkeypatch.setattr(SparseFile, "reserve", reserve)


@pytest.mark.parametrize("lack", [_no_memory, _full])
def test_without_shared_memory_arrays_go_through_the_pipe_with_one_warning(kind, monkeypatch, lack):
    lack(monkeypatch)
    with make(kind, "fork") as pool, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i in range(4):
            array = np.full((300, 1000), float(i))[::2]
            assert np.array_equal(call(pool, tasks.double, array), array * 2)
            assert np.array_equal(call(pool, tasks.add_one_in_place, array), array + 1)
    assert len([w for w in caught if "through a pipe" in str(w.message)]) == 1


def test_a_worker_that_has_no_memory_for_its_result_sends_it_through_the_pipe(kind):
    with make(kind, "fork", initializer=tasks.limit_files) as pool:
        with pytest.warns(RuntimeWarning, match="through a pipe"):
            first = call(pool, tasks.ones, 500_000)
        assert (first == 1).all()
        assert (call(pool, tasks.ones, 500_000) == 1).all()  # a second warning would be an error


# --- deaths ---


@pytest.mark.parametrize("death", [tasks.kill_self, tasks.exit_self])
def test_a_dead_worker_fails_only_the_call_it_ran(method, death):
    with make("Pool", method) as pool:
        others = pool.map_async(tasks.double, [np.ones(50_000)] * 40, chunksize=1)
        with pytest.raises(shmarray.WorkerDiedError) as caught:
            pool.apply_async(death, (3,)).get(20)
        assert caught.value.pid
        assert caught.value.exitcode == (3 if death is tasks.exit_self else -signal.SIGKILL)
        assert death.__name__ in caught.value.task
        assert all((result == 2).all() for result in others.get(20))
        assert pool.map(abs, range(-3, 3)) == [3, 2, 1, 0, 1, 2]


def test_a_dead_worker_breaks_the_executor_and_says_what_it_ran(method):
    with make("Executor", method) as pool:
        call(pool, abs, -1)
        with pytest.raises(shmarray.WorkerDiedError, match="kill_self") as caught:
            pool.submit(tasks.kill_self).result(20)
        assert caught.value.exitcode == -signal.SIGKILL
        with pytest.raises(shmarray.WorkerDiedError):
            pool.submit(abs, 1)


def test_an_initializer_that_kills_workers_fails_the_calls_without_an_endless_loop(method):
    with make("Pool", method, initializer=tasks.exit_self, initargs=(5,)) as pool:
        for _ in range(2):
            with pytest.raises(shmarray.WorkerDiedError, match="as soon as they start"):
                pool.map_async(abs, range(10)).get(30)
        with pytest.raises(shmarray.WorkerDiedError):
            list(pool.imap(abs, range(10)))


def test_an_idle_worker_that_is_killed_is_replaced():
    with make("Pool", "fork") as pool:
        for _ in range(5):
            victim = pool.apply_async(os.getpid).get(20)  # one that was ready: if too many die before that, calls fail
            os.kill(victim, signal.SIGKILL)
            assert sorted(pool.map_async(abs, range(50), chunksize=1).get(20)) == list(range(50))
            wait_until(lambda gone=victim: gone not in [p.pid for p in pool._pool])


def test_busy_workers_end_with_their_caller(method, kind, tmp_path):
    """The caller is killed while its workers run tasks that never end."""
    paths = [str(tmp_path / name) for name in "ab"]
    program = f"""
import sys; sys.path.insert(0, {os.getcwd()!r})
from tests.pool import tasks
if __name__ == "__main__":
    pool = tasks.make({kind!r}, {method!r})
    for path in {paths!r}:
        pool.apply_async(tasks.block, (path,)) if {kind!r} == "Pool" else pool.submit(tasks.block, path)
    sys.stdin.read()
"""
    script = tmp_path / "caller.py"
    script.write_text(program, encoding="utf-8")
    caller = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE)
    try:
        wait_until(lambda: all(os.path.exists(path) for path in paths), 20)
        pids = [int(Path(path).read_text(encoding="ascii")) for path in paths]
        assert all(os.path.exists(f"/proc/{pid}") for pid in pids)
    finally:
        caller.kill()
        caller.wait()
        caller.stdin.close()
    wait_until(lambda: not any(_runs(pid) for pid in pids), 2)


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):  # the file does not exist yet, or the process ended before the read
        return False


# --- errors ---


def test_errors_reach_the_call_they_belong_to(kind, method):
    with make(kind, method) as pool:
        with pytest.raises(KeyError, match="task"):
            call(pool, tasks.fail, np.ones(100_000))
        for where in ("pickle", "unpickle"):
            with pytest.raises(RuntimeError, match=r"no .*pickling"):
                call(pool, tasks.identity, tasks.Hostile(where))
        for where in ("pickle", "unpickle"):
            with pytest.raises(Exception, match=r"no .*pickling"):
                call(pool, tasks.hostile_result, where)
        with pytest.raises(Exception, match="pickle"):
            call(pool, tasks.unpicklable_result, 0)
        with pytest.raises(KeyboardInterrupt):
            call(pool, tasks.interrupt, 0)
        with pytest.raises(SystemExit):
            call(pool, tasks.leave, 0)
        with pytest.raises(TypeError):
            call(pool, tasks.raise_two, 0)
        with pytest.raises(KeyboardInterrupt):
            call(pool, tasks.identity, tasks.Hostile("pickle", KeyboardInterrupt))
        with pytest.raises(BrokenPipeError):
            call(pool, tasks.identity, tasks.Hostile("pickle", BrokenPipeError))
        assert call(pool, tasks.total, np.ones(100_000)) == 100_000


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_callback_that_raises_does_not_stop_the_pool():
    with make("Pool", "fork") as pool:
        pool.apply_async(abs, (1,), callback=lambda _: 1 / 0).wait(10)
        assert pool.map(abs, [-1, -2]) == [1, 2]


# --- many threads at once ---


def test_many_threads_and_pools(kind):
    def work(pool, seed, failures):
        rng = random.Random(seed)
        for _ in range(8):
            value = rng.random()
            array = np.full(rng.choice((10, 20_000, 200_000)), value)
            if not np.array_equal(call(pool, tasks.double, array), array * 2):
                failures.append(seed)

    failures = []
    with make(kind, "fork") as one, make(kind, "fork") as other:
        threads = [threading.Thread(target=work, args=(pool, i, failures)) for i in range(3) for pool in (one, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


def test_terminate_does_not_wait_for_tasks_or_generators():
    def endless():
        while True:
            yield np.ones(300_000)

    for _ in range(3):
        pool = make("Pool", "fork")
        pool.imap(tasks.double, endless())
        pool.map_async(time.sleep, [100] * 50, chunksize=1)
        started = time.monotonic()
        pool.terminate()
        pool.join()
        assert time.monotonic() - started < 5


def _drop(holder, caught):
    """The collecting thread may hold the last reference, so the pool is destroyed a moment later."""
    holder.clear()
    gc.collect()
    wait_until(lambda: len(caught))


def test_a_pool_that_is_garbage_ends_its_workers():
    holder = [make("Pool", "fork")]
    pids = [process.pid for process in holder[0]._pool]
    answer = call(holder[0], abs, -1)  # outside assert, because the rewritten assert keeps the pool alive
    assert answer == 1
    with pytest.warns(ResourceWarning) as caught:
        _drop(holder, caught)
    del caught  # the warning keeps the pool alive too
    wait_until(lambda: not any(_runs(pid) for pid in pids))
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("shmarray")])


@pytest.mark.parametrize("method", tasks.START_METHODS)
def test_random_programs_give_the_serial_answer(kind, method):
    """Make random calls, mutations, kept references and collections."""
    seed = int(os.environ.get("SHMARRAY_SEED", "0")) or random.randrange(1 << 30)
    print("seed", seed)
    rng = random.Random(seed)
    functions = [tasks.total, tasks.double, tasks.add_one_in_place, tasks.twice_the_same, tasks.keep_in_cycle]
    buffers = [np.zeros(rng.choice((10, 9_000, 50_000, 300_000))) for _ in range(8)]
    held = []
    with make(kind, method) as pool:
        for _ in range(25):
            for buffer in buffers:
                buffer[:] = rng.random()
            function = rng.choice(functions)
            before = [buffer.copy() for buffer in buffers]
            expected = [function(buffer.copy()) for buffer in buffers]
            results = call_each(pool, function, buffers)
            _assert_equal(buffers, before)
            _assert_equal(results, expected)
            if rng.random() < 0.4:
                held.append((results, expected))
                del held[: -rng.randrange(1, 5)]
            if rng.random() < 0.2:
                gc.collect()
            for one, other in held:
                _assert_equal(one, other)


def _assert_equal(got, expected):
    for one, other in zip(got, expected, strict=True):
        if isinstance(other, tuple):
            _assert_equal(one, other)
        else:
            assert np.array_equal(one, other)


def test_a_death_is_seen_although_a_forked_child_has_dropped_the_executor():
    """The child's garbage collector must not write to the pipe that wakes its parent's managing thread."""
    executors = [make("Executor", "fork", 1)]
    dropped = weakref.ref(executors[0])
    worker = executors[0].submit(os.getpid).result(60)

    def drop():
        executors.clear()
        gc.collect()
        return dropped() is None

    assert processes.in_child(drop)
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(shmarray.WorkerDiedError, match=f"{worker} was killed by SIGKILL"):
        executors[0].submit(time.sleep, 30).result(20)
    executors[0].shutdown()


def test_an_array_kept_by_two_workers_remains_when_one_releases_it(tmp_path):
    with make("Executor", "fork") as pool:
        big = np.full(200_000, 7.0)
        first, second = pool.map(tasks.keep_and_meet, [big, big], [str(tmp_path)] * 2)
        wait_until(lambda: call(pool, tasks.forget_if, first) == first)
        wait_until(lambda: call(pool, tasks.ends_of_kept, 0)[0] == first)  # and has reported it
        for i in range(6):
            call_each(pool, tasks.total, [np.full(200_000, float(i))] * 2)
        seen = {}
        wait_until(lambda: seen.update([call(pool, tasks.ends_of_kept, 0)]) or second in seen)
        assert seen[second] == [(7.0, 7.0)]


@pytest.mark.parametrize("use", ["shmarray.Pool(2, context=fork)", "shmarray.ProcessPoolExecutor(2, fork)"])
def test_its_threads_cause_no_warning_about_fork(use):
    """Since Python 3.15 a fork beside threads is a warning, so workers are forked before any thread is started."""
    run_script(f"""
import multiprocessing, os, warnings
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy's threads would cause the warning
import shmarray
warnings.simplefilter("error")
fork = multiprocessing.get_context("fork")
for _ in range(2):
    with {use} as pool:
        assert list(pool.map(abs, [-1, 2])) == [1, 2]
""")


def fork_in_a_thread():
    codes = []

    def fork():
        child = os.fork()
        if not child:
            os._exit(3)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # the fork happens beside threads
        thread = threading.Thread(target=fork, daemon=True)
        thread.start()
        thread.join(20)
    return codes


def test_any_thread_of_a_task_may_fork(kind, start_method):
    with tasks.make(kind, start_method, 1) as pool:
        assert tasks.call(pool, fork_in_a_thread) == [3]
    if kind == "Pool":
        pool.join()


def give_pipes(pipes):
    tasks.KEPT.append(pipes)


def meet(number):
    """Wait for the task that has the other number."""
    pipes = tasks.KEPT[-1]
    os.write(pipes[number][1], b"x")
    return select.select([pipes[1 - number][0]], [], [], 20)[0] != [] and os.read(pipes[1 - number][0], 1) == b"x"


def test_after_tiny_tasks_an_idle_worker_still_gets_the_next(kind):
    """Each time, two tasks wait for each other."""
    pipes = os.pipe(), os.pipe()
    with make(kind, "fork", 2, initializer=give_pipes, initargs=(pipes,)) as pool:
        for _ in range(10):
            call_each(pool, abs, range(300))
            assert call_each(pool, meet, range(2)) == [True, True]
    if kind == "Pool":
        pool.join()
    for fd in (*pipes[0], *pipes[1]):
        os.close(fd)


def test_unused_memory_is_freed_before_memory_is_reported_full(monkeypatch):
    with make("Pool", "fork", 1) as pool:
        assert call(pool, tasks.double, np.ones(1_000_000))[0] == 2
        wait_until(lambda: tasks.results_are_dropped(pool))
        in_use = []
        write = SparseFile.write

        def write_once_there_is_room(file, offset, octets):
            in_use.append(shared_memory_of(pool))
            if len(in_use) == 1:
                raise shmarray.SharedMemoryFullError("no space")
            write(file, offset, octets)

        monkeypatch.setattr(SparseFile, "write", write_once_there_is_room)
        assert call(pool, tasks.total, np.ones(2_000_000)) == 2_000_000
    assert in_use[0] > 16_000_000
    assert in_use[1] < 9_000_000  # only that of the block which is being written


@pytest.mark.parametrize(("method", "count"), [("spawn", 1), ("fork", 3)])
def test_an_executor_starts_workers_on_demand_except_by_fork(method, count):
    with make("Executor", method, 3) as executor:
        for _ in range(2):
            executor.submit(abs, -1).result(60)
        assert len(executor._processes) == count
