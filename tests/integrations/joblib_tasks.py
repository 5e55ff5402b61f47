"""Functions for the joblib backend's workers, which do not import the tests."""

import os
import time

import numpy as np


def overwrite(array, *more):
    """Return the previous content, and parts of the further arguments; write to all of them."""
    seen = array.copy()
    array[...] = -1
    parts = [_overwrite_part(other) for other in more]
    return seen, array.flags.writeable, *parts


def _overwrite_part(thing):
    if isinstance(thing, list):
        thing.append(1)
        return len(thing) - 1
    seen = int(thing[3])
    thing[...] = -1
    return seen


def pid(_=None):
    return os.getpid()


def slow(seconds):
    time.sleep(seconds)
    return os.getpid()


def die(_):
    os._exit(3)


def variable(name):
    return os.environ[name]


def nested(_):
    """Return how calls inside a task are run: the backend, and the pids of the task and of its calls."""
    import joblib

    backend, _ = joblib.parallel.get_active_backend()
    inner = joblib.Parallel(n_jobs=2)(joblib.delayed(pid)() for _ in range(4))
    return type(backend).__name__, os.getpid(), set(inner)


def nested_processes(_):
    import joblib

    with joblib.parallel_config(backend="shmarray"):
        return set(joblib.Parallel(n_jobs=2)(joblib.delayed(pid)() for _ in range(4))), os.getpid()


def put(array, index):
    array[index] = index
    return array


def total(array, *, offset=0.0):
    return float(np.sum(array)) + offset
