"""Functions that run in workers."""

import os
import signal
import time

import numpy as np

from shmarray.core import owner
from shmarray.dask.copies import COPIES

ONE_MB = 1 << 20


def large(nbytes=2 * ONE_MB):
    """Return an array whose items are all different."""
    return np.arange(nbytes // 8, dtype=np.float64)


def item(table, place):
    return float(np.asarray(table)[place])


def item_and_pid(table, place):
    return float(np.asarray(table)[place]), os.getpid()


def take_and_spoil(array, place):
    value = float(array[place])
    array[place] = -1.0
    return value


def take_and_spoil_handle(handle, place):
    return take_and_spoil(handle.array, place)


def double(array):
    array *= 2
    return array


def what_it_is(array):
    return type(array).__name__, array.flags.writeable, owner(array) is not None


def write(handle):
    handle.array[0] = 1.0


def first_rows(handle):
    return handle.array[:2]


def item_of_shared_handle(handle):
    return float(handle.array[3])


def square(x):
    return x * x


def fail_at_three(x):
    if x == 3:
        raise ValueError("three")
    return x


def fail_with(table, _):
    """Raise an error whose traceback has the array in its frames."""
    kept = np.asarray(table)
    raise ValueError(f"of {kept.nbytes} bytes")


def number_of_copies():
    return len(COPIES)


def kill_oneself_once(path, value):
    """Kill the worker at the first call; a file records it."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return value
    os.kill(os.getpid(), signal.SIGKILL)
    return None


def wait_for_file(path):
    while not os.path.exists(path):
        time.sleep(0.005)


def in_child_process(handle):
    """Return an item of the array, read by a child process of the task."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writer, repr(float(handle.array[1])).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with open(reader, encoding="ascii") as file:
        return float(file.read())


def item_after(table, place, _):
    return item(table, place)


def what_it_is_of(array, _):
    return what_it_is(array)[:2]


def first_item(array):
    return float(array[0])


def wait_for_file_with(_, path):
    wait_for_file(path)


def total_after(table, seconds):
    """Read the whole array, and keep its pages mapped for some seconds."""
    total = float(np.asarray(table).sum())
    time.sleep(seconds)
    return total
