"""The semaphores of an executor's queues, which are files in /dev/shm under spawn and forkserver."""

import multiprocessing
import os
import signal
from multiprocessing import resource_tracker

import pytest

import shmarray
from shmarray.pool import watcher
from tests.helpers import raw
from tests.helpers.processes import Child, wait_until
from tests.pool import tasks


def _watched():
    return {line.split()[2] for line in watcher._watcher._names if len(line.split()) > 3}


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_they_are_watched_for_as_long_as_they_are_there(method):
    with tasks.make("Executor", method, 2) as executor:
        assert executor.submit(len, "abc").result(60) == 3
        used = {entry.name for entry in os.scandir("/dev/shm") if entry.inode() in raw.mapped_inodes()}
        paths = {os.fsencode(raw.path(name)).hex().encode() for name in used if name.startswith("sem.")}
        assert len(paths) >= 5
        assert paths <= _watched()
    del executor
    assert not paths & _watched()


def test_under_fork_there_are_none():
    before = _watched()
    with tasks.make("Executor", "fork", 2) as executor:
        assert executor.submit(len, "abc").result(60) == 3
        assert _watched() == before


def _have_executor(channel):
    """Be a program of its own, with its own tracker, that is killed with it."""
    os.setsid()
    resource_tracker._resource_tracker = tracker = resource_tracker.ResourceTracker()
    for name in ("register", "unregister", "ensure_running"):
        setattr(resource_tracker, name, getattr(tracker, name))
    tracker.ensure_running()
    executor = shmarray.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    channel.send(_watched())
    channel.recv()
    executor.shutdown()


@pytest.mark.parametrize("victims", ["its group", "the program alone"])
def test_none_is_left_of_a_program_that_is_killed(victims):
    with Child(_have_executor) as program:
        paths = [bytes.fromhex(path.decode()) for path in program.receive()]
        assert len(paths) == 5
        assert all(map(os.path.exists, paths))
        (os.killpg if victims == "its group" else os.kill)(program.pid, signal.SIGKILL)
    wait_until(lambda: not any(map(os.path.exists, paths)))
