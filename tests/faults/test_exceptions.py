"""An exception at any stage of a call: it reaches that call, the others go on, and no box is lost."""

import multiprocessing.pool
import threading

import numpy as np
import pytest

import shmarray
from tests.faults.exceptions import (
    ERRORS,
    FailsToPickle,
    FailsToUnpickle,
    fail,
    give,
    raise_unloadable,
    raise_unpicklable,
    take,
)
from tests.helpers.processes import FORK_WARNING
from tests.pool.tasks import START_METHODS, arena_of, double, make, wait_until

pytestmark = pytest.mark.filterwarnings(FORK_WARNING)

LIMIT = 20
ARRAY = np.ones(20_000)

# Where it fails: what is called, and with what besides an array.
STAGES = {
    "in the task": (fail, lambda name: (name, ARRAY)),
    "pickling an argument": (take, lambda name: (ARRAY, FailsToPickle(name))),
    "unpickling an argument": (take, lambda name: (ARRAY, FailsToUnpickle(name))),
    "pickling the result": (give, lambda name: (FailsToPickle, name, ARRAY)),
    "unpickling the result": (give, lambda name: (FailsToUnpickle, name, ARRAY)),
}
# Pool says so of every result that does not pickle, as the stdlib's does.
ENCODING = multiprocessing.pool.MaybeEncodingError


@pytest.fixture(scope="module", params=["Pool", "Executor"])
def kind(request):
    return request.param


@pytest.fixture(scope="module", params=START_METHODS)
def pool(kind, request):
    """One pool for all errors: that it goes on is what is to be proved."""
    with make(kind, request.param) as pool:
        yield pool
    if kind == "Pool":
        pool.join()


@pytest.fixture
def no_leaks(pool):
    """Instead of the one for all tests: the pool stays, and so do its descriptors."""


def begin(pool, func, *args):
    if isinstance(pool, shmarray.Pool):
        return pool.apply_async(func, args).get
    return pool.submit(func, *args).result


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("stage", STAGES)
def test_it_reaches_its_call_and_no_other(pool, kind, stage, name):
    func, arguments = STAGES[stage]
    others = [begin(pool, double, np.full(20_000, float(i))) for i in range(2)]
    failing = begin(pool, func, *arguments(name))
    others += [begin(pool, double, np.full(20_000, float(i))) for i in range(2, 4)]
    expected = ENCODING if (kind, stage) == ("Pool", "pickling the result") else type(ERRORS[name]())
    with pytest.raises(expected, match="said so") as caught:
        failing(LIMIT)
    assert type(caught.value) is expected
    for i, get in enumerate(others):
        assert (get(LIMIT) == 2 * i).all()
    assert_no_box_is_lost(pool)


def assert_no_box_is_lost(pool):
    arena = arena_of(pool)
    wait_until(
        lambda: (
            arena.lend is None
            or sum(len(shelf.full) + len(shelf.empty) for shelf in arena._shelves) == len(arena._boxes)
        ),
        LIMIT,
    )


@pytest.mark.parametrize(("func", "words"), [(raise_unpicklable, "does not pickle"), (raise_unloadable, "needed")])
def test_an_exception_that_cannot_travel_says_so(pool, kind, func, words):
    with pytest.raises(Exception, match=words):
        begin(pool, func, ARRAY)(LIMIT)
    assert (begin(pool, double, ARRAY)(LIMIT) == 2).all()
    assert_no_box_is_lost(pool)


def test_one_that_a_callback_raises_is_reported_and_stops_nothing(pool, kind, monkeypatch, caplog):
    reported = []
    monkeypatch.setattr(threading, "excepthook", lambda hooked: reported.append(str(hooked.exc_value)))

    def callback(_):
        raise ValueError("raised by a callback")

    if kind == "Pool":
        pool.apply_async(double, (ARRAY,), callback=callback).wait(LIMIT)
    else:
        future = pool.submit(double, ARRAY)
        future.add_done_callback(callback)
        assert (future.result(LIMIT) == 2).all()
    assert (begin(pool, double, ARRAY)(LIMIT) == 2).all()
    wait_until(lambda: "raised by a callback" in caplog.text or reported == ["raised by a callback"], LIMIT)


@pytest.mark.parametrize("name", ["ValueError", "SystemExit"])
@pytest.mark.parametrize("method", START_METHODS)
def test_one_in_an_initializer_fails_the_calls_and_names_it(kind, method, name, capfd):
    """The stdlib's Pool starts such workers for ever; its executor breaks, and so does ours."""
    with make(kind, method, initializer=fail, initargs=(name,)) as pool:
        with pytest.raises(shmarray.WorkerDiedError) as caught:
            begin(pool, take)(LIMIT)
        if kind == "Pool":
            assert "said so" in str(caught.value)
            pool.terminate()
            pool.join()
    capfd.readouterr()  # the workers write tracebacks, as the stdlib's do
