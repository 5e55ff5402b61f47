"""What other programs put into shared memory, or do to it, causes a clear error or nothing, never wrong memory."""

import faulthandler
import os
import pickle
import signal
import socket
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest

import shmarray
from shmarray.core import mapping, temporary
from tests.helpers import raw
from tests.helpers.processes import ROOT, Child, in_child, run_script
from tests.helpers.scarcity import UNSHARE, needs_mount
from tests.pool import tasks

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


# --- other objects under a name ---------------------------------------------------------


def directory(path):
    os.mkdir(path)


def fifo(path):
    os.mkfifo(path)


def a_socket(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)


def dangling_link(path):
    os.symlink("/nowhere", path)


def looping_link(path):
    os.symlink(path, path)


def link_to_an_array(path):
    os.symlink(f"{path}-target", path)


def link_to_a_device(path):
    os.symlink("/dev/zero", path)


def empty(path):
    raw.put(os.path.basename(path), b"")


def text(path):
    raw.put(os.path.basename(path), b"not an array at all" * 100)


def huge_and_sparse(path):
    empty(path)
    os.truncate(path, 1 << 60)


def array_cut_off(path):
    raw.put(os.path.basename(path), raw.saved(np.zeros(1000))[:4000])


def header_of_objects(path):
    raw.put(os.path.basename(path), raw.header("'|O'", shape="(1,)") + b"cos\nsystem\n(S'true'\ntR." + bytes(100))


def header_of_terabytes(path):
    raw.put(os.path.basename(path), raw.header(shape=f"({1 << 50},)"))


def header_that_overflows(path):
    raw.put(os.path.basename(path), raw.header(shape=f"({1 << 40}, {1 << 40})"))


# list shows none of them.  taken: ArrayExistsError; format: ArrayFormatError; denied: PermissionError.
TABLE = """
                       attach  require  lock    create  scoped  delete
directory              format  format   ok      taken   taken   format
fifo                   format  format   ok      taken   taken   format
a_socket               format  format   format  taken   taken   format
dangling_link          format  format   format  taken   taken   format
looping_link           format  format   format  taken   taken   format
link_to_an_array       format  format   format  taken   taken   format
link_to_a_device       format  format   format  taken   taken   format
empty                  format  format   ok      taken   taken   format
text                   format  format   ok      taken   taken   format
huge_and_sparse        format  format   ok      taken   taken   format
array_cut_off          format  format   ok      taken   taken   ok
header_of_objects      format  format   ok      taken   taken   ok
header_of_terabytes    format  format   ok      taken   taken   ok
header_that_overflows  format  format   ok      taken   taken   ok
"""


def _lock(name):
    with shmarray.lock(name, timeout=0):
        pass


def _scope(name):
    with shmarray.scoped(3, name=name):
        pass


DOORS = {
    "attach": shmarray.attach,
    "require": lambda name: shmarray.require(name, 3),
    "lock": _lock,
    "create": lambda name: shmarray.create(name, 3),
    "scoped": _scope,
    "delete": shmarray.delete,
}


def outcome(door, name):
    try:
        DOORS[door](name)
    except shmarray.ArrayExistsError:
        return "taken"
    except shmarray.ArrayFormatError:
        return "format"
    except PermissionError:
        return "denied"
    return "ok"


def rows(table):
    head, *lines = table.strip("\n").splitlines()
    return [pytest.param(line.split()[0], dict(zip(head.split(), line.split()[1:], strict=True))) for line in lines]


@pytest.mark.parametrize(("thing", "expected"), rows(TABLE))
def test_objects_that_are_not_arrays(thing, expected, shm_name):
    name = shm_name()
    shmarray.create(f"{name}-target", 3)
    globals()[thing](raw.path(name))
    try:
        before = os.lstat(raw.path(name))
        assert not [info for info in shmarray.list() if info.name == name]
        for door in ("attach", "require", "lock", "create", "scoped"):
            assert (door, outcome(door, name)) == (door, expected[door])
            assert os.lstat(raw.path(name)) == before  # neither changed nor read
        assert outcome("delete", name) == expected["delete"]
        assert os.path.lexists(raw.path(name)) == (expected["delete"] != "ok")
        assert shmarray.attach(f"{name}-target").shape == (3,)
    finally:
        shmarray.delete(f"{name}-target")


# An array of root that nobody else may open, and one that everybody may read.
OTHERS = """
                   attach  require  lock    create  scoped  delete
0o600              denied  denied   denied  taken   taken   denied
0o644              denied  denied   ok      taken   taken   denied
"""


@needs_root
@pytest.mark.parametrize(("permissions", "expected"), rows(OTHERS))
def test_another_users_array(permissions, expected, name):
    shmarray.create(name, 3, permissions=int(permissions, 8))
    handle = pickle.dumps(shmarray.SharedHandle(shmarray.attach(name)))

    def as_nobody():
        # As in an unrelated program, the array is not inherited.
        os.setuid(NOBODY)
        with pytest.raises(PermissionError):
            mapping_gone(handle).array  # noqa: B018 - the property raises
        return {door: outcome(door, name) for door in DOORS}

    assert in_child(as_nobody) == expected
    assert raw.names(name) == [name]


def mapping_gone(handle):
    """Return the unpickled handle, as in a process that has not mapped the array."""
    mapping._live.clear()
    return pickle.loads(handle)


# --- names that are reused ---------------------------------------------------------------


def test_a_hard_link_is_another_name_of_the_same_memory(shm_name):
    name, other = shm_name(), shm_name()
    array = shmarray.create(name, data=[1, 2])
    os.link(raw.path(name), raw.path(other))
    shmarray.attach(other)[0] = 5
    assert array.tolist() == [5, 2]
    assert {name, other} <= {info.name for info in shmarray.list()}
    shmarray.delete(name)
    with pytest.raises(shmarray.ArrayNotFoundError):
        mapping_gone(pickle.dumps(shmarray.SharedHandle(array))).array  # noqa: B018 - only its own name is valid
    assert shmarray.attach(other).tolist() == [5, 2]
    shmarray.delete(other)


def test_a_hard_link_that_replaces_a_scopes_array_remains(shm_name):
    name, other = shm_name(), shm_name()
    shmarray.create(other, data=[1, 2])
    with shmarray.scoped(3, name=name):
        os.unlink(raw.path(name))
        os.link(raw.path(other), raw.path(name))
    assert shmarray.attach(name).tolist() == [1, 2]
    shmarray.delete(name)
    shmarray.delete(other)


def test_a_name_that_is_swapped_all_the_time_gives_one_array_or_the_other(shm_name):
    """The swap may happen between list and attach or between stat and open; no array may be mixed or wrong."""
    name, spare = shm_name(), shm_name()
    contents = {1000: 1, 3000: 2}
    ends = []
    for number, (size, value) in enumerate(contents.items()):
        shmarray.create(f"{name}-{number}", data=np.full(size, value))
        ends.append(f"{raw.path(name)}-{number}")
    os.link(ends[1], raw.path(name))
    handle = pickle.dumps(shmarray.SharedHandle(shmarray.attach(name)))

    def swap(channel):
        while not channel.poll():
            for end in ends:
                os.link(end, raw.path(spare))
                os.rename(raw.path(spare), raw.path(name))

    seen = set()
    with Child(swap) as child:
        for _ in range(300):
            (found,) = [info for info in shmarray.list() if info.name == name] or [None]
            array = shmarray.attach(name)
            assert set(array) == {contents[len(array)]}
            assert found is None or found.shape[0] in contents
            seen.add(len(array))
            del array
            with suppress(shmarray.ArrayNotFoundError):
                assert set(mapping_gone(handle).array) == {2}
        child.tell()
        child.result()
    assert seen == set(contents)
    for left in raw.names(name):
        shmarray.delete(left)


def test_an_array_replaced_on_its_way_to_a_worker_is_that_calls_error(name):
    with tasks.make("Pool", "fork") as pool:
        array = shmarray.create(name, data=[1, 2])

        def remade():
            yield array
            shmarray.delete(name)
            shmarray.create(name, data=[7, 7])
            yield array

        # The worker may look for it while neither exists.
        with pytest.raises(
            shmarray.ArrayNotFoundError, match=r"another array has replaced it|there is no shared array"
        ):
            list(pool.imap(tasks.total, remade()))
        assert pool.apply(tasks.total, (np.ones(100_000),)) == 100_000
    shmarray.delete(name)


PID_REUSED = """
import os, pickle, shmarray

def owner(content, last):
    # The next process gets the pid after this one.
    reader, writer = os.pipe()
    answer, done = os.pipe()
    with open("/proc/sys/kernel/ns_last_pid", "w") as file:
        file.write(str(last))
    pid = os.fork()
    if not pid:
        with shmarray.scoped(data=content) as array:
            os.write(writer, pickle.dumps(shmarray.SharedHandle(array)))
            os.read(answer, 1)
        os._exit(0)
    os.close(answer)
    handle = os.read(reader, 65536)
    return pid, handle, done, (reader, writer)

first, old, done, pipes = owner([1, 1], 100)
assert pickle.loads(old).array.tolist() == [1, 1]
os.write(done, b"x")
os.waitpid(first, 0)
for fd in (done, *pipes):
    os.close(fd)
second, new, done, _ = owner([2, 2], 100)
assert second == first, (second, first)
assert pickle.loads(new)._reference.name.path == pickle.loads(old)._reference.name.path
try:
    pickle.loads(old).array
except shmarray.ArrayNotFoundError as error:
    assert "another array has replaced it" in str(error), error
else:
    raise SystemExit("the handle gave another array's memory")
assert pickle.loads(new).array.tolist() == [2, 2]
os.write(done, b"x")
os.waitpid(second, 0)
"""


@needs_mount
def test_a_reused_pid_behind_an_anonymous_handle_is_an_error():
    run_script(PID_REUSED, prefix=(UNSHARE, "-p", "-f", "--mount-proc", "--kill-child"))


def test_names_that_are_already_taken_are_skipped(portable, shm_name, monkeypatch):
    """Anonymous arrays that need names have random ones; a name that is taken is not used."""
    given = iter([b"taken", b"taken", b"free"])
    monkeypatch.setattr(temporary.os, "urandom", lambda _: next(given))
    taken, free = (f"shmarray-{os.getpid()}-{end.hex()}" for end in (b"taken", b"free"))
    raw.put(taken, b"another's")
    try:
        with shmarray.scoped(3):
            assert raw.names(f"shmarray-{os.getpid()}-") == [free, taken]
        assert raw.get(taken) == b"another's"
    finally:
        os.unlink(raw.path(taken))


# --- truncated files ----------------------------------------------------------------------


def test_a_truncated_file_is_refused_and_access_to_the_missing_part_is_a_bus_error(name):
    """No library can catch a bus error; faulthandler, or python -X faulthandler, shows where it was."""
    shmarray.create(name, 100_000)
    code = """
import os, sys, shmarray
name = sys.argv[1]
array = shmarray.attach(name)
os.truncate(f"/dev/shm/{name}", 4096)
assert array[0] == 0  # the remaining part can be used
try:
    shmarray.attach(name)
except shmarray.ArrayFormatError as error:
    print("refused", flush=True)
array[-1]
"""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code, name],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": ROOT},
        check=False,
    )
    assert done.stdout == "refused\n"
    assert done.returncode == -signal.SIGBUS
    assert "Bus error" in done.stderr
    assert "line 11 in <module>" in done.stderr
    shmarray.delete(name)


def test_the_bus_error_of_a_worker_in_a_truncated_file_is_reported(kind, name):
    array = shmarray.create(name, 100_000)
    with tasks.make(kind, "fork", initializer=faulthandler.disable) as pool:
        tasks.call(pool, abs, -1)
        os.truncate(raw.path(name), 4096)
        with pytest.raises(shmarray.WorkerDiedError, match="SIGBUS"):
            tasks.call(pool, tasks.total, array)
    del array
    shmarray.delete(name)
