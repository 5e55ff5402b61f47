"""Space is reserved: a lack of space is an immediate error, never a bus error, and leaves nothing behind."""

import errno
import os
import resource
import shutil
import subprocess

import numpy as np
import pytest

import shmarray
from shmarray.core import segment
from shmarray.core.posix import pages, space
from tests.helpers import raw
from tests.helpers.processes import in_child, run_script

MB = 1 << 20
UNSHARE = shutil.which("unshare")


def _may_unshare():
    if UNSHARE is None or os.geteuid() != 0:
        return False
    probe = [UNSHARE, "-m", "sh", "-c", "mount -t tmpfs -o size=1m tmpfs /dev/shm"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


needs_mount = pytest.mark.skipif(not _may_unshare(), reason="needs unshare(1) and permission to mount a tmpfs")


def run_with_small_shm(code, options="size=64m"):
    """Run code in its own mount namespace, where /dev/shm is a small tmpfs."""
    mount = f'mount -t tmpfs -o {options} tmpfs /dev/shm && exec "$@"'
    return run_script(code, prefix=(UNSHARE, "-m", "sh", "-c", mount, "sh"))


FULL = """
import errno, os, sys, numpy as np, shmarray
from shmarray.core.posix import files

def refused(size, call):
    try:
        call()
    except shmarray.SharedMemoryFullError as error:
        assert isinstance(error, MemoryError) and isinstance(error, OSError)
        assert error.errno == errno.ENOSPC, error.errno
        assert size <= error.asked <= size + 4096, error.asked
        assert error.free <= 64 << 20
        assert str(error.asked) in str(error) and str(error.free) in str(error), error
        assert "--shm-size" in str(error) and "remount" in str(error), error
        return error
    raise SystemExit("no error was raised")

def free():
    status = os.statvfs("/dev/shm")
    return status.f_bavail * status.f_frsize

if {portable}:
    files.UNNAMED_FILES = files.MEMFD = False
    if {portable} == 2:
        files.SHM_DIRECTORY = None
MB = 1 << 20
start = free()
assert start <= 64 * MB
for size in (65 * MB, 64 * MB, 10 << 30):
    error = refused(size, lambda: shmarray.create("x", size, "u1"))
    assert error.free >= 63 * MB
    refused(size, lambda: shmarray.require("x", size, "u1"))
    assert not os.listdir("/dev/shm") and free() == start
refused(65 * MB, lambda: shmarray.create("x", data=np.ones(65 * MB, "u1")))
refused(130 * MB, lambda: shmarray.create("x", data=np.ones(130 * MB, "u1")[::1], dtype="u1"))
refused(80 * MB, lambda: shmarray.create("x", data=np.ones((10, 2 * MB), "f4").T[::1]))
refused(80 * MB, lambda: shmarray.create("x", data=np.ones(20 * MB, "u1"), dtype="f4"))
assert not os.listdir("/dev/shm") and free() == start

# First a large array that fits, then arrays too small for the check in advance, until it is full.
a = shmarray.create("a", 40 * MB, "u1")
a[:] = 1
arrays = []
try:
    while True:
        name = f"b{len(arrays)}"
        content = {"data": np.ones(3 * MB, "u1")} if len(arrays) % 2 else {"shape": 3 * MB, "dtype": "u1"}
        arrays.append(shmarray.create(name, **content))
except shmarray.SharedMemoryFullError as error:
    assert error.name == name and error.free < 3 * MB + 4096 and str(error.asked) in str(error)
assert 6 <= len(arrays) <= 8, len(arrays)
for array in arrays:
    array[:] = 2  # no bus error
assert sorted(os.listdir("/dev/shm")) == sorted(["a", *(f"b{i}" for i in range(len(arrays)))])
del a, array
arrays.clear()
for name in os.listdir("/dev/shm"):
    shmarray.delete(name)
assert free() == start
if not {portable}:
    with shmarray.scoped(100 * MB, "u1") as anonymous:  # not limited by the size of /dev/shm
        anonymous[::4096] = 1
"""


@needs_mount
@pytest.mark.parametrize("portable", [0, 1, 2], ids=["native", "no-unnamed-files", "posix-alone"])
def test_a_shm_of_64_mb_refuses_what_does_not_fit(portable):
    run_with_small_shm(FULL.replace("{portable}", str(portable)))


@needs_mount
def test_running_out_in_the_middle_leaves_nothing():
    """The space is taken between the check and the reservation; arrays of 32 MB or more use two threads."""
    code = """
import os, numpy as np, shmarray
from shmarray.core.posix import space
space.check = lambda *args: None
MB = 1 << 20
start = os.statvfs("/dev/shm").f_bavail
for make in (
    lambda: shmarray.create("x", 100 * MB, "u1"),
    lambda: shmarray.create("x", data=np.ones(100 * MB, "u1")),
    lambda: shmarray.create("x", data=np.ones(200 * MB, "u1")[::2]),
    lambda: shmarray.scoped(100 * MB, "u1", name="x").__enter__(),
):
    try:
        make()
    except shmarray.SharedMemoryFullError as error:
        assert error.asked >= 100 * MB
    else:
        raise SystemExit("no error was raised")
    assert not os.listdir("/dev/shm")
    assert os.statvfs("/dev/shm").f_bavail == start
"""
    run_with_small_shm(code)


@needs_mount
def test_a_pools_file_in_a_shm_that_is_too_small_says_that_there_may_be_memory_elsewhere():
    """Then arrays go through the pipe, as on systems without shared memory."""
    code = """
import errno, numpy as np
from shmarray.core.posix import SparseFile, files, space
files.MEMFD = False
file = SparseFile.create()
for check in (space.check, lambda *args: None):
    space.check = check
    for size in (65 << 20, 1 << 30):
        try:
            file.reserve(5 << 36, size)
        except OSError as error:
            assert error.errno == errno.EFBIG, error
        else:
            raise SystemExit("no error was raised")
        assert file.allocated() == 0
file.write(0, np.ones(40 << 20, "u1"))
assert file.allocated() == 40 << 20
"""
    run_with_small_shm(code)


@needs_mount
def test_running_out_of_inodes_is_a_full_error():
    code = """
import os, shmarray
made = 0
try:
    while True:
        shmarray.create(f"x{made}", 1)
        made += 1
except OSError as error:
    assert "space" in str(error), error
assert 10 <= made < 50
assert len(os.listdir("/dev/shm")) == made
"""
    run_with_small_shm(code, "size=64m,nr_inodes=50")


@needs_mount
@pytest.mark.parametrize("huge", ["advise", "always", "within_size", "never"])
def test_huge_pages_change_neither_content_nor_refusals(huge):
    code = """
import os, numpy as np, shmarray
MB = 1 << 20
data = np.arange(5 * MB, dtype="u4")
a = shmarray.create("a", data=data)
b = shmarray.create("b", 8 * MB, "u1")
c = shmarray.create("c", data=data[::-2])
assert (a == data).all() and not b.any() and (c == data[::-2]).all()
assert (np.load("/dev/shm/a") == data).all()
try:
    shmarray.create("d", 40 * MB, "u1")
except shmarray.SharedMemoryFullError:
    pass
else:
    raise SystemExit("no error was raised")
assert sorted(os.listdir("/dev/shm")) == ["a", "b", "c"]
"""
    run_with_small_shm(code, f"size=64m,huge={huge}")


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("size", [10, 5000, 3 * MB, 20 * MB])
def test_all_pages_are_allocated(name, size):
    shmarray.create(name, size, "u1")
    status = os.stat(raw.path(name))
    assert status.st_blocks * 512 >= status.st_size >= size


def test_all_pages_are_allocated_by_a_kernel_that_cannot_populate(name, monkeypatch):
    """Before Linux 5.14, MADV_POPULATE_WRITE fails with EINVAL; huge=advise exists since 4.7."""
    monkeypatch.setattr(pages, "huge_pages_on_advice", lambda **_: True)
    monkeypatch.setattr(pages, "populate", lambda *_: False)
    for data in (None, np.ones(9 * MB, "u1")):
        array = shmarray.create(name, 9 * MB, "u1", data=data)
        status = os.stat(raw.path(name))
        assert status.st_blocks * 512 >= status.st_size
        assert array[0] == array[-1] == (data is not None)
        shmarray.delete(name)


@pytest.mark.parametrize("kind", ["shm", "file", "anonymous"])
@pytest.mark.parametrize("with_data", [False, True])
def test_a_limit_on_file_sizes_is_full(name, tmp_path, kind, with_data):
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (MB, MB))
        given = {"shm": name, "file": f"file://{tmp_path}/a.npy", "anonymous": None}[kind]
        options = {"data": np.ones(2 * MB, "u1")} if with_data else {"shape": 2 * MB, "dtype": "u1"}
        with shmarray.scoped(name=given, **options):
            pass

    with pytest.raises(shmarray.SharedMemoryFullError):
        in_child(limited)
    assert not raw.names(name)
    assert not os.listdir(tmp_path)


# --- files that state the limits of the machine and of control groups -----------------------


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Files that are read instead of the real ones about the machine and its control groups."""
    (tmp_path / "meminfo").write_text("MemTotal: 999999 kB\nMemAvailable: 1048576 kB\nSwapFree: 0 kB\n")
    group = tmp_path / "group"
    group.mkdir()
    (group / "memory.stat").write_text("")
    true_table = space._table
    monkeypatch.setattr(
        space, "_table", lambda path: true_table(str(tmp_path / "meminfo") if path == "/proc/meminfo" else path)
    )
    monkeypatch.setattr(space, "_own_cgroups", lambda _: ((str(group), "memory.max", "memory.current"),))

    def write(**contents):
        for key, content in contents.items():
            file = tmp_path / "meminfo" if key == "meminfo" else group / key.replace("_", ".", 1)
            file.write_text(str(content))

    write(memory_max="max\n", memory_current=0)
    return write


def refusal(name, size):
    with pytest.raises(shmarray.SharedMemoryFullError) as caught:
        shmarray.create(name, size, "u1")
    assert not raw.names(name)
    assert caught.value.asked >= size
    assert str(caught.value.asked) in str(caught.value)
    return caught.value


@pytest.mark.usefixtures("system")
def test_more_than_the_machine_has_is_refused_and_named(name, machine):
    machine(meminfo=f"MemAvailable: {20 * 1024} kB\nSwapFree: {4 * 1024} kB\n")
    error = refusal(name, 30 * MB)
    assert error.free == 24 * MB
    assert "the machine's memory" in str(error)
    shmarray.create(name, 22 * MB, "u1")


@pytest.mark.usefixtures("system")
def test_more_than_the_control_group_leaves_is_refused_and_named(name, machine):
    machine(memory_max=100 * MB, memory_current=80 * MB)
    error = refusal(name, 30 * MB)
    assert error.free == 20 * MB
    assert "control group" in str(error)
    shmarray.create(name, 15 * MB, "u1")


def test_what_can_be_reclaimed_counts_as_free(name, machine):
    machine(
        memory_max=100 * MB, memory_current=95 * MB, memory_stat=f"active_file {10 * MB}\ninactive_file {10 * MB}\n"
    )
    assert refusal(name, 30 * MB).free == 25 * MB
    shmarray.create(name, 20 * MB, "u1")


def test_version_1_totals_count_the_subtree(name, machine):
    machine(memory_max=100 * MB, memory_current=95 * MB, memory_stat=f"active_file 0\ntotal_active_file {20 * MB}\n")
    assert refusal(name, 30 * MB).free == 25 * MB


def test_swap_counts_as_far_as_the_group_may_use_it(name, machine):
    machine(
        meminfo=f"MemAvailable: {1 << 20} kB\nSwapFree: {1 << 20} kB\n",
        memory_max=100 * MB,
        memory_current=95 * MB,
    )
    assert refusal(name, 30 * MB).free == 5 * MB


def test_swap_of_the_group(name, machine, tmp_path):
    machine(
        meminfo=f"MemAvailable: {1 << 20} kB\nSwapFree: {1 << 20} kB\n", memory_max=100 * MB, memory_current=95 * MB
    )
    (tmp_path / "group" / "memory.swap.max").write_text(str(10 * MB))
    (tmp_path / "group" / "memory.swap.current").write_text(str(4 * MB))
    assert refusal(name, 30 * MB).free == 11 * MB


def test_anonymous_memory_is_bound_by_the_group_too(machine):
    machine(memory_max=100 * MB, memory_current=90 * MB)
    with pytest.raises(shmarray.SharedMemoryFullError, match="control group"), shmarray.scoped(30 * MB, "u1"):
        pass


def test_a_file_is_not_bound_by_memory(tmp_path, machine):
    machine(memory_max=100 * MB, memory_current=99 * MB)
    shmarray.create(f"file://{tmp_path}/a.npy", 10 * MB, "u1")


def test_a_group_above_its_limit_has_no_free_memory_and_not_less(name, machine):
    machine(memory_max=10 * MB, memory_current=99 * MB)
    assert refusal(name, 30 * MB).free == 0


@pytest.mark.parametrize("content", ["", "garbage", "max", "-5"])
def test_limit_files_without_a_number_are_ignored(name, machine, content):
    machine(meminfo=content, memory_max=content, memory_current=content, memory_stat=content)
    shmarray.create(name, 10 * MB, "u1")


def test_own_control_groups_are_found():
    for directory, limit, usage in space._own_cgroups(os.getpid()):
        assert os.path.exists(f"{directory}/{limit}")
        assert os.path.exists(f"{directory}/{usage}")


def test_a_size_that_no_system_has_is_refused_at_once(name):
    for size in (1 << 50, 2**62):
        error = refusal(name, size)
        assert error.errno == errno.ENOSPC


def test_a_full_file_system_names_the_file(tmp_path):
    with pytest.raises(shmarray.SharedMemoryFullError, match="file system is full"):
        shmarray.create(f"file://{tmp_path}/a.npy", 1 << 50, "u1")
    assert not os.listdir(tmp_path)


def test_the_mark_of_an_unfinished_array_differs_from_the_npy_magic():
    assert not segment._UNFINISHED.startswith(raw.MAGIC)
