"""Many threads that switch very often: what is correct without the GIL is correct with it."""

import os
import pickle
import sys
from threading import Barrier, Thread

import numpy as np
import pytest

import shmarray
from shmarray.core import mapping
from shmarray.core.posix import SparseFile, sparse

THREADS = 8


@pytest.fixture(autouse=True)
def often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def at_once(work, count=THREADS):
    """Run work(number) in threads that start together; raise what any of them raised."""
    barrier = Barrier(count)
    errors = []

    def run(number):
        barrier.wait()
        try:
            work(number)
        except Exception as error:  # noqa: BLE001 - raised again below, whatever it is
            errors.append(error)

    threads = [Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_arrays_are_made_attached_and_deleted(shm_name, monkeypatch):
    """The register of mappings is pruned all the time."""
    monkeypatch.setattr(mapping, "_FEW", 2)
    monkeypatch.setattr(mapping, "_limit", 2)
    names = [shm_name() for _ in range(THREADS)]

    def work(number):
        for turn in range(50):
            array = shmarray.create(names[number], data=np.full(10, turn))
            handle = pickle.dumps(shmarray.SharedHandle(array))
            other = shmarray.attach(names[number])
            shmarray.delete(names[number])
            assert (other == turn).all()
            # The name is deleted: only the mapping of this process leads to the memory.
            assert np.shares_memory(pickle.loads(handle).array, array)

    at_once(work)


def test_a_mapping_that_is_registered_while_others_are_pruned_stays(monkeypatch):
    """The entry is replaced between the check of the old mapping and its removal."""

    class Gone:
        def __call__(self):
            registered["key"] = new

    def new():
        return "alive"

    registered = {"key": Gone()}
    monkeypatch.setattr(mapping, "_live", registered)
    monkeypatch.setattr(mapping, "_limit", 1)
    mapping._remember(new, "another")
    assert registered == {"key": new, "another": new}


def test_one_of_many_makes_an_array(name):
    made = []

    def work(number):
        try:
            shmarray.create(name, data=np.full(100_000, number))
        except shmarray.ArrayExistsError:
            return
        made.append(number)

    at_once(work)
    assert len(made) == 1
    assert (shmarray.attach(name) == made[0]).all()


def test_a_lock_keeps_threads_apart(name):
    array = shmarray.create(name, 1, int)

    def work(_):
        for _ in range(20):
            with shmarray.lock(array):
                array[0] += 1

    at_once(work)
    assert array[0] == 20 * THREADS


def test_a_file_is_closed_once(monkeypatch):
    """A second close would close whatever file has the number by then."""
    closed = []
    true_close = os.close

    def close(fd):
        closed.append(fd)
        true_close(fd)

    monkeypatch.setattr(sparse.os, "close", close)
    for _ in range(50):
        file = SparseFile.create()
        fd = file.fd
        closed.clear()
        at_once(lambda _, file=file: file.close(), 4)
        assert closed.count(fd) == 1
        assert file.fd == -1
