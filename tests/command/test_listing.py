"""``shmarray list``."""

import json
import os
import time

import numpy as np
import pytest

import shmarray
from shmarray.command import main
from tests.command.running import held, run
from tests.helpers import raw
from tests.helpers.processes import wait_until
from tests.helpers.scarcity import mounted, needs_mount


@pytest.fixture
def listed(capsys):
    """Run the command in this process and return what it printed."""

    def run(*arguments):
        assert main(["list", *arguments]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return run


@pytest.fixture
def entries(listed):
    return lambda *arguments: json.loads(listed("--json", *arguments))["arrays"]


def test_a_line_says_what_the_array_is(name, listed):
    shmarray.create(name, (1000, 250), "f4")
    titles, line, _, summary = listed(f"{name}*").splitlines()

    assert titles.split() == ["name", "dtype", "shape", "size", "age", "owner", "processes"]
    found = line.split("  ")
    assert [part.strip() for part in found if part][:4] == [name, "float32", "(1000, 250)", "976.6 KiB"]
    assert line.endswith("0")
    assert summary.startswith("1 array, 980.0 KiB. /dev/shm: ")
    assert "free of" in summary


def test_json_is_exact(name, entries):
    before = time.time()
    shmarray.create(name, (2, 3), [("a\n", "<f4"), ("b", ">i2", (2,))], order="F", permissions=0o640)
    (entry,) = entries(name)

    created, modified = entry.pop("created"), entry.pop("modified")
    assert before - 1 < (created or modified) <= modified < time.time() + 1  # old kernels' tmpfs has no creation time
    assert entry.pop("owner")
    assert entry == {
        "name": name,
        "dtype": [["a\n", "<f4"], ["b", ">i2", [2]]],
        "shape": [2, 3],
        "order": "F",
        "nbytes": 48,
        "uid": os.geteuid(),
        "permissions": "0640",
        "processes": [],
    }


def test_json_has_the_totals(name, listed):
    shmarray.create(name, 1_000_000)
    found = json.loads(listed("--json", name))["shared_memory"]

    assert found["path"] == raw.SHM
    assert found["arrays"] >= 8_000_000
    assert found["used"] + found["free"] <= found["total"]


def test_sorted_by_name_by_size_and_by_age(shm_name, entries):
    middle, largest, least = sorted(shm_name() for _ in range(3))
    for one, items in ((largest, 300), (least, 1), (middle, 20)):
        shmarray.create(one, items)
        wait_for_another_moment()

    def order(*arguments):
        return [entry["name"] for entry in entries(middle, largest, least, *arguments)]

    assert order() == order("--sort", "name") == [middle, largest, least]
    assert order("--sort", "size") == [largest, middle, least]
    assert order("--sort", "age") == [largest, least, middle]


def wait_for_another_moment():
    """Wait for the next step of the file system's clock, which takes some milliseconds."""
    coarse = 5  # CLOCK_REALTIME_COARSE, for which Python has no name
    start = time.clock_gettime_ns(coarse)
    wait_until(lambda: time.clock_gettime_ns(coarse) > start)


def test_counts_the_processes_that_have_it_mapped(name, entries, listed):
    shmarray.create(name, 10)
    with held(name, "r+", "r", "c") as first, held(name, "r") as second:
        assert entries(name)[0]["processes"] == sorted([first.pid, second.pid])
        assert listed(name).splitlines()[1].split()[-1] == "2"


def test_other_files_are_skipped(name, entries):
    raw.put(name, b"something else")
    assert entries(name) == []


def test_an_empty_list_is_a_sentence(name, listed):
    assert listed(name).startswith("There are no arrays that match in /dev/shm. /dev/shm: ")


def test_an_array_with_two_names_is_counted_once(shm_name, listed):
    first, second = shm_name(), shm_name()
    shmarray.create(first, 10_000)
    os.link(raw.path(first), raw.path(second))
    together = json.loads(listed("--json", first, second))["shared_memory"]["arrays"]
    assert together == json.loads(listed("--json", first))["shared_memory"]["arrays"]


@pytest.mark.parametrize("ending", ["-\x1b[31m", "-\n", "-\udcff", "-\u202e"], ids=ascii)
def test_odd_names_are_printed_safely_and_exactly_in_json(shm_name, listed, entries, ending):
    name = shm_name(ending)
    shmarray.create(name, 1)
    shown = listed(name).splitlines()[1].split("  ")[0]

    assert shown == name[: -len(ending)] + ending.encode("unicode_escape").decode()
    assert entries(name)[0]["name"] == name


def test_narrow_terminals_get_fewer_columns_and_whole_names(shm_name, listed, monkeypatch):
    name = shm_name("-" + "x" * 60)
    shmarray.create(name, np.int64(3))
    monkeypatch.setenv("COLUMNS", "40")
    titles, line, *_ = listed(name).splitlines()

    assert titles.split() == ["name", "shape", "size"]
    assert line.split()[0] == name


@needs_mount
def test_without_proc_no_processes_are_reported(name):
    shmarray.create(name, 3)
    prefix = mounted("mount -t tmpfs tmpfs /proc")
    assert run("list", name, prefix=prefix).stdout.splitlines()[1].endswith("?")
    assert json.loads(run("list", "--json", name, prefix=prefix).stdout)["arrays"][0]["processes"] is None
    assert "cannot tell which processes" in run("info", name, prefix=prefix).stdout
    assert json.loads(run("info", "--json", name, prefix=prefix).stdout)["processes"] is None


@needs_mount
def test_a_memory_without_a_limit_is_not_full():
    prefix = mounted("mount -t ramfs ramfs /dev/shm")
    assert run("list", prefix=prefix).stdout.endswith("/dev/shm has no limit of its own.\n")
