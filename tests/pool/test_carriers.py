"""Arrays inside other objects: frames, sparse matrices, tables, models and all kinds of containers.

Tasks and callers must get what they would get with the stdlib's own pickler.
"""

import copyreg
import dataclasses
import functools
import pickle
import warnings
import zlib
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest

import shmarray
from shmarray.pool.arrays import pickling
from tests.pool.tasks import call, make

SIZE = 4_500  # items of 8 bytes: just above the 32 KB from which arrays go in a block
ROWS = 18_000  # rows of a table, whose strings have offsets of 4 bytes
KEPT: list[Any] = []
optional = functools.partial(pytest.importorskip, reason="tests an optional library whose objects contain arrays")


@pytest.fixture
def pool(kind, start_method):
    with make(kind, start_method, 1) as pool:
        yield pool
    if kind == "Pool":
        pool.join()


# --- finding the arrays in an object ---


class _Finder(pickle.Pickler):
    """Records each array that a pickler meets, in order; the pickle itself is discarded."""

    def __init__(self):
        self.found = []
        super().__init__(self, 5, buffer_callback=lambda _: False)

    def write(self, _):
        pass

    def reducer_override(self, obj):
        if isinstance(obj, np.ma.MaskedArray):
            return tuple, ((np.ma.getdata(obj, subok=False), np.ma.getmaskarray(obj), np.array(obj.fill_value)),)
        if not isinstance(obj, np.ndarray):
            return NotImplemented
        self.found.append(obj)
        return NotImplemented if obj.dtype.hasobject else (tuple, ())


def arrays_in(thing):
    finder = _Finder()
    finder.dump(thing)
    return finder.found


def as_stdlib(thing):
    """Return the object as the stdlib's pool would deliver it."""
    return ForkingPickler.loads(ForkingPickler.dumps(thing))


def digests(thing):
    return [_digest(array) for array in arrays_in(thing)]


def _digest(array):
    content = b"" if array.dtype.hasobject else np.asarray(array).tobytes()  # the bytes of an object array are pointers
    return type(array).__name__, str(array.dtype), array.shape, zlib.crc32(content)


def writable(thing):
    return [array.flags.writeable for array in arrays_in(thing)]


# --- tasks ---


def overwrite(thing):
    """Write to every writable array; return the previous content, the writability and the object."""
    seen, could = digests(thing), writable(thing)
    for array in arrays_in(thing):
        if array.flags.writeable and not array.dtype.hasobject:
            array[...] = np.zeros((), array.dtype)
    return seen, could, thing


def identity(thing):
    return thing


def keep(thing):
    """Keep the object, and return the digests of everything kept so far."""
    KEPT.append(thing)
    return [digests(kept) for kept in KEPT]


def assign(frame):
    """Assign to items as pandas users do."""
    if frame.ndim == 1:
        frame.iloc[0] = frame.iloc[-1]
    else:
        for column in range(min(8, frame.shape[1])):
            frame.iloc[0, column] = frame.iloc[-1, column]
    return frame


def weighted(weights, array, *, offset):
    array += offset
    return array * weights


@dataclasses.dataclass
class Sample:
    name: str
    array: np.ndarray
    more: dict


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    array: np.ndarray

    def scaled(self, factor):
        self.array[...] *= factor
        return self.array


# --- carriers ---


@functools.cache
def layouts():
    rng = np.random.default_rng(1)
    plain = rng.random((200, 300))
    readonly = plain.copy()
    readonly.flags.writeable = False
    return {
        "contiguous": plain,
        "column-major": np.asfortranarray(plain),
        "every other row": rng.random((400, 300))[::2],
        "every other column": rng.random((200, 600))[:, ::2],
        "backwards": plain[::-1, ::-1],
        "permuted": rng.random((30, 40, 50)).transpose(1, 2, 0),
        "broadcast": np.broadcast_to(rng.random(300), (200, 300)),
        "broadcast scalar": np.broadcast_to(np.float32(3), (40_000,)),
        "read-only": readonly,
        "read-only column-major": readonly.T,
        "read-only strided": readonly[:, 5:290],
        "field": np.zeros(SIZE, "i4,f8")["f1"],
        "overlapping windows": np.lib.stride_tricks.sliding_window_view(np.arange(3000.0), 50),
    }


@functools.cache
def of_numpy():
    rng = np.random.default_rng(2)
    plain = rng.random((200, 100))
    record = np.zeros(SIZE, [("when", "M8[s]"), ("x", "f8", (2,)), ("name", "S5")])
    record["x"] = rng.random((SIZE, 2))
    structured_mask = np.ma.array(np.zeros(SIZE, "i4,f8"), mask=[(i % 2, i % 3 == 0) for i in range(SIZE)])
    with warnings.catch_warnings(action="ignore", category=PendingDeprecationWarning):
        matrix = np.asmatrix(plain)
    return {
        "masked": np.ma.masked_greater(plain, 0.5),
        "masked without a mask": np.ma.array(plain),
        "masked with its own fill value": np.ma.array(plain, mask=plain < 0.1, fill_value=-3),
        "masked column-major": np.ma.masked_less(np.asfortranarray(plain), 0.2),
        "masked view": np.ma.masked_less(plain, 0.2)[::2, ::-1],
        "masked record": structured_mask,
        "masked matrix": np.ma.array(matrix, mask=plain > 0.9),
        "record": record,
        "record array": record.view(np.recarray),
        "strided record array": record.view(np.recarray)[::2],
        "field of a record array": record.view(np.recarray).x,
        "matrix": matrix,
        "transposed matrix": matrix.T,
        "datetime64": (np.arange(SIZE) * 10**6).astype("M8[us]"),
        "strided datetime64": np.arange(2 * SIZE).astype("M8[h]")[::2],
        "timedelta64": np.arange(SIZE).astype("m8[ms]"),
        "unicode": np.arange(SIZE).astype("U7"),
        "objects": np.array([plain, None, {"x": plain[::2]}], object),
    }


@functools.cache
def of_python():
    rng = np.random.default_rng(3)
    a, b, small = rng.random(SIZE), np.arange(SIZE), np.arange(5)
    return {
        "layouts": layouts(),
        "dataclass": Sample("s", a, {"b": [b, (a, small)]}),
        "frozen dataclass with slots": Frozen(a[::2]),
        "nested": {"x": [{"y": (a, [b, {"z": a[::-1]}])}, small], 3: {"a": a}},
        "partial": functools.partial(weighted, a, offset=b),
        "bound method": Frozen(a).scaled,
        "many": [rng.random(9000 + i) for i in range(20)],
    }


@functools.cache
def of_pandas():
    pd = optional("pandas")
    rng = np.random.default_rng(4)
    mixed = pd.DataFrame(
        {
            "x": rng.random(SIZE),
            "n": np.arange(SIZE),
            "yes": rng.random(SIZE) > 0.5,
            "when": pd.date_range("2020", periods=SIZE, freq="s"),
            "y": rng.random(SIZE),
            "since": pd.to_timedelta(np.arange(SIZE), unit="s"),
            "name": [f"n{i}" for i in range(SIZE)],
            "sort": pd.Categorical.from_codes(np.arange(SIZE) % 300, [f"c{i}" for i in range(300)]),
        }
    )
    words = pd.Series([f"word {i}" for i in range(SIZE)])
    return {
        "mixed frame": mixed,
        "frame of floats": mixed[["x", "y"]],
        "frame of integers": pd.DataFrame(np.arange(4 * SIZE).reshape(SIZE, 4), columns=list("abcd")),
        "frame of bools": pd.DataFrame(rng.random((SIZE, 8)) > 0.5),
        "rows of a frame": mixed.iloc[10::2],
        "transposed frame": pd.DataFrame(rng.random((200, 60))).T,
        "frame over an array": pd.DataFrame(layouts()["contiguous"], copy=False),
        "frame over a read-only array": pd.DataFrame(layouts()["read-only"], copy=False),
        "frame with indexes": mixed.set_index(["n", "yes"]),
        "frame with a time index": mixed.set_index("when"),
        "floats": mixed["x"],
        "integers": mixed["n"],
        "bools": pd.Series(rng.random(70_000) > 0.5),
        "datetimes": mixed["when"],
        "datetimes in a zone": mixed["when"].dt.tz_localize("Europe/Berlin", ambiguous="NaT", nonexistent="NaT"),
        "timedeltas": mixed["since"],
        "strings": words,
        "objects": words.astype(object),
        "categories": pd.Series(pd.Categorical.from_codes(np.arange(35_000) % 300, [f"c{i}" for i in range(300)])),
        "nullable integers": pd.Series(np.arange(SIZE), dtype="Int64"),
        "index": pd.Series(0.5, pd.Index(rng.random(SIZE))),
        "frames in a dict": {"a": mixed, "b": [mixed["x"], mixed[["x"]]]},
    }


@functools.cache
def of_scipy():
    sparse = optional("scipy.sparse")
    rng = np.random.default_rng(5)
    dense = rng.random((300, 400)) * (rng.random((300, 400)) > 0.7)
    formats = {form: sparse.coo_matrix(dense).asformat(form) for form in ("csr", "csc", "coo", "bsr", "lil")}
    return {
        **formats,
        "csr array": sparse.csr_array(dense),
        "transposed": formats["csr"].T,
        "in a list": [formats["csr"], {"x": formats["coo"]}],
    }


@functools.cache
def of_pyarrow():
    pa = optional("pyarrow")
    rng = np.random.default_rng(6)
    table = pa.table(
        {
            "n": np.arange(ROWS),
            "x": rng.random(ROWS),
            "when": (np.arange(ROWS) * 10**6).astype("M8[us]"),
            "name": [f"name {i}" for i in range(ROWS)],
            "nulls": [i if i % 3 else None for i in range(ROWS)],
        }
    )
    return {
        "table": table,
        "batch": table.to_batches()[0],
        "slice": table.slice(500, 7000),
        "chunks": pa.concat_tables([table, table.slice(0, 8000)]),
        "array over numpy": pa.array(rng.random(ROWS)),
        "tables in a dict": {"a": table, "b": [table["x"]]},
    }


@functools.cache
def of_sklearn():
    optional("sklearn")
    from sklearn.cluster import KMeans
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.linear_model import LinearRegression
    from sklearn.neighbors import KNeighborsRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(7)
    x, y = rng.random((2000, 10)), rng.random(2000)
    wide, few = rng.random((60, 9000)), rng.random(60)
    return {
        "forest": RandomForestRegressor(3, random_state=0).fit(x, y),
        "linear model": LinearRegression().fit(wide, few),
        "neighbours": KNeighborsRegressor(algorithm="kd_tree").fit(x, y),
        "clusters": KMeans(20, n_init=1, max_iter=2, random_state=0).fit(wide),
        "pipeline": make_pipeline(StandardScaler(), LinearRegression()).fit(wide, few),
    }


GROUPS = [of_numpy, of_python, of_pandas, of_scipy, of_pyarrow, of_sklearn]


@pytest.fixture(params=GROUPS, ids=[group.__name__.removeprefix("of_") for group in GROUPS])
def carriers(request):
    return request.param()


def assert_equal(got, expected, name):
    """Compare as the object's own library does, and array by array."""
    assert type(got) is type(expected), name
    assert digests(got) == digests(expected), name
    cls = type(expected)
    if cls.__module__.partition(".")[0] == "pandas":
        assert got.equals(expected), name  # pandas' and pyarrow's assertions are a hundred times slower
        assert str(got.dtypes) == str(expected.dtypes), name
    elif cls.__module__.partition(".")[0] == "pyarrow":
        got.validate(full=True)
        assert got.equals(expected), name
    elif isinstance(expected, dict):
        assert list(got) == list(expected), name
        for key in expected:
            assert_equal(got[key], expected[key], f"{name}, {key}")
    elif cls in (list, tuple):
        for i, (one, other) in enumerate(zip(got, expected, strict=True)):
            assert_equal(one, other, f"{name}, {i}")


# --- how they arrive in a task and at its caller ---


def test_they_arrive_equal_and_writable_and_come_back_so(pool, carriers):
    """A task writes to everything it can; its caller's objects and those kept before must not change."""
    held = []
    for name, thing in carriers.items():
        before, own = as_stdlib(thing), digests(thing)
        seen, could, expected = overwrite(as_stdlib(thing))

        arrived, was_writable, changed = call(pool, overwrite, thing)
        same = call(pool, identity, thing)

        assert arrived == seen, name
        assert _at_least(was_writable, could), name
        assert_equal(changed, expected, name)
        assert_equal(same, before, name)
        assert _at_least(writable(changed), writable(as_stdlib(expected))), name
        assert _at_least(writable(same), could), name
        assert digests(thing) == own, name
        held.append((name, changed, expected, same, before, own))
    for name, changed, expected, same, before, own in held:
        assert digests(changed) == digests(expected), name
        overwrite(changed)
        assert digests(same) == digests(before), name
        assert digests(carriers[name]) == own, name


def _at_least(ours, theirs):
    return len(ours) == len(theirs) and all(mine or not other for mine, other in zip(ours, theirs, strict=True))


def test_what_a_task_keeps_of_them_does_not_change(kind, carriers):
    with make(kind, "fork", 1) as pool:
        expected = []
        for thing in carriers.values():
            expected.append(digests(as_stdlib(thing)))
            assert call(pool, keep, thing) == expected
            call(pool, overwrite, thing)
    if kind == "Pool":
        pool.join()


def test_frames_are_assigned_to_as_pandas_users_do(pool):
    for name, frame in of_pandas().items():
        if not hasattr(frame, "iloc"):
            continue
        own = digests(frame)
        assert_equal(call(pool, assign, frame), assign(as_stdlib(frame)), name)
        assert digests(frame) == own, name
        result = call(pool, identity, frame)
        assert_equal(assign(result), assign(as_stdlib(frame)), name)


def test_models_predict_the_same_in_the_caller(kind):
    with make(kind, "fork", 1) as pool:
        for name, model in of_sklearn().items():
            if name == "clusters":  # its threads do not survive a fork, with any pool
                continue
            data = np.random.default_rng(8).random((5, model.n_features_in_))
            answers = [call(pool, identity, model).predict(data), call(pool, model.predict, data)]
            assert np.array_equal(answers, [model.predict(data)] * 2), name
    if kind == "Pool":
        pool.join()


def test_arrays_come_with_the_function_and_by_keyword(pool):
    rng = np.random.default_rng(9)
    weights, array, offset = (rng.random(SIZE) for _ in range(3))
    expected = (array + offset) * weights
    before = array.copy()

    assert np.array_equal(call(pool, functools.partial(weighted, weights, offset=offset), array), expected)
    assert np.array_equal(call(pool, functools.partial(weighted, weights, array, offset=offset)), expected)
    assert np.array_equal(call(pool, Frozen(array).scaled, 3), array * 3)
    if isinstance(pool, shmarray.Pool):
        assert np.array_equal(pool.apply(weighted, (weights, array), {"offset": offset}), expected)
        assert np.array_equal(
            pool.map(functools.partial(weighted, weights, offset=offset), [array] * 3), [expected] * 3
        )
    else:
        assert np.array_equal(pool.submit(weighted, weights, array, offset=offset).result(), expected)
    assert np.array_equal(array, before)


# --- what is pickled ---


def _goes_in_a_block(array):
    return array.nbytes >= pickling.SMALL and not array.dtype.hasobject


@pytest.mark.parametrize("layout", layouts())
def test_an_array_is_one_buffer_however_it_lies(layout):
    array = layouts()[layout]
    pickled = pickling.dumps(array)
    assert len(pickled.pickle) < 300
    assert [buffer.nbytes for buffer in pickled.buffers] == [array.nbytes]


@pytest.mark.parametrize("group", [of_numpy, of_python, of_pandas, of_scipy, of_sklearn])
def test_the_bytes_of_the_arrays_in_them_are_not_pickled(group):
    """The pickle is like the stdlib's, without these bytes."""
    for name, thing in group().items():
        large = [array.nbytes for array in arrays_in(thing) if _goes_in_a_block(array)]
        pickled = pickling.dumps(thing)
        taken = sorted(buffer.nbytes for buffer in pickled.buffers)
        if "strings" not in name and "mixed" not in name and "frame" not in name:  # pyarrow has more buffers
            assert taken == sorted(large), name
        assert sum(taken) >= sum(large), name
        rest = len(ForkingPickler.dumps(thing)) - sum(large)
        assert len(pickled.pickle) < rest + 500 + 150 * len(arrays_in(thing)), name


def test_the_bytes_of_arrow_tables_are_not_pickled():
    for name, thing in of_pyarrow().items():
        pickled = pickling.dumps(thing)
        assert pickled.buffers, name
        assert len(pickled.pickle) < 8192, name  # the bitmaps of nulls are pickled


# --- numpy.memmap ---

RECORDS = [("offset", "i8"), ("x", "f8", (3,)), ("filename", "S8")]  # includes names of memmap's own attributes


def views_of(mapped):
    """Return views of a memory map of 200 by 300 float64."""
    flat = mapped.reshape(-1)
    return {
        "whole": mapped,
        "rows": mapped[3:7],
        "strided": mapped[1::3, ::-2],
        "transposed": mapped.T,
        "item": mapped[5, 6:7],
        "empty": mapped[:0],
        "plain": np.asarray(mapped)[2:, 1:],
        "other dtype": mapped[:, :10].view("i4"),
        "broadcast": np.broadcast_to(mapped[4], (50, 300)),
        "read-only": _read_only(mapped[7:]),
        "record array": flat.view([("a", "f8"), ("b", "i8")]).view(np.recarray),
        "field": flat.view([("a", "f8"), ("b", "i8")])["a"],
    }


def _read_only(view):
    view.flags.writeable = False
    return view


def first(array):
    return array[(slice(0, 1),) * array.ndim]


def put_first(array, mark):
    """Set every byte of the first item."""
    first(array)[...] = np.frombuffer(bytes([mark]) * array.itemsize, array.dtype)


def look_and_mark(array, mark):
    """Return what a task sees; then write to the array if it is writable."""
    seen = np.asarray(array).tobytes()
    if array.flags.writeable and array.size:
        put_first(array, mark)
    return type(array), array.shape, array.strides, array.dtype, array.flags.writeable, seen


@pytest.mark.parametrize("mode", ["r", "r+", "w+"])
def test_views_of_memory_maps_are_the_same_part_of_the_file_in_their_mode(pool, tmp_path, mode):
    path = tmp_path / "numbers"
    content = np.arange(60_000.0) + 1
    np.concatenate([np.zeros(13), content]).tofile(path)
    mapped = np.memmap(path, float, mode, 8 * 13, (200, 300))
    if mode == "w+":
        mapped[...] = content.reshape(200, 300)
    for mark, (name, view) in enumerate(views_of(mapped).items(), 1):
        expected = view.shape, view.strides, view.dtype, view.flags.writeable, np.asarray(view).tobytes()
        pickled = pickling.dumps({"x": [view]})
        assert not pickled.buffers, name
        assert len(pickled.pickle) < 800, name

        cls, *rest = call(pool, look_and_mark, view, mark)

        assert cls is type(view), name
        if view.size:  # an empty view has no mode
            assert tuple(rest) == expected, name
        if view.flags.writeable and view.size:
            assert first(view).tobytes() == bytes([mark]) * view.itemsize, name
    if mode == "r":
        assert np.array_equal(np.fromfile(path)[13:], content)


def test_memory_maps_come_back_as_the_same_part_of_the_file(pool, tmp_path):
    path = tmp_path / "numbers"
    np.arange(60_000.0).tofile(path)
    mapped = np.memmap(path, float, "r+", shape=(200, 300))
    for name, view in views_of(mapped).items():
        back = call(pool, identity, [view])[0]
        assert np.asarray(back).tobytes() == np.asarray(view).tobytes(), name
        if view.size and view.flags.writeable:
            put_first(back, 7)
            assert first(view).tobytes() == bytes([7]) * view.itemsize, name


def test_private_memory_maps_go_by_value_with_what_was_written_to_them(pool, tmp_path):
    path = tmp_path / "numbers.npy"
    np.save(path, np.arange(60_000.0))
    mapped = np.load(path, mmap_mode="c")
    mapped[7] = -1
    expected = np.asarray(mapped).copy()
    assert call(pool, look_and_mark, mapped, 3)[-1] == expected.tobytes()
    assert np.array_equal(mapped, expected)
    assert np.array_equal(np.load(path), np.arange(60_000.0))


def test_memory_maps_inside_carriers_go_by_reference(pool, tmp_path):
    pd = optional("pandas")
    sparse = optional("scipy.sparse")
    path = tmp_path / "numbers.npy"
    np.save(path, np.arange(60_000.0).reshape(200, 300))
    mapped = np.load(path, mmap_mode="r+")
    masked = np.ma.array(mapped, mask=np.zeros(mapped.shape, bool), copy=False)
    csr = sparse.csr_matrix((200, 300))
    csr.data = mapped[0]
    things = {
        "frame": pd.DataFrame(mapped, copy=False),
        "masked": masked,
        "sparse": csr,
        "dataclass": Sample("s", mapped, {"x": mapped[:, 3]}),
        "partial": functools.partial(weighted, mapped, offset=mapped.T),
    }
    for name, thing in things.items():
        taken = sum(buffer.nbytes for buffer in pickling.dumps(thing).buffers)
        assert taken == (0 if name != "masked" else masked.mask.size * (masked.mask.nbytes >= pickling.SMALL)), name
        seen, _, _ = call(pool, overwrite, thing)
        assert [digest[-1] for digest in seen], name
        assert not mapped[0].any(), name
        mapped[...] = np.arange(60_000.0).reshape(200, 300)


def test_records_in_memory_maps_may_have_fields_named_like_its_attributes(pool, tmp_path):
    path = tmp_path / "records"
    content = np.zeros(3000, RECORDS)
    content["offset"] = np.arange(3000)
    content["filename"] = b"name"
    content.tofile(path)
    for mode in ("r", "r+"):
        records = np.memmap(path, RECORDS, mode).view(np.recarray)
        for view in (records, records[5:2000]):
            expected = np.asarray(view).copy()
            assert np.array_equal(call(pool, identity, view).offset, expected["offset"])
            assert np.array_equal(np.fromfile(path, RECORDS), content)


def test_a_file_that_replaces_a_mapped_one_is_another_file(pool, tmp_path):
    path = tmp_path / "numbers"
    np.zeros(SIZE).tofile(path)
    mapped = np.memmap(path, float, "r")
    np.ones(SIZE).tofile(tmp_path / "new")
    (tmp_path / "new").rename(path)
    assert not mapped.any()
    assert not np.frombuffer(call(pool, look_and_mark, mapped, 0)[-1]).any()


class Appends:
    """Changes the object that is pickled next to it."""

    def __init__(self, octets):
        self.octets = octets

    def __reduce__(self):
        self.octets.append(1)
        return int, ()


def test_bytes_that_change_while_they_are_pickled_arrive_as_they_were():
    octets = bytearray(b"x" * 100_000)
    arrived, _ = pickle.loads(pickling.dumps([octets, Appends(octets)]).pickle)
    assert arrived == b"x" * 100_000


class Registered(np.ndarray):
    """A subclass whose reduction is registered with copyreg."""


def from_list(items):
    return np.array(items).view(Registered) * 2


@pytest.mark.parametrize("size", [3, SIZE])
def test_a_reduction_registered_for_a_subclass_is_used(monkeypatch, size):
    monkeypatch.setitem(copyreg.dispatch_table, Registered, lambda array: (from_list, (array.tolist(),)))
    pickled = pickling.dumps(np.ones(size).view(Registered))
    again = pickling.loads(pickled.pickle, pickled.buffers)
    assert type(again) is Registered
    assert (again == 2).all()
