"""The bytes: a named array is a complete .npy file, whoever writes or reads it."""

import ast
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shmarray
from shmarray.core import layout
from tests.helpers import raw
from tests.helpers.strategies import dtypes, same_dtype, shapes


def some_bytes(count):
    return np.frombuffer((bytes(range(1, 250)) * (count // 249 + 1))[:count], np.uint8)


@settings(max_examples=150)
@given(dtype=dtypes, shape=shapes, order=st.sampled_from("CF"), kind=st.sampled_from(["shm", "file"]))
def test_every_dtype_comes_back_exactly_and_numpy_reads_it(shm_name, tmp_path, dtype, shape, order, kind):
    name, path = shm_name(), None
    if kind == "file":
        path = f"{tmp_path}/{name}.npy"
        name = f"file://{path}"
    else:
        path = raw.path(name)
    array = shmarray.create(name, shape, dtype, order=order)
    try:
        again, loaded = shmarray.attach(name), np.load(path, mmap_mode="r")
        assert same_dtype(array.dtype, np.dtype(dtype))
        assert same_dtype(again.dtype, np.dtype(dtype))
        assert loaded.dtype == array.dtype
        assert array.shape == again.shape == loaded.shape == shape
        expected = np.empty(shape, dtype, order)
        assert array.flags.fnc == again.flags.fnc == loaded.flags.fnc == expected.flags.fnc
        assert not raw.memory(again).strip(b"\0")
        # Write bytes through one array; all the others see them.
        content = some_bytes(array.nbytes)
        if content.size:
            raw_view = again.view(np.ndarray) if again.ndim else again.reshape(1)
            raw_view.ravel(order="K").view(np.uint8)[:] = content
            assert raw.memory(loaded) == raw.memory(again) == raw.memory(array) == raw.memory(np.load(path))
    finally:
        shmarray.delete(name)


@pytest.mark.filterwarnings("ignore:Stored array in format")
@settings(max_examples=100)
@given(dtype=dtypes, shape=shapes, version=st.sampled_from([None, (2, 0), (3, 0)]), fortran=st.booleans())
def test_what_numpy_saves_is_attached(shm_name, dtype, shape, version, fortran):
    expected = np.zeros(shape, dtype, "F" if fortran else "C")
    name = shm_name()
    if version == (2, 0) and not str(expected.dtype.descr).isascii():
        version = (3, 0)
    raw.put(name, raw.saved(expected, version))
    try:
        array = shmarray.attach(name)
        assert array.dtype == expected.dtype
        assert array.shape == expected.shape
        assert array.flags.fnc == expected.flags.fnc
        # Not compared with `expected`: numpy.save writes the padding of its own copy, which is arbitrary.
        assert raw.memory(array) == raw.memory(np.load(raw.path(name)))
    finally:
        os.unlink(raw.path(name))


def test_numpy_shares_the_memory(name):
    a = shmarray.create(name, data=[1, 2, 3])
    b = np.load(f"/dev/shm/{name}", mmap_mode="r+")
    b[0] = 100
    a[1] = 200
    assert a.tolist() == b.tolist() == [100, 200, 3]


def test_create_writes_what_numpy_loads(tmp_path):
    data = np.arange(12.0).reshape(3, 4)
    shmarray.create(f"file://{tmp_path}/a.npy", data=data)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), data, strict=True)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize(
    "dtype", ["<f8", ">c16", "S5", "M8[25us]", "?", "V7", [("a", "<i4"), ("b", "<f8", (2,))]], ids=str
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_header_is_what_numpy_itself_writes(name, shape, dtype, order):
    array = shmarray.create(name, shape, dtype, order=order)
    version = (1, 0)
    assert raw.get(name) == raw.saved(array, version)


def test_the_data_begins_at_a_multiple_of_64_bytes(name):
    for count in range(1, 30):
        shmarray.create(name, 1, [(f"f{number}", "u1") for number in range(count)])
        with open(raw.path(name), "rb") as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            assert file.tell() % 64 == 0
        shmarray.delete(name)


def test_a_name_outside_latin_1_makes_a_version_3_header_that_numpy_loads(name):
    shmarray.create(name, 2, [("温度", "f8")])
    assert raw.get(name)[6] == 3
    assert np.load(raw.path(name)).dtype.names == ("温度",)


def test_the_align_flag_comes_back_however_deep(name):
    inner = np.dtype([("x", "i1"), ("y", "f8")], align=True)
    packed = np.dtype([("x", "i1"), ("y", "f8")])
    for dtype in (
        inner,
        np.dtype([("a", inner), ("b", "i2")]),
        np.dtype([("a", packed), ("b", "i2")], align=True),
        np.dtype([("a", inner, (2,)), ("b", packed)], align=True),
    ):
        shmarray.create(name, 2, dtype)
        assert same_dtype(shmarray.attach(name).dtype, dtype)
        assert np.load(raw.path(name)).dtype == dtype
        shmarray.delete(name)


def test_headers_end_where_numpy_load_stops_reading(name):
    """numpy.load refuses headers of more than 10,000 bytes: shorter ones are loaded, longer ones are a TypeError."""
    outcomes = set()
    for fields in (380, 400, 420, 430, 440, 450, 460, 480, 500):
        dtype = [(f"field-{number:04}", "<f8") for number in range(fields)]
        try:
            shmarray.create(name, 1, dtype)
        except TypeError:
            outcomes.add("refused")
        else:
            assert len(np.load(raw.path(name)).dtype.names) == fields
            assert len(shmarray.attach(name).dtype.names) == fields
            shmarray.delete(name)
            outcomes.add("made")
    assert outcomes == {"made", "refused"}


@given(dtype=dtypes, shape=shapes, order=st.sampled_from("CF"))
def test_the_header_is_pure_text_that_parses_to_the_same_layout(dtype, shape, order):
    plan, header = layout.plan(shape, dtype, fortran=order == "F")
    again = layout.parse(header)

    assert again == plan
    assert same_dtype(again.dtype, plan.dtype)
    assert layout.header_size(header) == len(header) == plan.offset
    start = 10 if header[6] == 1 else 12
    text = header[start:].decode("latin-1" if header[6] == 1 else "utf-8")
    assert ast.literal_eval(text.strip()).keys() == {"descr", "fortran_order", "shape"}
