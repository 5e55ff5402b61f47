"""require: attach a matching array if it exists, otherwise create it."""

import os

import numpy as np
import pytest

import shmarray
from tests.helpers import raw
from tests.helpers.processes import Child, in_child

pytestmark = pytest.mark.usefixtures("system")


def test_it_creates_and_then_attaches(name):
    a = shmarray.require(name, (2, 3), "i4")
    assert not a.any()
    a[0, 0] = 5
    b = shmarray.require(name, (2, 3), "i4")
    assert b[0, 0] == 5
    assert np.shares_memory(a, b)


@pytest.mark.parametrize(
    ("shape", "dtype", "order"),
    [
        pytest.param((2, 4), "i4", "C", id="shape"),
        pytest.param(6, "i4", "C", id="dimensions"),
        pytest.param((2, 3), "f4", "C", id="dtype"),
        pytest.param((2, 3), ">i4", "C", id="byte-order"),
        pytest.param((2, 3), None, "C", id="default-dtype"),
        pytest.param((2, 3), "i4", "F", id="order"),
    ],
)
def test_a_mismatch_is_refused_and_the_array_left_alone(name, shape, dtype, order):
    a = shmarray.create(name, (2, 3), "<i4")
    a[:] = 1
    with pytest.raises(shmarray.ArrayExistsError, match="shape") as caught:
        shmarray.require(name, shape, dtype, order=order)
    assert caught.value.name == name
    assert a.all()
    assert raw.names(name) == [name]


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (3,), (1, 3), (2, 3)], ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
def test_it_agrees_with_what_it_made_itself(name, shape, order):
    shmarray.require(name, shape, order=order)
    assert shmarray.require(name, shape, order=order).shape == shape


@pytest.mark.parametrize("dtype", [[("a", "i1"), ("b", "f8")], np.dtype([("a", "i1"), ("b", "f8")], align=True)])
def test_structures_agree_with_themselves(name, dtype):
    shmarray.require(name, 3, dtype)
    assert shmarray.require(name, 3, dtype).dtype == np.dtype(dtype)


def test_a_sub_array_dtype_agrees_with_itself(name):
    shmarray.require(name, 3, ("i4", (2,)))
    assert shmarray.require(name, 3, ("i4", (2,))).shape == (3, 2)


def test_it_agrees_with_what_numpy_saved(name):
    raw.put(name, raw.saved(np.arange(3.0), (2, 0)))
    assert shmarray.require(name, 3).tolist() == [0, 1, 2]


def test_what_is_no_array_is_refused_and_left_alone(name):
    raw.put(name, b"something else")
    with pytest.raises(shmarray.ArrayFormatError):
        shmarray.require(name, 3)
    assert raw.get(name) == b"something else"


def test_permissions_matter_when_it_creates(name):
    shmarray.require(name, 3, permissions=0o644)
    assert os.stat(raw.path(name)).st_mode & 0o777 == 0o644


def test_a_bad_request_is_refused_although_the_array_is_there(name):
    shmarray.create(name, 3)
    with pytest.raises(TypeError):
        shmarray.require(name, 3, object)
    with pytest.raises(ValueError, match="negative"):
        shmarray.require(name, -3)
    with pytest.raises(ValueError, match="order"):
        shmarray.require(name, 3, order="K")


def test_a_missing_directory_is_named_in_the_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        shmarray.require(f"file://{tmp_path}/nowhere/a.npy", 3)


def test_a_dangling_link_is_refused_not_waited_for(tmp_path):
    """The name is taken for create, but missing for attach: require must not loop for ever."""
    path = tmp_path / "link.npy"
    path.symlink_to(tmp_path / "nowhere.npy")
    with (
        Child(lambda _: shmarray.require(f"file://{path}", 3).tolist()) as child,
        pytest.raises(OSError, match=r"taken|link|there is no"),
    ):
        child.result(timeout=5)


def test_another_process_requires_the_same(name):
    a = shmarray.require(name, 3)

    def write():
        shmarray.require(name, 3)[0] = 7

    in_child(write)
    assert a[0] == 7
