"""The caller dies, with workers idle and in tasks that take no notice of signals: nothing stays but what is to stay."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

import shmarray
from tests.helpers import raw
from tests.helpers.processes import ROOT, runs, wait_until
from tests.pool.tasks import START_METHODS

# Seconds; two are promised, where nothing else runs.
LIMIT = 20

# How it dies, and the exit status that this has.
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
def test_nothing_is_left_of_a_caller_that_dies(method, way, shm_name):
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
            assert len(told["pids"]) >= 4  # the stdlib starts an executor's workers when they are needed
            assert all(map(runs, told["pids"]))
            assert raw.names(scoped)
            die(caller, way)
            assert caller.wait(LIMIT) == WAYS[way]
            wait_until(lambda: not any(map(runs, told["pids"])), LIMIT)
            wait_until(lambda: not raw.names(scoped), LIMIT)
            wait_until(lambda: not _is_anywhere(told["inodes"]), LIMIT)
            assert shmarray.attach(kept).shape == (10,)
            _check_stderr(caller.stderr.read(), way)
        finally:
            caller.kill()


def _is_anywhere(inodes):
    """Whether any process has memory of that pool."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if "/memfd:shmarray" in line and int(line.split()[4]) in inodes:
                    return True
    return False


def _check_stderr(text, way):
    """One traceback, if it is the caller's own; the stdlib's tracker may say that it deleted semaphores."""
    own = [line for line in text.splitlines() if "resource_tracker" not in line and "warnings.warn(" not in line]
    if way == "raise":
        assert own[-1] == "ZeroDivisionError: uncaught"
        assert text.count("Traceback") == 1
    else:
        assert own == []
