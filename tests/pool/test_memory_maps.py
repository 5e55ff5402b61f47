"""Memory-mapped files: the task gets the file that was sent or an error, whatever file has its name by then."""

import os
import pickle
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import shmarray
from shmarray.core.posix import files
from shmarray.pool.arrays import pickling
from shmarray.pool.arrays.by_reference import by_reference
from tests.helpers.processes import Child, in_child, run_script
from tests.helpers.scarcity import mounted, needs_mount
from tests.pool import tasks

SIZE = 50_000


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "numbers.npy"
    np.save(path, np.full(SIZE, 1.0))
    return path


def replace(path, content):
    """Replace the file as careful programs do when they save."""
    np.save(f"{path}.new.npy", content)
    os.replace(f"{path}.new.npy", path)


def content(path):
    return Path(path).read_bytes()


def sent(array):
    return pickle.dumps(by_reference(array))


def received(pickled):
    function, arguments = pickle.loads(pickled)
    return function(*arguments)


def look_and_write(pickled):
    """Return, in another process, what is there and whether it is writable."""
    array = received(pickled)
    seen = float(array[0]), array.shape
    if array.flags.writeable:
        array[1] = 7
    return seen


# --- the file is changed between sending and opening -----------------------------------------


def replaced(path):
    replace(path, np.full(SIZE, 2.0))


def replaced_by_a_shorter_one(path):
    replace(path, np.arange(5.0))


def replaced_by_an_empty_one(path):
    os.unlink(path)
    Path(path).touch()


def replaced_by_a_link(path):
    replace(f"{path}.other", np.full(SIZE, 2.0))
    os.unlink(path)
    os.symlink(f"{path}.other", path)


def replaced_by_a_directory(path):
    os.unlink(path)
    os.mkdir(path)


def replaced_by_a_fifo(path):
    os.unlink(path)
    os.mkfifo(path)


def deleted(path):
    os.unlink(path)


def renamed(path):
    os.rename(path, f"{path}.old")


def its_directory_renamed(path):
    os.rename(os.path.dirname(path), f"{os.path.dirname(path)}.old")


def its_directory_replaced(path):
    its_directory_renamed(path)
    os.mkdir(os.path.dirname(path))
    np.save(path, np.full(SIZE, 2.0))


def made_unreadable(path):
    os.rename(path, f"{path}.old")
    np.save(path, np.full(SIZE, 2.0))
    os.chmod(path, 0)


CHANGES = [
    replaced,
    replaced_by_a_shorter_one,
    replaced_by_an_empty_one,
    replaced_by_a_link,
    replaced_by_a_directory,
    replaced_by_a_fifo,
    deleted,
    renamed,
    its_directory_renamed,
    its_directory_replaced,
    made_unreadable,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_the_receiver_has_the_file_that_was_sent_while_the_sender_has_it(path, tmp_path, mode, change):
    place = tmp_path / "inner" / path.name
    place.parent.mkdir()
    path.rename(place)
    mapped = np.load(place, mmap_mode=mode)
    pickled = sent(mapped)
    change(str(place))
    there = content(place) if place.is_file() else None

    assert in_child(look_and_write, pickled) == (1.0, (SIZE,))

    assert mapped[1] == (7 if mode == "r+" else 1)
    assert there is None or content(place) == there


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_once_the_sender_has_let_go_it_is_an_error_and_no_other_file_is_touched(path, tmp_path, change):
    place = tmp_path / "inner" / path.name
    place.parent.mkdir()
    path.rename(place)
    pickled = sent(np.load(place, mmap_mode="r+"))
    change(str(place))
    there = content(place) if place.is_file() else None
    with pytest.raises(shmarray.ArrayNotFoundError, match=r"closed the map|numpy\.array") as caught:
        in_child(look_and_write, pickled)
    assert caught.value.name == str(place)
    assert there is None or content(place) == there


def test_a_file_that_has_the_inode_of_a_deleted_one_is_another_file(tmp_path):
    """Some file systems (ext4) give the inode of a deleted file to the next one."""
    for _ in range(20):
        path = tmp_path / "numbers.npy"
        np.save(path, np.full(SIZE, 1.0))
        first = os.stat(path)
        pickled = sent(np.load(path, mmap_mode="r+"))
        os.unlink(path)
        np.save(path, np.full(SIZE, 2.0))
        if os.stat(path).st_ino == first.st_ino:
            break
        os.unlink(path)
    else:
        pytest.skip("this file system does not reuse inodes immediately")
    there = content(path)
    if shmarray.core.birth(str(path)) is None:
        pytest.skip("this file system does not record creation times")
    with pytest.raises(shmarray.ArrayNotFoundError):
        in_child(look_and_write, pickled)
    assert content(path) == there


@pytest.mark.parametrize("size", [0, 1, 4096, 8 * SIZE])
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_file_that_was_cut_off_is_an_error_and_stays_as_it_is(path, mode, size):
    mapped = np.load(path, mmap_mode=mode)
    pickled = sent(mapped)
    os.truncate(path, size)
    with pytest.raises(shmarray.ArrayFormatError, match="truncated"):
        in_child(look_and_write, pickled)
    assert path.stat().st_size == size


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_the_sender_of_a_file_that_was_cut_off_has_an_error_and_no_bus_error(path, mode):
    mapped = np.load(path, mmap_mode=mode)
    os.truncate(path, 4096)
    with pytest.raises(shmarray.ArrayFormatError, match="truncated"):
        by_reference(mapped)
    by_reference(mapped[:100])  # this part still exists
    os.unlink(path)
    with pytest.raises(shmarray.ArrayFormatError, match="truncated"):
        by_reference(mapped[::-1])


def test_a_file_that_was_cut_off_and_grew_again_is_complete(path):
    mapped = np.load(path, mmap_mode="r")
    pickled = sent(mapped)
    os.truncate(path, 0)
    np.save(path, np.full(SIZE, 3.0))
    assert in_child(look_and_write, pickled)[0] == mapped[0] == 3.0


# --- the file is changed before sending ---------------------------------------------------


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_read_only_map_of_a_file_that_is_gone_is_sent_as_data(path, tmp_path, change):
    place = tmp_path / "inner" / path.name
    place.parent.mkdir()
    path.rename(place)
    mapped = np.load(place, mmap_mode="r")
    change(str(place))
    assert by_reference(mapped) is None


@pytest.mark.parametrize("change", [replaced, replaced_by_a_shorter_one, replaced_by_a_link, replaced_by_a_directory])
def test_a_writable_map_is_shared_although_its_name_is_another_files(path, change):
    mapped = np.load(path, mmap_mode="r+")
    change(str(path))
    assert in_child(look_and_write, sent(mapped)) == (1.0, (SIZE,))
    assert mapped[1] == 7


def test_two_maps_of_one_path_are_two_files(path):
    old = np.load(path, mmap_mode="r+")
    replaced(path)
    new = np.load(path, mmap_mode="r+")
    pickled = sent(old), sent(new)
    assert [in_child(look_and_write, one)[0] for one in pickled] == [1.0, 2.0]
    assert (old[1], new[1]) == (7, 7)


def test_a_map_that_outlives_another_of_its_file_is_shared_still(path):
    first, second = np.load(path, mmap_mode="r+"), np.load(path, mmap_mode="r+")
    sent(second)  # looks up its descriptor while there are two
    del first
    replaced(path)
    assert in_child(look_and_write, sent(second)) == (1.0, (SIZE,))
    assert second[1] == 7


def test_a_writable_map_that_cannot_be_shared_is_an_error(path):
    mapped = np.load(path, mmap_mode="r+")
    replaced(path)

    def close_all_and_send():
        os.closerange(3, 1000)
        by_reference(mapped)

    with Child(lambda channel: _raised(close_all_and_send, channel)) as child:
        assert issubclass(child.receive(), shmarray.ArrayNotFoundError)


def _raised(function, channel):
    # Closing all descriptors has also closed the channel.
    spare = os.dup2(channel.fileno(), 1001)
    try:
        function()
    except shmarray.ShmArrayError as error:
        kind = type(error)
    else:
        kind = None
    os.dup2(spare, channel.fileno())
    os.close(spare)
    channel.send(kind)


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_child_that_has_closed_its_descriptors_still_sends_its_maps(path, mode):
    mapped = np.load(path, mmap_mode=mode)

    def close_and_send(channel):
        spare = os.dup2(channel.fileno(), 1001)
        os.closerange(3, 1000)
        os.dup2(spare, channel.fileno())
        os.close(spare)
        channel.send(look_and_write(sent(mapped)))

    with Child(close_and_send) as child:
        assert child.receive() == (1.0, (SIZE,))
    assert mapped[1] == (7 if mode == "r+" else 1)


def test_a_file_without_a_name_is_sent_as_data():
    with tempfile.TemporaryFile() as file:
        np.full(SIZE, 1.0).tofile(file)
        mapped = np.memmap(file, float, "r")
        assert by_reference(mapped) is None


# --- names of the file --------------------------------------------------------------------


def test_a_relative_path_is_the_same_file_in_any_working_directory(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    mapped = np.load(path.name, mmap_mode="r+")
    monkeypatch.chdir("/")

    def elsewhere():
        os.chdir("/usr")
        return look_and_write(pickled)

    pickled = sent(mapped)
    assert in_child(elsewhere) == (1.0, (SIZE,))
    assert mapped[1] == 7


def test_a_link_is_the_file_that_it_led_to(path, tmp_path):
    link, other = tmp_path / "link.npy", tmp_path / "other.npy"
    np.save(other, np.full(SIZE, 2.0))
    link.symlink_to(path)
    mapped = np.load(str(link), mmap_mode="r+")
    assert in_child(look_and_write, sent(mapped)) == (1.0, (SIZE,))
    pickled = sent(mapped)
    link.unlink()
    link.symlink_to(other)
    there = content(other)
    assert in_child(look_and_write, pickled) == (1.0, (SIZE,))
    assert content(other) == there


def test_a_hard_link_works_like_the_first_name(path, tmp_path):
    os.link(path, tmp_path / "second.npy")
    mapped = np.load(tmp_path / "second.npy", mmap_mode="r+")
    pickled = sent(mapped)
    os.unlink(tmp_path / "second.npy")
    assert in_child(look_and_write, pickled) == (1.0, (SIZE,))


def test_strange_names(tmp_path):
    for name in ("new\nline.npy", "back\\slash.npy", "x (deleted)", " ", "\udcff.npy", "日本.npy"):
        path = os.path.join(tmp_path, name)
        with open(path, "wb") as file:
            np.full(SIZE, 1.0).tofile(file)
        mapped = np.memmap(path, float, "r+")
        assert in_child(look_and_write, sent(mapped)) == (1.0, (SIZE,))
        assert mapped[1] == 7


def test_the_receiver_does_not_create_a_new_file_again(tmp_path):
    mapped = np.memmap(tmp_path / "new", float, "w+", shape=SIZE)
    mapped[:] = 1
    assert in_child(look_and_write, sent(mapped)) == (1.0, (SIZE,))
    assert mapped[:3].tolist() == [1, 7, 1]


@needs_mount
def test_another_file_in_another_mount_namespace_is_not_taken_for_it(path):
    """The worker has other files under the same path, as in a container that shares the pid namespace."""
    mapped = np.load(path, mmap_mode="r+")
    program = (
        "import sys, pickle; from tests.pool.test_memory_maps import look_and_write; "
        "print(look_and_write(bytes.fromhex(sys.argv[1])))"
    )
    cover = f"mount -t tmpfs tmpfs {path.parent} && head -c 500000 /dev/zero > {path}"
    printed = run_script(program, sent(mapped).hex(), prefix=mounted(cover))
    assert printed.strip() == str((1.0, (SIZE,)))
    assert mapped[1] == 7


OVERLAY = """
import numpy
from tests.helpers.processes import in_child
from tests.pool.test_memory_maps import look_and_write, replaced, sent
for name, mode in (("a", "r"), ("b", "r+"), ("c", "r+")):
    path = f"/mnt/all/{name}.npy"
    mapped = numpy.load(path, mmap_mode=mode)
    pickled = sent(mapped)
    for _ in range(2):
        assert in_child(look_and_write, pickled) == (1.0, (50_000,))
        assert mapped[1] == (7 if mode == "r+" else 1)
        if name != "c":
            replaced(path)
"""


@needs_mount
def test_files_of_an_overlay_are_recognized():
    """Most containers use overlays, where the kernel's list of mappings and stat report different numbers."""
    commands = (
        "mount -t tmpfs tmpfs /mnt && mkdir /mnt/low /mnt/up /mnt/work /mnt/all && mount -t tmpfs tmpfs /mnt/low && "
        f"for name in a b c; do {sys.executable} -c "
        "'import numpy, sys; numpy.save(sys.argv[1], numpy.full(50000, 1.0))' /mnt/low/$name.npy; done && "
        "mount -t overlay overlay -o lowerdir=/mnt/low,upperdir=/mnt/up,workdir=/mnt/work /mnt/all"
    )
    run_script(OVERLAY, prefix=mounted(commands))


def test_a_device_is_mapped_unchanged():
    with open("/dev/zero", "rb") as file:
        mapped = np.memmap(file, np.uint8, "r", shape=(100_000,))
    assert by_reference(mapped) is None or not in_child(received, sent(mapped)).any()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_who_may_not_open_it_has_a_permission_error(path):
    os.chmod(path, 0o600)
    pickled = sent(np.load(path, mmap_mode="r"))

    def as_nobody():
        os.setuid(65534)
        look_and_write(pickled)

    with pytest.raises(shmarray.ArrayPermissionError, match="may not open"):
        in_child(as_nobody)


# --- through the pools ----------------------------------------------------------------------


def submit(pool, function, *arguments):
    if isinstance(pool, shmarray.Pool):
        return pool.apply_async(function, arguments)
    return pool.submit(function, *arguments)


def result(call):
    return call.get(60) if hasattr(call, "get") else call.result(60)


@pytest.mark.parametrize("change", [replaced, replaced_by_a_shorter_one, renamed], ids=lambda change: change.__name__)
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_tasks_that_wait_have_the_file_that_was_sent(kind, start_method, path, tmp_path, mode, change):
    mapped = np.load(path, mmap_mode=mode)
    with tasks.make(kind, start_method, 1) as pool:
        busy = submit(pool, tasks.wait_for_file, str(tmp_path / "go"))
        calls = [submit(pool, tasks.look_and_write_at, mapped, i) for i in range(1, 6)]
        change(str(path))
        there = content(path) if path.exists() else None
        Path(tmp_path / "go").touch()
        result(busy)
        if change is renamed:  # a task that was not packed by then is sent a copy
            assert [result(call) for call in calls] == [1.0] * 5
        else:
            assert [result(call) for call in calls] == [1.0] * 5
            assert mapped[:7].tolist() == ([1, *[7] * 5, 1] if mode == "r+" else [1] * 7)
    assert there is None or content(path) == there


def test_a_task_whose_file_was_cut_off_fails_and_the_pool_goes_on(kind, start_method, path, tmp_path):
    mapped = np.load(path, mmap_mode="r+")
    with tasks.make(kind, start_method, 1) as pool:
        busy = submit(pool, tasks.wait_for_file, str(tmp_path / "go"))
        calls = [submit(pool, tasks.look_and_write_at, mapped, 1) for _ in range(4)]
        os.truncate(path, 4096)
        Path(tmp_path / "go").touch()
        result(busy)
        for call in calls:
            with pytest.raises(shmarray.ArrayFormatError, match="truncated"):
                result(call)
        assert tasks.call(pool, abs, -1) == 1
    assert path.stat().st_size == 4096


def test_a_result_whose_file_is_gone_already_arrives_as_data(kind, start_method, tmp_path):
    with tasks.make(kind, start_method, 1) as pool:
        for mode in ("r", "r+", "w+"):
            back = tasks.call(pool, tasks.map_and_delete, str(tmp_path / "file"), mode)
            assert back.tolist() == [1.0] * SIZE


def test_a_descriptor_of_another_map_that_is_closed_meanwhile_is_not_taken(tmp_path, monkeypatch):
    """The garbage collector may close that descriptor at any moment."""
    path = tmp_path / "numbers"
    np.arange(20_000.0).tofile(path)
    others = [np.memmap(path, float, "r+")]
    mapped = np.memmap(path, float, "r+")
    true = files.birth

    def birth(place):
        others.clear()
        return true(place)

    monkeypatch.setattr(files, "birth", birth)
    sent = pickling.dumps(mapped)
    assert not others
    again = pickling.loads(sent.pickle)
    again[5] = -1
    assert mapped[5] == -1
