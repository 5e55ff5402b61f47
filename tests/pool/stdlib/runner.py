"""Run one of CPython's suites under one start method and write the result of each test, one JSON object per line.

Usage: ``python -m tests.pool.stdlib.runner JOB``, where JOB is the JSON of a `Job`. Our classes must be in place
before anything is imported from CPython's tests, so this needs its own interpreter.
"""

# ruff: noqa: N802 - unittest's names

import faulthandler
import gc
import importlib
import json
import multiprocessing.util
import os
import pkgutil
import resource
import sys
import threading
import time
import traceback
import unittest
from dataclasses import dataclass, field

# Seconds. A test that takes longer is considered hung: every thread's stack is printed and the run ends.
TEST_LIMIT = 40
# Seconds after which CPython's tests report a deadlock; their default is five minutes.
DEADLOCK = 25.0


@dataclass
class Job:
    suite: str
    start_method: str
    classes: list[str]  # the stdlib's mixins: tests of classes derived from them run
    left_out: list[str] = field(default_factory=list)  # "Class.test", where Class may be a mixin
    implementation: str = "shmarray"  # or "stdlib", which tests the harness
    output: str = os.devnull


class Report(unittest.TestResult):
    """Write a line when a test starts, one when it ends, and one for each complaint."""

    def __init__(self, output):
        super().__init__()
        self._output = output
        self._current = "before the first test"
        self._complaints = []
        self._outcome = {}
        self._started = 0.0

    def write(self, **line):
        print(json.dumps(line), file=self._output, flush=True)

    def complain(self, text):
        """Record a problem that is not a test failure, but what CPython calls an altered environment."""
        self._complaints.append(text)

    def tell_complaints(self):
        if self._complaints:
            self.write(event="complaint", test=self._current, text="\n".join(self._complaints))
        self._complaints.clear()

    def startTest(self, test):
        super().startTest(test)
        self.tell_complaints()
        faulthandler.dump_traceback_later(TEST_LIMIT, exit=True)
        self._current, self._outcome, self._started = short_name(test), {"outcome": "passed"}, time.monotonic()
        self.write(event="start", test=self._current)

    def stopTest(self, test):
        super().stopTest(test)
        seconds = round(time.monotonic() - self._started, 3)
        self.write(event="stop", test=self._current, seconds=seconds, **self._outcome)
        if self._outcome["outcome"] == "failed":
            gc.collect()  # objects held by the traceback would hang or leak in later tests
        self.tell_complaints()

    def addError(self, test, err):
        super().addError(test, err)
        self._failed(test, err)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self._failed(test, err)

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._failed(test, err)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self._outcome = {"outcome": "skipped", "text": reason}

    def _failed(self, test, err):
        text = "".join(traceback.format_exception(*err))
        if isinstance(test, unittest.TestCase):
            self._outcome = {"outcome": "failed", "text": text}
        else:
            self.complain(f"{test}\n{text}")  # set-up or tear-down of a class or module


def short_name(test):
    return f"{type(test).__name__}.{test._testMethodName}"


def cases_of(job):
    """Yield the modules that contain the test cases of Pool or of the executor."""
    if job.suite.startswith("pool"):
        yield importlib.import_module("tests.pool.stdlib.pool_cases")
        return
    module = importlib.import_module("test.test_concurrent_futures")
    yield module  # early 3.11 has a single module
    for found in pkgutil.iter_modules(getattr(module, "__path__", ())):
        if "interpreter_pool" not in found.name:
            yield importlib.import_module(f"{module.__name__}.{found.name}")


def tests_of(job):
    """Return the tests of the suite; a class found in several modules counts once."""
    classes = {}
    for module in cases_of(job):
        found = (case for case in vars(module).values() if isinstance(case, type))
        classes.update(dict.fromkeys(case for case in found if issubclass(case, unittest.TestCase)))
    tests = (test for case in classes for test in unittest.defaultTestLoader.loadTestsFromTestCase(case))
    return [test for test in tests if is_wanted(test, job)]


def is_wanted(test, job):
    """Return whether the test belongs to this suite and start method, and is not left out."""
    bases = {base.__name__ for base in type(test).__mro__}
    names = {f"{base}.{test._testMethodName}" for base in bases}
    if bases.isdisjoint(job.classes) or not names.isdisjoint(job.left_out):
        return False
    if getattr(test, "TYPE", "") == "processes":
        return True  # a test of Pool, whose module starts processes as the job says
    # The executor's classes have the start method as an attribute; one class has it in the names of its tests.
    return job.start_method == getattr(test, "ctx", test._testMethodName.removeprefix("test_"))


def prepare(report):
    """Prepare as CPython's regrtest does, with shorter timeouts, and collect all complaints."""
    from test import support

    support.verbose = 0
    support.LONG_TIMEOUT = support.SHORT_TIMEOUT = DEADLOCK
    support.print_warning = report.complain
    sys.unraisablehook = lambda told: report.complain(
        f"ignored in {told.object!r}:\n" + "".join(traceback.format_exception(told.exc_value))
    )
    threading.excepthook = lambda told: report.complain(
        f"in {told.thread!r}:\n" + "".join(traceback.format_exception(told.exc_value))
    )
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # some tests crash


def descriptors():
    """Return the open descriptors, except the one of the listing itself."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:
            continue
    return found


def check_leftovers(report, before):
    """Report children, threads and descriptors that remain after the last test."""
    multiprocessing.util._cleanup_tests()  # ends the forkserver and the resource tracker
    gc.collect()
    left = {
        "children": multiprocessing.active_children(),
        "threads": [thread for thread in threading.enumerate() if thread is not threading.main_thread()],
        "descriptors": {number: what for number, what in descriptors().items() if number not in before},
    }
    for kind, things in left.items():
        if things:
            report.complain(f"{kind} left: {things}")


def main():
    job = Job(**json.loads(sys.argv[1]))
    multiprocessing.set_start_method(job.start_method)
    with open(job.output, "w", encoding="utf-8") as output:
        report = Report(output)
        faulthandler.dump_traceback_later(TEST_LIMIT, exit=True)
        prepare(report)
        if job.implementation == "shmarray":
            from tests.pool.stdlib import binding

            binding.bind()
            binding.start_name_reaper()
            multiprocessing.set_forkserver_preload(["shmarray"])
        suite = unittest.TestSuite(tests_of(job))
        before = descriptors()
        suite.run(report)
        check_leftovers(report, before)
        report.tell_complaints()
        report.write(event="done", tests=report.testsRun)


if __name__ == "__main__":
    main()
