"""CPython's own tests of ProcessPoolExecutor, run against ours under every start method.

Left out: test_interpreter_shutdown, test_submit_after_interpreter_shutdown and
test_hang_gh83386 start programs that import the stock executor by name; test_executor.py
has their counterparts.

Left out too, because ours does better: tests that want the executor to be broken when
unpickling an argument or a result raises.  Here that is the error of that call alone.
"""

import pytest

import shmarray

util = pytest.importorskip("test.test_concurrent_futures.util", reason="this Python comes without its own tests")

from test.test_concurrent_futures import (  # noqa: E402 - only where the interpreter ships them
    test_as_completed,
    test_deadlock,
    test_init,
    test_process_pool,
    test_shutdown,
    test_wait,
)

_BASES = {
    "ProcessPool": (test_process_pool.ProcessPoolExecutorTest,),
    "Deadlock": (test_deadlock.ExecutorDeadlockTest,),
    "Shutdown": (test_shutdown.ProcessPoolShutdownTest,),
    "AsCompleted": (test_as_completed.AsCompletedTests,),
    "Wait": (test_wait.WaitTests,),
    "Initializer": (test_init.InitializerMixin,),
    "FailingInitializer": (test_init.FailingInitializerMixin,),
}
_LEFT_OUT = (
    "test_interpreter_shutdown",
    "test_submit_after_interpreter_shutdown",
    "test_hang_gh83386",
    "test_exit_at_task_unpickle",
    "test_error_at_task_unpickle",
    "test_error_during_result_unpickle_in_result_handler",
    "test_exit_during_result_unpickle_in_result_handler",
)


def _bound(name, method):
    """One of CPython's test classes, with our executor and a start method."""

    class Bound(*_BASES[name], util.ExecutorMixin, util.BaseTestCase):
        executor_type = shmarray.ProcessPoolExecutor
        ctx = method

        def tearDown(self):
            super().tearDown()
            self.__dict__.pop("log_queue", None)  # its pipe would be a leak

    for test in _LEFT_OUT:
        if hasattr(Bound, test):
            setattr(Bound, test, None)
    # Workers find the methods that tests pass to them by these.
    Bound.__name__ = Bound.__qualname__ = f"Test{name}Under{method.capitalize()}"
    Bound.__module__ = __name__
    return Bound


for _name in _BASES:
    for _method in ("fork", "spawn", "forkserver"):
        _class = _bound(_name, _method)
        globals()[_class.__name__] = _class
del _class
for _module in (test_as_completed, test_deadlock, test_init, test_process_pool, test_shutdown, test_wait):
    del globals()[_module.__name__.rpartition(".")[2]]  # or they would be collected as tests
