"""Functions that run in children, importable under spawn and forkserver."""

import os
import pickle
import threading

import numpy as np

import shmarray


def describe(array):
    """All by which a receiver can tell a view."""
    return array.shape, array.strides, array.dtype, array.flags.writeable, array.tobytes()


def describe_handle(handle):
    return describe(handle.array)


def increment(handle):
    """Write through a handle; the pid, to prove that it was another process."""
    handle.array[...] += 1
    return os.getpid()


def try_write(handle):
    try:
        handle.array[...] = 0
    except ValueError as error:
        return str(error)
    return None


def open_stale(handle):
    """The error that a stale handle raises when it is used, not before."""
    try:
        handle.array  # noqa: B018 - the property raises
    except OSError as error:
        return error
    return None


def fill_part(task):
    """Write one part of a shared result."""
    source, result, start, stop = task
    result.array[start:stop] = np.sqrt(source.array[start:stop])
    return start


def attach_and_add(name):
    array = shmarray.attach(name)
    with shmarray.lock(array):
        array[0] += 1
    return float(array[0])


def answer_handles(queue, answers):
    """Take handles until None comes; answer with the content and write to it."""
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
