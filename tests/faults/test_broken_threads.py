"""An internal error ends one of the library's threads: all calls fail with it, later calls raise, nothing hangs."""

import threading
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path

import pytest

import shmarray
from shmarray.pool.arrays import Lending
from shmarray.pool.engine import collector
from shmarray.pool.engine.collector import Collector
from shmarray.pool.engine.feeder import Feeder
from shmarray.pool.engine.placement import Placement
from shmarray.pool.engine.tasks import InFlightTask
from shmarray.pool.engine.workers import WorkerSet
from tests.faults import deaths
from tests.pool.tasks import make, start

LIMIT = 20


class OurError(Exception):
    pass


# Called by the collecting thread for each answer, in each turn, or at its end.
OF_THE_COLLECTOR = [
    (Collector, "_answered"),
    (Collector, "_send_returned"),
    (Collector, "_spawn_if_needed"),
    (Collector, "_do_what_is_due"),
    (Collector, "_patience"),
    (Placement, "answered"),
    (Feeder, "answered"),
    (Lending, "unpack"),
    (collector.messages, "decode"),
]
OF_THE_FEEDER = [
    (Feeder, "_feed_task"),
    (Feeder, "_feed"),
    (Feeder, "_place"),
    (Placement, "depth"),
    (Placement, "find"),
    (Placement, "given"),
    (WorkerSet, "give"),
    (Lending, "pack"),
    (Lending, "exhausted"),
]
ERRORS = [OurError, MemoryError, KeyboardInterrupt]


def ids(place):
    return place[1] if isinstance(place, tuple) else getattr(place, "__name__", str(place))


def raising(error):
    def method(*_, **__):
        raise error("an error of our own")

    return method


def end(pool, how):
    if isinstance(pool, shmarray.Pool):
        getattr(pool, how)()
        pool.join()
    else:
        pool.shutdown()


@pytest.mark.parametrize("error", ERRORS, ids=ids)
@pytest.mark.parametrize("place", OF_THE_COLLECTOR, ids=ids)
def test_the_collecting_thread_ends(kind, place, error, monkeypatch, tmp_path):
    pool = make(kind, "fork")
    assert start(pool, abs, -1)(LIMIT) == 1
    running = [start(pool, deaths.wait_for, f"{tmp_path}/go") for _ in range(2)]
    waiting = [start(pool, abs, -1) for _ in range(20)]
    monkeypatch.setattr(*place, raising(error))
    Path(tmp_path, "go").touch()
    pool._scheduler.wake()
    for get in running + waiting:
        try:
            get(LIMIT)
        except error as raised:
            assert "of our own" in str(raised)  # noqa: PT017 - the call may have been done before
    pool._scheduler._collector.thread.join(LIMIT)
    with pytest.raises(RuntimeError, match="has ended because of an error") as caught:
        start(pool, abs, -1)
    assert "of our own" in str(caught.value.__cause__)
    monkeypatch.undo()
    end(pool, "terminate")


@pytest.mark.parametrize("error", ERRORS, ids=ids)
@pytest.mark.parametrize("place", OF_THE_FEEDER, ids=ids)
def test_the_feeding_thread_meets_an_error(kind, place, error, monkeypatch):
    """The thread continues, so only this call fails."""
    pool = make(kind, "fork")
    assert start(pool, abs, -1)(LIMIT) == 1
    monkeypatch.setattr(*place, raising(error))
    with suppress(error):  # the call may already be done
        assert start(pool, abs, -1)(LIMIT) == 1
    monkeypatch.undo()
    with suppress(RuntimeError, error):
        assert start(pool, abs, -1)(LIMIT) == 1
    end(pool, "close")


def test_the_feeding_thread_ends(kind, monkeypatch):
    """The error is raised outside the code for a single call."""
    pool = make(kind, "fork")
    assert start(pool, abs, -1)(LIMIT) == 1
    monkeypatch.setattr(Feeder, "_feed", raising(OurError))
    monkeypatch.setattr(pool._scheduler._state, "fail_all", raising(OurError))
    get = start(pool, abs, -1)
    with pytest.raises(OurError):
        get(LIMIT)
    with pytest.raises(RuntimeError, match="has ended because of an error"):
        start(pool, abs, -1)
    monkeypatch.undo()
    end(pool, "close")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("place", [(WorkerSet, "end_all"), (Collector, "close"), (Placement, "forget")], ids=ids)
def test_an_error_while_ending(kind, place, monkeypatch, tmp_path):
    """No remaining call may hang."""
    pool = make(kind, "fork")
    assert start(pool, abs, -1)(LIMIT) == 1
    get = start(pool, deaths.wait_for, f"{tmp_path}/never")
    true = getattr(*place)
    tried = threading.Event()

    def once(*args):
        if not tried.is_set():
            tried.set()
            raise OurError("at the end")
        return true(*args)

    monkeypatch.setattr(*place, once)
    if kind == "Pool":
        pool.terminate()
        expected = RuntimeError
    else:
        pool.kill_workers()
        expected = (shmarray.WorkerDiedError, CancelledError)  # the worker may not have received the call yet
    with pytest.raises(expected):
        get(LIMIT)
    end(pool, "terminate")
    pool._scheduler.end()  # succeeds the second time


def test_an_answer_to_another_task_is_an_error_and_no_result():
    with make("Pool", "fork", 1) as pool:
        assert pool.apply(abs, (-1,)) == 1
        worker = pool._scheduler._state.workers.workers[0]
        worker.in_flight.append(InFlightTask(1 << 40, 0, abs, None, 0))
        with pytest.raises(RuntimeError, match="answered another task"):
            pool.apply_async(abs, (-2,)).get(LIMIT)
        with pytest.raises(RuntimeError, match="ended because of an error"):
            pool.apply(abs, (-3,))
