"""Many processes use one name at once, and each sees only documented results."""

import os
import threading
from collections import Counter
from multiprocessing.connection import wait

import numpy as np
import pytest

import shmarray
from tests.helpers import raw
from tests.helpers.processes import Child

pytestmark = pytest.mark.usefixtures("system")

ROUNDS = 30
RACERS = 4


def race(function, *args, racers=RACERS, rounds=ROUNDS):
    """Call ``function(racer, *args)`` in several processes at once, repeatedly; return their results by round.

    A spinning barrier in shared memory starts them closer together than a pipe could.
    """
    gate = f"t{os.getpid()}-gate"
    barrier = shmarray.create(gate, racers, "i8")
    try:
        children = [Child(_racer, gate, number, rounds, function, args) for number in range(racers)]
        try:
            _await(children)
            answers = [child.result() for child in children]
        finally:
            for child in children:
                child.__exit__()
    finally:
        shmarray.delete(gate)
        del barrier
    return list(zip(*answers, strict=True))


def _await(children):
    """Wait until all have answered or one has failed, because the others would then wait for it for ever."""
    waiting = {child.channel: child for child in children}
    while waiting:
        ready = wait(waiting, 30)
        assert ready, "the racers sent nothing"
        for channel in ready:
            waiting.pop(channel).peek()


def _racer(_, gate, number, rounds, function, args):
    barrier = shmarray.attach(gate)
    outcomes = []
    for current in range(1, rounds + 1):
        _meet(barrier, number, 2 * current - 1)
        outcomes.append(function(number, current, *args))
        _meet(barrier, number, 2 * current)
    return outcomes


def _meet(barrier, number, step):
    barrier[number] = step
    while barrier.min() < step:
        os.sched_yield()


def create_once(number, current, prefix):
    try:
        shmarray.create(f"{prefix}{current}", data=np.full(1000, number))
    except shmarray.ArrayExistsError:
        return "taken"
    return "created"


def test_one_of_many_creators_succeeds(shm_name):
    prefix = shm_name("-")
    try:
        for current, outcomes in enumerate(race(create_once, prefix), 1):
            assert Counter(outcomes) == {"created": 1, "taken": RACERS - 1}
            assert set(shmarray.attach(f"{prefix}{current}")) == {outcomes.index("created")}
    finally:
        for name in raw.names(prefix):
            shmarray.delete(name)


def require_and_count(_, current, prefix):
    array = shmarray.require(f"{prefix}{current}", 10)
    with shmarray.lock(array):
        array[3] += 1
    return array.shape


def test_many_calls_of_require_give_the_same_memory(shm_name):
    prefix = shm_name("-")
    try:
        for current, outcomes in enumerate(race(require_and_count, prefix), 1):
            assert set(outcomes) == {(10,)}
            assert shmarray.attach(f"{prefix}{current}").tolist() == [0, 0, 0, RACERS, 0, 0, 0, 0, 0, 0]
    finally:
        for name in raw.names(prefix):
            shmarray.delete(name)


def attach_while_created(number, _, name):
    """Racer 0 creates; the others attach as soon as they can, and must see the complete array."""
    if number == 0:
        shmarray.create(name, data=np.full(50_000, 7))
        return "whole"
    while True:
        try:
            array = shmarray.attach(name)
        except shmarray.ArrayNotFoundError:
            continue
        return "whole" if array.shape == (50_000,) and (array == 7).all() else "half"


def test_attach_during_create_sees_the_complete_array(shm_name):
    for _ in range(10):
        name = shm_name()
        (outcomes,) = race(attach_while_created, name, rounds=1)
        assert set(outcomes) == {"whole"}
        shmarray.delete(name)


def delete_once(_, current, prefix):
    try:
        shmarray.delete(f"{prefix}{current}")
    except shmarray.ArrayNotFoundError:
        return "gone"
    return "deleted"


def test_one_of_many_deleters_succeeds(shm_name):
    prefix = shm_name("-")
    for current in range(1, ROUNDS + 1):
        shmarray.create(f"{prefix}{current}", 3)
    for outcomes in race(delete_once, prefix):
        assert Counter(outcomes) == {"deleted": 1, "gone": RACERS - 1}
    assert not raw.names(prefix)


def anything(number, current, name):
    """Make one of four calls, chosen by racer and round, and return its outcome."""
    try:
        match (number + current) % 4:
            case 0:
                shmarray.create(name, data=np.full(3000, 5))
                return "created"
            case 1:
                array = shmarray.attach(name)
                return "attached" if array.shape == (3000,) else f"attached {array.shape}"
            case 2:
                return "required" if shmarray.require(name, 3000, int).shape == (3000,) else "required another"
            case _:
                shmarray.delete(name)
                return "deleted"
    except (shmarray.ArrayExistsError, shmarray.ArrayNotFoundError) as error:
        return type(error).__name__


def test_concurrent_calls_have_only_documented_outcomes(name):
    outcomes = Counter(outcome for answers in race(anything, name, rounds=100) for outcome in answers)
    assert set(outcomes) <= {
        "created",
        "attached",
        "required",
        "deleted",
        "ArrayExistsError",
        "ArrayNotFoundError",
    }
    made = outcomes["created"] + outcomes["required"]
    assert outcomes["deleted"] <= made
    for left in raw.names(name):
        shmarray.delete(left)


def scope_and_remake(number, current, name):
    """Use scopes under one name while another process deletes whatever exists under it."""
    try:
        with shmarray.scoped(3, name=name) as array:
            array[0] = number
            if current % 2:
                shmarray.delete(name)
            return "scoped"
    except (shmarray.ArrayExistsError, shmarray.ArrayNotFoundError) as error:
        return type(error).__name__


def test_scopes_that_race_leave_nothing(name):
    outcomes = Counter(outcome for answers in race(scope_and_remake, name) for outcome in answers)
    assert set(outcomes) <= {"scoped", "ArrayExistsError", "ArrayNotFoundError"}
    assert outcomes["scoped"]
    assert not raw.names(name)


def test_threads_race_as_processes_do(name):
    outcomes = []
    start = threading.Barrier(6)

    def work():
        start.wait()
        try:
            shmarray.create(name, 3)
        except shmarray.ArrayExistsError:
            outcomes.append("taken")
        else:
            outcomes.append("created")

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(outcomes) == {"created": 1, "taken": 5}
