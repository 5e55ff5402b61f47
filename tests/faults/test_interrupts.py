"""Ctrl-C: the whole foreground process group receives SIGINT, at any moment."""

import gc
import json
import multiprocessing
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

import shmarray
from shmarray.pool.pool_calls import CallCache
from tests.helpers.processes import ROOT, wait_until
from tests.pool.tasks import START_METHODS, make, wait_for_file

ROUNDS = int(os.environ.get("SHMARRAY_ROUNDS", "4"))


@pytest.mark.parametrize("method", START_METHODS)
def test_ctrl_c_is_one_keyboard_interrupt_and_frees_everything(kind, method):
    """Interrupt one program several times; it does not catch the last one, which ends it as usual in Python."""
    seed = int(os.environ.get("SHMARRAY_SEED", "0")) or random.randrange(1 << 30)
    print("seed", seed)
    rng = random.Random(seed)
    program = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-m", "tests.faults.interrupted", kind, method, str(ROUNDS)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # otherwise select would not see what is in the buffer
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
            # In a chain of errors, the first is one that the stdlib was handling.
            assert errors.count("Traceback") - errors.count("During handling of the above") == 1, errors
            assert errors.splitlines()[-1] == "KeyboardInterrupt"
        finally:
            program.kill()


def _line(program):
    """Return the program's next line; if it hangs, show its stacks."""
    if not select.select([program.stdout], [], [], 30)[0]:
        program.send_signal(signal.SIGABRT)
    line = program.stdout.readline()
    assert line, program.stderr.read().decode()
    return line


def _interrupt(program, rng):
    """Interrupt at a random moment: while starting, calling, waiting or ending."""
    assert _line(program) == b"ready\n"
    time.sleep(rng.random() * 0.2)
    os.killpg(program.pid, signal.SIGINT)


def test_ctrl_c_in_the_block_of_an_executor_cancels_the_calls_that_wait(tmp_path):
    calls = []

    def let_go():
        with suppress(AssertionError):  # open the file even then, otherwise the block would not end
            wait_until(calls[-1].cancelled, 5)
        (tmp_path / "go").touch()

    def interrupted():
        with make("Executor", "fork", 1) as executor:
            calls.extend(executor.submit(wait_for_file, str(tmp_path / "go")) for _ in range(8))
            releasing.start()
            wait_until(calls[0].running)
            raise KeyboardInterrupt

    releasing = threading.Thread(target=let_go)
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    releasing.join()
    assert calls[-1].cancelled()
    assert calls[0].result() is None


class InterruptsBeforeItTakes:
    """A queue of tasks that receives Ctrl-C before it takes an item."""

    def __init__(self, tasks):
        self._tasks = tasks

    def put(self, item):
        signal.raise_signal(signal.SIGINT)
        self._tasks.put(item)


@pytest.mark.parametrize("start", ["map", "starmap", "imap", "imap_unordered", "imap buffered", "apply"])
def test_a_call_that_ctrl_c_interrupts_as_it_begins_runs_or_is_not_waited_for(start):
    """In the stdlib, the call may be registered without its tasks, and then join waits for ever."""
    with make("Pool", "fork") as pool:
        begin = {
            "map": lambda: pool.map(abs, [1, 2]),
            "starmap": lambda: pool.starmap(pow, [(1, 2)]),
            "imap": lambda: list(pool.imap(abs, [1, 2])),
            "imap_unordered": lambda: list(pool.imap_unordered(abs, [1, 2])),
            "imap buffered": lambda: list(pool.imap(abs, [1, 2], buffersize=1)),
            "apply": lambda: pool.apply(abs, (1,)),
        }[start]
        queue = pool._taskqueue
        pool._taskqueue = pool._scheduler.tasks = InterruptsBeforeItTakes(queue)
        with pytest.raises(KeyboardInterrupt):
            begin()
        pool._scheduler.tasks = queue
        pool.close()
        joined = threading.Thread(target=pool.join, daemon=True)
        joined.start()
        joined.join(20)
        assert not joined.is_alive()


class AlarmingProcess(multiprocessing.context.ForkProcess):
    """A process that receives a signal as soon as it has started; the handler raises."""

    def start(self):
        super().start()
        signal.raise_signal(signal.SIGALRM)


class AlarmingContext(multiprocessing.context.ForkContext):
    Process = AlarmingProcess


class TimeIsOverError(Exception):
    pass


def time_is_over(*_):
    raise TimeIsOverError


def test_a_handler_that_raises_while_workers_start_leaves_nothing(kind):
    before = signal.signal(signal.SIGALRM, time_is_over)
    try:
        if kind == "Pool":
            with pytest.raises(TimeIsOverError):
                shmarray.Pool(2, context=AlarmingContext())
        else:
            with shmarray.ProcessPoolExecutor(2, mp_context=AlarmingContext()) as executor:
                with pytest.raises(TimeIsOverError):
                    executor.submit(abs, -1)
                with suppress(TimeIsOverError):  # raised for the second worker
                    assert executor.submit(abs, -1).result() == 1
    finally:
        signal.signal(signal.SIGALRM, before)
    gc.collect()
    wait_until(lambda: not multiprocessing.active_children())


@pytest.fixture
def handler():
    """A function that sets the handler of SIGALRM for this test."""
    before = signal.getsignal(signal.SIGALRM)
    yield lambda function: signal.signal(signal.SIGALRM, function)
    signal.signal(signal.SIGALRM, before)


def _with_alarm(function):
    """Return a function that does the same, and then sends SIGALRM to this thread."""

    def alarmed(*arguments):
        function(*arguments)
        signal.raise_signal(signal.SIGALRM)

    return alarmed


def test_a_handler_uses_the_executor_in_the_middle_of_a_submit(handler, monkeypatch):
    """Regression: it waited for the lock that the interrupted thread held."""
    others = []

    def use(*_):
        monkeypatch.undo()
        others.append(executor.submit(abs, -2))
        executor.shutdown()

    handler(use)
    with shmarray.ProcessPoolExecutor(1) as executor:
        assert executor.submit(abs, -1).result() == 1
        monkeypatch.setattr(executor._calls, "add", _with_alarm(executor._calls.add))
        assert executor.submit(abs, -3).result(20) == 3
    assert others[0].result(20) == 2


@pytest.mark.parametrize("start", [lambda pool: pool.apply_async(abs, (-1,)), lambda pool: pool.map_async(abs, [-1])])
def test_a_handler_that_raises_in_the_middle_of_a_call_leaves_no_call(handler, monkeypatch, start):
    """Regression: the call was registered but never sent, and `join` waited for it."""
    handler(time_is_over)
    pool = shmarray.Pool(1)
    monkeypatch.setattr(CallCache, "__setitem__", _with_alarm(CallCache.__setitem__))
    with pytest.raises(TimeIsOverError):
        start(pool)
    pool.close()
    joined = threading.Thread(target=pool.join)
    joined.start()
    joined.join(20)
    assert not joined.is_alive()
