"""The caller dies, with idle workers and with tasks that ignore signals: nothing remains except what must remain."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress

import pytest

import shmarray
from tests.helpers import raw
from tests.helpers.processes import ROOT, Child, children, runs, wait_until
from tests.pool.tasks import START_METHODS

# Seconds; two are promised on an otherwise idle machine.
LIMIT = 20

# How the caller dies, and its exit status.
WAYS = {
    "SIGKILL": -signal.SIGKILL,
    "SIGTERM": -signal.SIGTERM,
    "os._exit": 3,
    "raise": 1,
    "its group is killed": -signal.SIGKILL,
}


def die(caller, way):
    if way == "its group is killed":
        os.killpg(caller.pid, signal.SIGKILL)
    elif way.startswith("SIG"):
        caller.send_signal(getattr(signal, way))
    else:
        caller.stdin.write("now\n")
        caller.stdin.flush()


@pytest.mark.parametrize("method", START_METHODS)
@pytest.mark.parametrize("way", WAYS)
def test_a_caller_that_dies_leaves_nothing(method, way, shm_name):
    scoped, kept = shm_name("-scoped"), shm_name("-kept")
    caller = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.caller", method, way, scoped, kept],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": ROOT},
        start_new_session=True,
    )
    with caller:
        try:
            told = json.loads(caller.stdout.readline() or "{}")
            assert told, caller.stderr.read()
            assert len(told["pids"]) >= 4  # the stdlib starts an executor's workers on demand
            assert all(map(runs, told["pids"]))
            assert raw.names(scoped)
            assert not [name for name in told["named"] if name.startswith("sem.")]  # there are no named semaphores
            died = time.monotonic()
            die(caller, way)
            assert caller.wait(LIMIT) == WAYS[way]
            wait_until(lambda: not any(map(runs, told["pids"])), LIMIT)
            wait_until(lambda: not raw.names(scoped), LIMIT)
            wait_until(lambda: not _is_anywhere(told["inodes"]), LIMIT)
            print(f"all gone after {time.monotonic() - died:.2f} s")
            assert shmarray.attach(kept).shape == (10,)
            _check_stderr(caller.stderr.read(), way)
        finally:
            caller.kill()


def _is_anywhere(inodes):
    """Return whether any process has memory of that pool mapped."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if "/memfd:shmarray" in line and int(line.split()[4]) in inodes:
                    return True
    return False


def _check_stderr(text, way):
    """Check for one traceback if the caller raised; the stdlib's tracker may report that it deleted semaphores."""
    own = [line for line in text.splitlines() if "resource_tracker" not in line and "warnings.warn(" not in line]
    if way == "raise":
        assert own[-1] == "ZeroDivisionError: uncaught"
        assert text.count("Traceback") == 1
    else:
        assert own == []


# --- the name reaper ------------------------------------------------------------


def _hold(channel, *names):
    """Enter scopes of these names, one for each message, until killed."""
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(shmarray.scoped(10, name=name))
            channel.send("inside")
            channel.recv()


def test_names_are_deleted_even_if_the_reaper_was_killed(shm_name):
    first, second = shm_name(), shm_name()
    with Child(_hold, first, second) as owner:
        owner.receive()
        reaper = _reaper_of(owner.pid)
        os.kill(reaper, signal.SIGKILL)
        wait_until(lambda: not runs(reaper), LIMIT)
        owner.tell()
        owner.receive()
        owner.kill()
    wait_until(lambda: not raw.names(first) + raw.names(second), LIMIT)


def test_the_reaper_does_not_delete_what_another_made_under_the_name(name, shm_name):
    with Child(_hold, name, shm_name("-other")) as owner:
        owner.receive()
        shmarray.delete(name)
        shmarray.create(name, data=[1, 2])
        owner.tell()
        owner.receive()
        reaper = _reaper_of(owner.pid)
        owner.kill()
    wait_until(lambda: not runs(reaper), LIMIT)
    assert shmarray.attach(name).tolist() == [1, 2]


def test_a_file_with_the_inode_of_an_ended_scope_remains(tmp_path):
    """Some file systems (ext4) give the inode of a deleted file to the next one."""
    path = tmp_path / "a.npy"

    def leave_and_make_again(channel):
        for _ in range(20):
            with shmarray.scoped(10, name=f"file://{path}") as array:
                inode = path.stat().st_ino
                del array
            shmarray.create(f"file://{path}", 10)
            if path.stat().st_ino == inode:
                break
            path.unlink()
        channel.send(path.exists())
        channel.recv()

    with Child(leave_and_make_again) as owner:
        if not owner.receive():
            pytest.skip("this file system does not reuse inodes immediately")
        reaper = _reaper_of(owner.pid)
        owner.kill()
    wait_until(lambda: not runs(reaper), LIMIT)
    assert path.exists()


def test_the_reaper_of_a_forked_child_leaves_the_names_of_its_parent(shm_name):
    parents, childs = shm_name(), shm_name()

    def hold(channel):
        with shmarray.scoped(10, name=childs):
            channel.send("inside")
            channel.recv()

    with shmarray.scoped(10, name=parents):
        with Child(hold) as child:
            child.receive()
            reaper = _reaper_of(child.pid)
            child.kill()
        wait_until(lambda: not runs(reaper), LIMIT)
        assert not raw.names(childs)
        assert raw.names(parents)


def test_a_surviving_child_keeps_no_name(name):
    def hold_and_fork(channel):
        with shmarray.scoped(10, name=name):
            child = os.fork()
            if not child:
                signal.alarm(60)
                signal.pause()
            channel.send(child)
            channel.recv()

    with Child(hold_and_fork) as owner:
        child = owner.receive()
        owner.kill()
    try:
        wait_until(lambda: not raw.names(name), LIMIT)
        assert runs(child)
    finally:
        os.kill(child, signal.SIGKILL)


def _reaper_of(pid):
    """Return the only child of a process; any of its threads may have started it."""
    found = set()
    wait_until(lambda: found.update(children(pid)) or found, LIMIT)
    (reaper,) = found
    return reaper
