"""A worker dies at every stage, in every way, under every start method, in both kinds of pool.

The table is `STAGES`; each row is tested with every way of dying in `deaths.WAYS`.
"""

import fcntl
import os
import select
import signal
import socket
import struct
import termios
import threading
from contextlib import nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import pytest

import shmarray
from shmarray.core.posix import SparseFile
from shmarray.pool.engine import exit_status, placement
from shmarray.pool.engine.placement import DEEP
from shmarray.pool.engine.workers import WorkerSet
from tests.faults import deaths
from tests.faults.deaths import WAYS
from tests.helpers.processes import in_child, runs, wait_until
from tests.pool import tasks
from tests.pool.tasks import START_METHODS, all_blocks_are_free, allocator_of, call, make

# Seconds after which a call is considered hung; two are promised on an otherwise idle machine.
LIMIT = 20
SMALL = 10_000  # items of 8 bytes: above the 32 KB from which arrays travel in blocks


class Door:
    """A common interface to both kinds of pool."""

    def __init__(self, kind, method, *, has_memory=True, initializer=deaths.arm, **options):
        self.kind = kind
        with nullcontext() if has_memory else patch.object(SparseFile, "create", classmethod(lambda _: None)):
            self.pool = make(kind, method, initializer=initializer, **options)

    def start(self, func, *args):
        """Start a call; return a function that waits for its result."""
        if self.kind == "Pool":
            return self.pool.apply_async(func, args).get
        return self.pool.submit(func, *args).result

    def call(self, func, *args):
        return self.start(func, *args)(LIMIT)

    def then(self, callback, func, *args):
        """Start a call with a callback, which runs in the thread that receives all results."""
        if self.kind == "Pool":
            self.pool.apply_async(func, args, callback=callback)
        else:
            self.pool.submit(func, *args).add_done_callback(callback)

    def workers(self):
        processes = self.pool._pool if self.kind == "Pool" else (self.pool._processes or {}).values()
        return [process.pid for process in processes]

    def have_idle_workers(self):
        """Wait until all workers exist and are idle."""
        if self.kind == "Executor" and len(self.handles()) < 2:  # executors start workers on demand
            with TemporaryDirectory() as place:
                for get in [self.start(deaths.meet, place) for _ in range(2)]:
                    get(LIMIT)
        wait_until(self._is_idle, LIMIT)

    def _is_idle(self):
        handles = self.handles()
        return len(handles) == 2 and all(worker.is_ready and not worker.in_flight for worker in handles)

    def handles(self):
        return self.pool._scheduler._state.workers.workers

    def close(self):
        if self.kind == "Pool":
            self.pool.terminate()
            self.pool.join()
        else:
            self.pool.shutdown()


# --- stages --------------------------------------------------------------------------


def idle(door, way):
    door.have_idle_workers()
    victim = _waits_for_message(door)
    _end(victim, way)
    return victim, None


def unread(door, way):
    """The worker has been sent a message of several packets, and has read none of them."""
    return _stopped(door, way, b"x" * 60_000)


def receiving(door, way):
    """The worker has part of a message that is longer than any socket or pipe buffer."""
    return _stopped(door, way, b"x" * (4 << 20))


receiving.needs_no_memory = True  # with shared memory no message is so long


def _stopped(door, way, argument):
    door.have_idle_workers()
    before = door.workers()
    victim = _waits_for_message(door)
    for pid in before:
        os.kill(pid, signal.SIGSTOP)
    try:
        get = door.start(deaths.length, argument)
        wait_until(lambda: any(worker.in_flight and not _has_room(worker) for worker in door.handles()), LIMIT)
        victim = next(worker.pid for worker in door.handles() if worker.in_flight)
        os.kill(victim, deaths.SIGNALS[way])  # arrives with the first packet that it reads
    finally:
        for pid in before:
            os.kill(pid, signal.SIGCONT)
    _end(victim, way)
    return victim, get


def unpickling(door, way):
    return None, door.start(deaths.take, np.ones(SMALL), deaths.DiesWhenUnpickled(way))


def running(door, way):
    return None, door.start(deaths.die_running, way, np.ones(SMALL))


def packing(door, way):
    return None, door.start(deaths.give_what_dies, way, np.ones(SMALL))


def sending(door, way):
    """The worker waits for room for its result."""
    with patch.object(placement, "WINDOW_SECONDS", 1000.0):  # gives each worker many tasks, however long they take
        for get in [door.start(deaths.give_much, None) for _ in range(DEEP)]:
            get(LIMIT)
        # Up to 16 results are received at once, and so are not in the socket any more when the callback blocks.
        return _sending(door, way, deaths.give_much, 80, 24_000)


def sending_half(door, way):
    """The worker has sent part of a result that is longer than any socket or pipe buffer."""
    return _sending(door, way, deaths.give_too_much, 2, 4 << 20)


sending_half.needs_no_memory = True


def _sending(door, way, func, count, length):
    """Both workers wait, with more tasks queued; then one ends and its callback blocks the receiving thread."""
    reached, go = threading.Event(), threading.Event()

    def hold(_):
        reached.set()
        go.wait(LIMIT)

    with TemporaryDirectory() as place:
        door.then(hold, deaths.wait_for, f"{place}/first")
        other = door.start(deaths.wait_for, f"{place}/second")
        wait_until(lambda: len(list(Path(place).glob("*.waits"))) == 2, LIMIT)
        gets = [door.start(func, i) for i in range(count)]
        try:
            Path(place, "first").touch()
            assert reached.wait(LIMIT)
            victim = _one_of(door.workers(), lambda pid: _waits_for_room(door, pid))
            _end(victim, way)
        finally:
            go.set()
            Path(place, "second").touch()
        if door.kind == "Pool":
            other(LIMIT)

    def get(limit):
        failures = []
        for one in gets:
            try:
                assert len(one(limit)) == length
            except shmarray.WorkerDiedError as error:
                failures.append(error)
        assert len(failures) == 1 or door.kind != "Pool"
        raise failures[0]

    return victim, get


FAILS, GOES_TO_ANOTHER, NO_CALL = "its call fails", "its call goes to another", "there is no call"

# Where a worker dies, and what happens to its call in a Pool.  In an executor, any death breaks it.
STAGES = {
    idle: NO_CALL,
    unread: GOES_TO_ANOTHER,
    receiving: GOES_TO_ANOTHER,
    unpickling: FAILS,
    running: FAILS,
    packing: FAILS,
    sending: FAILS,
    sending_half: FAILS,
}
FUNCTIONS = {
    unpickling: "take()",
    running: "die_running()",
    packing: "give_what_dies()",
    sending: "give_much()",
    sending_half: "give_too_much()",
}
# A spawned worker takes a quarter of a second to start, so test each row with only one way of dying.
CASES = [
    pytest.param(method, stage, way, id=f"{method}-{stage.__name__}-{way}")
    for method in START_METHODS
    for stage in STAGES
    for way in (WAYS if method != "spawn" else ["SIGKILL"])
]


# --- Pool ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pools():
    """One pool for each start method, which must survive all cases."""
    doors = {}

    def get(method, has_memory):
        key = method, has_memory
        if key not in doors:
            doors[key] = Door("Pool", method, has_memory=has_memory)
        return doors[key]

    yield get
    for door in doors.values():
        door.close()


class TestPool:
    """Only the call that the worker ran fails, others are not affected, the worker is replaced, no block is lost."""

    @pytest.fixture
    def no_leaks(self):
        """Replaces the check for all tests: the pools and the descriptors of new workers remain for other cases."""

    @pytest.mark.parametrize(("method", "stage", "way"), CASES)
    def test_it_survives(self, pools, method, stage, way):
        door = pools(method, has_memory=_has_memory(stage))
        door.have_idle_workers()
        before = door.workers()
        others = door.pool.map_async(deaths.double, [np.full(SMALL, i) for i in range(6)], chunksize=1)
        if stage not in {unpickling, running, packing}:
            others.wait(LIMIT)

        victim, get = stage(door, way)

        if STAGES[stage] == FAILS:
            with pytest.raises(shmarray.WorkerDiedError) as caught:
                get(LIMIT)
            _check_words(caught.value, before, way, FUNCTIONS[stage])
            assert victim in {None, caught.value.pid}
        elif STAGES[stage] == GOES_TO_ANOTHER:
            assert get(LIMIT) in {60_000, 4 << 20}
        for i, result in enumerate(others.get(LIMIT)):
            assert (result == 2 * i).all()
        wait_until(lambda: len(set(door.workers()) & set(before)) == 1, LIMIT)
        door.have_idle_workers()
        assert (door.call(deaths.double, np.ones(SMALL)) == 2).all()
        del result, others
        wait_until(lambda: all_blocks_are_free(door.pool), LIMIT)


def _has_memory(stage):
    return not getattr(stage, "needs_no_memory", False)


def _check_words(error, pids, way, function):
    assert error.pid in pids
    assert error.exitcode == WAYS[way][1]
    assert function in error.task, str(error)
    for word in (str(error.pid), way if way.startswith("SIG") else "", error.task):
        assert word in str(error)


# --- ProcessPoolExecutor -------------------------------------------------------------


@pytest.mark.parametrize(("method", "stage", "way"), CASES)
def test_the_executor_reports_the_dead_worker_and_its_task_and_ends(method, stage, way):
    """The stdlib's contract: BrokenProcessPool for all calls, here with details, and nothing hangs."""
    door = Door("Executor", method, has_memory=_has_memory(stage))
    try:
        door.have_idle_workers()
        before = door.workers()
        victim, get = stage(door, way)
        with pytest.raises(shmarray.WorkerDiedError) as caught:
            (get or _until_it_refuses(door))(LIMIT)
        _check_words(caught.value, before, way, FUNCTIONS.get(stage, "") if _has_memory(stage) else "")
        assert victim in {None, caught.value.pid}
        with pytest.raises(shmarray.WorkerDiedError, match=str(caught.value.pid)):
            door.start(deaths.pid)
        wait_until(lambda: not any(map(runs, before)), LIMIT)
        allocator = allocator_of(door.pool)
    finally:
        door.close()
    wait_until(lambda: allocator is None or allocator.memory() == 0, LIMIT)


def _until_it_refuses(door):
    def get(limit):
        while True:
            door.call(deaths.pid)

    return get


# --- at the ends of a worker's life --------------------------------------------------


ENDS = [
    pytest.param(kind, method, way, id=f"{kind}-{method}-{way}")
    for kind in ("Pool", "Executor")
    for method in START_METHODS
    for way in (["SIGKILL", "os._exit"] if method != "spawn" else ["SIGKILL"])
]


@pytest.mark.parametrize(("kind", "method", "way"), ENDS)
def test_workers_that_all_die_at_their_start_fail_the_calls_after_a_few_tries(kind, method, way):
    door = Door(kind, method, initializer=deaths.arm_and_die, initargs=(way,))
    try:
        for _ in range(2):
            with pytest.raises(shmarray.WorkerDiedError) as caught:
                door.call(deaths.pid)
            assert caught.value.exitcode == WAYS[way][1]
            assert str(caught.value.pid) in str(caught.value)
    finally:
        door.close()


@pytest.mark.parametrize(("kind", "method", "way"), ENDS)
def test_one_worker_that_dies_at_its_start(kind, method, way, tmp_path):
    """A pool continues; an executor is broken."""
    door = Door(kind, method, initializer=deaths.arm_and_die_once, initargs=(way, str(tmp_path / "dead")))
    try:
        if kind == "Pool":
            assert door.pool.map_async(abs, range(-4, 0), chunksize=1).get(LIMIT) == [4, 3, 2, 1]
        else:
            with pytest.raises(shmarray.WorkerDiedError) as caught:
                _until_it_refuses(door)(LIMIT)
            assert caught.value.exitcode == WAYS[way][1]
    finally:
        door.close()


@pytest.mark.parametrize(("kind", "method", "way"), ENDS)
def test_workers_that_die_while_they_end_after_their_last_task(kind, method, way):
    """They answered before; new workers replace them."""
    if kind == "Pool":
        door = Door(kind, method, maxtasksperchild=2)
    elif method == "fork":  # the stdlib forbids max_tasks_per_child with fork, so workers end only with the executor
        door = Door(kind, method)
    else:
        door = Door(kind, method, max_tasks_per_child=2)
    try:
        gets = [door.start(deaths.die_at_exit, way) for _ in range(8)]
        pids = {get(LIMIT) for get in gets}
        assert len(pids) >= (4 if kind == "Pool" or method != "fork" else 1)
        assert (door.call(deaths.double, np.ones(SMALL)) == 2).all()
    finally:
        door.close()


@pytest.mark.parametrize("stop", ["close", "terminate"])
def test_a_worker_that_is_killed_while_all_end_delays_nothing(kind, stop):
    """It may hold the lock for which the others wait in order to read that they must end."""
    for victim in range(2):
        door = Door(kind, "fork")
        door.have_idle_workers()
        pids = door.workers()
        os.kill(pids[victim], signal.SIGKILL)
        if kind == "Executor":
            door.pool.shutdown()
            continue
        if stop == "close":
            door.pool.close()
        else:
            door.pool.terminate()
        door.pool.join()


@pytest.mark.parametrize("task", [deaths.sleep_deaf, deaths.sleep_in_c])
def test_tasks_that_ignore_sigterm_do_not_delay_the_end(kind, task, tmp_path):
    """Cases are a terminated pool, and an executor that was broken by the death of another worker."""
    door = Door(kind, "fork")
    path = str(tmp_path / "pid")
    get = door.start(task, path)
    wait_until(lambda: os.path.exists(path), LIMIT)
    if kind == "Pool":
        door.close()
    else:
        with pytest.raises(shmarray.WorkerDiedError, match="die_running"):
            door.call(deaths.die_running, "SIGKILL", 0)
        with pytest.raises(shmarray.WorkerDiedError, match="die_running"):
            get(LIMIT)
        door.close()
    wait_until(lambda: not runs(int(Path(path).read_text(encoding="ascii"))), LIMIT)


def test_the_child_of_a_dead_worker_does_not_hide_the_death(kind, tmp_path):
    """The child has inherited all descriptors of the worker, and uses its arrays."""
    path = str(tmp_path / "pid")
    door = Door(kind, "fork")
    try:
        with pytest.raises(shmarray.WorkerDiedError, match="fork_and_die"):
            door.call(deaths.fork_and_die, "SIGKILL", path)
        if kind == "Pool":
            assert (door.call(deaths.double, np.ones(SMALL)) == 2).all()
    finally:
        os.kill(int(Path(path).read_text(encoding="ascii")), signal.SIGKILL)
        door.close()


def leave_a_child_and_die(array, place):
    """Leave a child that checks the argument when it is told to."""
    if not os.fork():
        signal.alarm(LIMIT)
        wait_until(lambda: os.path.exists(f"{place}/go"), LIMIT)
        Path(place, "same" if (array == 1).all() else "changed").touch()
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


def test_memory_used_by_the_child_of_a_dead_worker_is_not_reused(kind, tmp_path):
    options = {} if kind == "Pool" else {"replace_workers": True}
    with make(kind, "fork", 1, **options) as pool:
        with pytest.raises(shmarray.WorkerDiedError):
            call(pool, leave_a_child_and_die, np.ones(200_000), str(tmp_path))
        for _ in range(8):
            assert call(pool, tasks.total, np.full(200_000, 2.0)) == 400_000
        (tmp_path / "go").touch()
        wait_until(lambda: len(os.listdir(tmp_path)) == 2, LIMIT)
        assert (tmp_path / "same").exists()


def test_a_dead_worker_causes_no_sigpipe():
    """The program restores the default action of SIGPIPE, as programs do that write to pipes."""

    def program():
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        door = Door("Pool", "fork")
        for _ in range(5):
            door.have_idle_workers()
            for pid in door.workers():
                os.kill(pid, signal.SIGKILL)
            door.pool.map(abs, range(20), chunksize=1)
        door.close()
        return "alive"

    assert in_child(program) == "alive"


def test_a_cancelled_call_does_not_keep_the_error_from_the_others():
    """Before 3.12 the stdlib's thread ends when it reports the error to a cancelled future."""
    with TemporaryDirectory() as place:
        door = Door("Executor", "fork")
        door.have_idle_workers()
        for name in "ab":
            door.start(deaths.wait_for, f"{place}/{name}")
        futures = [door.pool.submit(deaths.pid) for _ in range(20)]
        assert futures[10].cancel()
        os.kill(door.workers()[0], signal.SIGKILL)
        for future in futures[:10] + futures[11:]:
            with pytest.raises(shmarray.WorkerDiedError):
                future.result(LIMIT)
        door.close()


@pytest.mark.parametrize(
    ("method", "end"), [("forkserver", "shutdown"), ("forkserver", "garbage"), ("spawn", "shutdown")]
)
def test_calls_that_wait_when_an_executor_ends_get_new_workers(method, end):
    """The stdlib counts idle workers late, and an executor that was shut down has forgotten its queues."""
    for _ in range(1 if method == "spawn" else 4):
        door = Door("Executor", method, max_tasks_per_child=1)
        gets = [door.start(deaths.pid) for _ in range(4)]
        collector = door.pool._scheduler._collector.thread
        if end == "shutdown":
            door.pool.shutdown(wait=False)
        del door
        assert len({get(LIMIT) for get in gets}) == 4
        collector.join(LIMIT)
        assert not collector.is_alive()


def test_a_worker_that_is_started_while_another_dies_ends_with_the_executor(monkeypatch):
    """The thread of a submit starts the worker and holds the executor's lock meanwhile.

    Regression: the collecting thread waited for it, and so did not notice the death.
    """
    true_start = WorkerSet._spawn
    started = []

    def start(workers):
        if started:
            waker = executor._scheduler._state.waker
            waker.wake()
            wait_until(lambda: not select.select([waker], [], [], 0)[0], LIMIT)  # then it looks for missing workers
            os.kill(started[0], signal.SIGKILL)
            wait_until(lambda: executor._broken, LIMIT)  # wait until the collecting thread has noticed the death
        worker = true_start(workers)
        started.append(worker.pid)
        return worker

    monkeypatch.setattr(WorkerSet, "_spawn", start)
    executor = make("Executor", "spawn", 2)
    with TemporaryDirectory() as place:
        first = executor.submit(deaths.wait_for, f"{place}/go")
        second = executor.submit(abs, -1)
        for future in (first, second):
            with pytest.raises(shmarray.WorkerDiedError):
                future.result(LIMIT)
        executor.shutdown()
    assert len(started) == 2
    wait_until(lambda: not any(map(runs, started)), LIMIT)


def test_a_worker_dies_before_it_is_registered_where_deaths_may_be_hidden(monkeypatch):
    """Regression: without pidfds the collecting thread looked at workers that another thread was starting."""
    monkeypatch.setattr(exit_status, "open_process", lambda _: None)
    with make("Executor", "spawn", 2, replace_workers=True) as executor, TemporaryDirectory() as place:
        first = executor.submit(deaths.wait_for, f"{place}/go")
        wait_until(lambda: os.path.exists(f"{place}/go.waits"), LIMIT)
        collector = executor._scheduler._collector
        registry = executor._workers._registry
        added = registry.add

        def add(process, others):
            monkeypatch.setattr(registry, "add", added)
            os.kill(process.pid, signal.SIGKILL)
            looked_at = collector._looked_at
            wait_until(lambda: collector._looked_at > looked_at, LIMIT)  # the look that begins now ends after this
            looked_at = collector._looked_at
            wait_until(lambda: collector._looked_at > looked_at or executor._broken, LIMIT)
            added(process, others)

        monkeypatch.setattr(registry, "add", add)
        assert executor.submit(abs, -2).result(LIMIT) == 2
        Path(f"{place}/go").touch()
        assert first.result(LIMIT) is None


# --- helpers -------------------------------------------------------------------------


def _has_room(worker):
    """Return whether more of a long message is about to be sent."""
    return worker.in_flight[0].is_being_sent and bool(select.select([], [worker.channel], [], 0)[1])


def _waits_in(pid):
    """Return where in the kernel a process waits, or an empty string if that is unknown."""
    with suppress(OSError), open(f"/proc/{pid}/wchan", encoding="ascii") as file:
        return file.read()
    return ""


def _waits_for_room(door, pid):
    """Return whether a worker waits for room, and there is none.

    Linux does not wake it before three quarters are free.  Woken by a signal, it sends first, and then handles the
    signal: it would die between two tasks.
    """
    if not any(place in _waits_in(pid) for place in ("pipe_write", "alloc_send")):
        return False
    far = next(worker.far.sock for worker in door.handles() if worker.pid == pid)
    used = struct.unpack("i", fcntl.ioctl(far, termios.TIOCOUTQ, bytes(4)))[0]
    if used >= far.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF):
        return True
    os.kill(pid, signal.SIGSTOP)
    os.kill(pid, signal.SIGCONT)
    return False


def _end(pid, way):
    """Make a worker die where it waits.

    The signal is sent repeatedly: it may arrive just before the wait begins, and Python 3.13.0 handles
    signals nowhere else in processes that were forked by a thread other than the main thread.
    """

    def is_over():
        with suppress(ProcessLookupError):
            os.kill(pid, deaths.SIGNALS[way])
        return not runs(pid)

    wait_until(is_over, LIMIT)


def _waits_for_message(door):
    """Return one of the idle workers."""
    return _one_of(door.workers(), lambda pid: "skb_wait" in _waits_in(pid))


def _one_of(pids, condition):
    found = []

    def look():
        found[:] = filter(condition, pids)
        return found

    wait_until(look, LIMIT)
    return found[0]
