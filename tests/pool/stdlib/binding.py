"""Put our classes in place of the stdlib's, in this whole interpreter and in those that its tests start."""

import concurrent.futures
import multiprocessing
import os
import sys

from test.support import script_helper

# The tests start these interpreters in isolated mode, which ignores PYTHONPATH.
_IN_SCRIPTS = f"import sys; sys.path[:] = {sys.path!r}; from tests.pool.stdlib import binding; binding.bind()\n"


def bind():
    """Replace the classes wherever the tests look for them; the test modules must not be imported yet.

    ``multiprocessing.pool.Pool`` is not replaced: no test that runs here uses that name, but the stdlib's own methods
    do (``ThreadPool`` calls ``Pool.__init__``), and our classes must work beside the original.
    """
    import shmarray

    multiprocessing.Pool = shmarray.Pool
    concurrent.futures.ProcessPoolExecutor = shmarray.ProcessPoolExecutor
    show_threads(shmarray.ProcessPoolExecutor)
    stock = script_helper.assert_python_ok

    def assert_python_ok(option, script, *args, **env):
        assert option == "-c", option
        return stock(option, _IN_SCRIPTS + script, *args, **env)

    script_helper.assert_python_ok = assert_python_ok


def show_threads(executor):
    """Give our threads the private names by which the tests join those of the stdlib's executor."""

    class CallQueue:
        def __init__(self, thread):
            self.join_thread = thread.join

    executor._executor_manager_thread = property(lambda self: self._scheduler._collector.thread)
    executor._call_queue = property(lambda self: CallQueue(self._scheduler._feeder.thread))


def start_name_reaper():
    """Executors keep the name reaper until the end, like the resource tracker; neither is left over from a test."""
    import shmarray

    with shmarray.scoped(1, name=f"t{os.getpid()}-watched"):
        pass
