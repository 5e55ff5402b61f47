"""``shmarray info`` and the statistics."""

import json
import os
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shmarray
from shmarray.command import main
from shmarray.command.statistics import summaries
from tests.command.running import held
from tests.helpers import raw, strategies


@pytest.fixture
def info(capsys):
    def run(*arguments):
        assert main(["info", *arguments]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return run


@pytest.fixture
def document(info):
    return lambda *arguments: json.loads(info("--json", *arguments))


def test_the_header_in_words(name, info):
    shmarray.create(name, (100, 3), "f4", order="F", permissions=0o640)
    text = info(name)

    assert text.splitlines()[0] == name
    assert "dtype        float32\n" in text
    assert "shape        (100, 3), column-major (F)\n" in text
    assert "size         1.2 KiB (1,200 bytes)\n" in text
    assert f"file         /dev/shm/{name}\n" in text
    assert "header       .npy version 1.0, data from byte 128\n" in text
    assert "rw-r----- (0640)\n" in text
    assert f"inode        {os.stat(raw.path(name)).st_ino} on device" in text
    assert "modified " in text
    assert "mapped by no process\n" in text


def test_the_header_for_programs(name, document):
    shmarray.create(name, (2, 3), "M8[us]")
    found = document(name)
    status = os.stat(raw.path(name))

    assert {key: found[key] for key in ("version", "dtype", "shape", "order", "offset", "nbytes", "file")} == {
        "version": [1, 0],
        "dtype": "<M8[us]",
        "shape": [2, 3],
        "order": "C",
        "offset": 128,
        "nbytes": 48,
        "file": raw.path(name),
    }
    assert (found["device"], found["inode"]) == (status.st_dev, status.st_ino)
    assert found["permissions"] == "0600"


def test_fields_with_their_places(name, info):
    shmarray.create(name, 3, np.dtype([("x\t", "i1"), ("inner", [("y", "f8"), ("z", "U2")])], align=True))
    lines = [line.split() for line in info(name).splitlines()]

    assert ["x\\t", "int8", "0"] in lines
    assert ["inner.y", "float64", "8"] in lines
    assert ["inner.z", "<U2", "16"] in lines


def test_who_has_it_mapped_and_how(name, info, document):
    shmarray.create(name, 3)
    with held(name, "r+", "c") as child, held(name, "r") as reader:
        users = document(name)["processes"]
        lines = [line.split(maxsplit=3) for line in info(name).splitlines()]
    assert [(user["pid"], user["modes"]) for user in users] == sorted(
        [(child.pid, ["r+", "c"]), (reader.pid, ["r"])],
    )
    assert all("python" in user["command"] for user in users)
    assert ["mapped", "by", "2", "processes"] in lines
    assert [str(child.pid), "r+,", "c"] in [line[:3] for line in lines]


def test_a_file_that_numpy_saved(tmp_path, info, document):
    path = tmp_path / "big.npy"
    np.save(path, np.arange(5))
    assert f"file         {path}\n" in info(f"file://{path}")
    with held(f"file://{path}", "r+") as child:
        found = document(f"file://{path}")
    assert found["statistics"][0]["max"] == 4
    assert [user["pid"] for user in found["processes"]] == [child.pid]


def test_read_only_is_enough(name, document):
    shmarray.create(name, data=[1, 2], permissions=0o400)
    assert document(name)["statistics"][0]["max"] == 2


def test_the_data_can_be_left_unread(name, info):
    shmarray.create(name, 3)
    assert "statistics" not in info("--no-statistics", name)


@pytest.mark.parametrize("arguments", [["info"], ["info", "--json"]])
def test_an_unknown_name_gives_a_suggestion(name, capsys, arguments):
    shmarray.create(name, 1)
    assert main([*arguments, f"{name}x"]) == 1
    out, err = capsys.readouterr()

    assert out == ""
    assert err.startswith(f"shmarray: there is no shared array '{name}x'; did you mean '{name}'")


def test_objects_that_are_not_arrays(name, capsys):
    raw.put(name, b"something else \x1b")
    assert main(["info", name]) == 1
    assert capsys.readouterr().err.startswith(f"shmarray: '{name}' is not an array: ")


def test_an_invalid_name(capsys):
    assert main(["info", "a/b\x1b"]) == 1
    assert capsys.readouterr().err.startswith("shmarray: the name 'a/b\\x1b' contains a slash: ")


# --- statistics ----------------------------------------------------------------------


def one(array):
    (found,) = summaries(array)
    return found


@pytest.mark.parametrize("dtype", ["?", "i1", "u8", ">i2", "f2", "f4", ">f8", "g"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_statistics_are_numpys(dtype, order):
    array = np.random.default_rng(1).integers(0, 100, (300, 7, 999)).astype(dtype, order=order)
    found = one(array)

    assert (found.items, found.missing) == (array.size, 0)
    assert (found.least, found.greatest) == (array.min(), array.max())
    assert found.zeros == array.size - np.count_nonzero(array)
    assert found.mean == pytest.approx(float(array.mean(dtype="g")))


def test_nans_are_counted_and_left_out():
    array = np.random.default_rng(2).normal(size=400_000)
    array[::7] = np.nan
    array[:140_000] = np.nan  # a whole chunk
    found = one(array)

    assert found.missing == np.isnan(array).sum()
    assert (found.least, found.greatest) == (np.nanmin(array), np.nanmax(array))
    assert found.mean == pytest.approx(np.nanmean(array))


def test_only_nans_and_no_items():
    assert (one(np.full(3, np.nan)).mean, one(np.full(3, np.nan)).least) == (None, None)
    assert (one(np.zeros((0, 3))).mean, one(np.zeros((0, 3))).items) == (None, 0)


def test_infinities_do_not_warn():
    found = one(np.array([np.inf, -np.inf, 1], "f2"))
    assert (found.least, found.greatest) == (-np.inf, np.inf)
    assert np.isnan(found.mean)


def test_complex_numbers_have_a_mean_and_no_order():
    found = one(np.array([1 + 2j, 3, np.nan], "c8"))
    assert (found.least, found.mean, found.missing) == (None, 2 + 1j, 1)


@pytest.mark.parametrize("order", "<>")
def test_times_are_exact_where_their_sum_overflows(order):
    day = np.datetime64("2200-01-01", "ns")
    array = np.append(np.full(200_000, day), np.datetime64("NaT", "ns")).astype(f"{order}M8[ns]")
    found = one(array)

    assert (found.least, found.greatest, found.mean, found.missing) == (day, day, day, 1)
    assert found.mean.dtype == "<M8[ns]"
    assert found.zeros is None


def test_each_field_of_numbers_has_its_own():
    array = np.zeros(5, [("a", "f4"), ("s", "U3"), ("in", [("b", "i2", (2,)), ("M", "M8")])])
    array["in"]["b"][:, 1] = 7
    found = {summary.fields: (summary.items, summary.greatest, summary.zeros) for summary in summaries(array)}
    assert found == {("a",): (5, 0.0, 5), ("in", "b"): (10, 7, 5)}


@given(strategies.dtypes, strategies.shapes, st.sampled_from("CF"))
def test_statistics_of_any_array(dtype, shape, order):
    for found in summaries(np.zeros(shape, dtype, order)):
        assert str(found.least)
        assert found.mean is None or str(found.mean)


def test_no_copy_of_a_large_array_is_made(name):
    array = shmarray.create(name, 8_000_000)
    array[::1000] = np.nan
    tracemalloc.start()
    try:
        one(array)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


# --- several ---


def test_several_are_shown_one_after_the_other(shm_name, info, document):
    names = [shm_name("-a"), shm_name("-b")]
    for name in names:
        shmarray.create(name, 3)
    assert [line for line in info(*names).splitlines() if line in names] == names
    assert [found["name"] for found in document(*names)] == names
    assert document(names[0])["name"] == names[0]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_missing_array_does_not_hide_the_others(shm_name, capsys, options):
    name, missing = shm_name("-a"), shm_name("-b")
    shmarray.create(name, 3)
    assert main(["info", *options, missing, name]) == 1
    out, err = capsys.readouterr()
    assert name in out
    assert err.count("\n") == 1
    assert missing in err
    assert main(["info", *options, missing, missing]) == 1
    assert capsys.readouterr().out == ("[]\n" if options else "")
