"""Uses every public operation ("door") while a resource is scarce, and again when it is available.

It is a separate program because a limit applies to a whole process: see `main`.
"""

import atexit
import errno
import gc
import json
import os
import pickle
import resource
import sys
import threading
import warnings
from contextlib import suppress
from multiprocessing import resource_tracker

import numpy as np

import shmarray
from shmarray.core.posix import files
from tests.helpers import processes, raw
from tests.pool import tasks

MB = 1 << 20
NAME = f"t{os.getpid()}-doors"
METHOD = "fork"

# --- doors: each uses arrays of the given number of bytes -------------------------------


def create(size):
    try:
        shmarray.create(NAME, 3 * size, "u1")[:: 64 << 10] = 1
    finally:
        with suppress(FileNotFoundError):
            shmarray.delete(NAME)


def create_data(size):
    try:
        assert shmarray.create(NAME, data=source(size))[-1] == 1
    finally:
        with suppress(FileNotFoundError):
            shmarray.delete(NAME)


def scoped(size):
    with shmarray.scoped(3 * size, "u1") as array:
        array[:: 64 << 10] = 1


def scoped_named(size):
    with shmarray.scoped(3 * size, "u1", name=NAME) as array:
        array[:: 64 << 10] = 1


def pool_in(size):
    assert tasks.call(pool("Pool"), tasks.total, source(size)) > size // 8


def pool_out(size):
    assert tasks.call(pool("Pool"), tasks.ones, size // 8)[-1] == 1


def pool_shared(_):
    older = pool("Pool")  # created first, so that its workers do not inherit the array
    with shmarray.scoped(data=[6, 7]) as array:
        assert tasks.call(older, tasks.total, array) == 13


def executor_in(size):
    assert tasks.call(pool("Executor"), tasks.total, source(size)) > size // 8


def executor_out(size):
    assert tasks.call(pool("Executor"), tasks.ones, size // 8)[-1] == 1


def attach(_):
    assert shmarray.attach(NAME + "-there")[-1] == 7


def unpickle(_):
    if "handle" in given:
        assert pickle.loads(given["handle"]).array[-1] == 7


DOORS = {
    "create": create,
    "create(data)": create_data,
    "scoped()": scoped,
    "scoped(name)": scoped_named,
    "attach": attach,
    "handle": unpickle,
    "Pool -> x": pool_out,
    "Pool(x)": pool_in,
    "Pool(shared)": pool_shared,
    "Executor -> x": executor_out,
    "Executor(x)": executor_in,
}

given = {}


def source(size):
    """Return an array that does not fit where a result of that size was."""
    return given[size] if size in given else np.ones(size // 8 + size // 32)


def pool(kind):
    if kind not in given:
        made = given[kind] = tasks.make(kind, METHOD, initializer=globals()[given["in workers"]])
        tasks.call_each(made, abs, range(4))
    return given[kind]


def workers():
    processes = given["Pool"]._pool if "Pool" in given else []
    return [process.pid for process in processes] + list(given["Executor"]._processes if "Executor" in given else ())


def end_pools():
    if "Pool" in given:
        given["Pool"].close()
        given["Pool"].join()
    if "Executor" in given:
        given["Executor"].shutdown()
    given.clear()


# --- limits ----------------------------------------------------------------------------


def nothing():
    pass


def limit(kind, most):
    resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))


def address_space():
    with open("/proc/self/statm", encoding="ascii") as file:
        limit(resource.RLIMIT_AS, int(file.read().split()[0]) * resource.getpagesize() + 12 * MB)


def file_size():
    limit(resource.RLIMIT_FSIZE, MB)


def descriptors():
    limit(resource.RLIMIT_NOFILE, 100)
    taken = given["descriptors"] = []
    with suppress(OSError):
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))


def locked_memory():
    limit(resource.RLIMIT_MEMLOCK, 0)


def no_memfd():
    files.MEMFD = False


def no_unnamed_files():
    files.UNNAMED_FILES = files.MEMFD = False


def plenty():
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_MEMLOCK):
        most = resource.getrlimit(kind)[1]
        for pid in (os.getpid(), *workers()):
            resource.prlimit(pid, kind, (most, most))
    for fd in given.pop("descriptors", ()):
        os.close(fd)


# --- the program ----------------------------------------------------------------------


def outcome(door, size):
    """Return the outcome: 'ok', 'pipe' if the arrays went through a pipe, 'full', or the error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        try:
            DOORS[door](size)
        except shmarray.SharedMemoryFullError as error:
            return "full" if isinstance(error, MemoryError) and error.errno == errno.ENOSPC else repr(error)
        except OSError as error:
            return errno.errorcode.get(error.errno, repr(error))
        except MemoryError:
            return "MemoryError"
        finally:
            gc.collect()
    texts = [str(warning.message) for warning in caught]
    assert all("through a pipe" in text for text in texts), texts
    return "pipe" if texts else "ok"


def main(size, before, after, in_workers):
    """Use every door with arrays of `size` bytes; set limits before pools exist, after that, and in the workers.

    Then remove the limits and use every door again; print the outcomes of both rounds.
    """
    given["in workers"] = in_workers
    # Create it first: there would be no memory for it afterwards.
    if after == "address_space":
        given[size] = source(size)
    start_lasting_helpers()
    with suppress(OSError):  # no /dev/shm
        given["handle"] = pickle.dumps(shmarray.SharedHandle(shmarray.create(NAME + "-there", data=[6, 7])))
        atexit.register(shmarray.delete, NAME + "-there")
    lasting = left()
    globals()[before]()
    if after != "nothing":
        pool("Pool"), pool("Executor")
        globals()[after]()
    then = {door: outcome(door, size) for door in DOORS}
    plenty()
    afterwards = {door: outcome(door, MB) for door in DOORS}
    end_pools()
    assert left() == lasting, (left(), lasting)
    print(json.dumps([then, afterwards]))


def start_lasting_helpers():
    resource_tracker.ensure_running()
    with suppress(OSError), shmarray.scoped(1, name=NAME):  # starts the name reaper
        pass


def left():
    names = raw.names(NAME) if os.path.isdir(raw.SHM) else []
    if not os.path.exists("/proc/self"):
        return names
    return names, processes.children(), len(os.listdir("/proc/self/fd")), len(threading.enumerate())


if __name__ == "__main__":
    main(*sys.argv[1:])
