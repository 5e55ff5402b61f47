"""create leaves no partial array, whenever it is killed."""

import os
import time

import numpy as np
import pytest

import shmarray
from tests.helpers import raw
from tests.helpers.processes import Child

MB = 1 << 20
KILLS = 6
MAKERS = {
    "zeros": lambda name: shmarray.create(name, 400 * MB, "u1"),
    "data": lambda name: shmarray.create(name, data=_SOURCE),
    "strided": lambda name: shmarray.create(name, data=_SOURCE[::2]),
    "required": lambda name: shmarray.require(name, 200 * MB, "u1"),
}
_SOURCE = np.ones(96 * MB, "u1")


def make(channel, maker, name):
    channel.recv()
    start = time.monotonic()
    array = maker(name)
    return time.monotonic() - start, array.nbytes


def kill_after(delay, maker, name):
    """Kill the maker after a delay in seconds, whatever it is doing."""
    with Child(make, maker, name) as child:
        child.tell()
        deadline = time.monotonic() + delay
        while time.monotonic() < deadline:
            time.sleep(0.0005)
        child.kill()


@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
def test_a_killed_create_leaves_all_or_nothing(shm_name, maker):
    name = shm_name()
    with Child(make, maker, name) as child:
        child.tell()
        duration, size = child.result()
    shmarray.delete(name)
    for number in range(KILLS):
        kill_after(duration * (number + 0.5) / KILLS, maker, name)
        if raw.names(name):
            array = shmarray.attach(name)
            assert array.nbytes == size
            assert array[-1] == array[0]
            shmarray.delete(name)


@pytest.mark.parametrize("kind", ["shm", "file"])
def test_the_name_appears_only_when_all_is_there(shm_name, tmp_path, kind):
    """Check repeatedly while the array is being created."""
    bare = shm_name()
    name, path = (bare, raw.path(bare)) if kind == "shm" else (f"file://{tmp_path}/a.npy", f"{tmp_path}/a.npy")
    with Child(make, lambda name: shmarray.create(name, data=_SOURCE), name) as child:
        child.tell()
        looks = 0
        while not os.path.exists(path):
            looks += 1
            assert set(os.listdir(tmp_path)) <= {"a.npy"}
            assert os.path.exists(path) or not child.channel.poll() or os.path.exists(path)
        assert os.path.getsize(path) >= _SOURCE.nbytes
        loaded = np.load(path, mmap_mode="r")
        assert loaded.shape == _SOURCE.shape
        assert loaded[::4096].all()
        child.result()
    assert looks
    shmarray.delete(name)


def test_a_killed_process_leaves_its_arrays_intact(name):
    array = shmarray.create(name, data=[1, 2])

    def die(channel):
        mine = shmarray.attach(name)
        mine[0] = 7
        channel.send("written")
        channel.recv()

    with Child(die) as child:
        child.receive()
        child.kill()
    assert array.tolist() == [7, 2]
    assert raw.names(name) == [name]
