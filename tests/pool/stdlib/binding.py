"""Put our classes in the place of the stdlib's, in this whole interpreter and in those its tests start."""

import concurrent.futures
import multiprocessing
import os
import sys

from test.support import script_helper

# The tests start these interpreters in isolated mode, where PYTHONPATH does not count.
_IN_SCRIPTS = f"import sys; sys.path[:] = {sys.path!r}; from tests.pool.stdlib import binding; binding.bind()\n"


def bind():
    """Every way in which the tests reach the classes; the modules of the tests must not be imported yet.

    ``multiprocessing.pool.Pool`` stays: no test that runs here looks there, but the stdlib's own methods do
    (``ThreadPool`` calls ``Pool.__init__``), and ours would no longer be tested on what its users have.
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
    """Our threads under the private names by which the tests join those of the stdlib's executor."""

    class CallQueue:
        def __init__(self, thread):
            self.join_thread = thread.join

    executor._executor_manager_thread = property(lambda self: self._scheduler._collector.thread)
    executor._call_queue = property(lambda self: CallQueue(self._scheduler._feeder.thread))


def start_name_reaper():
    """Executors keep it until the end, as they do the resource tracker: neither is what a test has left over."""
    import shmarray

    with shmarray.scoped(1, name=f"t{os.getpid()}-watched"):
        pass
