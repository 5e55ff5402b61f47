"""A worker dies: at every stage, in every way, under every start method, behind both front doors.

The table is `STAGES`; every row is tried with every way of dying in `deaths.WAYS`.
"""

import os
import select
import signal
import threading
from contextlib import contextmanager, suppress
from fcntl import ioctl
from struct import unpack
from termios import FIONREAD

import numpy as np
import pytest

import shmarray
from tests.faults import deaths
from tests.faults.deaths import WAYS
from tests.helpers.processes import FORK_WARNING
from tests.pool.tasks import START_METHODS, arena_of, make, wait_until

pytestmark = pytest.mark.filterwarnings(FORK_WARNING, "ignore:.*use of fork:DeprecationWarning")

# Seconds after which a call is taken to hang; what is promised is two, on a machine with nothing else to do.
LIMIT = 20
SMALL = 10_000  # items of 8 bytes: above the 64 KB from which arrays travel in boxes


class Door:
    """What both front doors can do, under one set of names."""

    def __init__(self, kind, method, workers=2, initializer=deaths.arm, **options):
        self.kind = kind
        self.pool = make(kind, method, workers, initializer=initializer, **options)

    def start(self, func, *args):
        """Begin a call; gives what waits for its result."""
        if self.kind == "Pool":
            return self.pool.apply_async(func, args).get
        return self.pool.submit(func, *args).result

    def call(self, func, *args):
        return self.start(func, *args)(LIMIT)

    def then(self, func, callback):
        """Begin a call and have what it gives told in the thread that receives all results."""
        if self.kind == "Pool":
            self.pool.apply_async(func, callback=callback)
        else:
            self.pool.submit(func).add_done_callback(callback)

    def workers(self):
        processes = self.pool._pool if self.kind == "Pool" else (self.pool._processes or {}).values()
        return [process.pid for process in processes]

    def man(self):
        """Have all workers there, and idle."""
        if self.kind == "Pool":
            wait_until(lambda: all(h.is_ready and not h.flight for h in self.hands()) and len(self.hands()) == 2, LIMIT)
            return
        for get in [self.start(deaths.pid) for _ in range(4)]:
            get(LIMIT)

    def hands(self):
        return self.pool._engine._crew.hands

    def is_receiving_result(self):
        """Whether part of a result is there that nobody takes."""
        if self.kind == "Pool":
            return any(unpack("i", ioctl(hand.sock, FIONREAD, bytes(4)))[0] > 1000 for hand in self.hands())
        return bool(select.select([self.pool._result_queue._reader], [], [], 0)[0])

    def close(self):
        if self.kind == "Pool":
            self.pool.terminate()
            self.pool.join()
        else:
            self.pool.shutdown()


# --- stages --------------------------------------------------------------------------


def idle(door, way):
    door.man()
    victim = _waits_for_message(door.workers())
    os.kill(victim, deaths.SIGNALS[way])
    wait_until(lambda: not _runs(victim), LIMIT)
    return victim, None


def idle_behind_another(door, way):
    """Under the executor, one of two idle workers holds the lock of the queue, and the other waits for it."""
    door.man()
    holder = _waits_for_message(door.workers())
    victim = next(pid for pid in door.workers() if pid != holder)
    os.kill(victim, deaths.SIGNALS[way])
    wait_until(lambda: not _runs(victim), LIMIT)
    return victim, None


def receiving(door, way):
    """It has part of a message that is longer than a socket or a pipe holds."""
    door.man()
    before = set(door.workers())
    for pid in before:
        os.kill(pid, signal.SIGSTOP)
    get = door.start(deaths.length, b"x" * (4 << 20))
    if door.kind == "Pool":
        wait_until(lambda: any(hand.flight for hand in door.hands()), LIMIT)
        victim = next(hand.process.pid for hand in door.hands() if hand.flight)
        wait_until(lambda: not select.select([], [h.sock for h in door.hands() if h.flight], [], 0)[1], LIMIT)
    else:
        wait_until(lambda: not select.select([], [door.pool._call_queue._writer], [], 0)[1], LIMIT)
        victim = _waits_for_message(before)
    os.kill(victim, deaths.SIGNALS[way])  # comes with the first packet that it reads
    for pid in before:
        os.kill(pid, signal.SIGCONT)
    return victim, get


def unpickling(door, way):
    return None, door.start(deaths.take, np.ones(SMALL), deaths.DiesWhenUnpickled(way))


def running(door, way):
    return None, door.start(deaths.die_running, way, np.ones(SMALL))


def packing(door, way):
    return None, door.start(deaths.give_what_dies, way, np.ones(SMALL))


def sending(door, way):
    """It is in the middle of a long result; under the executor it holds the lock of the queue."""
    with _nobody_receives(door):
        get = door.start(deaths.give_much, np.ones(SMALL))
        wait_until(door.is_receiving_result, LIMIT)
        victim = _who_sends(door.workers())
        os.kill(victim, deaths.SIGNALS[way])
        wait_until(lambda: not _runs(victim), LIMIT)
    return victim, get


@contextmanager
def _nobody_receives(door):
    """Hold the thread that receives the results, by a callback in it."""
    reached, go = threading.Event(), threading.Event()

    def hold(_):
        reached.set()
        go.wait(LIMIT)

    door.then(deaths.pid, hold)
    assert reached.wait(LIMIT)
    try:
        yield
    finally:
        go.set()


FAILS, GOES_TO_ANOTHER, NO_CALL = "its call fails", "its call goes to another", "there is no call"

# Where a worker dies, and what becomes of its call behind Pool's door.  Any death breaks the executor.
STAGES = {
    idle: NO_CALL,
    idle_behind_another: NO_CALL,
    receiving: GOES_TO_ANOTHER,
    unpickling: FAILS,
    running: FAILS,
    packing: FAILS,
    sending: FAILS,
}
FUNCTIONS = {unpickling: "take()", running: "die_running()", packing: "give_what_dies()", sending: "give_much()"}
# A spawned worker takes a quarter of a second to start: there each row with one way of dying only.
CASES = [
    pytest.param(method, stage, way, id=f"{method}-{stage.__name__}-{way}")
    for method in START_METHODS
    for stage in STAGES
    for way in (WAYS if method != "spawn" else ["SIGKILL"])
]


# --- Pool ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pools():
    """A pool for each start method, which lives through all cases: that is what is to be proved."""
    doors = {}

    def get(method):
        if method not in doors:
            doors[method] = Door("Pool", method)
        return doors[method]

    yield get
    for door in doors.values():
        door.close()


class TestPool:
    """Only the call that the worker ran fails, the others do not notice, the worker is replaced, no box is lost."""

    @pytest.fixture
    def no_leaks(self):
        """Instead of the one for all tests: the pools, and the descriptors of new workers, stay for other cases."""

    @pytest.mark.parametrize(("method", "stage", "way"), CASES)
    def test_it_survives(self, pools, method, stage, way):
        door = pools(method)
        door.man()
        before = door.workers()
        others = door.pool.map_async(deaths.double, [np.full(SMALL, i) for i in range(6)], chunksize=1)
        if stage not in FUNCTIONS:
            others.get(LIMIT)

        victim, get = stage(door, way)

        if STAGES[stage] == FAILS:
            with pytest.raises(shmarray.WorkerDiedError) as caught:
                get(LIMIT)
            _check_words(caught.value, before, way, FUNCTIONS[stage])
            assert caught.value.task.startswith("task 0 of call ")
            assert victim in {None, caught.value.pid}
        elif STAGES[stage] == GOES_TO_ANOTHER:
            assert get(LIMIT) == 4 << 20
        for i, result in enumerate(others.get(LIMIT)):
            assert (result == 2 * i).all()
        door.man()
        assert len(set(door.workers()) & set(before)) == 1
        assert (door.call(deaths.double, np.ones(SMALL)) == 2).all()
        del result, others
        wait_until(lambda: _all_boxes_are_free(door.pool), LIMIT)


def _check_words(error, pids, way, function):
    assert error.pid in pids
    assert error.exitcode == WAYS[way][1]
    assert function in error.task
    for word in (str(error.pid), way if way.startswith("SIG") else "", error.task):
        assert word in str(error)


def _all_boxes_are_free(pool):
    arena = arena_of(pool)
    return len(arena._free) + len(arena._empty) == arena._made - 1


# --- ProcessPoolExecutor -------------------------------------------------------------


@pytest.mark.parametrize(("method", "stage", "way"), CASES)
def test_the_executor_says_who_died_and_over_what_and_ends(method, stage, way):
    """The stdlib's contract, BrokenProcessPool for all calls, with words; and no hang."""
    door = Door("Executor", method)
    try:
        door.man()
        before = door.workers()
        victim, get = stage(door, way)
        with pytest.raises(shmarray.WorkerDiedError) as caught:
            (get or _until_it_refuses(door))(LIMIT)
        _check_words(caught.value, before, way, FUNCTIONS.get(stage, ""))
        assert victim in {None, caught.value.pid}
        with pytest.raises(shmarray.WorkerDiedError, match=str(caught.value.pid)):
            door.start(deaths.pid)
        wait_until(lambda: not any(map(_runs, before)), LIMIT)
        arena = arena_of(door.pool)
    finally:
        door.close()
    wait_until(lambda: arena.file.fd == -1, LIMIT)


def _until_it_refuses(door):
    def get(limit):
        while True:
            door.call(deaths.pid)

    return get


# --- helpers -------------------------------------------------------------------------


def _runs(pid):
    with suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    return False


def _waits_in(pid):
    """Where in the kernel a process waits; empty if that cannot be known."""
    with suppress(OSError), open(f"/proc/{pid}/wchan", encoding="ascii") as file:
        return file.read()
    return ""


def _waits_for_message(pids):
    """The one of some idle workers that has, of an executor, the lock of the queue."""
    found = [pid for pid in pids if "pipe" in _waits_in(pid)]
    return found[0] if found else next(iter(pids))


def _who_sends(pids):
    """The worker that waits for room in a socket or in a pipe."""
    deadline = LIMIT
    found = []

    def look():
        found[:] = [pid for pid in pids if "send" in _waits_in(pid) or "pipe_write" in _waits_in(pid)]
        return found

    wait_until(look, deadline)
    return found[0]
