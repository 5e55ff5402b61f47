"""The error of a failed worker names the items of the user's iterable, for every method of both kinds of pool."""

import os
import pickle
import re
import signal
import threading
from fractions import Fraction
from functools import partial

import numpy as np
import pytest

import shmarray
from shmarray import TaskTimeoutError, WorkerDiedError
from tests.pool.tasks import call, make

COUNT, BAD = 100, 57


def misbehave(number, other=None):
    if number == BAD:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == -BAD:
        threading.Event().wait(60)
    return number


def numbers(bad):
    return [bad if number == BAD else number for number in range(COUNT)]


def pairs(bad):
    return [(number, 0) for number in numbers(bad)]


CALLS = {
    "map": (lambda pool, bad: pool.map(misbehave, numbers(bad), 4), range(56, 60)),
    "map, one each": (lambda pool, bad: pool.map(misbehave, numbers(bad), 1), range(57, 58)),
    "map of a generator": (lambda pool, bad: pool.map(misbehave, iter(numbers(bad)), 10), range(50, 60)),
    "starmap": (lambda pool, bad: pool.starmap(misbehave, pairs(bad), 3), range(57, 60)),
    "map_async": (lambda pool, bad: pool.map_async(misbehave, numbers(bad), 30).get(60), range(30, 60)),
    "imap": (lambda pool, bad: list(pool.imap(misbehave, numbers(bad))), range(57, 58)),
    "imap in chunks": (lambda pool, bad: list(pool.imap(misbehave, iter(numbers(bad)), 6)), range(54, 60)),
    "imap_unordered": (lambda pool, bad: list(pool.imap_unordered(misbehave, numbers(bad), 7)), range(56, 63)),
    "imap, buffered": (lambda pool, bad: list(pool.imap(misbehave, numbers(bad), buffersize=5)), range(57, 58)),
    "imap, buffered in chunks": (
        lambda pool, bad: list(pool.imap(misbehave, iter(numbers(bad)), 4, buffersize=8)),
        range(56, 60),
    ),
    "the last chunk, which is short": (lambda pool, bad: pool.map(misbehave, numbers(bad)[:59], 4), range(56, 59)),
    "apply": (lambda pool, bad: pool.apply(misbehave, (bad,)), None),
    "Executor.map": (lambda pool, bad: list(pool.map(misbehave, numbers(bad))), range(57, 58)),
    "Executor.map in chunks": (lambda pool, bad: list(pool.map(misbehave, numbers(bad), chunksize=4)), range(56, 60)),
    "Executor.map of two": (
        lambda pool, bad: list(pool.map(misbehave, numbers(bad), iter(numbers(bad)), chunksize=5)),
        range(55, 60),
    ),
    "submit": (lambda pool, bad: pool.submit(misbehave, bad).result(60), None),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("bad", "kind"), [(BAD, WorkerDiedError), (-BAD, TaskTimeoutError)])
def test_the_items_that_a_lost_task_had(name, bad, kind):
    call, items = CALLS[name]
    door = "Executor" if name.startswith(("Executor", "submit")) else "Pool"
    options = {"task_timeout": 0.05 if items is None or len(items) > 5 else 0.2} if bad < 0 else {}
    pool = make(door, "fork", **options)
    with pool, pytest.raises(kind) as caught:
        call(pool, bad)
    if door == "Pool":
        pool.join()
    error = caught.value
    assert error.items == items
    assert error.index == (items[0] if items else None)
    assert "misbehave" in error.task
    if items and len(items) > 1:
        assert f"items {items[0]} to {items[-1]} of the map over" in str(error)
    elif items:
        assert f"item {items[0]} of the map over" in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (again.items, again.index, again.task, again.pid, str(again)) == (
        error.items,
        error.index,
        error.task,
        error.pid,
        str(error),
    )


class UnkeptError(Exception):
    """Cannot be unpickled: its constructor requires two arguments, and its args contain one."""

    def __init__(self, what, where):
        super().__init__(f"{what} at {where}")


def raise_unkept():
    raise UnkeptError("broken", "the end")


def nested_pool(kind):
    make(kind, "fork").__enter__()


def test_a_partial_is_named_by_its_function(kind):
    with make(kind, "fork") as pool, pytest.raises(WorkerDiedError, match=r"a partial of .*misbehave"):
        call(pool, partial(misbehave, BAD))


def test_an_exception_that_does_not_unpickle_says_what_its_class_lacks(kind):
    with make(kind, "fork") as pool, pytest.raises(TypeError, match="UnkeptError") as caught:
        call(pool, raise_unkept)
    assert "__reduce__" in "".join(caught.value.__notes__)
    assert "broken at the end" in str(caught.value.__cause__)


def test_a_pool_in_a_task_of_a_pool_is_refused_with_the_remedy(kind):
    with make("Pool", "fork") as pool, pytest.raises(AssertionError, match="use a ProcessPoolExecutor"):
        pool.apply(nested_pool, (kind,))


def test_the_context_may_be_the_name_of_a_start_method():
    with shmarray.Pool(1, context="fork") as pool:
        assert pool.apply(abs, (-1,)) == 1
    with shmarray.ProcessPoolExecutor(1, "fork") as executor:
        assert executor.submit(abs, -1).result() == 1
    with pytest.raises(ValueError, match="spoon"):
        shmarray.Pool(1, context="spoon")
    with pytest.raises(TypeError, match=r"the context must be .*, not 5"):
        shmarray.ProcessPoolExecutor(1, 5)


REFUSED = {
    "processes": [10**30, 0, -1, 2.5, "2"],
    "maxtasksperchild": [0, 2.5, "2"],
    "tasks_ahead": [0, 2.5, "2", True],
    "task_timeout": [0, -1, -(10**400), float("nan"), "2", True],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in REFUSED for value in REFUSED[name]])
def test_a_bad_number_is_named_before_anything_is_created(name, value, monkeypatch):
    monkeypatch.setattr(os, "pipe", None)
    with pytest.raises((TypeError, ValueError), match=f"^{name} must .*not {re.escape(repr(value))}"):
        shmarray.Pool(**{name: value})
    name = {"processes": "max_workers", "maxtasksperchild": "max_tasks_per_child"}.get(name, name)
    if name != "tasks_ahead":
        with pytest.raises((TypeError, ValueError), match=f"^{name} must .*not {re.escape(repr(value))}"):
            shmarray.ProcessPoolExecutor(**{name: value})


class Two:
    """A number for `operator.index`, and for nothing else."""

    def __index__(self):
        return 2


def test_numbers_of_other_types_are_accepted():
    two = np.int64(2)
    limit = Fraction(1, 8)
    with shmarray.Pool(two, context="fork", tasks_ahead=two) as pool:
        assert pool.map(abs, range(-9, 0), two) == list(range(9, 0, -1))
        assert list(pool.imap(abs, range(-9, 0), two, buffersize=two)) == list(range(9, 0, -1))
    with (
        shmarray.Pool(1, context="fork", task_timeout=limit) as pool,
        pytest.raises(TaskTimeoutError, match=r"0\.125 s"),
    ):
        pool.apply(misbehave, (-BAD,))
    with shmarray.ProcessPoolExecutor(two, "spawn", max_tasks_per_child=Two(), task_timeout=10**400) as executor:
        assert list(executor.map(abs, range(-9, 0), chunksize=two, buffersize=two)) == list(range(9, 0, -1))
    with shmarray.Pool(True, context="fork") as pool:  # as in the stdlib
        assert pool.apply(abs, (-1,)) == 1


SIZED = {
    "Pool.map": lambda pool, size: pool.map(abs, [-1, -2], size),
    "Pool.starmap": lambda pool, size: pool.starmap(abs, [(-1,), (-2,)], size),
    "Pool.map_async": lambda pool, size: pool.map_async(abs, [-1, -2], size).get(60),
    "Pool.imap": lambda pool, size: list(pool.imap(abs, [-1, -2], size)),
    "Pool.imap_unordered": lambda pool, size: sorted(pool.imap_unordered(abs, [-1, -2], size)),
    "Pool.imap, buffered": lambda pool, size: list(pool.imap(abs, [-1, -2], size, buffersize=4)),
    "Executor.map": lambda pool, size: list(pool.map(abs, [-1, -2], chunksize=size)),
    "Pool.imap, buffersize": lambda pool, size: list(pool.imap(abs, [-1, -2], buffersize=size)),
    "Executor.map, buffersize": lambda pool, size: list(pool.map(abs, [-1, -2], buffersize=size)),
}


@pytest.mark.parametrize("name", SIZED)
def test_a_bad_size_is_named(name):
    """Regression: with a chunk size of 0, map returned None; with NaN, it never ended."""
    argument = "buffersize" if name.endswith("buffersize") else "chunksize"
    with make(name.split(".")[0], "fork") as pool:
        for size in (0, -1, 2.5, float("nan"), "2"):
            with pytest.raises((TypeError, ValueError), match=f"^{argument} must .*not {size!r}"):
                SIZED[name](pool, size)
        assert SIZED[name](pool, 10**30) == [1, 2]


@pytest.mark.parametrize("door", [shmarray.Pool, shmarray.ProcessPoolExecutor])
def test_a_wrong_option_is_reported_once(door):
    """Regression: an exception in __del__ was printed too."""
    with pytest.raises(
        TypeError, match=rf"^{door.__name__}\.__init__\(\) got an unexpected keyword argument 'workers'"
    ):
        door(workers=2)


@pytest.mark.parametrize("name", ["map", "starmap", "imap", "imap_unordered"])
def test_the_error_for_a_wrong_argument_names_the_method_that_was_called(name):
    method = getattr(shmarray.Pool, name)
    assert pickle.loads(pickle.dumps(method)) is method
    with make("Pool", "fork") as pool:
        with pytest.raises(TypeError, match=rf"^Pool\.{name}\(\) got an unexpected keyword argument 'chunk'"):
            getattr(pool, name)(abs, [(-1,)], chunk=2)
        if "imap" not in name:
            with pytest.raises(TypeError, match=rf"^Pool\.{name}\(\) takes no buffersize, .*: use Pool\.imap\(\)"):
                getattr(pool, name)(abs, [(-1,)], buffersize=2)
