"""create: the arrays that it makes, their sources, and the requests that it refuses before anything exists."""

import operator
import os
import signal
import stat

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy._core._rational_tests import rational

import shmarray
from shmarray.core import copying
from tests.helpers import raw
from tests.helpers.processes import in_child
from tests.helpers.strategies import layouts, same_dtype

pytestmark = pytest.mark.usefixtures("system")


def test_a_shape_alone_gives_zeros_of_float64(name):
    array = shmarray.create(name, 10)
    assert (array.shape, array.dtype, array.tolist()) == ((10,), np.dtype(float), [0.0] * 10)
    assert type(array) is np.ndarray
    assert array.flags.writeable
    assert array.flags.aligned


@pytest.mark.parametrize(
    "shape", [(), (0,), (3,), (2, 0, 3), (2, 3), (1,) * 64, (2,) * 10, [2, 3], np.int64(3), np.array([2, 3])], ids=str
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_any_shape_that_numpy_has(name, shape, order):
    expected = np.zeros(shape, "i2", order)
    array = shmarray.create(name, shape, "i2", order=order)
    again = shmarray.attach(name)

    assert array.shape == again.shape == expected.shape
    assert array.strides == again.strides
    assert array.strides == expected.strides or not array.size  # numpy's releases differ for empty arrays
    np.testing.assert_array_equal(again, expected)


@pytest.mark.parametrize(
    ("shape", "error", "reason"),
    [
        pytest.param((1,) * 65, ValueError, "65 dimensions", id="65-dimensions"),
        pytest.param(-1, ValueError, "negative", id="negative"),
        pytest.param((3, -2), ValueError, "negative", id="negative-inside"),
        pytest.param((0, -2), ValueError, "negative", id="negative-beside-zero"),
        pytest.param(2**63, ValueError, "too large", id="overflow"),
        pytest.param((2**32, 2**32), ValueError, "too large", id="overflow-of-the-product"),
        pytest.param((0, 2**62, 2**62), ValueError, "too large", id="overflow-beside-zero"),
        pytest.param(2**61, ValueError, "too large", id="overflow-of-the-bytes"),
        pytest.param(10**30, ValueError, "too large", id="giant"),
        pytest.param(3.0, TypeError, "ints", id="float"),
        pytest.param((3, 2.0), TypeError, "ints", id="float-inside"),
        pytest.param("33", TypeError, "ints", id="str"),
        pytest.param((2, None), TypeError, "ints", id="none-inside"),
        pytest.param(((2, 3),), TypeError, "ints", id="nested"),
    ],
)
def test_an_impossible_shape_is_refused(name, shape, error, reason):
    with pytest.raises(error, match=reason):
        shmarray.create(name, shape)
    assert not raw.names(name)


def test_a_bool_is_a_length_as_for_any_index(name):
    shmarray.create(name, (True, 3))
    assert shmarray.attach(name).shape == (1, 3)


def test_a_last_dimension_of_a_sub_array_dtype_joins_the_shape(name):
    array = shmarray.create(name, 3, ("i4", (2,)))
    assert (array.shape, array.dtype) == ((3, 2), np.dtype("i4"))
    assert shmarray.attach(name).shape == (3, 2)


def test_neither_shape_nor_data_is_a_type_error(name):
    with pytest.raises(TypeError, match="shape"):
        shmarray.create(name)


@pytest.mark.parametrize("order", ["A", "c", None, 1])
def test_an_unknown_order_is_a_value_error(name, order):
    with pytest.raises(ValueError, match="order"):
        shmarray.create(name, 3, order=order)


# --- dtypes ---------------------------------------------------------------------------

OVERLAPPING = np.dtype({"names": ["a", "b"], "formats": ["i4", "i4"], "offsets": [0, 2]})
OUT_OF_ORDER = np.dtype({"names": ["a", "b"], "formats": ["i4", "i4"], "offsets": [4, 0]})
WITH_METADATA = np.dtype("f8", metadata={"unit": "m"})
REFUSED = {
    "object": object,
    "object-field": [("a", "i4"), ("b", object)],
    "object-deep-inside": [("a", [("b", [("c", object, (2,))])])],
    "StringDType": np.dtypes.StringDType(),
    "StringDType-with-na": np.dtypes.StringDType(na_object=None),
    "extension": np.dtype(rational),
    "extension-field": [("a", rational)],
    "metadata": WITH_METADATA,
    "metadata-of-a-field": [("a", WITH_METADATA)],
    "metadata-deep-inside": [("a", [("b", WITH_METADATA, (2,))])],
    "metadata-of-the-structure": np.dtype([("a", "i4")], metadata={"unit": "m"}),
    "record": np.dtype((np.record, [("a", "i4")])),
    "record-inside": [("a", np.dtype((np.record, [("b", "i4")])))],
    "overlapping": OVERLAPPING,
    "overlapping-inside": [("a", OVERLAPPING)],
    "out-of-order": OUT_OF_ORDER,
    "str-without-length": str,
    "bytes-without-length": bytes,
    "header-too-long": [(f"field number {number}", "f8") for number in range(600)],
    "no-dtype": "nonsense",
}


@pytest.mark.parametrize("dtype", REFUSED.values(), ids=REFUSED)
def test_a_dtype_that_would_not_come_back_is_a_type_error_and_nothing_exists(name, dtype):
    with pytest.raises(TypeError):
        shmarray.create(name, 3, dtype)
    with pytest.raises(TypeError):
        shmarray.require(name, 3, dtype)
    assert not raw.names(name)


@pytest.mark.parametrize(
    "data",
    [
        np.array([1, "x", None], object),
        [{"a": 1}, None],
        np.array(["a", "bc"], np.dtypes.StringDType()),
        np.array([1, 2], np.dtype(rational)),
        np.zeros(3, WITH_METADATA),
        np.zeros(3, OVERLAPPING),
        np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
    ],
    ids=["object", "sequence-of-objects", "StringDType", "extension", "metadata", "overlapping", "recarray"],
)
def test_data_of_such_a_dtype_is_a_type_error_and_nothing_exists(name, data):
    with pytest.raises(TypeError):
        shmarray.create(name, data=data)
    assert not raw.names(name)


def test_the_message_for_objects_says_why(name):
    with pytest.raises(TypeError, match=r"pointers"):
        shmarray.create(name, 3, object)
    raw.put(name, raw.header(descr="'|O'") + b"\0" * 64)
    with pytest.raises(shmarray.ArrayFormatError, match="Python objects"):
        shmarray.attach(name)


# --- data -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        3.5,
        [1, 2, 3],
        ((1, 2), (3, 4)),
        range(4),
        b"bytes",
        "text",
        ["short", "longer"],
        [],
        [[], []],
        True,
        np.float32(2),
        memoryview(b"abc"),
        np.datetime64("2024-02-29"),
        [1 + 2j, 3],
    ],
    ids=lambda data: type(data).__name__,
)
def test_data_from_any_array_like(name, data):
    expected = np.array(data)
    array = shmarray.create(name, data=data)

    assert same_dtype(array.dtype, expected.dtype)
    np.testing.assert_array_equal(shmarray.attach(name), expected, strict=True)


def test_data_is_copied(name):
    source = np.arange(5)
    array = shmarray.create(name, data=source)
    source[0] = 99
    assert array[0] == 0
    assert not np.shares_memory(array, source)


@pytest.mark.parametrize("dtype", ["f4", ">i2", "c8", "S3", "U8", "?"])
def test_data_is_converted_to_the_dtype_that_is_given(name, dtype):
    source = np.arange(6).reshape(2, 3)
    array = shmarray.create(name, data=source, dtype=dtype)
    np.testing.assert_array_equal(array, source.astype(dtype), strict=True)
    assert same_dtype(array.dtype, np.dtype(dtype))


@pytest.mark.parametrize("dtype", [str, bytes, "S", "U", "M8", "m8"])
def test_numpy_completes_a_dtype_from_the_data(name, dtype):
    source = {"M8": ["2024-01-01", "2024-01-02"], "m8": np.array([1, 2], "m8[s]")}.get(dtype, [1, 22, 333])
    expected = np.array(source, dtype)
    array = shmarray.create(name, data=source, dtype=dtype)
    np.testing.assert_array_equal(array, expected, strict=True)


def test_data_is_reshaped_if_a_shape_is_given_too(name):
    array = shmarray.create(name, (2, 3), data=range(6))
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_data_of_another_size_than_the_shape_is_a_value_error(name):
    with pytest.raises(ValueError, match="reshape"):
        shmarray.create(name, (2, 2), data=range(6))
    assert not raw.names(name)


@pytest.mark.parametrize("length", [-1, -2])
def test_a_negative_length_is_refused_with_data_too(name, length):
    with pytest.raises(ValueError, match=r"negative|reshape|-"):
        shmarray.create(name, (length, length), data=range(4))
    assert not raw.names(name)


def test_data_that_cannot_be_converted_leaves_nothing(name):
    with pytest.raises(ValueError, match="could not convert"):
        shmarray.create(name, data=np.array(["1", "x"]), dtype=float)
    assert not raw.names(name)


def test_ragged_data_leaves_nothing(name):
    with pytest.raises(ValueError, match="inhomogeneous"):
        shmarray.create(name, data=[[1, 2], [3]])
    assert not raw.names(name)


class Failing:
    """Data that fails when it is converted."""

    def __array__(self, dtype=None, copy=None):
        raise KeyboardInterrupt


def test_data_that_is_interrupted_leaves_nothing(name):
    with pytest.raises(KeyboardInterrupt):
        shmarray.create(name, data=Failing())
    assert not raw.names(name)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: np.matrix([[1, 2], [3, 4]]), id="matrix"),
        pytest.param(lambda: np.memmap("/proc/self/exe", "u1", "r", shape=(5,)), id="memmap"),
    ],
)
@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_data_of_a_subclass_gives_a_plain_array(name, make):
    source = make()
    array = shmarray.create(name, data=source)
    assert type(array) is np.ndarray
    np.testing.assert_array_equal(array, np.asarray(source), strict=True)


def test_a_masked_array_is_refused_because_its_mask_would_be_lost(name):
    with pytest.raises(TypeError, match="masked"):
        shmarray.create(name, data=np.ma.masked_array([1, 2, 3], [0, 1, 0]))
    assert not raw.names(name)


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_a_matrix_takes_the_shape_that_is_given(name):
    assert shmarray.create(name, 4, data=np.matrix([[1, 2], [3, 4]])).shape == (4,)


@pytest.mark.parametrize("size", [1 << 10, 1 << 16, 9 << 20], ids=["1kB", "64kB", "9MB"])
@pytest.mark.parametrize("kind", ["contiguous", "fortran", "strided", "converted", "read-only"])
def test_data_of_every_size_and_kind_arrives_whole(name, size, kind, monkeypatch):
    monkeypatch.setattr(copying, "_TWO_THREADS", 8 << 20)
    source = np.arange(size // 4, dtype="i4").reshape(2, -1)
    dtype = None
    if kind == "fortran":
        source = np.asfortranarray(source)
    elif kind == "strided":
        source = source[:, ::-2]
    elif kind == "converted":
        dtype = ">i4"
    elif kind == "read-only":
        source.flags.writeable = False
    array = shmarray.create(name, data=source, dtype=dtype)
    np.testing.assert_array_equal(array, source)
    assert array.flags.writeable


@given(source=layouts(), order=st.sampled_from("KCF"))
def test_the_order_is_that_of_a_numpy_copy(shm_name, source, order):
    expected = np.copy(source, order=order)
    name = shm_name()
    array = shmarray.create(name, data=source, order=order)
    shmarray.delete(name)

    np.testing.assert_array_equal(array, source, strict=True)
    if expected.flags.forc:  # the format supports no other order
        assert array.flags.c_contiguous == expected.flags.c_contiguous
        assert array.flags.f_contiguous == expected.flags.f_contiguous
    else:
        assert array.flags.c_contiguous


# --- names and permissions --------------------------------------------------------------


def test_a_taken_name_is_refused_and_nothing_is_changed(name):
    array = shmarray.create(name, data=[1, 2])
    for size in (3, 1 << 20):
        with pytest.raises(shmarray.ArrayExistsError) as caught:
            shmarray.create(name, size)
        assert caught.value.name == caught.value.filename == name
        assert isinstance(caught.value, FileExistsError)
    assert array.tolist() == shmarray.attach(name).tolist() == [1, 2]


@pytest.mark.parametrize("kind", ["file", "directory", "dangling-link", "fifo"])
def test_a_name_taken_by_another_thing_is_refused(name, kind):
    path = raw.path(name)
    make = {
        "file": lambda: raw.put(name, b"something"),
        "directory": lambda: os.mkdir(path),
        "dangling-link": lambda: os.symlink("/nowhere", path),
        "fifo": lambda: os.mkfifo(path),
    }
    make[kind]()
    with pytest.raises(shmarray.ArrayExistsError):
        shmarray.create(name, 3)
    assert os.path.lexists(path)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777], ids=oct)
@pytest.mark.parametrize("permissions", [None, 0o600, 0o644, 0o666, 0o777, 0o400, 0o000], ids=str)
@pytest.mark.parametrize("kind", ["shm", "file"])
def test_permissions_are_exact_whatever_the_umask(name, tmp_path, umask, permissions, kind):
    given, path = (name, raw.path(name)) if kind == "shm" else (f"file://{tmp_path}/a.npy", f"{tmp_path}/a.npy")
    options = {} if permissions is None else {"permissions": permissions}
    before = os.umask(umask)
    try:
        shmarray.create(given, 3, **options)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(path).st_mode) == (0o600 if permissions is None else permissions)


@pytest.mark.parametrize("permissions", [-1, 0o1000, 0o7777])
def test_permissions_unknown_to_chmod_are_a_value_error(name, permissions):
    with pytest.raises(ValueError, match="permissions"):
        shmarray.create(name, 3, permissions=permissions)
    assert not raw.names(name)


@pytest.mark.parametrize("permissions", ["rw", 6.0, None])
def test_permissions_that_are_no_integer_are_a_type_error(name, permissions):
    with pytest.raises(TypeError):
        shmarray.create(name, 3, permissions=permissions)
    assert not raw.names(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_directory_that_may_not_be_written_is_a_permission_error(tmp_path):
    path = f"{tmp_path}/a.npy"

    def as_nobody():
        os.setuid(65534)
        shmarray.create(f"file://{path}", 3)

    with pytest.raises(shmarray.ArrayPermissionError, match="may not create"):
        in_child(as_nobody)


def test_a_missing_directory_is_named_in_the_error(tmp_path):
    with pytest.raises(shmarray.ArrayNotFoundError) as caught:
        shmarray.create(f"file://{tmp_path}/nowhere/a.npy", 3)
    assert "directory" in str(caught.value)


def test_the_memory_beside_the_data_is_one_page_at_most(name):
    for count in (1, 4096, 100_000):
        shmarray.create(name, count, "u1")
        status = os.stat(raw.path(name))
        assert status.st_size - count <= os.sysconf("SC_PAGESIZE")
        assert operator.le(status.st_blocks * 512, (count + 2 * os.sysconf("SC_PAGESIZE")))
        shmarray.delete(name)


def test_signals_do_not_stop_it(name):
    """Signals interrupt posix_fallocate and shorten pwrite; create must then neither fail nor loop for ever."""

    def under_a_timer():
        ticks = []
        signal.signal(signal.SIGALRM, lambda *_: ticks.append(1))
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        for options in ({"shape": 48 << 20, "dtype": "u1"}, {"data": np.ones(48 << 20, "u1")}):
            array = shmarray.create(name, **options)
            assert array.nbytes == 48 << 20
            assert array[-1] == array[0] == ("data" in options)
            shmarray.delete(name)
        signal.setitimer(signal.ITIMER_REAL, 0)
        return len(ticks)

    assert in_child(under_a_timer)


def test_an_exception_of_a_signal_handler_leaves_no_partial_array(name, system):
    def interrupted():
        def interrupt(*_):
            raise KeyboardInterrupt

        signal.signal(signal.SIGALRM, interrupt)
        source = np.ones(96 << 20, "u1")
        for microseconds in range(500, 20_000, 2000):
            try:
                signal.setitimer(signal.ITIMER_REAL, microseconds / 1e6)
                shmarray.create(name, data=source)
                signal.setitimer(signal.ITIMER_REAL, 0)
                shmarray.delete(name)
            except KeyboardInterrupt:
                for left in raw.names(name):
                    if system in {"native", "link_through_proc"}:
                        assert shmarray.attach(left)[-1] == 1  # the interrupt came after the array got its name
                    shmarray.delete(left)

    in_child(interrupted)
