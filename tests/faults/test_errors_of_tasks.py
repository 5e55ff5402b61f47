"""Errors in the user's code, wherever it runs: each reaches its call, other calls continue, and no block is lost."""

import gc
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

import shmarray
from shmarray.pool.arrays import pickling
from tests.faults import deaths, errors
from tests.faults.errors import BIG, KINDS, RaisesWhen
from tests.helpers.processes import wait_until
from tests.pool.tasks import START_METHODS, all_blocks_are_free, call, make, start

LIMIT = 20

# Where the error is raised, and a function that returns the call for a kind of error.
PLACES = {
    "a task": lambda kind: (errors.raise_it, kind, np.ones(BIG)),
    "pickling an argument": lambda kind: (deaths.take, np.ones(BIG), RaisesWhen("pickled", kind)),
    "unpickling an argument": lambda kind: (deaths.take, np.ones(BIG), RaisesWhen("unpickled", kind)),
    "pickling a result": lambda kind: (errors.give_what_raises, "pickled", kind, np.ones(BIG)),
    "unpickling a result": lambda kind: (errors.give_what_raises, "unpickled", kind, np.ones(BIG)),
}
# Errors that cannot be sent themselves: the task, and words of the error that arrives instead.
UNSENDABLE = {errors.raise_two: "second", errors.raise_unpicklable: "does not pickle"}


@pytest.mark.parametrize("method", START_METHODS)
def test_every_error_reaches_its_call_and_no_other(kind, method):
    pool = make(kind, method)
    with pool:
        for place, prepared in PLACES.items():
            for name, error in KINDS.items():
                other = start(pool, deaths.double, np.ones(BIG))
                expected = error if (kind, place) != ("Pool", "pickling a result") else Exception
                with pytest.raises(expected, match="told to"):
                    start(pool, *prepared(name))(LIMIT)
                assert (other(LIMIT) == 2).all(), place
        for task, words in UNSENDABLE.items():
            with pytest.raises(Exception, match=words):
                call(pool, task, np.ones(BIG))
        assert (call(pool, deaths.double, np.ones(BIG)) == 2).all()
        del other
        wait_until(lambda: all_blocks_are_free(pool))
    if kind == "Pool":
        pool.join()


@pytest.mark.parametrize("name", KINDS)
def test_an_error_of_the_callers_iterable_reaches_the_caller_and_the_pool_goes_on(name):
    with make("Pool", "fork") as pool:
        with pytest.raises(KINDS[name]):
            list(pool.imap(abs, errors.raising_generator(name, 5)))
        with pytest.raises(KINDS[name]):
            pool.map(abs, errors.raising_generator(name, 5))
        assert pool.map(abs, [-1]) == [1]
    pool.join()


@pytest.mark.parametrize("error", ["ValueError", "a chain"])
def test_a_result_that_does_not_unpickle_gives_its_block_back_without_the_garbage_collector(kind, error):
    with make(kind, "fork", 1) as pool:
        gc.disable()
        try:
            with pytest.raises(ValueError, match="told to"):
                call(pool, errors.give_what_raises, "unpickled", error, np.ones(10 * BIG))
            wait_until(lambda: all_blocks_are_free(pool))
        finally:
            gc.enable()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("name", KINDS)
def test_an_error_of_a_callback_stops_nothing(name, caplog):
    """The stdlib logs errors in callbacks of futures; those of a Pool go to threading.excepthook."""
    for kind in ("Pool", "Executor"):
        raised = threading.Event()

        def callback(_, raised=raised):
            raised.set()
            raise KINDS[name]("of a callback")

        pool = make(kind, "fork")
        with pool:
            if kind == "Pool":
                pool.apply_async(abs, (-1,), callback=callback)
                pool.apply_async(errors.raise_it, (name,), error_callback=callback)
            else:
                with TemporaryDirectory() as place:
                    pool.submit(deaths.wait_for, f"{place}/go").add_done_callback(callback)
                    Path(place, "go").touch()  # if the file existed earlier, the callback would run in this thread
                    assert raised.wait(LIMIT)
            assert raised.wait(LIMIT)
            assert call(pool, abs, -2) == 2
        if kind == "Pool":
            pool.join()
    caplog.clear()  # the records hold the traceback, which holds the executor


@pytest.mark.parametrize("name", KINDS)
def test_an_error_of_an_initializer_reaches_the_calls(kind, name):
    pool = make(kind, "fork", initializer=errors.arm_and_raise, initargs=(name,))
    with pool:
        with pytest.raises(shmarray.WorkerDiedError) as caught:
            call(pool, abs, -1)
        if kind == "Pool":
            assert "told to" in str(caught.value)
    if kind == "Pool":
        pool.join()


def test_an_error_of_pickling_is_not_its_own_cause():
    """Programs that follow the causes, like tblib for distributed, would never end."""
    with pytest.raises(TypeError, match="does not pickle") as caught:
        pickling.dumps(errors.UnpicklableError())
    assert caught.value.__cause__ is None


def test_the_error_names_what_cannot_be_sent():
    with (
        make("Executor", "fork", 1) as pool,
        pytest.raises(RuntimeError, match="cannot be sent: TypeError: this error"),
    ):
        call(pool, errors.raise_what_never_pickles)
