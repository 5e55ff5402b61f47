"""Tasks that change the process in which they run: the worker continues, and later results are correct."""

import builtins
import gc
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
import threading
import warnings
from contextlib import suppress

import numpy as np
import pytest

import shmarray
from tests.pool import tasks
from tests.pool.tasks import call, make


def drop_directory():
    """Delete the working directory."""
    place = tempfile.mkdtemp()
    os.chdir(place)
    shutil.rmtree(place)


def close_standard_streams():
    for fd in range(3):
        with suppress(OSError):
            os.close(fd)


def no_standard_streams():
    sys.stdin = sys.stdout = sys.stderr = None


def allow_no_more_descriptors():
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def allow_no_processes():
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def allow_no_core():
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def allow_no_file_sizes():
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def ignore_all_signals():
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)


def block_all_signals():
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())


def new_session():
    os.setsid()


def little_recursion():
    """Leave room for only a few frames."""
    depth, frame = 0, sys._getframe()
    while frame:
        depth, frame = depth + 1, frame.f_back
    sys.setrecursionlimit(depth + 40)


def trace_everything():
    sys.settrace(lambda *_: None)
    sys.setprofile(lambda *_: None)


def raise_in_every_later_trace():
    sys.unraisablehook = sys.excepthook = threading.excepthook = None


def warnings_are_errors():
    warnings.simplefilter("error")


def no_garbage_collector():
    gc.disable()
    gc.freeze()


def no_environment():
    os.environ.clear()


def forget_modules():
    for name in [name for name in sys.modules if name.startswith(("multiprocessing", "tests"))]:
        del sys.modules[name]


def other_builtins():
    builtins.print = builtins.repr = None


def a_thread_that_never_ends():
    threading.Thread(target=threading.Event().wait, daemon=True).start()


def a_thread_that_raises():
    threading.excepthook = lambda _: None
    thread = threading.Thread(target=sys.exit)
    thread.start()
    thread.join()


def a_child_that_returns():
    """Return from the task in two processes; one of them is the worker."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.fork()


def a_child_that_stays():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not os.fork():
            with suppress(KeyboardInterrupt):
                threading.Event().wait(1)
            os._exit(0)


def default_timeout():
    socket.setdefaulttimeout(0.001)


def errors_of_numpy():
    np.seterr(all="raise")


def lowest_priority():
    os.nice(19)


def umask():
    os.umask(0o777)


def all_arrays_read_only():
    """Make all of the worker's arrays that can be found read-only."""
    for thing in gc.get_objects():
        if isinstance(thing, np.ndarray):
            thing.flags.writeable = False


def alarm_and_ignore():
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)


SURVIVED = [
    drop_directory,
    close_standard_streams,
    no_standard_streams,
    allow_no_more_descriptors,
    allow_no_processes,
    allow_no_core,
    allow_no_file_sizes,
    ignore_all_signals,
    block_all_signals,
    new_session,
    trace_everything,
    raise_in_every_later_trace,
    warnings_are_errors,
    no_garbage_collector,
    no_environment,
    forget_modules,
    other_builtins,
    a_thread_that_never_ends,
    a_thread_that_raises,
    a_child_that_returns,
    a_child_that_stays,
    default_timeout,
    errors_of_numpy,
    lowest_priority,
    umask,
    all_arrays_read_only,
    alarm_and_ignore,
]


def change(name):
    globals()[name]()
    return os.getpid()


@pytest.mark.parametrize("what", SURVIVED, ids=lambda what: what.__name__)
def test_the_same_worker_continues(kind, what):
    pool = make(kind, "fork", 1)
    pid = call(pool, change, what.__name__)
    assert (call(pool, tasks.double, np.ones(10_000)) == 2).all()
    assert call(pool, tasks.ones, 300_000)[-1] == 1
    with pytest.raises(ZeroDivisionError):
        call(pool, divmod, 1, 0)
    assert call(pool, os.getpid) == pid
    if isinstance(pool, shmarray.Pool):
        pool.close()
        pool.join()
    else:
        pool.shutdown()


def limit_address_space():
    """Set a limit below the current usage."""
    resource.setrlimit(resource.RLIMIT_AS, (1 << 27, resource.getrlimit(resource.RLIMIT_AS)[1]))


def test_small_tasks_work_if_an_initializer_limits_the_address_space(kind):
    with make(kind, "fork", initializer=limit_address_space) as pool:
        assert call(pool, abs, -5) == 5
        with pytest.raises((MemoryError, OSError)):
            call(pool, tasks.double, np.ones(20_000_000))
        assert call(pool, abs, -5) == 5
