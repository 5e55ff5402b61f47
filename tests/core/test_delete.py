"""delete: the name is removed; the memory remains for those who have it mapped."""

import os
import socket
import stat
import threading

import numpy as np
import pytest

import shmarray
from tests.helpers import raw
from tests.helpers.processes import in_child

pytestmark = pytest.mark.usefixtures("system")


def test_attached_arrays_stay_valid(name):
    a = shmarray.create(name, data=[1, 2, 3])
    b = shmarray.attach(name)
    shmarray.delete(name)
    b[0] = 7
    assert a.tolist() == [7, 2, 3]
    assert not raw.names(name)


def test_the_name_is_free_again(name):
    a = shmarray.create(name, data=[1])
    shmarray.delete(name)
    b = shmarray.create(name, data=[2])
    assert (a[0], b[0]) == (1, 2)


def test_deleting_a_missing_array_is_an_error(name):
    with pytest.raises(shmarray.ArrayNotFoundError, match=name) as caught:
        shmarray.delete(name)
    assert caught.value.name == name


def test_a_process_that_never_attached_deletes(name):
    a = shmarray.create(name, data=[1])
    in_child(shmarray.delete, name)
    assert not raw.names(name)
    assert a[0] == 1


def test_an_empty_file_is_left_alone_if_no_killed_maker_can_have_left_it(name, system, tmp_path):
    if system in {"no_unnamed_files", "posix_alone"}:
        pytest.skip("a maker that was killed leaves an empty file here")
    raw.put(name, b"")
    (tmp_path / "__init__.py").touch()
    for empty in (name, f"file://{tmp_path}/__init__.py"):
        with pytest.raises(shmarray.ArrayFormatError):
            shmarray.delete(empty)
    assert raw.get(name) == b""
    assert (tmp_path / "__init__.py").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a device")
@pytest.mark.parametrize("permissions", [0o666, 0])
@pytest.mark.parametrize("minor", [3, 5], ids=["null", "zero"])
def test_a_device_is_left_alone(tmp_path, minor, permissions):
    path = tmp_path / "device"
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, minor))
    os.chmod(path, permissions)
    os.chown(path, 65534, 65534)
    os.chown(tmp_path, 65534, 65534)

    def as_nobody():
        os.chdir(tmp_path)
        os.setuid(65534)
        shmarray.delete("file://device")

    for delete in (lambda: shmarray.delete(f"file://{path}"), lambda: in_child(as_nobody)):
        with pytest.raises(shmarray.ShmArrayError):
            delete()
    assert path.exists()


@pytest.mark.parametrize("content", [b"text", b"\x93NUMP"], ids=["text", "almost"])
def test_what_is_no_array_is_left_alone(name, content):
    raw.put(name, content)
    with pytest.raises(shmarray.ArrayFormatError):
        shmarray.delete(name)
    assert raw.get(name) == content


def test_zeros_are_left_alone_if_no_killed_maker_can_have_left_them(name, system):
    if system == "posix_alone":
        pytest.skip("a maker that was killed leaves zeros here")
    raw.put(name, b"\0" * 100)
    with pytest.raises(shmarray.ArrayFormatError):
        shmarray.delete(name)
    assert raw.get(name) == b"\0" * 100


@pytest.mark.parametrize("kind", ["directory", "link", "socket", "fifo"])
def test_another_kind_of_file_is_left_alone(name, kind):
    path = raw.path(name)
    with socket.socket(socket.AF_UNIX) as listener:
        {
            "directory": lambda: os.mkdir(path),
            "link": lambda: os.symlink("/etc/passwd", path),
            "socket": lambda: listener.bind(path),
            "fifo": lambda: os.mkfifo(path),
        }[kind]()
        with pytest.raises(OSError, match=name):
            shmarray.delete(name)
    assert os.path.lexists(path)


def test_a_damaged_array_can_be_deleted(name):
    raw.put(name, raw.header(shape="(99,)"))
    with pytest.raises(shmarray.ArrayFormatError):
        shmarray.attach(name)
    shmarray.delete(name)
    assert not raw.names(name)


def test_an_array_of_no_permissions_can_be_deleted(name):
    shmarray.create(name, 3, permissions=0)
    shmarray.delete(name)
    assert not raw.names(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_its_owner_deletes_an_array_of_no_permissions(name):
    def as_nobody():
        os.setuid(65534)
        raw.put(name, raw.saved(np.zeros(3)), 0)
        shmarray.delete(name)

    in_child(as_nobody)
    assert not raw.names(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_other_users_arrays_raise_permission_error(name):
    shmarray.create(name, 3)

    def as_nobody():
        os.setuid(65534)
        shmarray.delete(name)

    with pytest.raises(PermissionError):
        in_child(as_nobody)
    assert raw.names(name) == [name]


def test_files_are_deleted_by_their_path(tmp_path):
    name = f"file://{tmp_path}/a.npy"
    a = shmarray.create(name, data=[1])
    shmarray.delete(name)
    assert not os.listdir(tmp_path)
    assert a[0] == 1


def test_an_empty_file_that_becomes_an_array_is_deleted(name):
    """On systems without unnamed files, a maker creates the name first."""
    with open(raw.path(name), "xb") as file:
        timer = threading.Timer(0.05, lambda: (file.write(b"\x93NUMPY"), file.flush()))
        timer.start()
        shmarray.delete(name)
        timer.join()
    assert not raw.names(name)
