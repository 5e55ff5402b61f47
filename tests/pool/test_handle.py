"""SharedHandle: a small object that represents a view of shared memory and that any pickler can send."""

import copy
import io
import multiprocessing
import os
import pickle
import socket
import traceback
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

import shmarray
from shmarray.core import mapping
from tests.helpers import raw, workers
from tests.helpers.processes import Child, in_child, run_script

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def through(handle, protocol=None):
    return pickle.loads(pickle.dumps(handle, protocol))


VIEWS = {
    "whole": lambda a: a,
    "strided": lambda a: a[::2, 1::3],
    "negative strides": lambda a: a[::-1, ::-2],
    "transposed": lambda a: a.T,
    "broadcast": lambda a: np.broadcast_to(a[0], (5, 6)),
    "new axis": lambda a: a[None, :, None],
    "0-d": lambda a: a[2:3, 3].reshape(()),
    "one item": lambda a: a[3:4, 2:3],
    "zero-size": lambda a: a[:, 3:3],
    "zero-size at the end": lambda a: a[a.shape[0] :],
    "bytes": lambda a: a.view("u1")[:, 5:],
    "other dtype": lambda a: a.view(">i2"),
    "structured": lambda a: a.view([("x", "i4"), ("y", "f4")]),
    "one field": lambda a: a.view([("x", "i4"), ("y", "f4")])["y"],
    "real part": lambda a: a.view("c8").imag,
    "as_strided": lambda a: np.lib.stride_tricks.as_strided(a, (3, 3), (8, 16)),
    "windows": lambda a: np.lib.stride_tricks.sliding_window_view(a, (2, 2)),
    "of a memoryview": lambda a: np.asarray(memoryview(a))[1:],
    "frombuffer": lambda a: np.frombuffer(a, "f4", 5, 8),
    "times": lambda a: a.view("M8[us]"),
    "unaligned": lambda a: np.frombuffer(memoryview(a).cast("B")[3:43], "i4"),
    "asarray of the handle": lambda a: np.asarray(shmarray.SharedHandle(a)),
}


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("make", VIEWS.values(), ids=VIEWS)
def test_every_view_survives_a_round_trip(name, make):
    array = shmarray.create(name, data=np.arange(24.0).reshape(4, 6))
    view = make(array)
    again = through(shmarray.SharedHandle(view)).array

    assert (again.shape, again.strides, again.dtype) == (view.shape, view.strides, view.dtype)
    assert again.tobytes() == view.tobytes()
    assert type(again) is np.ndarray
    if view.size:
        assert again.ctypes.data == view.ctypes.data

    def in_another_mapping():
        mapping._live.clear()  # as in a process that has not attached the array yet
        return workers.describe(through(shmarray.SharedHandle(view)).array)

    shape, strides, dtype, _, content = in_child(in_another_mapping)
    assert (shape, strides, dtype, content) == (view.shape, view.strides, view.dtype, view.tobytes())


def test_every_view_survives_a_round_trip_to_another_process(name):
    array = shmarray.create(name, data=np.arange(24.0).reshape(4, 6))
    views = [make(array) for make in VIEWS.values()]
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        answers = pool.map(workers.describe_handle, [shmarray.SharedHandle(view) for view in views])
        pool.close()
        pool.join()
    for view, (shape, strides, dtype, _, content) in zip(views, answers, strict=True):
        assert (shape, strides, dtype, content) == (view.shape, view.strides, view.dtype, view.tobytes())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_carries_it_in_a_few_hundred_bytes(name, protocol):
    for array in (shmarray.create(name, 1_000_000), shmarray.attach(name)[::2].reshape(5, -1)):
        pickled = pickle.dumps(shmarray.SharedHandle(array), protocol)
        assert len(pickled) < 400
        assert np.shares_memory(pickle.loads(pickled).array, array)


def test_the_pure_python_pickler_carries_it(name):
    array = shmarray.create(name, 3)
    file = io.BytesIO()
    pickle._Pickler(file).dump(shmarray.SharedHandle(array))
    file.seek(0)
    assert np.shares_memory(pickle._Unpickler(file).load().array, array)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, through], ids=["copy", "deepcopy", "pickle"])
def test_a_copy_of_a_handle_has_the_same_memory(name, again):
    array = shmarray.create(name, data=[1, 2])
    handle = again(again(shmarray.SharedHandle(array)))
    assert np.shares_memory(handle.array, array)


def test_in_its_own_process_it_is_the_same_memory(name):
    array = shmarray.create(name, data=[1, 2, 3])
    shmarray.delete(name)  # unpickling no longer needs the name
    again = through(shmarray.SharedHandle(array[1:])).array
    assert np.shares_memory(again, array)
    again[0] = 7
    assert array.tolist() == [1, 7, 3]


def test_the_array_of_a_handle_is_the_array_it_was_made_of(name):
    array = shmarray.create(name, 3)
    handle = shmarray.SharedHandle(array)
    assert handle.array is array
    assert np.asarray(handle) is array
    assert np.asarray(handle, "f4").dtype == np.dtype("f4")
    copied = np.array(handle)
    assert not np.shares_memory(copied, array)
    assert np.sum(handle) == 0


def test_modes_survive_a_round_trip(name):
    array = shmarray.create(name, data=[1, 2])
    read_only = shmarray.attach(name, "r")
    private = shmarray.attach(name, "c")
    private[0] = 99

    assert through(shmarray.SharedHandle(array)).array.flags.writeable
    again = through(shmarray.SharedHandle(read_only)).array
    assert not again.flags.writeable
    with pytest.raises(ValueError, match="WRITEABLE"):
        again.flags.writeable = True
    begun_anew = through(shmarray.SharedHandle(private)).array
    assert begun_anew.tolist() == [1, 2]
    begun_anew[1] = 5
    assert array.tolist() == [1, 2]
    assert private.tolist() == [99, 2]


def test_a_receiver_cannot_write_what_was_attached_read_only(name, start_method):
    shmarray.create(name, data=[1, 2])
    with multiprocessing.get_context(start_method).Pool(1) as pool:
        error = pool.apply(workers.try_write, (shmarray.SharedHandle(shmarray.attach(name, "r")),))
        pool.close()
        pool.join()
    assert "read-only" in error


# --- through the stdlib's pools, queues and pipes ------------------------------------------


def test_stock_pool_map_writes_a_shared_result(name, start_method):
    source = shmarray.create(f"{name}", data=np.arange(100.0))
    with shmarray.scoped(100) as result:
        tasks = [
            (shmarray.SharedHandle(source), shmarray.SharedHandle(result), start, start + 25)
            for start in range(0, 100, 25)
        ]
        with multiprocessing.get_context(start_method).Pool(2) as pool:
            assert pool.map(workers.fill_part, tasks) == [0, 25, 50, 75]
            pool.close()
            pool.join()
        np.testing.assert_array_equal(result, np.sqrt(np.arange(100.0)))


def test_stock_executor_writes_a_shared_result(name, start_method):
    source = shmarray.create(name, data=np.arange(100.0))
    context = multiprocessing.get_context(start_method)
    with shmarray.scoped(100) as result, ProcessPoolExecutor(2, context) as pool:
        tasks = [
            (shmarray.SharedHandle(source), shmarray.SharedHandle(result), start, start + 25)
            for start in range(0, 100, 25)
        ]
        assert list(pool.map(workers.fill_part, tasks)) == [0, 25, 50, 75]
        np.testing.assert_array_equal(result, np.sqrt(np.arange(100.0)))
        assert pool.submit(workers.increment, shmarray.SharedHandle(result[:2])).result() != os.getpid()
        assert result[:3].tolist() == [1, 2, np.sqrt(2)]


def test_a_queue_carries_it(name, start_method):
    array = shmarray.create(name, data=[1, 2, 3])
    context = multiprocessing.get_context(start_method)
    queue, answers = context.SimpleQueue(), context.SimpleQueue()
    process = context.Process(target=workers.answer_handles, args=(queue, answers))
    process.start()
    try:
        queue.put(shmarray.SharedHandle(array[1:]))
        assert answers.get().tolist() == [2, 3]
        queue.put(None)
        process.join(30)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()
        process.close()
        queue.close()
        answers.close()
    assert array.tolist() == [1, -1, -1]


def test_a_pipe_carries_it(start_method):
    context = multiprocessing.get_context(start_method)
    here, there = context.Pipe()
    with shmarray.scoped(data=[1, 2]) as array:
        process = context.Process(target=workers.serve_pipe, args=(there,))
        process.start()
        try:
            here.send(shmarray.SharedHandle(array))
            assert here.poll(30)
            assert here.recv() == process.pid
            process.join(30)
        finally:
            process.kill()
            process.join()
            process.close()
            here.close()
            there.close()
        assert array.tolist() == [2, 4]


def test_an_argument_of_a_process_is_carried(name, start_method):
    array = shmarray.create(name, data=[1, 2])
    context = multiprocessing.get_context(start_method)
    process = context.Process(target=workers.increment, args=(shmarray.SharedHandle(array),))
    process.start()
    process.join(30)
    assert process.exitcode == 0
    process.close()
    assert array.tolist() == [2, 3]


# --- stale ones ---------------------------------------------------------------------------


@pytest.mark.usefixtures("system")
def test_a_stale_handle_raises_when_it_is_used_and_not_before(name):
    pickled = pickle.dumps(shmarray.SharedHandle(shmarray.create(name, 3)))
    shmarray.delete(name)
    handle = pickle.loads(pickled)
    for _ in range(2):
        with pytest.raises(shmarray.ArrayNotFoundError, match=name) as caught:
            handle.array  # noqa: B018
        assert caught.value.name == name
    with pytest.raises(shmarray.ArrayNotFoundError):
        np.asarray(handle)
    assert name in repr(handle)
    assert isinstance(through(handle), shmarray.SharedHandle)


def test_the_error_of_a_stale_handle_does_not_grow_with_each_use():
    """If the same error were raised again with its last traceback, it would keep the frames of all uses."""
    with shmarray.scoped(3) as array:
        pickled = pickle.dumps(shmarray.SharedHandle(array))
    del array
    handle = pickle.loads(pickled)

    def frames():
        with pytest.raises(shmarray.ArrayNotFoundError) as caught:
            handle.array  # noqa: B018
        return len(list(traceback.walk_tb(caught.value.__traceback__)))

    assert frames() == frames()


@pytest.mark.usefixtures("system")
def test_a_name_that_was_remade_is_not_taken_for_the_old_array(name):
    pickled = pickle.dumps(shmarray.SharedHandle(shmarray.create(name, data=[1, 2])))
    keeper = open(raw.path(name), "rb")  # noqa: SIM115 - keeps the inode from being reused
    shmarray.delete(name)
    other = shmarray.create(name, data=[3, 4])
    with keeper, pytest.raises(shmarray.ArrayNotFoundError, match="another"):
        pickle.loads(pickled).array  # noqa: B018
    assert other.tolist() == [3, 4]


@pytest.mark.parametrize("thing", ["directory", "link", "socket", "fifo", "text"])
def test_a_name_that_is_now_something_else_is_an_error_of_ours(name, thing):
    pickled = pickle.dumps(shmarray.SharedHandle(shmarray.create(name, 3)))
    shmarray.delete(name)
    path = raw.path(name)
    with socket.socket(socket.AF_UNIX) as listener:
        {
            "directory": lambda: os.mkdir(path),
            "link": lambda: os.symlink("/etc/passwd", path),
            "socket": lambda: listener.bind(path),
            "fifo": lambda: os.mkfifo(path),
            "text": lambda: raw.put(name, b"text"),
        }[thing]()
        with pytest.raises(shmarray.ShmArrayError, match=name):
            pickle.loads(pickled).array  # noqa: B018


def test_a_stale_handle_does_not_hang_a_stock_pool(name, start_method):
    array = shmarray.create(name, 3)
    handle = shmarray.SharedHandle(array)
    with multiprocessing.get_context(start_method).Pool(1) as pool:
        assert pool.apply(os.getpid) != os.getpid()  # the worker exists; under spawn it has not inherited the array
        shmarray.delete(name)
        error = pool.apply_async(workers.open_stale, (handle,)).get(30)
        pool.close()
        pool.join()
    if start_method == "fork":  # the child has inherited the memory
        assert error is None
    else:
        assert type(error) is shmarray.ArrayNotFoundError
        assert error.name == name


def test_deletion_after_unpickling_does_not_matter(name):
    array = shmarray.create(name, data=[1, 2])

    def receive(channel):
        mapping._live.clear()
        handle = pickle.loads(channel.recv())
        channel.send("unpickled")
        channel.recv()
        handle.array[0] = 7
        return handle.array.tolist()

    with Child(receive) as child:
        child.tell(pickle.dumps(shmarray.SharedHandle(array)))
        child.receive()
        shmarray.delete(name)
        child.tell()
        assert child.result() == [7, 2]
    assert array[0] == 7


def test_a_truncated_file_is_a_format_error(name):
    array = shmarray.create(name, 100_000)
    pickled = pickle.dumps(shmarray.SharedHandle(array))
    os.truncate(raw.path(name), 5000)

    def unpickle():
        mapping._live.clear()
        return pickle.loads(pickled).array

    with pytest.raises(shmarray.ArrayFormatError, match="truncated"):
        in_child(unpickle)
    os.truncate(raw.path(name), 0)
    with pytest.raises(shmarray.ArrayFormatError):
        in_child(unpickle)


def test_a_private_attachment_of_a_file_that_was_cut_off_is_an_error_when_it_is_sent(name):
    shmarray.create(name, 100_000)
    private = shmarray.attach(name, "c")
    os.truncate(raw.path(name), 5000)
    one, other = multiprocessing.Pipe()
    with one, other, pytest.raises(shmarray.ArrayFormatError, match="truncated"):
        one.send(private)
    with shmarray.Pool(1) as pool, pytest.raises(shmarray.ArrayFormatError, match="truncated"):
        pool.apply_async(len, (private,)).get(30)


def test_anonymous_memory_is_gone_when_its_scope_is_left():
    with shmarray.scoped(data=[1, 2]) as array:
        pickled = pickle.dumps(shmarray.SharedHandle(array))
    array = None
    with pytest.raises(shmarray.ArrayNotFoundError, match=r"anonymous array .* with block that created it has ended"):
        pickle.loads(pickled).array  # noqa: B018


@pytest.mark.parametrize("kind", ["file", "socket", "pipe", "directory"])
def test_a_reused_descriptor_is_not_taken_for_the_array(tmp_path, kind):
    """The owner's descriptor was closed and its number reused."""
    with shmarray.scoped(data=[1, 2]) as array:
        handle = shmarray.SharedHandle(array)
        pickled = pickle.dumps(handle)
        fd = int(handle._reference.name.path.rpartition("/")[2])
    del array, handle
    if kind == "file":
        new = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    elif kind == "directory":
        new = os.open(tmp_path, os.O_RDONLY)
    elif kind == "pipe":
        new, other = os.pipe()
    else:
        new = socket.socket().detach()
    try:
        if new != fd:
            os.dup2(new, fd)
        with pytest.raises(shmarray.ArrayNotFoundError, match="anonymous"):
            pickle.loads(pickled).array  # noqa: B018
    finally:
        for opened in {new, fd} | ({other} if kind == "pipe" else set()):
            os.close(opened)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("given", [None, "name"])
def test_another_user_gets_a_permission_error(name, given):
    with shmarray.scoped(3, name=given and name) as array:
        pickled = pickle.dumps(shmarray.SharedHandle(array))

        def as_nobody():
            mapping._live.clear()
            os.setuid(65534)
            return pickle.loads(pickled).array

        with pytest.raises(PermissionError):
            in_child(as_nobody)


def test_a_file_that_has_the_inode_of_a_deleted_one_is_not_taken_for_it(tmp_path):
    """Some file systems (ext4) give the inode of a deleted file to the next one."""
    name = f"file://{tmp_path}/a.npy"
    for _ in range(20):
        array = shmarray.create(name, data=[1, 2])
        identity = os.stat(f"{tmp_path}/a.npy").st_ino
        pickled = pickle.dumps(shmarray.SharedHandle(array))
        del array
        shmarray.delete(name)
        shmarray.create(name, data=[3, 4])
        if os.stat(f"{tmp_path}/a.npy").st_ino == identity:
            break
        shmarray.delete(name)
    else:
        pytest.skip("this file system does not reuse inodes immediately")
    with pytest.raises(shmarray.ArrayNotFoundError, match="another"):
        pickle.loads(pickled).array  # noqa: B018


def test_a_descriptor_that_somebody_closed_is_not_closed_again(tmp_path):
    """At the end of the block, its number may belong to another file."""

    def close_all():
        with shmarray.scoped(3) as array:
            fd = int(shmarray.SharedHandle(array)._reference.name.path.rpartition("/")[2])
            os.closerange(3, 1000)
            other = os.open(tmp_path, os.O_RDONLY)
            os.dup2(other, fd)
        os.fstat(fd)
        return True

    with Child(lambda channel: _after_closing(close_all, channel)) as child:
        assert child.receive() is True


def test_names_are_not_sent_to_a_socket_of_others(name):
    """A program that closes all descriptors also closes the one of the name reaper."""
    code = """
import os, socket, sys, shmarray
def scope():
    with shmarray.scoped(3, name=sys.argv[1]):
        pass
scope()
os.closerange(3, 1000)
pairs = [socket.socketpair() for _ in range(8)]
scope()
scope()
for ends in pairs:
    for one in ends:
        one.setblocking(False)
        try:
            raise SystemExit(f"told {one.recv(1000)}")
        except BlockingIOError:
            pass
for one, other in pairs:
    one.close()
    other.close()
"""
    run_script(code, name)


def _after_closing(function, channel):
    spare = os.dup2(channel.fileno(), 1001)
    outcome = function()
    os.dup2(spare, channel.fileno())
    channel.send(outcome)


def test_errors_describe_an_anonymous_array_by_shape_and_dtype():
    with shmarray.scoped((2, 3), "i2") as array:
        handle = shmarray.SharedHandle(array)
        pickled = pickle.dumps(handle)
        assert handle.name == "anonymous array"
    del array, handle
    with pytest.raises(shmarray.ArrayNotFoundError) as caught:
        pickle.loads(pickled).array  # noqa: B018
    assert f"anonymous array (2, 3) int16 of process {os.getpid()} cannot be reached" in str(caught.value)


def test_a_handle_from_another_host_says_so(name):
    handle = shmarray.SharedHandle(shmarray.create(name, 3))
    handle._reference = handle._reference._replace(host="another")
    with pytest.raises(shmarray.ArrayNotFoundError, match="another host"):
        through(handle).array  # noqa: B018


def test_a_handle_from_another_pid_namespace_says_so():
    with shmarray.scoped(3) as array:
        handle = shmarray.SharedHandle(array)
        kernel = handle._reference.host.partition("/")[0]
        handle._reference = handle._reference._replace(host=f"{kernel}/pid:[1]")
        with pytest.raises(shmarray.ArrayNotFoundError, match=r"PID namespace.*give it a name"):
            through(handle).array  # noqa: B018


def test_a_read_only_view_of_writable_memory_stays_read_only(name):
    array = shmarray.create(name, 3)
    view = array[:]
    view.flags.writeable = False
    assert not through(shmarray.SharedHandle(view)).array.flags.writeable
    assert not through(shmarray.SharedHandle(np.broadcast_to(array, (2, 3)))).array.flags.writeable
    assert through(shmarray.SharedHandle(array)).array.flags.writeable


def test_a_handle_says_its_name(name):
    assert through(shmarray.SharedHandle(shmarray.create(name, 3))).name == name


# --- objects that are not in shared memory -------------------------------------------------


@pytest.mark.parametrize("thing", [np.zeros(3), [1, 2], None, 3.0, np.float64(3)], ids=repr)
def test_what_is_not_shared_is_a_type_error_that_says_what_to_do(thing):
    with pytest.raises(TypeError, match=r"shmarray\.create\(name, data=array\).*shmarray\.scoped\(data=array\)"):
        shmarray.SharedHandle(thing)


def test_the_error_for_a_similar_object_has_its_own_remedy(name):
    handle = shmarray.SharedHandle(shmarray.create(name, 3))
    for thing, remedy in ((name, "attach"), (handle, r"\.array"), (np.load(raw.path(name), mmap_mode="r"), "attach")):
        with pytest.raises(TypeError, match=remedy):
            shmarray.SharedHandle(thing)


@pytest.mark.parametrize("make", [np.copy, lambda a: a + 1, lambda a: a[[0, 1]], lambda a: a.astype("f4")])
def test_a_copy_of_shared_memory_is_not_shared(name, make):
    array = shmarray.create(name, 3)
    with pytest.raises(TypeError, match="not in shared memory"):
        shmarray.SharedHandle(make(array))


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize("kind", [np.recarray, np.matrix, np.ma.MaskedArray])
def test_a_subclass_is_a_type_error(name, kind):
    array = shmarray.create(name, 3)
    with pytest.raises(TypeError):
        shmarray.SharedHandle(array.view(kind))


def test_a_view_that_reaches_outside_is_a_value_error(name):
    array = shmarray.create(name, 3)
    outside = np.lib.stride_tricks.as_strided(array, (1_000_000,), (8,))
    with pytest.raises(ValueError, match="outside"):
        shmarray.SharedHandle(outside)


def test_files_have_handles_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    array = shmarray.create("file://here.npy", data=[1, 2])
    pickled = pickle.dumps(shmarray.SharedHandle(array))

    def unpickle():
        mapping._live.clear()
        os.chdir("/")
        pickle.loads(pickled).array[0] = 7

    in_child(unpickle)
    assert array.tolist() == [7, 2]


def test_its_repr_says_what_it_is(name):
    array = shmarray.create(name, (2, 3), "i2")
    assert repr(shmarray.SharedHandle(array)) == f"<SharedHandle {name!r} shape=(2, 3) dtype=int16>"


def test_it_keeps_the_memory(name):
    handle = shmarray.SharedHandle(shmarray.create(name, data=[1, 2]))
    shmarray.delete(name)
    assert handle.array.tolist() == [1, 2]
