"""Ctrl-C: the whole foreground process group gets SIGINT, at any moment."""

import json
import os
import random
import select
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.processes import ROOT
from tests.pool.tasks import START_METHODS

ROUNDS = int(os.environ.get("SHMARRAY_ROUNDS", "4"))


@pytest.mark.parametrize("method", START_METHODS)
def test_ctrl_c_is_one_keyboard_interrupt_and_frees_everything(kind, method):
    """Once for each round, in one program; the last is not caught, and ends it as it ends any Python."""
    seed = int(os.environ.get("SHMARRAY_SEED", "0")) or random.randrange(1 << 30)
    print("seed", seed)
    rng = random.Random(seed)
    program = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-m", "tests.faults.interrupted", kind, method, str(ROUNDS)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # or select would not see what is in the buffer
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": ROOT},
        start_new_session=True,
    )
    with program:
        try:
            before = json.loads(_line(program))
            for _ in range(ROUNDS - 1):
                _interrupt(program, rng)
                assert json.loads(_line(program)) == before
            _interrupt(program, rng)
            assert program.wait(20) == -signal.SIGINT
            errors = program.stderr.read().decode()
            # Of chained ones the first is what the stdlib was just handling.
            assert errors.count("Traceback") - errors.count("During handling of the above") == 1, errors
            assert errors.splitlines()[-1] == "KeyboardInterrupt"
        finally:
            program.kill()


def _line(program):
    """What it says next; if it hangs, why."""
    if not select.select([program.stdout], [], [], 30)[0]:
        program.send_signal(signal.SIGABRT)
    line = program.stdout.readline()
    assert line, program.stderr.read().decode()
    return line


def _interrupt(program, rng):
    """The moment is random on purpose: in starting, calling, waiting or ending."""
    assert _line(program) == b"ready\n"
    time.sleep(rng.random() * 0.2)
    os.killpg(program.pid, signal.SIGINT)
