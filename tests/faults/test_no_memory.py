"""Operations with scarce resources: a clear error or a slower fallback, and everything works again afterwards."""

import json
import os
import resource
import shutil
import threading
import warnings
from contextlib import nullcontext

import numpy as np
import pytest

import shmarray
from tests.helpers import doors
from tests.helpers.processes import in_child, run_script
from tests.helpers.scarcity import memory_group, mounted, needs_mount
from tests.pool import tasks

MB = 1 << 20

# ok; full: SharedMemoryFullError, at once; pipe: correct, with that pool's single warning; otherwise the error.
# A worker's own memory is limited by the system: if a task's computation needs too much, it gets a MemoryError.
TABLE = """
                               create  create(data)  scoped()  scoped(name)  attach  handle  Pool -> x    Pool(x)      Pool(shared)  Executor -> x  Executor(x)
plenty                         ok      ok            ok        ok            ok      ok      ok           ok           ok            ok             ok
a control group                 full    full          full      full          ok      ok      full         full         ok            full           full
/dev/shm of 16 MB              full    full          ok        full          ok      ok      ok           ok           ok            ok             ok
/dev/shm read-only             EROFS   EROFS         ok        EROFS         ENOENT  ok      ok           ok           ok            ok             ok
no /dev/shm                    ENOENT  ENOENT        ok        ENOENT        ENOENT  ok      ok           ok           ok            ok             ok
no /proc                       ok      ok            ok        ok            ok      ok      ok           ok           ok            ok             ok
/proc of others hidden         ok      ok            ok        ok            ok      ok      ok           ok           ok            ok             ok
no memfd                       ok      ok            ok        ok            ok      ok      ok           ok           ok            ok             ok
no memfd, no O_TMPFILE         ok      ok            ok        ok            ok      ok      ok           ok           ok            ok             ok
address space here             ENOMEM  ENOMEM        ENOMEM    ENOMEM        ok      ok      MemoryError  ok           ok            MemoryError    ok
address space in workers       ok      ok            ok        ok            ok      ok      MemoryError  MemoryError  ok            MemoryError    MemoryError
descriptors here               EMFILE  EMFILE        EMFILE    EMFILE        EMFILE  EMFILE  ok           ok           EMFILE        ok             ok
descriptors in workers         ok      ok            ok        ok            ok      ok      ok           ok           EMFILE        ok             ok
file size here                 full    full          full      full          ok      ok      ok           pipe         ok            ok             pipe
file size in workers           ok      ok            ok        ok            ok      ok      pipe         ok           ok            pipe           ok
file size before all           full    full          full      full          ok      ok      pipe         ok           ok            pipe           ok
locked memory before all       ok      ok            ok        ok            ok      ok      ok           ok           ok            ok             ok
"""  # noqa: E501 - a table

# Limits before pools exist, after that, and in workers.
HOW = {
    "plenty": ("nothing", "nothing", "nothing"),
    "no memfd": ("no_memfd", "nothing", "nothing"),
    "no memfd, no O_TMPFILE": ("no_unnamed_files", "nothing", "nothing"),
    "address space here": ("nothing", "address_space", "nothing"),
    "address space in workers": ("nothing", "nothing", "address_space"),
    "descriptors here": ("nothing", "descriptors", "nothing"),
    "descriptors in workers": ("nothing", "nothing", "descriptors"),
    "file size here": ("nothing", "file_size", "nothing"),
    "file size in workers": ("nothing", "nothing", "file_size"),
    "file size before all": ("file_size", "nothing", "nothing"),
    "locked memory before all": ("locked_memory", "nothing", "nothing"),
}
# The process already has 20 MB to spare here.
LARGER = ("a control group", "address space here", "address space in workers")
NO_DEV = "mount -t tmpfs tmpfs /mnt && touch /mnt/null && mount --bind /dev/null /mnt/null && mount --move /mnt /dev"
MOUNTS = {
    "/dev/shm of 16 MB": "mount -t tmpfs -o size=16m tmpfs /dev/shm",
    "/dev/shm read-only": "mount -t tmpfs -o ro tmpfs /dev/shm",
    "no /dev/shm": NO_DEV,
    "no /proc": "mount -t tmpfs tmpfs /proc",
    "/proc of others hidden": "mount -t proc -o hidepid=2 proc /proc",
}


def rows():
    found = []
    head, *lines = TABLE.strip("\n").splitlines()
    doors = [door.strip() for door in head.strip().split("  ") if door.strip()]
    for line in lines:
        scarce, *outcomes = [cell.strip() for cell in line.split("  ") if cell.strip()]
        marks = [needs_mount] if scarce in MOUNTS else []
        found.append(pytest.param(scarce, dict(zip(doors, outcomes, strict=True)), id=scarce, marks=marks))
    return found


@pytest.mark.parametrize(("scarce", "expected"), rows())
def test_each_operation_with_scarce_resources(scarce, expected):
    ready_made = mounted(MOUNTS[scarce]) if scarce in MOUNTS else ()
    with memory_group(180 * MB) if scarce == "a control group" else nullcontext(ready_made) as prefix:
        arguments = (80 * MB if scarce in LARGER else 20 * MB, *HOW.get(scarce, HOW["plenty"]))
        code = f"from tests.helpers import doors; doors.main(*{arguments})"
        then, afterwards = json.loads(run_script(code, prefix=prefix))
    assert then == expected
    lasting = {"EROFS", "ENOENT"}  # these cannot be undone
    assert afterwards == {door: then[door] if then[door] in lasting else "ok" for door in then}


# --- near the limit of a control group --------------------------------------------------


SMALL_ONES = """
import os, shmarray
prefix = f"t{os.getppid()}-small-"
made = []
try:
    while True:
        made.append(shmarray.create(f"{prefix}{len(made)}", (1 << 20) // 4, "f4"))
        made[-1][:] = 1
except shmarray.SharedMemoryFullError as error:
    assert "control group" in str(error), error
finally:
    for number in range(len(made)):
        shmarray.delete(f"{prefix}{number}")
assert len(made) > 30, len(made)
"""

RESULTS = """
import gc, shmarray
from tests.pool import tasks
with tasks.make({kind!r}, "fork") as pool:
    try:
        tasks.call_each(pool, tasks.ones, [1 << 17] * 250)  # 1 MB each, kept by the caller
    except shmarray.SharedMemoryFullError as error:
        assert "control group" in str(error), error
    else:
        raise SystemExit("no error was raised")
    gc.collect()  # as always in multiprocessing, a failed call is in a cycle with its error
    assert len(tasks.call_each(pool, tasks.ones, [1 << 17] * 20)) == 20
"""

KILLED = """
import shmarray
from tests.pool import tasks
with tasks.make({kind!r}, "fork") as pool:
    try:
        tasks.call(pool, tasks.ones, 300 << 17)
    except shmarray.WorkerDiedError as error:
        assert "SIGKILL" in str(error) and "memory" in str(error) and "ones" in str(error), error
    else:
        raise SystemExit("no error was raised")
"""


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(SMALL_ONES, id="many small arrays are refused in time"),
        pytest.param(RESULTS.format(kind="Pool"), id="results that are kept are refused in time, Pool"),
        pytest.param(RESULTS.format(kind="Executor"), id="results that are kept are refused in time, Executor"),
        pytest.param(KILLED.format(kind="Pool"), id="a worker that takes too much itself is killed, Pool"),
        pytest.param(KILLED.format(kind="Executor"), id="a worker that takes too much itself is killed, Executor"),
    ],
)
def test_in_a_control_group(code):
    with memory_group(200 * MB) as prefix:
        run_script(code, prefix=prefix)


# --- in the middle of an operation ------------------------------------------------------


@pytest.mark.parametrize("kind", [resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE], ids=["file size", "descriptors"])
def test_every_result_of_imap_arrives_if_memory_runs_out(kind):
    def limited():
        with tasks.make("Pool", "fork") as pool:
            results = pool.imap(tasks.double, (np.full(100_000 * (1 + i % 7), i) for i in range(40)))
            found = [next(results)]
            resource.setrlimit(kind, (MB if kind == resource.RLIMIT_FSIZE else 3, resource.getrlimit(kind)[1]))
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "arrays go .* through a pipe")
                found.extend(results)
            resource.setrlimit(kind, (resource.getrlimit(kind)[1],) * 2)
            assert [int(result[-1]) for result in found] == [2 * i for i in range(40)]
            assert pool.map(abs, [-1, 2]) == [1, 2]

    in_child(limited)


def test_lack_of_address_space_during_imap_fails_only_that_result():
    def limited():
        with tasks.make("Pool", "fork") as pool:
            results = pool.imap(tasks.ones, [10, 20 * MB, 20, 30 * MB, 30])
            next(results)
            doors.address_space()
            for size in (20, 30):
                with pytest.raises(MemoryError, match=r"cannot be received: Unable to allocate \d"):
                    next(results)
                assert len(next(results)) == size
            doors.limit(resource.RLIMIT_AS, resource.RLIM_INFINITY)
            assert len(pool.apply(tasks.ones, (20 * MB,))) == 20 * MB

    in_child(limited)


@needs_mount
@pytest.mark.parametrize(
    "make", ["shmarray.create(name, data=data)", "shmarray.scoped(data=data, name=name).__enter__()"]
)
def test_a_file_system_that_fills_up_during_a_copy(make):
    code = f"""
import os, numpy as np, shmarray
from shmarray.core.posix import space
space.check = lambda *_: None  # as if another program took the space after the check
name, data = "file:///mnt/x.npy", np.ones(33 << 20, "u1")
for size in (1, 12):
    filler = open("/mnt/filler", "wb")
    filler.write(bytes(size << 20)); filler.close()
    try:
        {make}
    except shmarray.SharedMemoryFullError as error:
        assert "file system is full" in str(error), error
    else:
        raise SystemExit("no error was raised")
    assert os.listdir("/mnt") == ["filler"]
    os.unlink("/mnt/filler")
assert os.statvfs("/mnt").f_bavail == os.statvfs("/mnt").f_blocks
"""
    run_script(code, prefix=mounted("mount -t tmpfs -o size=16m tmpfs /mnt"))


# --- while a pool is created ------------------------------------------------------------


MAKE_WITH_FEW_DESCRIPTORS = """
import errno, gc, os, resource, numpy as np
from tests.pool import tasks

def descriptors():
    gc.collect()
    return set(os.listdir("/proc/self/fd"))

def try_with(room):
    resource.setrlimit(resource.RLIMIT_NOFILE, (room, 4096))
    try:
        with tasks.make({kind!r}, {method!r}) as pool:
            return tasks.call(pool, tasks.total, np.ones(20_000)) == 20_000
    except OSError as error:
        assert error.errno == errno.EMFILE, error
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))

assert try_with(4096)  # starts the resource tracker, which remains
before = descriptors()
room = len(before)
while not try_with(room):
    assert descriptors() == before
    room += 1
assert descriptors() == before
assert room < 100
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_pool_is_made_with_all_its_descriptors_or_leaves_none(kind, method):
    """The number of available descriptors rises from none to enough."""
    run_script(MAKE_WITH_FEW_DESCRIPTORS.format(kind=kind, method=method))


MAKE_WITH_FEW_PROCESSES = """
import errno, gc, os, resource
import shmarray
from tests.helpers.processes import children
from tests.pool import tasks

def limit(more):
    there = sum(len(os.listdir(f"/proc/{{pid}}/task")) for pid in ("self", *children()))
    resource.setrlimit(resource.RLIMIT_NPROC, (there + more, resource.getrlimit(resource.RLIMIT_NPROC)[1]))

def left():
    gc.collect()
    return children(), set(os.listdir("/proc/self/fd"))

before = left()
for more in range(3):
    limit(more)
    try:
        tasks.call(tasks.make({kind!r}, "fork", 4), abs, -1)
    except OSError as error:
        assert error.errno == errno.EAGAIN, error
        assert " of 4 workers could be started; use fewer, or raise the limit of processes" in str(error), error
    else:
        raise SystemExit("the limit had no effect")
    assert left() == before

limit(10)
with tasks.make({kind!r}, "fork", 2, **{options}) as pool:
    assert tasks.call_each(pool, abs, [-1, -2]) == [1, 2]
    there = len(os.listdir("/proc/self/fd"))
    limit(-4)
    for _ in range(2):
        try:
            tasks.call(pool, tasks.kill_self)
        except shmarray.WorkerDiedError:
            pass
    for _ in range(3):
        try:
            tasks.call(pool, abs, -1)
        except shmarray.WorkerDiedError as error:
            assert "raise the limit of processes" in str(error), error
    assert len(os.listdir("/proc/self/fd")) < there
    limit(10)
    assert tasks.call_each(pool, abs, [-1, -2]) == [1, 2]
if {kind!r} == "Pool":
    pool.join()
del pool
assert left() == before
"""


@pytest.mark.skipif(shutil.which("setpriv") is None or os.getuid() != 0, reason="needs setpriv(1) and root")
def test_a_pool_is_made_with_all_its_processes_or_leaves_none(kind):
    """A pool must not hang if no process can be started. Regression: a failed fork left four descriptors open."""
    # Root has no limit on processes, and other tests run as this user.
    other = ("setpriv", f"--ruid={100_000 + os.getpid()}", "--bounding-set=-sys_resource,-sys_admin")
    options = {} if kind == "Pool" else {"replace_workers": True}
    run_script(MAKE_WITH_FEW_PROCESSES.format(kind=kind, options=options), prefix=other)


def test_what_shows_a_warning_may_raise(monkeypatch):
    """Regression: answers that arrived together with the one that made it warn were lost, and later ones mixed up."""

    def refuses(*_, **__):
        raise OSError(28, "the disk of the log is full")

    busy, go = threading.Event(), threading.Event()

    def wait(_):
        busy.set()
        go.wait(20)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", refuses)
        with shmarray.Pool(1, tasks.limit_files) as pool:
            first = pool.apply_async(abs, (-1,), callback=wait)  # the collecting thread is in the callback
            assert busy.wait(20)
            arrays = [pool.apply_async(np.full, (5 << 20, number, np.uint8)) for number in range(2)]
            numbers = [pool.apply_async(abs, (-number,)) for number in range(20)]
            go.set()
            assert first.get(20) == 1
            assert [array.get(20)[0] for array in arrays] == [0, 1]
            assert [number.get(20) for number in numbers] == list(range(20))
