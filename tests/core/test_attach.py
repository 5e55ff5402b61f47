"""attach: access to the same memory in three modes."""

import os

import numpy as np
import pytest

import shmarray
from tests.helpers import raw
from tests.helpers.processes import in_child

pytestmark = pytest.mark.usefixtures("system")


def test_created_and_attached_arrays_share_memory(name):
    a = shmarray.create(name, 3)
    b = shmarray.attach(name)
    b[1] = 5
    assert a[1] == 5
    assert type(b) is np.ndarray
    assert np.shares_memory(a, b)


def test_another_process_has_the_same_memory(name):
    a = shmarray.create(name, 3)

    def write():
        shmarray.attach(name)[1] = 5

    in_child(write)
    assert a[1] == 5


def test_attaching_a_missing_array_is_an_error(name):
    with pytest.raises(shmarray.ArrayNotFoundError, match=name) as caught:
        shmarray.attach(name)
    assert caught.value.name == caught.value.filename == name
    assert isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize("mode", ["w+", "rw", "", "R", "copyonwrite"])
def test_an_unknown_mode_is_a_value_error(name, mode):
    shmarray.create(name, 3)
    with pytest.raises(ValueError, match="mode"):
        shmarray.attach(name, mode)


def test_read_only_stays_read_only(name):
    a = shmarray.create(name, data=[1, 2])
    b = shmarray.attach(name, "r")
    assert not b.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        b[0] = 5
    with pytest.raises(ValueError, match="WRITEABLE"):
        b.flags.writeable = True
    a[0] = 7
    assert b[0] == 7


def test_a_private_copy_is_written_here_only(name):
    a = shmarray.create(name, data=np.zeros(3000))
    c = shmarray.attach(name, "c")
    d = shmarray.attach(name, "c")
    c[0] = 5
    assert a[0] == d[0] == 0
    a[2999] = 6  # on a page that was not written here
    assert c[2999] == d[2999] == 6


def test_writeable_can_be_turned_off_and_on(name):
    shmarray.create(name, 3)
    a = shmarray.attach(name)
    a.flags.writeable = False
    a.flags.writeable = True
    a[0] = 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_other_users_arrays_raise_permission_error(name):
    shmarray.create(name, 3)

    def as_nobody(mode):
        os.setuid(65534)
        shmarray.attach(name, mode)

    for mode in ("r+", "r", "c"):
        with pytest.raises(PermissionError) as caught:
            in_child(as_nobody, mode)
        assert isinstance(caught.value, shmarray.ArrayPermissionError)
        assert ("mode='r'" in str(caught.value)) == (mode == "r+")
        assert caught.value.filename == name


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_other_users_attach_what_they_may_read(name):
    shmarray.create(name, data=[1, 2], permissions=0o644)

    def as_nobody():
        os.setuid(65534)
        private = shmarray.attach(name, "c")
        private[0] = 9
        with pytest.raises(shmarray.ArrayPermissionError, match="mode='r'"):
            shmarray.attach(name)
        with pytest.raises(shmarray.ArrayPermissionError, match="mode='r'"):
            shmarray.require(name, 2, int)
        with pytest.raises(shmarray.ArrayPermissionError, match="belongs to another user"):
            shmarray.delete(name)  # /dev/shm has the sticky bit
        return shmarray.attach(name, "r").tolist()

    assert in_child(as_nobody) == [1, 2]
    assert raw.names(name) == [name]


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("kind", ["shm", "file"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_numpy_wrote_is_attached(name, tmp_path, version, kind, order):
    dtype = [("größe" if version == (3, 0) else "a", "f8"), ("b", "i2")]
    expected = np.zeros((3, 4), dtype, order)
    expected["b"] = np.arange(12).reshape(3, 4)
    if kind == "shm":
        raw.put(name, raw.saved(expected, version))
    else:
        name = f"file://{tmp_path}/a.npy"
        (tmp_path / "a.npy").write_bytes(raw.saved(expected, version))

    array = shmarray.attach(name)
    np.testing.assert_array_equal(array, expected, strict=True)
    assert array.flags.f_contiguous == (order == "F")
    array["b"][0, 0] = 77
    assert shmarray.attach(name, "r")["b"][0, 0] == 77


def test_files_that_other_writers_pad_differently_are_attached(name):
    text = "{'descr': '<i4', 'fortran_order': False, 'shape': (2,)}"
    for padding in (0, 3, 30):
        raw.put(name, raw.framed(text + " " * padding + "\n") + np.array([5, 6], "<i4").tobytes())
        assert shmarray.attach(name).tolist() == [5, 6]
        os.unlink(raw.path(name))


def test_bytes_after_the_data_do_not_matter(name):
    raw.put(name, raw.saved(np.arange(3)) + b"trailing")
    assert shmarray.attach(name).tolist() == [0, 1, 2]


def test_a_reused_name_gives_the_new_array(name):
    a = shmarray.create(name, data=[1, 2])
    shmarray.delete(name)
    b = shmarray.create(name, data=[3, 4, 5])
    assert shmarray.attach(name).tolist() == [3, 4, 5]
    assert a.tolist() == [1, 2]
    assert np.shares_memory(shmarray.attach(name), b)


def test_renamed_fields_of_one_array_do_not_affect_the_next(name):
    shmarray.create(name, 3, [("a", "i4"), ("b", "i4")])
    first = shmarray.attach(name)
    first.dtype.names = ("u", "v")
    assert shmarray.attach(name).dtype.names == ("a", "b")


def test_dtypes_that_compare_equal_and_differ_are_told_apart(name):
    """The cache of headers must not confuse them."""
    for align in (False, True, False):
        dtype = np.dtype([("a", "i4"), ("b", "i4")], align=align)
        shmarray.create(name, 3, dtype)
        assert shmarray.attach(name).dtype.isalignedstruct == align
        shmarray.delete(name)
    shmarray.create(name, 3, "f8")
    shmarray.delete(name)
    with pytest.raises(TypeError):
        shmarray.create(name, 3, np.dtype("f8", metadata={"unit": "m"}))
