"""scoped: a shared array for the duration of a with-block, deleted however the block is left."""

import errno
import os
import signal
import socket

import numpy as np
import pytest

import shmarray
from shmarray.core import temporary
from shmarray.core.posix import files
from tests.helpers import raw
from tests.helpers.processes import Child, in_child, run_script, wait_until

pytestmark = pytest.mark.usefixtures("system")


def test_a_named_array_exists_only_inside_the_block(name):
    with shmarray.scoped((2, 3), "i4", name=name) as array:
        assert (array.shape, array.dtype) == ((2, 3), np.dtype("i4"))
        assert type(array) is np.ndarray
        shmarray.attach(name)[0, 0] = 7
        assert array[0, 0] == 7
    assert not raw.names(name)
    assert array[0, 0] == 7  # still valid until it is freed


def test_an_anonymous_array_has_no_name_and_can_be_used():
    before = set(os.listdir(raw.SHM))
    with shmarray.scoped(data=[1, 2]) as array:
        assert array.tolist() == [1, 2]
        in_child(array.__setitem__, 0, 7)
        assert array[0] == 7
    own = {name for name in set(os.listdir(raw.SHM)) - before if str(os.getpid()) in name}
    assert not own
    assert array[0] == 7


@pytest.mark.parametrize("given", [None, "name"])
def test_it_takes_what_create_takes(name, given):
    source = np.arange(12).reshape(3, 4).T
    with shmarray.scoped(data=source, dtype=">f4", name=given and name) as array:
        np.testing.assert_array_equal(array, source.astype(">f4"), strict=True)
        assert array.flags.f_contiguous
    with shmarray.scoped((3, 4), order="F", name=given and name) as array:
        assert array.flags.f_contiguous
    with shmarray.scoped((), "?", name=given and name, permissions=0o640) as array:
        assert array.shape == ()
        if given:
            assert os.stat(raw.path(name)).st_mode & 0o777 == 0o640


@pytest.mark.parametrize("given", [None, "name"])
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_it_is_deleted_on_an_exception_too(name, given, error):
    with pytest.raises(error), shmarray.scoped(3, name=given and name):
        raise error
    assert not raw.names(name)
    assert not raw.names(f"shmarray-{os.getpid()}-")


def test_a_deletion_inside_is_no_error(name):
    with shmarray.scoped(3, name=name):
        shmarray.delete(name)
    assert not raw.names(name)


def test_an_array_that_another_process_made_under_the_name_is_left_alone(name):
    with shmarray.scoped(3, name=name):
        shmarray.delete(name)
        other = shmarray.create(name, data=[1, 2])
    assert shmarray.attach(name).tolist() == other.tolist() == [1, 2]


@pytest.mark.parametrize("thing", ["directory", "link", "dangling", "socket", "fifo", "text"])
def test_another_kind_of_file_under_the_name_is_no_error_and_left_alone(name, thing):
    path = raw.path(name)
    with socket.socket(socket.AF_UNIX) as listener, shmarray.scoped(3, name=name):
        shmarray.delete(name)
        {
            "directory": lambda: os.mkdir(path),
            "link": lambda: os.symlink("/etc/passwd", path),
            "dangling": lambda: os.symlink("/nowhere", path),
            "socket": lambda: listener.bind(path),
            "fifo": lambda: os.mkfifo(path),
            "text": lambda: raw.put(name, b"text"),
        }[thing]()
    assert os.path.lexists(path)


def test_a_taken_name_is_refused_and_left_alone(name):
    shmarray.create(name, data=[1, 2])
    with pytest.raises(shmarray.ArrayExistsError), shmarray.scoped(3, name=name):
        pass
    assert shmarray.attach(name).tolist() == [1, 2]


def test_never_entered_creates_nothing(name):
    shmarray.scoped(3, name=name)
    shmarray.scoped(3)
    shmarray.scoped("nonsense", object, name="a/b")
    assert not raw.names(name)


@pytest.mark.parametrize("given", [None, "name"])
@pytest.mark.parametrize(
    "bad", [{"shape": -1}, {"shape": 3, "dtype": object}, {}, {"shape": 3, "permissions": -1}], ids=str
)
def test_what_create_refuses_is_refused_on_entering(name, given, bad):
    with pytest.raises((TypeError, ValueError)), shmarray.scoped(**bad, name=given and name):
        pass
    assert not raw.names(name)


def test_scopes_nest(shm_name):
    first, second = shm_name(), shm_name()
    with shmarray.scoped(3, name=first) as a, shmarray.scoped(3, name=second) as b, shmarray.scoped(3) as c:
        for array in (a, b, c):
            array[:] = 1
        assert not np.shares_memory(a, b)
        with pytest.raises(shmarray.ArrayExistsError), shmarray.scoped(3, name=first):
            pass
        assert raw.names(first) == [first]
    assert not raw.names(first)
    assert not raw.names(second)


@pytest.mark.parametrize("given", [None, "name"])
def test_a_forked_child_that_leaves_the_block_deletes_nothing(name, given):
    block = shmarray.scoped(data=[1, 2], name=given and name)
    array = block.__enter__()
    handle = shmarray.SharedHandle(array)

    def leave():
        block.__exit__(None, None, None)

    in_child(leave)
    assert raw.names(name) == ([name] if given else [])
    assert in_child(handle.array.tolist) == [1, 2]
    block.__exit__(None, None, None)
    assert not raw.names(name)


def test_a_child_forked_inside_that_ends_deletes_nothing(name):
    with shmarray.scoped(3, name=name):
        with Child(lambda _: None) as child:
            child.result()
        assert raw.names(name) == [name]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("permissions", [0o000, 0o200, 0o400, 0o600], ids=oct)
def test_it_is_deleted_whatever_its_permissions(name, permissions):
    def as_nobody():
        os.setuid(65534)
        with shmarray.scoped(3, name=name, permissions=permissions):
            pass

    in_child(as_nobody)
    assert not raw.names(name)


def test_files_can_be_scoped(tmp_path):
    with shmarray.scoped(3, name=f"file://{tmp_path}/a.npy"):
        assert os.listdir(tmp_path) == ["a.npy"]
    assert not os.listdir(tmp_path)


def test_a_relative_path_is_deleted_where_it_was_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with shmarray.scoped(3, name="file://a.npy"):
        monkeypatch.chdir("/")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("given", [None, "name"])
def test_a_killed_process_leaves_no_name_if_names_are_in_a_directory(system, name, given):
    def hold(channel):
        with shmarray.scoped(1000, name=given and name):
            channel.send("inside")
            channel.recv()

    def left():
        return [*raw.names(name), *raw.names(f"shmarray-{child.pid}-")]

    with Child(hold) as child:
        child.receive()
        child.kill()
        if system == "posix_alone":
            assert len(left()) == 1
            shmarray.delete(left()[0])
        wait_until(lambda: not left(), 2)


def test_memory_without_a_name_leaves_nothing_when_killed_on_linux():
    code = """
import os, signal, shmarray
with shmarray.scoped(1000) as array:
    array[:] = 1
    assert not [name for name in os.listdir("/dev/shm") if str(os.getpid()) in name]
    os.kill(os.getpid(), signal.SIGKILL)
"""
    run_script(code, status=-signal.SIGKILL)


@pytest.mark.parametrize("code", [errno.EPERM, errno.EACCES, errno.ENOSYS])
def test_memory_has_a_random_name_if_unnamed_memory_is_forbidden(monkeypatch, code):
    def memfd_create(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "memfd_create", memfd_create)
    with shmarray.scoped(3) as array:
        array[:] = 1
        assert in_child(shmarray.SharedHandle(array).array.sum) == 3
        assert raw.names(f"shmarray-{os.getpid()}-")
    assert not raw.names(f"shmarray-{os.getpid()}-")


def test_a_file_that_could_not_be_named_is_not_removed_later(name, monkeypatch):
    """Regression: its inode was free for another file of that name, which the end of the block then deleted."""
    monkeypatch.setattr(files, "link", lambda *_: False)
    undo = []
    array = temporary.create_temporary(undo, name, 3)
    assert [step.identity for step in undo] == [files.identity(os.stat(raw.path(name)))]
    undo.pop()()
    del array


def test_a_file_that_replaced_it_remains(tmp_path):
    """Some file systems (ext4) would give the new file the same inode if the array were freed."""
    for _ in range(20):
        with shmarray.scoped(3, name=f"file://{tmp_path}/a.npy") as array:
            del array
            os.unlink(f"{tmp_path}/a.npy")
            np.save(f"{tmp_path}/a.npy", np.zeros(3))
        assert os.listdir(tmp_path) == ["a.npy"]
        os.unlink(f"{tmp_path}/a.npy")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("kind", ["Pool", "Executor", "stock"])
def test_a_program_that_has_dropped_its_privileges_shares_without_names(kind):
    """Its process is not dumpable, so even processes of the same user may not look into it."""
    code = """
import multiprocessing, os, sys, numpy, shmarray
from tests.pool import tasks
def pool():
    return multiprocessing.get_context("fork").Pool(1) if sys.argv[1] == "stock" else tasks.make(sys.argv[1], "fork", 1)
def call(pool, function, *arguments):
    return pool.submit(function, *arguments).result(30) if hasattr(pool, "submit") else (
        pool.apply_async(function, arguments).get(30))
with pool() as first:  # import everything now: the other user may be unable to read it
    call(first, abs, -1)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
assert os.stat("/proc/self/fd").st_uid != os.geteuid()
with pool() as second:
    call(second, abs, -1)
    for _ in range(3):
        with shmarray.scoped(data=numpy.ones(1000)) as array:
            call(second, tasks.write_first, array[10:])
            assert array[10] == 99
assert not [name for name in os.listdir("/dev/shm") if name.startswith(f"shmarray-{os.getpid()}-")]
"""
    run_script(code, kind)


def test_the_end_of_the_interpreter_leaves_the_descriptors_of_daemon_threads_alone():
    """A thread that makes an array at that moment would get EBADF, or the file of another thread."""
    run_script("""
import atexit, shmarray
from shmarray.core import temporary
def filled(*arguments, true=temporary.filled):
    atexit._run_exitfuncs()
    return true(*arguments)
temporary.filled = filled
with shmarray.scoped(10) as array:
    array[0] = 1
""")


def test_at_the_end_of_the_interpreter_the_name_is_gone_without_a_reaper(name):
    """A frozen program has no Python with which to run the reaper."""
    code = """
import sys, threading
sys.frozen = True
import shmarray
from shmarray.core import temporary
from shmarray.core.posix import files
entered = threading.Event()
def wait():
    with shmarray.scoped(3, name=sys.argv[1]):
        entered.set()
        threading.Event().wait()
threading.Thread(target=wait, daemon=True).start()
entered.wait()
"""
    run_script(code, name)
    assert not raw.names(name)


def test_the_name_given_as_the_shape_is_explained(name):
    with pytest.raises(TypeError, match="name="), shmarray.scoped(name, 3):
        pass


def test_an_interrupt_at_any_moment_leaves_no_name(name):
    """The exception may be raised anywhere in entering and leaving; the name is removed at exit at the latest."""
    code = """
import contextlib, signal, sys, shmarray
def interrupt(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
for number in range(300):
    try:
        signal.setitimer(signal.ITIMER_REAL, (5 + number % 150) * 1e-6)
        with contextlib.suppress(shmarray.ArrayExistsError), shmarray.scoped(1000, name=sys.argv[1]):
            pass
        while True:  # wait for the interrupt, which comes exactly once
            pass
    except KeyboardInterrupt:
        pass
"""
    run_script(code, name)
    assert raw.names(name) == []
