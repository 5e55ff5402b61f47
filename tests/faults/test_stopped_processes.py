"""Processes that are stopped, for example by a debugger, a batch system or a suspended laptop, and may continue."""

import os
import signal
import threading
import time

import numpy as np
import pytest

import shmarray
from tests.helpers.processes import Child, wait_until
from tests.pool import tasks
from tests.pool.tasks import make, start

LIMIT = 20
LARGE = 1 << 20  # bytes that go through a socket in several packets


def end(pool, how="end"):
    if not isinstance(pool, shmarray.Pool):
        pool.shutdown(cancel_futures=how == "end")
    else:
        pool.terminate() if how == "end" else pool.close()
        pool.join()


def stop_self(way):
    if way == "before":
        os.kill(os.getpid(), signal.SIGSTOP)
    return bytes(LARGE) if way == "large" else os.getpid()


class StopsWhen:
    """Stops the process that pickles or unpickles it."""

    def __init__(self, when, caller):
        self.when = when
        self.caller = caller

    def __getstate__(self):
        if self.when == "pickled" and os.getpid() != self.caller:
            os.kill(os.getpid(), signal.SIGSTOP)
        return vars(self)

    def __setstate__(self, state):
        vars(self).update(state)
        if self.when == "unpickled" and os.getpid() != self.caller:
            os.kill(os.getpid(), signal.SIGSTOP)


def stop(stage):
    if stage == "initializer":
        os.kill(os.getpid(), signal.SIGSTOP)


def is_stopped(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "T"


def worker_of(pool):
    if isinstance(pool, shmarray.Pool):
        wait_until(lambda: pool._pool and pool._pool[0].pid)
        return pool._pool[0].pid
    wait_until(lambda: pool._processes)
    return next(iter(pool._processes))


# What stops the only worker, and the call that waits for it.
STAGES = {
    "initializer": (tasks.double, 1),
    "idle": (tasks.double, 1),
    "task": (stop_self, "before"),
    "argument": (tasks.identity, ("unpickled",)),
    "result": (tasks.identity, ("pickled",)),
    "long argument": (len, bytes(LARGE)),
    "long result": (stop_self, "large"),
}


def stopped(kind, stage):
    """Return a pool whose worker is stopped, and a function that waits for the result of a call."""
    pool = make(kind, "fork", 1, initializer=stop, initargs=(stage,))
    get = start_stopping(pool, stage)
    wait_until(lambda: is_stopped(worker_of(pool)))
    return pool, get


def start_stopping(pool, stage):
    """Start a call whose worker is stopped, before or by it; return a function that waits for its result."""
    func, argument = STAGES[stage]
    if type(argument) is tuple:
        argument = StopsWhen(*argument, os.getpid())
    if stage in ("idle", "long argument", "long result"):
        assert start(pool, abs, -1)(LIMIT) == 1
        os.kill(worker_of(pool), signal.SIGSTOP)
        wait_until(lambda: is_stopped(worker_of(pool)))
    return start(pool, func, argument)


def test_a_worker_that_continues_loses_nothing(kind):
    for stage in STAGES:
        pool, get = stopped(kind, stage)
        behind = start(pool, tasks.double, np.ones(10_000))
        os.kill(worker_of(pool), signal.SIGCONT)
        get(LIMIT)
        assert (behind(LIMIT) == 2).all(), stage
        end(pool)


def test_a_worker_that_is_killed_while_it_is_stopped_is_noticed(kind):
    for stage in STAGES:
        pool, get = stopped(kind, stage)
        os.kill(worker_of(pool), signal.SIGKILL)
        if stage in ("task", "argument", "result") or kind == "Executor":
            with pytest.raises(shmarray.WorkerDiedError):
                get(LIMIT)
        elif stage != "initializer":  # the call had not begun, so the next worker runs it
            get(LIMIT)
        end(pool)


def test_a_pool_with_a_stopped_worker_can_be_terminated():
    for stage in STAGES:
        pool, _ = stopped("Pool", stage)
        end(pool)


def test_a_stopped_task_is_a_stuck_one(kind):
    pool = make(kind, "fork", 1, task_timeout=0.2)
    with pytest.raises(shmarray.TaskTimeoutError):
        start(pool, stop_self, "before")(LIMIT)
    assert start(pool, stop_self, "")(LIMIT) == worker_of(pool)
    end(pool)


def test_a_time_limit_frees_a_worker_that_is_stopped_at_any_stage(kind):
    """The next worker runs a call that had not begun."""
    for stage in STAGES.keys() - {"initializer"}:
        pool = make(kind, "fork", 1, task_timeout=1)
        get, behind = start_stopping(pool, stage), start(pool, tasks.double, np.ones(10_000))
        if stage in ("task", "argument", "result"):
            with pytest.raises(shmarray.TaskTimeoutError):
                get(LIMIT)
        else:
            get(LIMIT)
        assert (behind(LIMIT) == 2).all(), stage
        end(pool)


def test_a_caller_that_is_stopped_while_its_tasks_end(kind):
    """Tasks that ended in time have succeeded, even if the caller notices too late."""

    def program(channel):
        pool = make(kind, "fork", 2, task_timeout=1)
        gets = [start(pool, tasks.double, np.full(10_000, number)) for number in range(4)]
        gets[0](LIMIT)
        gets = [start(pool, tasks.slow_double, np.full(10_000, number)) for number in range(4)]
        channel.send("stop me")
        results = [int(get(LIMIT)[0]) for get in gets]
        end(pool)
        return results

    with Child(program) as child:
        child.receive()
        os.kill(child.pid, signal.SIGSTOP)
        wait_until(lambda: is_stopped(child.pid))
        threading.Event().wait(1.2)  # longer than the limit
        os.kill(child.pid, signal.SIGCONT)
        assert child.result() == [0, 2, 4, 6]


def test_a_clock_that_jumps_moves_no_limit(monkeypatch):
    """Limits use the monotonic clock."""
    with make("Pool", "fork", 1, task_timeout=LIMIT) as pool:
        assert pool.apply(abs, (-1,)) == 1
        real = time.time
        for jump in (1e9, -1e9):
            monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
            result = pool.apply_async(tasks.slow_double, (21,))
            assert result.get(LIMIT) == 42
            results = pool.imap(tasks.slow_double, [1, 2], buffersize=1)
            assert [results.next(LIMIT), results.next(LIMIT)] == [2, 4]
    pool.join()
