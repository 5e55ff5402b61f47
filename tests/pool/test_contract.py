"""What a task sees and what its caller gets: the two tables of the contract, line by line, for both kinds of pool."""

import dataclasses
import gc
import warnings

import numpy as np
import pytest
from numpy.ma import MaskedArray

import shmarray
from shmarray.pool.arrays import allocator
from tests.pool import tasks
from tests.pool.tasks import call

BIG = 50_000  # items of 8 bytes: well above the 32 KB from which arrays go in blocks


@pytest.fixture(params=tasks.START_METHODS)
def pool(request, kind):
    with tasks.make(kind, request.param) as pool:
        yield pool
    if kind == "Pool":
        pool.join()


def arrays():
    """Return arrays of every kind that numpy has, large enough for a block."""
    rng = np.random.default_rng(7)
    plain = rng.random((250, 400))
    record = np.zeros(BIG, [("a", "i4"), ("b", "f8")])
    record["b"] = rng.random(BIG)
    readonly = plain.copy()
    readonly.flags.writeable = False
    masked = np.ma.masked_greater(plain, 0.5)
    readonly_objects = np.array([{"k": 1}, plain], object)
    readonly_objects.flags.writeable = False
    with_metadata = np.dtype("f8", metadata={"unit": "m"})
    return {
        "plain": plain,
        "fortran": np.asfortranarray(plain),
        "strided": rng.random((500, 800))[::2, ::2],
        "reversed": plain[::-1, ::-1],
        "transposed": rng.random((20, 100, 50)).transpose(1, 0, 2),
        "broadcast": np.broadcast_to(rng.random(400), (250, 400)),
        "readonly": readonly,
        "datetime64": (np.arange(BIG) * 10**6).astype("M8[us]"),
        "timedelta64": np.arange(BIG).astype("m8[s]"),
        "big-endian": np.arange(BIG, dtype=">f8"),
        "bool": plain > 0.5,
        "complex": plain + 1j,
        "half": plain.astype("f2"),
        "strings": np.arange(BIG).astype("U12"),
        "bytes": np.arange(BIG).astype("S12"),
        "void": record.view("V12"),
        "structured": record,
        "recarray": record.view(np.recarray),
        "matrix": plain.view(np.matrix),
        "masked": masked,
        "objects": np.array([{"k": i} for i in range(10)] + [rng.random(BIG)], object),
        "scalar shape": np.array(3.5),
        "empty": np.empty((0, 5)),
        "small": np.arange(5),
        "small big-endian": np.arange(6, dtype=">i4").reshape(2, 3).T,
        "small big-endian record": np.ones(3, [("a", ">f8"), ("b", "<i2")]).view(np.recarray),
        "empty big-endian": np.empty((2, 0), ">i4"),
        "small readonly": readonly[:2, :3],
        "small fortran": np.asfortranarray(plain[:3, :4]),
        "small strided": plain[:6:2, ::80],
        "readonly objects": readonly_objects,
        "metadata": np.arange(BIG).astype(with_metadata),
        "small metadata": np.arange(5).astype(with_metadata),
    }


with warnings.catch_warnings(action="ignore", category=PendingDeprecationWarning):  # numpy.matrix
    ARRAYS = arrays()


def assert_same(got, expected):
    assert type(got) is type(expected)
    assert got.dtype == expected.dtype
    # A date without metadata that was pickled by numpy 2.0 comes back with {}.
    assert (got.dtype.metadata or None) == expected.dtype.metadata
    assert got.shape == expected.shape
    if expected.dtype == object:
        for one, other in zip(got, expected, strict=True):
            assert np.array_equal(one, other)
    elif isinstance(expected, MaskedArray):
        assert np.array_equal(np.ma.getmaskarray(got), np.ma.getmaskarray(expected))
        assert np.array_equal(got.filled(0), expected.filled(0))
        assert got.fill_value == expected.fill_value
    else:
        assert got.tobytes() == expected.tobytes()


def test_arrays_of_every_kind_arrive_equal_and_writable_and_come_back_so(pool):
    for name, array in ARRAYS.items():
        before = array.copy()

        cls, shape, dtype, writable, *_ = call(pool, tasks.describe, array)
        back = call(pool, tasks.identity, array)

        assert (cls, shape, dtype) == (type(array).__name__, array.shape, array.dtype), name
        assert writable, name
        assert back.flags.writeable, name
        assert_same(back, array)
        assert_same(array, before)


@dataclasses.dataclass
class Holder:
    """A user's object that holds arrays."""

    name: str
    array: np.ndarray
    more: dict


def test_arrays_anywhere_inside_the_arguments_are_found(pool):
    a, b = np.arange(BIG), np.arange(BIG) * 0.5
    holder = Holder("h", a, {"x": [b, {"y": (a, b[::2])}]})
    got = call(pool, tasks.identity, holder)

    assert np.array_equal(got.array, a)
    assert np.array_equal(got.more["x"][0], b)
    assert np.array_equal(got.more["x"][1]["y"][1], b[::2])
    assert got.more["x"][1]["y"][0] is got.array  # pickle preserves identity


def test_a_write_of_a_task_is_its_own(pool):
    array = np.ones(BIG)
    array.flags.writeable = False
    for _ in range(3):
        assert np.array_equal(call(pool, tasks.overwrite, array), np.ones(BIG))
    assert (array == 1).all()


def test_the_bytes_of_large_arrays_are_not_pickled():
    """Only small messages cross the socket, so packets never grow with the array."""
    from shmarray.pool.arrays import pickling

    for name in ("strided", "fortran", "datetime64", "matrix", "masked", "recarray", "broadcast"):
        pickled = pickling.dumps(ARRAYS[name])
        assert len(pickled.pickle) < 4096, name
        assert sum(buffer.nbytes for buffer in pickled.buffers) >= ARRAYS[name].nbytes


def test_shared_arrays_and_their_views_are_the_same_memory(pool, name):
    array = shmarray.create(name, (400, 300))
    try:
        view = array[10::3, ::2]
        call(pool, tasks.write_first, view)
        assert array[10, 0] == 99
        assert call(pool, tasks.describe_shared, view)[1] == view.strides
        call(pool, tasks.write_first, array[5:6, :2])  # views of any size
        assert array[5, 0] == 99
        back = call(pool, tasks.identity, view)
        back[1, 0] = 7
        assert array[13, 0] == 7
    finally:
        shmarray.delete(name)


def test_scoped_arrays_are_the_same_memory(pool):
    with shmarray.scoped(BIG) as array:
        call(pool, tasks.write_first, array)
        assert array[0] == 99


def test_an_array_whose_scope_is_over_is_an_error_and_not_silently_copied(pool):
    call(pool, abs, -1)  # starts the workers now: if forked later, they would inherit the array
    with shmarray.scoped(BIG) as array:
        pass
    over = "with block that created it has ended|there is no shared array"  # the second message is for named arrays
    with pytest.raises(shmarray.ArrayNotFoundError, match=over):
        call(pool, tasks.write_first, array)
    assert call(pool, abs, -2) == 2


def test_read_only_attachments_arrive_read_only(pool, name):
    shmarray.create(name, BIG)
    try:
        array = shmarray.attach(name, "r")
        assert call(pool, tasks.describe, array)[3] is False
    finally:
        shmarray.delete(name)


def test_private_attachments_go_by_value_with_what_was_written_to_them(pool, name):
    shmarray.create(name, BIG)
    try:
        array = shmarray.attach(name, "c")
        array[:] = 5
        assert call(pool, tasks.total, array) == 5 * BIG
        call(pool, tasks.write_first, array)
        assert array[0] == 5
    finally:
        shmarray.delete(name)


def test_handles_arrive_as_handles(pool):
    with shmarray.scoped(BIG) as array:
        handle = call(pool, tasks.identity, shmarray.SharedHandle(array[::2]))
        handle.array[0] = 3
        assert array[0] == 3


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_memory_maps_go_by_reference_in_their_mode(pool, tmp_path, mode):
    path = tmp_path / "data.bin"
    np.arange(BIG, dtype=float).tofile(path)
    mapped = np.memmap(path, float, mode, 8 * 100, (200, 200))
    view = mapped[3:, ::2]

    kind, strides, writable, _ = call(pool, tasks.describe_shared, view)
    assert kind == "memmap"
    assert writable == (mode != "r")
    if mode != "c":
        assert strides == view.strides
    if mode != "r":
        call(pool, tasks.write_first, np.asarray(view))
        assert view[0, 0] == (99 if mode == "r+" else 700)
        assert np.fromfile(path)[700] == (99 if mode == "r+" else 700)


def test_a_memory_map_whose_file_is_gone_goes_by_value(pool, tmp_path):
    path = tmp_path / "data.bin"
    np.arange(BIG, dtype=float).tofile(path)
    mapped = np.memmap(path, float, "r")
    path.unlink()
    assert call(pool, tasks.total, mapped) == float(np.arange(BIG).sum())


def test_a_result_that_is_an_argument_or_a_view_of_it_comes_back(pool):
    array = np.arange(float(BIG))
    assert np.array_equal(call(pool, tasks.add_one_in_place, array), array + 1)
    view = call(pool, tasks.view_of, array)
    assert np.array_equal(view[:5], [-1] * 5)
    assert np.array_equal(view[5:], array[10 : BIG // 2])
    same, again, tripled = call(pool, tasks.twice_the_same, array)
    same[:] = 0
    assert np.array_equal(again, array)
    assert np.array_equal(tripled, array * 3)


def test_results_are_their_holders_own(pool):
    held = [call(pool, tasks.double, np.full(200_000, float(i))) for i in range(12)]
    held[3][:] = -1
    for i in range(12):  # reuses the blocks of dropped results
        call(pool, tasks.double, np.full(200_000, 100.0 + i))
    for i, result in enumerate(held):
        assert (result == (-1 if i == 3 else 2 * i)).all()


def test_results_in_the_pools_memory_are_plain_arrays_when_they_are_passed_on(pool):
    result = call(pool, tasks.double, np.ones(200_000))
    assert call(pool, tasks.overwrite, result)[0] == 2
    assert result[0] == 2


def test_a_thousand_results_can_be_kept(pool):
    results = tasks.call_each(pool, tasks.ones, [20_000] * 1000)
    assert all(len(r) == 20_000 and r.all() for r in results)
    del results
    gc.collect()


def test_more_results_than_there_may_be_mappings_are_copied_out(pool, monkeypatch):
    monkeypatch.setattr(allocator, "_MOST_HELD", 3)
    results = tasks.call_each(pool, tasks.double, [np.full(100_000, i) for i in range(10)])
    assert len(tasks.allocator_of(pool)._leased) <= 3
    assert [r[-1] for r in results] == list(range(0, 20, 2))
    assert all(r.flags.writeable for r in results)
