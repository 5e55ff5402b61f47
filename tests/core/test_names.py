"""Names: a refusal gives the reason and the rule, and nothing is added to a name."""

import errno
import os

import numpy as np
import pytest
from hypothesis import given

import shmarray
from tests.helpers import raw
from tests.helpers.strategies import good_names

REFUSED = [
    pytest.param("", "empty", id="empty"),
    pytest.param("/", "empty", id="only-a-slash"),
    pytest.param("///", "empty", id="only-slashes"),
    pytest.param("shm://", "empty", id="empty-after-prefix"),
    pytest.param("a/b", "slash", id="inner-slash"),
    pytest.param("a/", "slash", id="slash-at-the-end"),
    pytest.param("shm://a/b", "slash", id="inner-slash-after-prefix"),
    pytest.param("/../etc/passwd", "slash", id="upwards"),
    pytest.param(".", "directory", id="dot"),
    pytest.param("..", "directory", id="dot-dot"),
    pytest.param("shm://..", "directory", id="dot-dot-after-prefix"),
    pytest.param("a\0b", "NUL", id="nul"),
    pytest.param("file://a\0b", "NUL", id="nul-in-a-path"),
    pytest.param("x" * 256, "256 bytes", id="too-long"),
    pytest.param("é" * 128, "256 bytes", id="too-long-in-bytes"),
    pytest.param("http://x", "unknown prefix", id="unknown-prefix"),
    pytest.param("SHM://x", "unknown prefix", id="prefix-in-capitals"),
    pytest.param("://x", "unknown prefix", id="empty-prefix"),
    pytest.param("file://", "path", id="file-without-path"),
    pytest.param("a\ud800b", "cannot be a file name", id="lone-surrogate"),
]
CALLS = {
    "create": lambda name: shmarray.create(name, 3),
    "attach": shmarray.attach,
    "require": lambda name: shmarray.require(name, 3),
    "delete": shmarray.delete,
    "lock": lambda name: shmarray.lock(name).__enter__(),
    "scoped": lambda name: shmarray.scoped(3, name=name).__enter__(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(("name", "reason"), REFUSED)
def test_a_bad_name_is_refused_with_the_reason(call, name, reason):
    before = set(os.listdir(raw.SHM))
    with pytest.raises(shmarray.InvalidNameError, match=reason) as caught:
        call(name)

    assert caught.value.errno == errno.EINVAL
    assert isinstance(caught.value, ValueError)
    assert caught.value.name == name
    assert not {entry for entry in set(os.listdir(raw.SHM)) - before if entry.startswith(("x", "a", "é"))}


@pytest.mark.parametrize("name", ["", "a/b", ".", "x" * 256])
def test_the_message_says_the_rule(name):
    with pytest.raises(shmarray.InvalidNameError, match=r"a name has 1 to 255 bytes, without '/' or NUL"):
        shmarray.attach(name)


@pytest.mark.parametrize("call", [CALLS[key] for key in ("create", "attach", "require", "delete")])
@pytest.mark.parametrize("name", [None, 3, b"bytes", 1.5, ["x"], np.array("x")], ids=repr)
def test_a_name_that_is_no_str_is_a_type_error(call, name):
    with pytest.raises(TypeError):
        call(name)


def test_nothing_is_added_to_a_name(system, name):
    shmarray.create(name, 3)
    assert os.path.isfile(f"/dev/shm/{name}")
    shmarray.delete(name)
    assert not os.path.exists(f"/dev/shm/{name}")


@pytest.mark.parametrize("written", ["{}", "shm://{}", "/{}", "shm:///{}"])
def test_all_ways_to_write_a_name_mean_the_same_object(name, written):
    array = shmarray.create(name, 3)
    same = shmarray.attach(written.format(name))
    same[0] = 7
    assert array[0] == 7
    shmarray.delete(written.format(name))
    assert not raw.names(name)


def test_the_longest_name_is_a_name(shm_name):
    longest = shm_name("x").ljust(255, "x")
    shmarray.create(longest, 3)
    assert longest in {info.name for info in shmarray.list()}
    shmarray.delete(longest)


def test_a_path_too_long_for_the_system_is_an_invalid_name(tmp_path):
    with pytest.raises(shmarray.InvalidNameError):
        shmarray.create(f"file://{tmp_path}/{'x' * 256}", 3)


@given(ending=good_names)
def test_any_other_text_names_an_array(shm_name, ending):
    name = shm_name(ending)
    array = shmarray.create(name, data=[1, 2])
    try:
        assert os.path.exists(raw.path(name))
        assert np.shares_memory(shmarray.attach(name), array)
        assert name in {info.name for info in shmarray.list()}
    finally:
        shmarray.delete(name)


def test_a_relative_path_belongs_to_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    array = shmarray.create("file://here.npy", data=[1, 2])
    monkeypatch.chdir("/")
    assert np.load(tmp_path / "here.npy").tolist() == [1, 2]
    # Whatever belongs to the array still works: here, its lock.
    with shmarray.lock(array, timeout=0):
        pass
