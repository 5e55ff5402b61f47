"""list: everything that exists, and only arrays."""

import errno
import os
import socket

import numpy as np
import pytest

import shmarray
from tests.helpers import raw
from tests.helpers.processes import Child, in_child


def listed(prefix):
    return [info for info in shmarray.list() if info.name.startswith(prefix)]


def test_it_reports_everything_about_an_array(name):
    shmarray.create(name, (3, 4), ">i2", order="F", permissions=0o640)
    (info,) = listed(name)
    assert info == shmarray.ArrayInfo(name, np.dtype(">i2"), (3, 4), "F", 24, 0o640, os.geteuid())


def test_it_is_sorted_by_name(shm_name):
    names = [shm_name(ending) for ending in "cab"]
    for name in names:
        shmarray.create(name, 1)
    found = [info.name for info in shmarray.list()]
    assert found == sorted(found)
    assert set(names) <= set(found)


def test_it_omits_deleted_arrays(name):
    array = shmarray.create(name, 1)
    shmarray.delete(name)
    assert not listed(name)
    del array


def test_it_omits_files(tmp_path):
    shmarray.create(f"file://{tmp_path}/a.npy", 1)
    assert not [info for info in shmarray.list() if "a.npy" in info.name]


def test_it_skips_everything_that_is_not_an_array(shm_name):
    prefix = shm_name("-")
    raw.put(prefix + "text", b"text")
    raw.put(prefix + "empty", b"")
    raw.put(prefix + "zeros", b"\0" * 500)
    raw.put(prefix + "magic", raw.MAGIC)
    raw.put(prefix + "lying", raw.header(shape="(9999999,)"))
    raw.put(prefix + "pickle", raw.header(descr="'|O'") + b"x" * 100)
    raw.put(prefix + "unfinished", b"\x93shmarray: being made\n")
    os.mkdir(raw.path(prefix + "directory"))
    os.symlink("/nowhere", raw.path(prefix + "dangling"))
    os.symlink(raw.path(prefix + "array"), raw.path(prefix + "link"))
    os.mkfifo(raw.path(prefix + "fifo"))
    shmarray.create(prefix + "array", 3)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(raw.path(prefix + "socket"))
        try:
            assert [info.name for info in listed(prefix)] == [prefix + "array"]
        finally:
            for name in raw.names(prefix):
                path = raw.path(name)
                os.rmdir(path) if name.endswith("directory") else os.unlink(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_it_skips_unreadable_files(shm_name):
    secret, open_ = shm_name("-secret"), shm_name("-open")
    shmarray.create(secret, 3)
    shmarray.create(open_, 3, permissions=0o644)

    def as_nobody():
        os.setuid(65534)
        return [info.name for info in shmarray.list()]

    found = in_child(as_nobody)
    assert open_ in found
    assert secret not in found


def test_a_name_that_is_no_text_is_listed_and_can_be_attached(shm_name):
    name = shm_name() + os.fsdecode(b"\xff\xfe")
    raw.put(name, raw.saved(np.arange(3)))
    try:
        (info,) = listed(name)
        assert shmarray.attach(info.name).tolist() == [0, 1, 2]
    finally:
        shmarray.delete(name)


def test_it_never_raises_while_others_create_and_delete(shm_name):
    prefix = shm_name("-")

    def churn(channel):
        while not channel.poll():
            for number in range(20):
                shmarray.create(f"{prefix}{number}", 3)
            for number in range(20):
                shmarray.delete(f"{prefix}{number}")

    with Child(churn) as child:
        for _ in range(100):
            assert all(info.shape == (3,) for info in listed(prefix))
        child.tell()
        child.result()


def test_a_system_that_cannot_enumerate_says_so(portable, name):
    shmarray.create(name, 3)
    with pytest.raises(OSError, match="cannot list") as caught:
        shmarray.list()
    assert caught.value.errno == errno.ENOTSUP
    shmarray.delete(name)
