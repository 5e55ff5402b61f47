"""An error of a worker says which items of the user's iterable it had, by every method of both doors."""

import os
import pickle
import signal
import threading

import pytest

from shmarray import TaskTimeoutError, WorkerDiedError
from tests.pool.tasks import make

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
