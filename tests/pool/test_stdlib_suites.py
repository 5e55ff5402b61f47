"""CPython's own tests of Pool and ProcessPoolExecutor pass with our classes in place of the stdlib's.

Each suite runs under each start method in its own interpreter. ``SHMARRAY_STDLIB_SUITES=stdlib`` runs them with
the stdlib's classes instead: failures are then caused by the harness or the machine.
"""

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest

from tests.pool.stdlib.runner import Job

IMPLEMENTATION = os.environ.get("SHMARRAY_STDLIB_SUITES", "shmarray")
RUN_LIMIT = 80  # seconds for one suite, less than pytest's timeout
GRACE = 10  # seconds for helper processes to end afterwards
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
START_METHODS = ("fork", "spawn", "forkserver")

# Which of CPython's classes each suite runs.
SUITES = {
    "pool": ["_TestPool"],
    "pool errors": ["_TestPoolWorkerErrors"],
    "pool lifetime": ["_TestPoolWorkerLifetime"],
    "executor": ["ProcessPoolExecutorTest"],
    "executor shutdown": ["ProcessPoolShutdownTest"],
    "executor wait": ["WaitTests"],
    "executor as_completed": ["AsCompletedTests"],
    "executor initializer": ["InitializerMixin", "FailingInitializerMixin", "FailingInitializerResourcesTest"],
    "executor deadlock": ["ExecutorDeadlockTest"],
}
MODULES = {"pool": "test._test_multiprocessing", "executor": "test.test_concurrent_futures"}

_NOT_FORK = ("spawn", "forkserver")
_ONCE = "seconds of sleep for code that does not depend on the start method: runs only under fork"

# Not run: test, start methods, reason.
LEFT_OUT = [
    ("ExecutorTest.test_map_timeout", _NOT_FORK, f"6 {_ONCE}"),
    ("WaitTests.test_first_exception", _NOT_FORK, f"3 {_ONCE}"),
    ("WaitTests.test_first_exception_one_already_failed", _NOT_FORK, f"2 {_ONCE}"),
    ("WaitTests.test_first_exception_some_already_complete", _NOT_FORK, f"1.5 {_ONCE}"),
    ("WaitTests.test_first_completed_some_already_completed", _NOT_FORK, f"1.5 {_ONCE}"),
    ("AsCompletedTests.test_duplicate_futures", _NOT_FORK, f"2 {_ONCE}"),
    ("ExecutorDeadlockTest.test_gh105829_should_not_deadlock_if_wakeup_pipe_full", _NOT_FORK, f"3 {_ONCE}"),
]

_OWN_CALL = "an unpickling error breaks the stdlib's executor; with ours, only that call fails, with the original error"
_MOCK = "mocks a private part of the stdlib's executor"
_COMPLETES = "calls of a garbage-collected executor fail in the stdlib without a new worker; ours are completed"
_NO_WORKER_NEEDED = "the calls cannot be pickled; ours fail at once, perhaps before another worker is needed"
_CANCELS_ALL = "expects that some of 50 calls have begun when submit returns; with ours, perhaps none has"
_SAYS_ITSELF = "the stdlib's error has a cause that describes the worker's end; our error describes it itself"

_BY_VALUE = "returns a lambda, which ours sends by value if cloudpickle is installed"

# Not run with our classes, which behave differently or have a different implementation.
DIFFERENT = [
    ("_TestPoolWorkerErrors.test_unpickleable_result", START_METHODS, _BY_VALUE),
    ("ProcessPoolExecutorTest.test_traceback_when_child_process_terminates_abruptly", START_METHODS, _SAYS_ITSELF),
    ("ProcessPoolExecutorTest.test_shutdown_no_wait_max_tasks_gh119592", _NOT_FORK, _COMPLETES),
    ("ProcessPoolExecutorTest.test_gc_during_max_tasks_worker_exit_gh152967", _NOT_FORK, _COMPLETES),
    ("ProcessPoolShutdownTest.test_processes_terminate", _NOT_FORK, _NO_WORKER_NEEDED),
    ("ProcessPoolShutdownTest.test_cancel_futures", START_METHODS, _CANCELS_ALL),
    ("ProcessPoolExecutorTest.test_terminate_workers", START_METHODS, _MOCK),
    ("ProcessPoolExecutorTest.test_kill_workers", START_METHODS, _MOCK),
    ("ProcessPoolExecutorTest.test_force_shutdown_during_max_tasks_worker_exit", _NOT_FORK, _MOCK),
    ("ProcessPoolExecutorTest.test_failed_worker_replacement_breaks_pool", _NOT_FORK, _MOCK),
    ("ExecutorDeadlockTest.test_error_at_task_unpickle", START_METHODS, _OWN_CALL),
    ("ExecutorDeadlockTest.test_exit_at_task_unpickle", START_METHODS, _OWN_CALL),
    ("ExecutorDeadlockTest.test_error_during_result_unpickle_in_result_handler", START_METHODS, _OWN_CALL),
    ("ExecutorDeadlockTest.test_exit_during_result_unpickle_in_result_handler", START_METHODS, _OWN_CALL),
]

NOT_RUN = LEFT_OUT + (DIFFERENT if IMPLEMENTATION == "shmarray" else [])


@dataclass
class Outcome:
    """The lines that the runner wrote, its own output, and the processes that it left behind."""

    lines: list[dict]
    output: str
    left_behind: list[str]

    def problems(self):
        """Yield a text for each test that failed or hung, and for each complaint."""
        yield from (f"{line['test']} FAILED\n{line['text']}" for line in self.lines if line.get("outcome") == "failed")
        yield from (f"after {line['test']}: {line['text']}" for line in self.lines if line["event"] == "complaint")
        if not self.lines or self.lines[-1]["event"] != "done":
            yield f"{self._unfinished()} did not end, and no later test was run\n{self.output}"
        yield from (f"left behind: {process}" for process in self.left_behind)

    def _unfinished(self):
        started = [line for line in self.lines if line["event"] in {"start", "stop"}]
        if not started:
            return "the import of the tests"
        return f"{'what follows ' if started[-1]['event'] == 'stop' else ''}{started[-1]['test']}"


def run(job, directory):
    """Run one job to its end, and kill what it leaves behind."""
    job = dataclasses.replace(job, output=str(directory / "report.jsonl"))
    # One BLAS thread: more would slow down the first import, and a fork with them warns since Python 3.12.
    path = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, "-m", "tests.pool.stdlib.runner", json.dumps(dataclasses.asdict(job))]
    with (directory / "output").open("w+b") as output:
        # A surviving worker would keep a pipe open, so write to a file; a new session makes such workers easy to find.
        channels = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
        with subprocess.Popen(command, cwd=directory, env=env, start_new_session=True, **channels) as runner:
            try:
                runner.wait(RUN_LIMIT)
            except subprocess.TimeoutExpired:
                runner.send_signal(signal.SIGABRT)  # prints every thread's stack
        left_behind = end_session(runner.pid)
        output.seek(0)
        text = output.read().decode(errors="replace")
    with open(job.output, encoding="utf-8") as lines:
        return Outcome([json.loads(line) for line in lines], text, left_behind)


def end_session(session):
    """Wait a few seconds for the runner's processes to end, and kill the others; return their commands."""
    deadline = time.monotonic() + GRACE
    while (left := session_members(session)) and time.monotonic() < deadline:
        time.sleep(0.02)  # the resource tracker and the forkserver end when they notice that no user is left
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return [f"{pid} {command}" for pid, command in left.items()]


def session_members(session):
    """Return pid and command of every process of the session that is not a zombie."""
    members = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as stat:
                state, _parent, _group, its_session = stat.read().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state != "Z":
                with open(f"/proc/{entry}/cmdline", "rb") as command:
                    members[int(entry)] = command.read().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
    return members


def ships(module):
    return importlib.util.find_spec("test") is not None and importlib.util.find_spec(module) is not None


@pytest.mark.parametrize("start_method", START_METHODS)
@pytest.mark.parametrize("suite", SUITES)
def test_cpythons_own_tests_pass_with_our_classes(suite, start_method, tmp_path):
    module = MODULES[suite.partition(" ")[0]]
    if not ships(module):
        pytest.skip(f"this interpreter does not ship {module}")
    left_out = [name for name, methods, _ in NOT_RUN if start_method in methods]
    outcome = run(Job(suite, start_method, SUITES[suite], left_out, IMPLEMENTATION), tmp_path)
    problems = list(outcome.problems())
    assert not problems, "\n\n".join(problems)
    assert any(line.get("outcome") == "passed" for line in outcome.lines), "no test ran"


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        pytest.param(
            name, methods, id=f"{name}-{'-'.join(methods)}", marks=pytest.mark.skip(reason=f"{name}: {reason}")
        )
        for name, methods, reason in NOT_RUN
    ],
)
def test_left_out(name, methods):
    """Do nothing: this only makes pytest's summary list each of them with its reason."""
