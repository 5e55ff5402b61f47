"""Functions that run in child processes; spawn and forkserver can import them."""

import os
import pickle
import threading

import numpy as np

import shmarray


def describe(array):
    """Return everything by which a receiver can tell a view."""
    return array.shape, array.strides, array.dtype, array.flags.writeable, array.tobytes()


def describe_handle(handle):
    return describe(handle.array)


def increment(handle):
    """Write through a handle and return the pid, which proves that another process did it."""
    handle.array[...] += 1
    return os.getpid()


def try_write(handle):
    try:
        handle.array[...] = 0
    except ValueError as error:
        return str(error)
    return None


def open_stale(handle):
    """Return the error that a stale handle raises when it is used, not earlier."""
    try:
        handle.array  # noqa: B018 - the property raises
    except OSError as error:
        return error
    return None


def fill_part(task):
    """Fill one part of a shared result."""
    source, result, start, stop = task
    result.array[start:stop] = np.sqrt(source.array[start:stop])
    return start


def attach_and_add(name):
    array = shmarray.attach(name)
    with shmarray.lock(array):
        array[0] += 1
    return float(array[0])


def answer_handles(queue, answers):
    """Take handles until None arrives; answer with their content, and write to it."""
    for handle in iter(queue.get, None):
        answers.put(handle.array.copy())
        handle.array[...] = -1


def serve_pipe(connection):
    handle = connection.recv()
    handle.array[...] *= 2
    connection.send(os.getpid())


def raise_error(pickled):
    raise pickle.loads(pickled)


def wait_for_ever(_=None):
    threading.Event().wait()
