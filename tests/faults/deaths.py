"""Ways in which workers die, and tasks that bring them to a place to die; importable under every start method."""

import ctypes
import faulthandler
import multiprocessing
import os
import resource
import signal
import time
from multiprocessing import util
from pathlib import Path

import numpy as np


def _kill():
    os.kill(os.getpid(), signal.SIGKILL)


def _segfault():
    ctypes.string_at(0)


def _exit():
    os._exit(3)


# Ways of dying: what a worker does, and the exit code that the caller must be told.
WAYS = {
    "SIGKILL": (_kill, -signal.SIGKILL),
    "SIGSEGV": (_segfault, -signal.SIGSEGV),
    "abort": (os.abort, -signal.SIGABRT),
    "os._exit": (_exit, 3),
}
# The signal that makes an armed worker die in this way, even while it waits.
SIGNALS = {way: signal.SIGRTMIN + number for number, way in enumerate(WAYS, 1)}


def die(way):
    WAYS[way][0]()


def arm():
    """Initializer: disable core dumps and tracebacks of crashes, and set a signal for each way of dying."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.disable()
    for way, number in SIGNALS.items():
        signal.signal(number, lambda *_, way=way: die(way))


def arm_and_die_once(way, path):
    """Initializer: the first worker that runs it dies."""
    arm()
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    die(way)


def arm_and_die(way):
    arm()
    die(way)


class DiesWhenUnpickled:
    def __init__(self, way):
        self.way = way

    def __reduce__(self):
        return die, (self.way,)


class DiesWhenPickled:
    def __init__(self, way):
        self.way = way

    def __reduce__(self):
        die(self.way)


def take(*_):
    """Take any arguments and ignore them."""


def die_running(way, _):
    die(way)


def give_what_dies(way, _):
    return DiesWhenPickled(way)


def give_much(_):
    """Return a result that is not an array; a few such results fill any socket or pipe."""
    return b"x" * 24_000


def give_too_much(_):
    return b"x" * (4 << 20)


def die_at_exit(way):
    """Make the worker die when it ends."""
    util.Finalize(None, die, (way,), exitpriority=1)
    return os.getpid()


def length(data):
    return len(data)


def double(x):
    return x * 2


def pid():
    return os.getpid()


def wait_for(path):
    """Report the start by a file, and wait for a file or for the deletion of its directory."""
    Path(path + ".waits").touch()
    while not os.path.exists(path) and os.path.isdir(os.path.dirname(path)):
        time.sleep(0.001)


def meet(place):
    """Wait until two workers have arrived."""
    Path(place, str(os.getpid())).touch()
    while os.path.isdir(place) and len(os.listdir(place)) < 2:
        time.sleep(0.001)


def sleep_deaf(path):
    """Block SIGTERM, report the pid, and never end."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    say_pid(path)
    time.sleep(1000)


def say_pid(path):
    with open(path + ".part", "w", encoding="ascii") as file:
        file.write(str(os.getpid()))
    os.rename(path + ".part", path)


def sleep_in_c(path):
    """Make a long call in C, which holds the GIL and lets no signal handler run."""
    signal.signal(signal.SIGTERM, lambda *_: None)
    say_pid(path)
    ctypes.PyDLL(None).sleep(1000)


def fork_and_die(way, path):
    """Leave behind a child that has the argument and all descriptors of the worker."""
    kept = np.ones(50_000)
    if os.fork() == 0:
        say_pid(path)
        signal.alarm(30)
        while kept[0]:
            time.sleep(1)
    while not os.path.exists(path):
        time.sleep(0.001)
    die(way)


def run_own_child(_):
    """Use multiprocessing in a task."""
    child = multiprocessing.get_context("fork").Process(target=take)
    child.start()
    child.join()
    return child.exitcode


def nap():
    time.sleep(0.01)
