"""lock: the kernel excludes threads, processes and unrelated programs."""

import os
import shutil
import signal
import subprocess
import threading
import time

import numpy as np
import pytest

import shmarray
from shmarray.core import locks
from tests.helpers import raw
from tests.helpers.processes import Child, in_child

pytestmark = pytest.mark.usefixtures("system")

FLOCK = shutil.which("flock")


def hold(channel, name, shared=False):
    """Hold the lock until the parent sends a message."""
    with shmarray.lock(name, shared=shared):
        channel.send("held")
        channel.recv()


def is_free(name, shared=False):
    """Return whether an unrelated process could take the lock."""

    def attempt():
        try:
            with shmarray.lock(name, shared=shared, timeout=0):
                return True
        except TimeoutError:
            return False

    return in_child(attempt)


def test_a_lock_is_taken_and_given_back(name):
    array = shmarray.create(name, 3)
    for thing in (array, name, f"shm://{name}", array[1:]):
        with shmarray.lock(thing):
            assert not is_free(name)
        assert is_free(name)


def test_a_lock_is_given_back_on_an_exception(name):
    array = shmarray.create(name, 3)
    with pytest.raises(ZeroDivisionError), shmarray.lock(array):
        1 / 0  # noqa: B018
    assert is_free(name)


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [(False, False, False), (True, False, False), (False, True, False), (True, True, True)],
    ids=["exclusive-exclusive", "shared-exclusive", "exclusive-shared", "shared-shared"],
)
def test_which_locks_can_be_held_together(name, first, second, both):
    shmarray.create(name, 3)
    with shmarray.lock(name, shared=first):
        assert is_free(name, shared=second) == both


def test_a_timeout_is_a_timeout_error_and_takes_as_long(name):
    shmarray.create(name, 3)
    with Child(hold, name) as child:
        child.receive()
        for timeout in (0, 0.05):
            start = time.monotonic()
            with pytest.raises(shmarray.LockTimeoutError, match=name), shmarray.lock(name, timeout=timeout):
                pass
            assert timeout <= time.monotonic() - start < timeout + 5
        child.tell()
        with shmarray.lock(name, timeout=20):
            pass


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_timeout_that_is_no_time_is_refused_at_once(name, timeout):
    shmarray.create(name, 3)
    with pytest.raises(ValueError, match="timeout"):
        shmarray.lock(name, timeout=timeout)


def test_it_waits_until_it_is_free(name):
    shmarray.create(name, 3)
    for timeout in (None, 20):
        with Child(hold, name) as child:
            child.receive()
            releaser = threading.Timer(0.05, child.tell)
            releaser.start()
            with shmarray.lock(name, timeout=timeout):
                assert not releaser.is_alive() or child.channel.poll(5)
            releaser.join()


def test_threads_exclude_each_other(name):
    array = shmarray.create(name, 1)
    inside = []

    def work():
        for _ in range(50):
            with shmarray.lock(array):
                inside.append(1)
                assert len(inside) == 1
                array[0] += 1
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert array[0] == 200


def test_processes_exclude_each_other(name):
    array = shmarray.create(name, 1)

    def work(channel):
        channel.recv()
        mine = shmarray.attach(name)
        for _ in range(200):
            with shmarray.lock(mine):
                value = mine[0]
                os.sched_yield()
                mine[0] = value + 1

    children = [Child(work) for _ in range(3)]
    try:
        for child in children:
            child.tell()
        for child in children:
            child.result()
    finally:
        for child in children:
            child.__exit__()
    assert array[0] == 600


def test_it_is_not_reentrant(name):
    array = shmarray.create(name, 1)
    with shmarray.lock(array), pytest.raises(TimeoutError), shmarray.lock(array, timeout=0):
        pass


@pytest.mark.skipif(FLOCK is None, reason="flock(1) is not installed")
def test_the_program_flock_takes_part(name):
    array = shmarray.create(name, 1)
    with shmarray.lock(array):
        refused = subprocess.run([FLOCK, "--nonblock", raw.path(name), "true"], check=False)
        assert refused.returncode == 1
        shared = subprocess.run([FLOCK, "--nonblock", "--shared", raw.path(name), "true"], check=False)
        assert shared.returncode == 1
    with shmarray.lock(array, shared=True):
        shared = subprocess.run([FLOCK, "--nonblock", "--shared", raw.path(name), "true"], check=False)
        assert shared.returncode == 0
    with subprocess.Popen(
        [FLOCK, raw.path(name), "sh", "-c", "echo held; read line"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(TimeoutError), shmarray.lock(array, timeout=0):
            pass
        other.communicate(b"\n")
    with shmarray.lock(array, timeout=0):
        pass


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_holder_that_dies_lets_go(name, number):
    shmarray.create(name, 3)
    with Child(hold, name) as child:
        child.receive()
        assert not is_free(name)
        os.kill(child.pid, number)
        with shmarray.lock(name, timeout=20):
            pass


def test_a_waiter_gets_the_lock_when_the_holder_is_killed(name):
    shmarray.create(name, 3)
    with Child(hold, name) as child:
        child.receive()
        killer = threading.Timer(0.02, os.kill, (child.pid, signal.SIGKILL))
        killer.start()
        with shmarray.lock(name):
            assert child.wait() == signal.SIGKILL
        killer.join()


def test_a_child_forked_by_the_holder_does_not_keep_it(name):
    """The holder is killed; its child survives, with copies of all its descriptors."""
    shmarray.create(name, 3)

    def hold_and_fork(channel):
        with shmarray.lock(name):
            grandchild = os.fork()
            if not grandchild:
                signal.alarm(30)
                signal.pause()
                os._exit(0)
            channel.send(grandchild)
            channel.recv()

    with Child(hold_and_fork) as child:
        grandchild = child.receive()
        try:
            assert not is_free(name)
            child.kill()
            with shmarray.lock(name, timeout=20):
                pass
        finally:
            os.kill(grandchild, signal.SIGKILL)


def test_a_forked_child_does_not_hold_and_does_not_release(name):
    array = shmarray.create(name, 3)
    block = shmarray.lock(array)
    block.__enter__()

    def leave():
        block.__exit__(None, None, None)  # as if the fork had happened inside the block

    in_child(leave)
    assert not is_free(name)
    block.__exit__(None, None, None)
    assert is_free(name)


def test_a_fork_while_a_lock_is_given_back_keeps_nothing(name, monkeypatch):
    """Another thread forks between the removal of the entry and the close: its child must not keep a copy."""
    shmarray.create(name, 3)
    forked = []
    really_close = os.close

    def fork():
        child = Child(lambda channel: channel.recv())
        forked.append(child)

    def close(fd):
        if threading.current_thread() is threading.main_thread() and not forked and not threads:
            threads.append(threading.Thread(target=fork))
            threads[0].start()
            threads[0].join(0.3)  # the fork may have to wait until the lock is released
        really_close(fd)

    threads = []
    block = shmarray.lock(name)
    block.__enter__()
    with monkeypatch.context() as patch:
        patch.setattr(locks.os, "close", close)
        block.__exit__(None, None, None)
    threads[0].join()
    try:
        with shmarray.lock(name, timeout=0):
            pass
    finally:
        forked[0].tell()
        forked[0].__exit__()


def test_deletion_while_waiting_is_an_error(name):
    array = shmarray.create(name, 3)
    with Child(hold, name) as child:
        child.receive()

        def delete_and_release():
            shmarray.delete(name)
            child.tell()

        releaser = threading.Timer(0.05, delete_and_release)
        releaser.start()
        with pytest.raises(shmarray.ArrayNotFoundError, match=name), shmarray.lock(array):
            pass
        releaser.join()


def test_remaking_while_waiting_locks_the_new_array_by_its_name_and_not_by_the_old_array(name):
    old = shmarray.create(name, 3)
    with Child(hold, name) as child:
        child.receive()

        def remake_and_release():
            shmarray.delete(name)
            shmarray.create(name, 4)
            child.tell()

        releaser = threading.Timer(0.05, remake_and_release)
        releaser.start()
        with shmarray.lock(name):
            assert not is_free(name)
        releaser.join()
    with pytest.raises(shmarray.ArrayNotFoundError, match=name), shmarray.lock(old):
        pass


def test_a_deleted_array_cannot_be_locked(name):
    array = shmarray.create(name, 3)
    shmarray.delete(name)
    for thing in (array, name):
        with pytest.raises(shmarray.ArrayNotFoundError), shmarray.lock(thing):
            pass


@pytest.mark.parametrize("thing", [np.zeros(3), None, 3, b"name"], ids=repr)
def test_what_is_not_shared_is_a_type_error(thing):
    with pytest.raises(TypeError, match="not in shared memory"), shmarray.lock(thing):
        pass


def test_files_and_anonymous_arrays_have_locks_too(tmp_path):
    array = shmarray.create(f"file://{tmp_path}/a.npy", 3)
    with shmarray.lock(array), pytest.raises(TimeoutError), shmarray.lock(f"file://{tmp_path}/a.npy", timeout=0):
        pass
    with (
        shmarray.scoped(3) as anonymous,
        shmarray.lock(anonymous),
        pytest.raises(TimeoutError),
        shmarray.lock(anonymous[1:], timeout=0),
    ):
        pass
    with pytest.raises(shmarray.ArrayNotFoundError), shmarray.lock(anonymous):
        pass


@pytest.mark.parametrize("mode", ["r", "c"])
def test_an_attachment_that_cannot_write_can_lock(name, mode):
    shmarray.create(name, 3)
    with shmarray.lock(shmarray.attach(name, mode)):
        assert not is_free(name)
