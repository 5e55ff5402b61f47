"""Functions that workers run in the tests of pools, and shared helpers; importable under every start method."""

import gc
import multiprocessing
import os
import signal
import sys
import threading
import time

import numpy as np

import shmarray
from tests.helpers.processes import wait_until

START_METHODS = ("fork", "spawn", "forkserver")
KEPT = []


def make(kind, method, workers=2, **options):
    """Make a Pool or an executor."""
    context = multiprocessing.get_context(method)
    if kind == "Pool":
        return shmarray.Pool(workers, context=context, **options)
    return shmarray.ProcessPoolExecutor(workers, mp_context=context, **options)


def call(pool, func, *args):
    """Make one call and return its result."""
    if isinstance(pool, shmarray.Pool):
        return pool.apply_async(func, args).get(60)
    return pool.submit(func, *args).result(60)


def start(pool, func, *args):
    """Start a call; return a function that waits for its result, with a timeout in seconds."""
    if isinstance(pool, shmarray.Pool):
        return pool.apply_async(func, args).get
    return pool.submit(func, *args).result


def finish(pool):
    """Let the pool finish its calls, and wait for its end."""
    if isinstance(pool, shmarray.Pool):
        pool.close()
        pool.join()
    else:
        pool.shutdown()


def terminate(pool):
    """Terminate a Pool, or shut down an executor."""
    if isinstance(pool, shmarray.Pool):
        pool.terminate()
        pool.join()
    else:
        pool.shutdown()


def call_each(pool, func, items):
    """Make a call for each item; return the results in order."""
    return pool.map(func, items, chunksize=1) if isinstance(pool, shmarray.Pool) else list(pool.map(func, items))


def shared_memory_of(pool):
    """Return the bytes of memory that a pool's blocks and the words of its tasks use."""
    return allocator_of(pool).memory()


def allocator_of(pool):
    return pool._scheduler._state.lending.allocator


def all_blocks_are_free(pool):
    allocator = allocator_of(pool)
    free = 0 if allocator is None else sum(len(free.full) + len(free.empty) for free in allocator._free_lists)
    return allocator is None or free == len(allocator._blocks)


def results_are_dropped(pool):
    """Return whether nothing refers to results any more; the delivering thread releases them after the test does."""
    return all(lease() is None for lease in list(allocator_of(pool)._leased.values()))


def identity(x):
    return x


def pid(_=None):
    return os.getpid()


def double(x):
    return x * 2


def add_one_in_place(x):
    x += 1
    return x


def overwrite(x):
    """Overwrite the array, and return its previous content."""
    seen = x.copy()
    x[...] = np.zeros((), x.dtype)
    return seen


def describe(x):
    """Return what a task sees of an array."""
    return type(x).__name__, x.shape, x.dtype, x.flags.writeable, x.flags.c_contiguous, x.flags.f_contiguous


def describe_shared(x):
    return type(x).__name__, x.strides, x.flags.writeable, type(x.base).__name__


def write_first(x):
    x.flat[0] = 99


def view_of(x):
    x[:10] = -1
    return x[5 : len(x) // 2]


def twice_the_same(x):
    return x, x[::1], x * 3


def total(*arrays):
    return float(sum(float(np.sum(array)) for array in arrays))


def total_item(item):
    array, number = item
    seen = float(array[0]), float(array[-1])
    array[0] = number  # nobody else may see this
    return seen, number


def read_item(item):
    array, number = item
    return float(array[number])


def ones(size):
    return np.ones(size)


def keep_argument(x):
    """Keep the last few arguments, and return whether each still holds a single value."""
    KEPT.append(x)
    del KEPT[:-4]
    return [float(k[0]) for k in KEPT], all(bool((k == k[0]).all()) for k in KEPT)


def keep_last(x):
    KEPT[:] = [x]
    return float(x[0])


def keep_memoryview(x):
    KEPT.append(memoryview(x))
    del KEPT[:-3]
    return [view[0] for view in KEPT], [view[0] == view[-1] for view in KEPT]


def keep_in_cycle(x):
    try:
        raise ValueError
    except ValueError as error:
        err = error  # noqa: F841 - a cycle of the frame and the traceback
    return x + 1


def keep_in_thread(x):
    """A thread continues to read the argument after the task, so it must not change."""
    seen = KEPT
    first = float(x[0])

    def read():
        for _ in range(20):
            time.sleep(0.005)
            if not (x == first).all():
                seen.append("changed")

    threading.Thread(target=read, daemon=True).start()
    return first


def what_was_kept(_):
    return [item for item in KEPT if isinstance(item, str)]


def fork_and_look(x):
    """A child forked by the task looks at the argument later: it must be as it was at the fork."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        time.sleep(0.15)
        os.write(writer, b"1" if (x == x[0]).all() else b"0")
        os._exit(0)
    os.close(writer)
    KEPT.append((child, reader))
    x += 1
    return float(x[0])


def reap(_):
    """Return what the forked children saw."""
    seen = []
    for child, reader in KEPT:
        seen.append(os.read(reader, 1))
        os.close(reader)
        os.waitpid(child, 0)
    KEPT.clear()
    return seen


def fork_child(x):
    """Fork a child and wait for it."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return float(x[0])


def kill_self(_=None):
    os.kill(os.getpid(), signal.SIGKILL)


def exit_self(code):
    os._exit(code)


def fail(x):
    raise KeyError("task", x.shape if hasattr(x, "shape") else x)


def interrupt(_):
    raise KeyboardInterrupt("of the task")


def leave(_):
    raise SystemExit(3)


def block(path):
    """Write the pid to a file, then wait for ever."""
    with open(path + ".part", "w", encoding="ascii") as file:
        file.write(str(os.getpid()))
    os.rename(path + ".part", path)
    while True:
        time.sleep(1)


def unpicklable_result(_):
    return threading.Lock()


def lambda_result(_):
    return lambda: 1


class TwoArgumentsError(Exception):
    """Cannot be unpickled: its __init__ requires an argument that is not in args."""

    def __init__(self, first, second):
        super().__init__(first)
        self.second = second


def raise_two(_):
    raise TwoArgumentsError(1, 2)


class Hostile:
    """Raises when it is pickled or when it is unpickled, as requested."""

    def __init__(self, where, error=RuntimeError):
        self.where = where
        self.error = error

    def __reduce__(self):
        if self.where == "pickle":
            raise self.error("no pickling")
        return _explode, (self.error,)


def _explode(error):
    raise error("no unpickling")


def hostile_result(where):
    return Hostile(where)


def limit_files():
    """Initializer that forbids this process to write files larger than 1 MB."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))


def make_own_pool(method):
    """Make a pool inside a forked child: daemonic workers may not have one, but a forked helper may."""
    with make("Pool", method) as pool:
        return total(*pool.map(double, [np.ones(100_000)] * 3))


def collect():
    gc.collect()


def command(code):
    return [sys.executable, "-c", code]


def slow_double(x):
    """Take long enough for others to end meanwhile."""
    time.sleep(0.5)
    return x * 2


def keep_and_meet(array, place):
    """Keep the argument, and wait until another worker has arrived here too."""
    KEPT.append(array)
    with open(f"{place}/{os.getpid()}", "x", encoding="utf-8"):
        pass
    wait_until(lambda: len(os.listdir(place)) == 2)
    return os.getpid()


def forget_if(pid):
    if os.getpid() == pid:
        KEPT.clear()
    return os.getpid()


def ends_of_kept(_):
    return os.getpid(), [(array[0], array[-1]) for array in KEPT]


def wait_for_file(path):
    """Keep the worker busy until the file exists."""
    wait_until(lambda: os.path.exists(path), 60)


def look_and_write_at(array, place):
    seen = float(array[0])
    if array.flags.writeable:
        array[place] = 7
    return seen


def map_and_delete(path, mode):
    """Return a memory map of a file that no longer exists when the map is sent."""
    np.full(50_000, 1.0).tofile(path)
    mapped = np.memmap(path, float, mode, shape=50_000)
    if mode == "w+":
        mapped[:] = 1
    os.unlink(path)
    return mapped


def reciprocal(x):
    return 1 / x


def kill_self_at_7(x):
    if x == 7:
        kill_self()
    return x


class DiesWhenFormatted:
    def __format__(self, spec):
        kill_self()


def big_and_small(big, small):
    return {"big": np.ones(big), "small": np.full(small, 2.0)}


def halves(x):
    middle = len(x) // 2
    return [x[:middle], x[middle:]]


def scoped_result(name=None):
    """Return an array out of the with-block that created it."""
    with shmarray.scoped(data=[1.0, 2.0], name=name) as array:
        return array


def put_scoped(queue):
    with shmarray.scoped(data=[1.0, 2.0]) as array:
        queue.put(array)
        queue.put(array.sum())


def reraise_what_it_is(x):
    """Return the type of the object received in place of an array, and the error that its use raises."""
    try:
        np.sqrt(x)
    except OSError as error:
        return type(x).__name__, error
    return type(x).__name__, None


def slow_pid(_):
    time.sleep(0.1)
    return os.getpid()
