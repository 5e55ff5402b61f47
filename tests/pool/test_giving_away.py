"""Arrays that a caller makes with empty and the like: sent with a task, they are not copied unless they are held."""

import ctypes
import errno
import gc
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from contextlib import suppress

import numpy as np
import pytest

import shmarray
from shmarray.pool import forks
from shmarray.pool.arrays import allocator as allocators
from shmarray.pool.arrays.allocator import BlockAllocator
from shmarray.pool.arrays.free_list import Use
from tests.helpers.processes import Child, wait_until
from tests.pool import tasks
from tests.pool.tasks import allocator_of, call, start

MB = 1 << 20
KEPT = []


def where(array):
    """Return the inode and offset of an array's memory; a unique result if it belongs to no file."""
    address = array.__array_interface__["data"][0]
    with open("/proc/self/maps", encoding="ascii") as maps:
        for line in maps:
            addresses, _, offset, _, inode = line.split()[:5]
            first, end = (int(part, 16) for part in addresses.split("-"))
            if first <= address < end:
                return int(inode), int(offset, 16) + address - first
    raise AssertionError("the array is in no mapping")


def ramp(nbytes, first=0):
    """Return numbers that increase by one."""
    return np.arange(float(first), first + nbytes // 8)


class Maker:
    """Makes arrays and records where they are, without keeping them."""

    def __init__(self, nbytes=MB):
        self._nbytes = nbytes
        self.places = []

    def __call__(self, number=0):
        array = shmarray.empty(self._nbytes // 8)
        array[:] = ramp(self._nbytes, number)
        self.places.append(where(array))
        return array


@pytest.fixture
def make():
    return Maker()


@pytest.fixture(params=["fork", "spawn"])
def pool(kind, request):
    """A pool with one worker, after a first call: executors create their memory with it."""
    yield from open_pool(kind, request.param)


@pytest.fixture
def forked(kind):
    yield from open_pool(kind, "fork")


def open_pool(kind, method):
    with tasks.make(kind, method, 1) as pool:
        call(pool, abs, 1)
        yield pool
    if kind == "Pool":
        pool.join()


@pytest.fixture
def one():
    yield from open_pool("Pool", "fork")


@pytest.fixture
def busy(tmp_path):
    """Occupy a pool's worker and feeding thread until `go`, so that later calls are packed after it."""
    path = tmp_path / "go"

    class Busy:
        go = staticmethod(path.touch)
        results = ()

        def __call__(self, pool):
            # One call is running, two calls with arrays have been sent, and there is no room for the last.
            self.results = [start(pool, tasks.wait_for_file, str(path))]
            self.results += [start(pool, tasks.total, np.ones(4 * MB // 8)) for _ in range(3)]

    busy = Busy()
    yield busy
    busy.results = ()  # they refer to the pool and keep unsent calls alive


def places_and_ends(array):
    return where(array), array[0], array[-1]


def first_of(results):
    return [result[0] for result in results]


def are_copies(results, make):
    return all(place != made for place, made in zip(first_of(results), make.places, strict=True))


def ends(count):
    return [(number, number + MB // 8 - 1) for number in range(count)]


# --- given away -----------------------------------------------------------------------

COUNT = 6

ITERABLES = {
    "a generator": lambda make: (make(number) for number in range(COUNT)),
    "a map": lambda make: map(make, range(COUNT)),
}


@pytest.mark.parametrize("iterable", ITERABLES)
@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_what_an_iterable_makes_is_not_copied(how, method, iterable, make):
    with tasks.make("Pool", how, 2) as pool:
        results = sorted(getattr(pool, method)(places_and_ends, ITERABLES[iterable](make)), key=lambda each: each[1])
        assert first_of(results) == make.places
        assert [result[1:] for result in results] == ends(COUNT)
        wait_until(lambda: tasks.all_blocks_are_free(pool))
    pool.join()


def test_what_is_sent_with_calls_is_not_copied(pool, make, busy):
    """The caller's frames have returned when the task is packed."""
    busy(pool)
    results = [start(pool, places_and_ends, make(number)) for number in range(COUNT)]
    busy.go()
    assert first_of(result(60) for result in results) == make.places
    wait_until(lambda: tasks.all_blocks_are_free(pool))


@pytest.mark.parametrize("buffersize", [None, COUNT])
def test_an_executors_map(buffersize, make, busy):
    with tasks.make("Executor", "fork", 1) as executor:
        call(executor, abs, 1)
        busy(executor)
        results = executor.map(places_and_ends, map(make, range(COUNT)), buffersize=buffersize)
        busy.go()
        assert first_of(results) == make.places


def test_a_bounded_imap(one, make, busy):
    busy(one)
    results = one.imap(places_and_ends, map(make, range(COUNT)), buffersize=COUNT)
    busy.go()
    assert first_of(results) == make.places


def test_zeros_and_likes_are_given_away_too(one):
    places = []

    def made():
        for function, argument in (
            (shmarray.zeros, MB),
            (shmarray.zeros_like, np.ones(MB)),
            (shmarray.empty_like, np.ones((1000, 300), "f4", order="F")),
        ):
            yield noted(function(argument), places)

    assert [where_ == place for (where_, _), place in zip(one.imap(place_and_kind, made()), places, strict=True)]
    kinds = [kind for _, kind in one.imap(place_and_kind, made())]
    assert kinds == [((MB,), "<f8", True), ((MB,), "<f8", True), ((1000, 300), "<f4", False)]


def noted(array, places):
    places.append(where(array))
    return array


def place_and_kind(array):
    return where(array), (array.shape, array.dtype.str, array.flags.c_contiguous)


def test_the_memory_is_used_again(one, make):
    """Memory is reused as for copies: there are only as many arrays as are in flight."""
    assert len(list(one.imap(tasks.total, map(make, range(40))))) == 40
    assert len(set(make.places)) < 10
    assert tasks.shared_memory_of(one) < 11 * MB


def test_a_task_may_return_what_it_was_given(pool, make, busy):
    busy(pool)
    results = [start(pool, tasks.add_one_in_place, make(number)) for number in range(COUNT)]
    busy.go()
    arrays = [result(60) for result in results]
    assert [where(array) for array in arrays] == make.places
    for number, array in enumerate(arrays):
        assert np.array_equal(array, ramp(MB, number + 1))
        array.fill(-1)  # the caller's own array
    del array
    assert call(pool, tasks.total, ramp(MB)) == ramp(MB).sum()
    arrays.clear()
    results.clear()
    wait_until(lambda: tasks.all_blocks_are_free(pool))


def test_a_result_that_is_passed_on_is_given_away_too(one, make):
    results = one.imap(places_and_ends, one.imap(tasks.add_one_in_place, map(make, range(COUNT))))
    assert [(place, first) for place, first, _ in results] == [
        (place, number + 1) for number, place in enumerate(make.places)
    ]


def keep(array):
    KEPT.append(array)
    return array


def change_what_is_kept():
    for array in KEPT:
        np.add(array, 1, out=array)
    return [array.copy() for array in KEPT]


def test_a_task_may_keep_what_it_was_given(one, make):
    results = list(one.imap(keep, map(make, range(COUNT))))
    assert len(list(one.imap(tasks.overwrite, map(make, range(20))))) == 20
    kept = call(one, change_what_is_kept)
    assert all(np.array_equal(array, ramp(MB, number + 1)) for number, array in enumerate(kept))
    assert all(np.array_equal(array, ramp(MB, number)) for number, array in enumerate(results))
    results.clear()
    call(one, KEPT.clear)


# --- several arrays in one task -------------------------------------------------------


def groups(kind, array):
    middle = len(array) // 2
    return {
        "part": lambda: array[100:-100],
        "halves": lambda: [array[:middle], array[middle:]],
        "twice": lambda: (array, array),
        "reshaped": lambda: array.reshape(-1, 64).T,
        "other type": lambda: array.view("i8"),
        "masked": lambda: np.ma.masked_array(array, array == 5),
        "with others": lambda: {"a": ramp(MB, 3), "b": (array, "text"), "c": [np.ones(3), ramp(3 * MB, 5)]},
        "with a long pickle": lambda: ("x" * MB, array, ramp(MB, 7)),
        "overlapping": lambda: (array[: middle + 5000], array[middle:]),
        "strided": lambda: array[::2],
        "read-only": lambda: np.broadcast_to(array, (2, len(array))),
        "and a strided view": lambda: (array, array[::2]),
    }[kind]()


GIVEN = ("part", "halves", "twice", "reshaped", "other type", "masked", "with others", "with a long pickle")
COPIED = ("overlapping", "strided", "read-only", "and a strided view")


def arrays_in(value):
    if isinstance(value, np.ndarray):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [array for part in parts for array in arrays_in(part)]


def look_at_all(value):
    """Return the place and content of each array, and the ends of each after writing to another."""
    arrays = arrays_in(value)
    seen = [(where(array), array.tobytes()) for array in arrays]
    for number, array in enumerate(arrays):
        array[...] = number
    return seen, [np.ma.getdata(array).ravel()[[0, -1]].tolist() for array in arrays]


@pytest.mark.parametrize("kind_of_group", GIVEN + COPIED)
def test_groups_of_arrays(one, kind_of_group):
    maker = Maker(2 * MB)
    ((seen, written),) = one.imap(look_at_all, (groups(kind_of_group, maker()) for _ in range(1)))
    expected = arrays_in(groups(kind_of_group, ramp(2 * MB)))
    assert len(seen) == len(expected)
    for (_, content), right in zip(seen, expected, strict=True):
        assert content == right.tobytes()
    last = [1, 1] if kind_of_group == "twice" else range(len(expected))  # both are one array in the task, too
    assert written == [[number, number] for number in last]
    (inode, offset), *_ = maker.places
    inside = [place for place, _ in seen if place[0] == inode and 0 <= place[1] - offset < 2 * MB]
    assert bool(inside) is (kind_of_group in GIVEN)
    wait_until(lambda: tasks.all_blocks_are_free(one))


def several(make):
    return [make(number) for number in range(5)]


def test_several_arrays_with_one_task(one, make):
    ((seen, _),) = one.imap(look_at_all, map(several, [make]))
    assert first_of(seen) == make.places
    assert [content for _, content in seen] == [ramp(MB, number).tobytes() for number in range(5)]
    wait_until(lambda: tasks.all_blocks_are_free(one))


# --- held -----------------------------------------------------------------------------


def in_a_closure(array):
    return lambda: array


def in_a_traceback(array):
    try:
        raise ValueError(len(array))
    except ValueError as error:
        return error


class InAThread:
    def __init__(self, array):
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._hold, args=(array,))
        self._thread.start()

    def _hold(self, array):
        self._end.wait(60)
        return array

    def end(self):
        self._end.set()
        self._thread.join()


def in_a_cycle(array):
    cycle = [array]
    cycle.append(cycle)


HOLDERS = {
    "a list": lambda array: [array],
    "a view": lambda array: array[5:9],
    "a view of another type": lambda array: array.view("u1")[3:],
    "a memoryview": memoryview,
    "a pointer of ctypes": lambda array: array.ctypes.data_as(ctypes.POINTER(ctypes.c_double)),
    "a closure": in_a_closure,
    "a traceback": in_a_traceback,
    "another thread": InAThread,
    "a cycle": in_a_cycle,
}


def look_and_overwrite(array, begun, go):
    """Wait until the caller has written, and return what the array holds; then write to it."""
    with open(begun, "x", encoding="ascii"):
        pass
    tasks.wait_for_file(go)
    seen = where(array), array[0], array[-1], bool((np.diff(array) == 1).all())
    array.fill(7)
    return seen


@pytest.mark.parametrize("holder", HOLDERS)
def test_what_is_held_is_copied(one, holder, make, tmp_path):
    begun, go = str(tmp_path / "begun"), str(tmp_path / "go")
    held = []

    def items():
        array = make(3)
        # The memory as its holder sees it, without a reference to it.
        held.extend([HOLDERS[holder](array), memory_at(array)])
        array = (array, begun, go)
        held.append(in_items := [array])
        del array
        yield in_items.pop()

    results = one.imap(starred, items())
    wait_until(lambda: os.path.exists(begun))
    memory = held[1]
    memory[:] = b"\xff" * len(memory)
    open(go, "x", encoding="ascii").close()
    place, first, last, rises = next(results)
    assert (first, last, rises) == (3, 3 + MB // 8 - 1, True)
    assert place != make.places[0]
    assert bytes(memory) == b"\xff" * len(memory)
    if holder == "another thread":
        held[0].end()
    held.clear()
    del memory
    gc.collect()
    wait_until(lambda: tasks.all_blocks_are_free(one))


def memory_at(array):
    return (ctypes.c_char * array.nbytes).from_address(array.ctypes.data)


def starred(arguments):
    return look_and_overwrite(*arguments)


def kept_by_a_variable(make):
    for number in range(COUNT):
        array = make(number)
        yield array
        array[:] = -1


def test_a_generator_that_continues_to_write_gets_a_copy(one, make):
    results = list(one.imap(places_and_ends, kept_by_a_variable(make)))
    assert [result[1:] for result in results] == ends(COUNT)
    assert are_copies(results, make)


def test_a_list_of_arrays_is_held(forked, make):
    arrays = [make(number) for number in range(COUNT)]
    results = tasks.call_each(forked, places_and_ends, arrays)
    assert [result[1:] for result in results] == ends(COUNT)
    assert are_copies(results, make)
    assert all(np.array_equal(array, ramp(MB, number)) for number, array in enumerate(arrays))


def test_an_array_in_all_tasks_is_still_copied_once(forked):
    array = Maker(8 * MB)()
    seen = tasks.call_each(forked, tasks.total_item, [(array, number) for number in range(20)])
    assert seen == [((0.0, float(MB - 1)), number) for number in range(20)]
    assert array[0] == 0
    assert tasks.shared_memory_of(forked) < 20 * MB


def test_an_array_released_while_it_is_copied_is_not_freed(make):
    """Another thread takes back ended arrays and reuses their memory while this one is copied; made deterministic."""
    blocks = BlockAllocator.create(1)
    try:
        array = blocks.lend(MB)
        holder = [array]
        buffers = [array]
        del array
        (place,) = blocks.claim(buffers).values()
        buffers.clear()
        assert blocks.take(place.reference) is None
        holder.clear()
        other = blocks.allocate(Use.ARGUMENT)  # takes back arrays that have ended
        assert other.index != place.reference.index
        blocks.give_back(other)
        blocks.unclaim(place.reference)
        assert blocks.allocate(Use.ARGUMENT).index == place.reference.index
    finally:
        blocks.close()


@pytest.mark.parametrize("order", ["ends, unclaimed", "unclaimed, ends"])
def test_a_claimed_array_is_given_back_once(order):
    blocks = BlockAllocator.create(1)
    try:
        array = blocks.lend(MB)
        (place,) = blocks.claim([array]).values()
        if order == "ends, unclaimed":
            del array
            blocks.unclaim(place.reference)
        else:
            blocks.unclaim(place.reference)
            del array
        indices = [blocks.allocate(Use.ARGUMENT).index for _ in range(3)]
        assert indices[0] == place.reference.index
        assert len(set(indices)) == 3
    finally:
        blocks.close()


def test_threads_that_release_arrays_at_any_moment():
    """A map of an executor is still submitting calls when some of them are packed."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with tasks.make("Executor", "fork", 2) as executor:
            call(executor, abs, 1)
            for number, seen in enumerate(executor.map(tasks.overwrite, map(Maker(MB // 2), range(60)))):
                assert np.array_equal(seen, ramp(MB // 2, number))
            del seen
            wait_until(lambda: tasks.all_blocks_are_free(executor))
    finally:
        sys.setswitchinterval(before)


# --- other places and other ways to send ------------------------------------------------


def test_without_an_open_pool_they_are_numpys(kind):
    assert shmarray.empty(MB).base is None
    with tasks.make(kind, "fork", 1) as pool:
        call(pool, abs, 1)
        array = shmarray.empty(MB, "u1")
        assert array.base is not None
        assert shmarray.empty(1000).base is None
        array[:] = 3
        child = Child(lambda _: (shmarray.empty(MB).base is None, int(array.sum())))
        with child:
            assert child.result() == (True, 3 * MB)
    if kind == "Pool":
        pool.join()
    assert shmarray.empty(MB).base is None
    assert array.sum() == 3 * MB  # the array outlives its pool
    array += 1


def test_arrays_made_before_an_executor_forks_workers_are_numpys():
    """In the executor's memory it would have to be copied, and kept for as long as the workers live."""
    with tasks.make("Executor", "fork", 1) as executor:
        array = shmarray.empty(MB)
        assert array.base is None
        call(executor, abs, 1)


def test_pickled_or_sent_otherwise_it_is_an_array_like_any(one, make):
    array = make(2)
    assert np.array_equal(pickle.loads(pickle.dumps(array)), array)
    assert where(pickle.loads(pickle.dumps(array, 5))) != where(array)
    with multiprocessing.get_context("fork").Pool(1) as stock:
        assert stock.apply(places_and_ends, (array,))[1:] == (2, 2 + MB // 8 - 1)
        assert list(stock.imap(tasks.total, (make(number) for number in range(3)))) == [
            ramp(MB, number).sum() for number in range(3)
        ]
    stock.join()
    reader, writer = multiprocessing.Pipe()
    with reader, writer:
        thread = threading.Thread(target=writer.send, args=(array,))
        thread.start()
        assert np.array_equal(reader.recv(), array)
        thread.join()


def test_arrays_belong_to_the_last_opened_pool_and_in_a_generator_to_its_pool(one, make):
    with tasks.make("Pool", "fork", 1) as later:
        assert where(make())[0] in inodes(later)
        # An array that is sent through another pool is copied.
        assert one.apply_async(places_and_ends, (make(4),)).get(60)[1:] == (4, 4 + MB // 8 - 1)
        make.places.clear()
        assert first_of(one.imap(places_and_ends, map(make, range(3)))) == make.places
        assert {inode for inode, _ in make.places} <= inodes(one)
    later.join()
    assert where(make())[0] in inodes(one)
    wait_until(lambda: tasks.all_blocks_are_free(one))


def inodes(pool):
    return {os.fstat(file.fd).st_ino for file in allocator_of(pool).files}


# --- memory ---------------------------------------------------------------------------


def is_idle(pool):
    return tasks.all_blocks_are_free(pool) and tasks.shared_memory_of(pool) < MB


def test_the_memory_of_unsent_arrays_is_freed(forked, make):
    arrays = [make() for _ in range(8)]
    assert tasks.shared_memory_of(forked) >= 8 * MB
    del arrays
    wait_until(lambda: is_idle(forked))


@pytest.mark.parametrize("where_it_fails", ["pickl", "unpickl"])
def test_calls_that_cannot_be_sent_or_received(forked, where_it_fails, make):
    """Run with the cyclic garbage collector disabled, because an error is in a cycle with its frames."""
    gc.disable()
    try:
        for _ in range(3):
            with pytest.raises(RuntimeError, match=where_it_fails):
                start(forked, tasks.total, make(), tasks.Hostile(f"{where_it_fails}e"), make())(60)
        wait_until(lambda: is_idle(forked))
    finally:
        gc.enable()
    wait_until(lambda: is_idle(forked))


def test_calls_that_fail_or_are_cancelled_before_they_are_packed(make, busy):
    with tasks.make("Executor", "fork", 1) as executor:
        call(executor, abs, 1)
        busy(executor)
        futures = [executor.submit(tasks.total, make()) for _ in range(5)]
        assert all(future.cancel() for future in futures)
        busy.go()
        for result in busy.results:
            result(60)
        busy.results = ()
        wait_until(lambda: is_idle(executor))


def test_a_pool_that_is_terminated_with_arrays_on_their_way(make, busy):
    with tasks.make("Pool", "fork", 1) as pool:
        kept = make(1)
        busy(pool)
        results = [pool.apply_async(tasks.total, (make(),)) for _ in range(5)]
        blocks = allocator_of(pool)
    pool.join()
    for result in results:
        with pytest.raises(RuntimeError, match="terminated"):
            result.get(60)
    assert blocks.memory() == 0
    assert np.array_equal(kept, ramp(MB, 1))


def test_arrays_beyond_the_maximum_are_numpys(one, make, monkeypatch):
    monkeypatch.setattr(allocators, "_MOST_HELD", 2)
    arrays = [shmarray.empty(MB) for _ in range(4)]
    assert [array.base is None for array in arrays] == [False, False, True, True]


def refused(number):
    def call_of_the_system(*_):
        raise OSError(number, os.strerror(number))

    return call_of_the_system


def test_full_memory_is_an_error_and_changes_nothing(one, make, monkeypatch):
    before = make(1)
    with monkeypatch.context() as full:
        full.setattr(os, "posix_fallocate", refused(errno.ENOSPC))
        with pytest.raises(shmarray.SharedMemoryFullError):
            shmarray.empty(8 * MB)
    assert np.array_equal(before, ramp(MB, 1))
    del before
    wait_until(lambda: tasks.all_blocks_are_free(one))
    assert shmarray.zeros(8 * MB, "u1").max() == 0


def test_without_shared_memory_they_are_numpys_arrays(one, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", refused(errno.EFBIG))
    assert shmarray.empty(8 * MB).base is None
    assert tasks.all_blocks_are_free(one)


def ends_of_both(both):
    return [(array[0], array[-1]) for array in both]


@pytest.mark.parametrize("number", [errno.EFBIG, errno.ENOSPC])
def test_lack_of_memory_for_another_array_of_the_task(one, make, monkeypatch, number):
    """Both arrays go through the pipe, or neither; in either case the memory of the first comes back."""

    def both(first):
        return make(first), ramp(8 * MB)

    with monkeypatch.context() as scarce:
        scarce.setattr(os, "pwrite", refused(number))
        results = one.imap(ends_of_both, map(both, [5]))
        if number == errno.EFBIG:
            assert next(results) == [(5, 5 + MB // 8 - 1), (0, MB - 1)]
        else:
            with pytest.raises(shmarray.SharedMemoryFullError):
                next(results)
    results = None
    gc.collect()
    wait_until(lambda: tasks.all_blocks_are_free(one))


class InterruptedByTest(BaseException):
    """Stands for KeyboardInterrupt, which would end the whole run if it came too late."""


def test_ctrl_c_at_any_moment_loses_no_block(one):
    is_interruptible = False
    count = 0

    def handle(*_):
        nonlocal is_interruptible, count
        count += 1
        if is_interruptible:
            is_interruptible = False
            raise InterruptedByTest

    def make_arrays():
        nonlocal is_interruptible
        is_interruptible = True
        while count < 100:
            shmarray.empty(MB // 4)

    def interrupt():
        for number in range(100):
            os.kill(os.getpid(), signal.SIGINT)
            wait_until(lambda number=number: count > number)

    before = signal.signal(signal.SIGINT, handle)
    try:
        thread = threading.Thread(target=interrupt)
        thread.start()
        while count < 100:
            with suppress(InterruptedByTest):
                make_arrays()
        thread.join()
    finally:
        signal.signal(signal.SIGINT, before)
    wait_until(lambda: tasks.all_blocks_are_free(one))


# --- deaths and forks -----------------------------------------------------------------


def look_or_die(array):
    if array[0] == 1:
        tasks.kill_self()
    return places_and_ends(array)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_that_dies_loses_its_task_alone(kind, method, make, busy):
    """Tasks that the worker had not begun go to the next one in the same memory, unless that was forked meanwhile."""
    options = {} if kind == "Pool" else {"replace_workers": True}
    with tasks.make(kind, method, 1, **options) as pool:
        call(pool, abs, 1)
        busy(pool)
        results = [start(pool, look_or_die, make(number)) for number in range(COUNT)]
        busy.go()
        with pytest.raises(shmarray.WorkerDiedError):
            results[1](60)
        del results[1]
        seen = [result(60) for result in results]
        assert [each[1:] for each in seen] == ends(COUNT)[:1] + ends(COUNT)[2:]
        if method == "spawn":
            assert first_of(seen) == make.places[:1] + make.places[2:]
            wait_until(lambda: tasks.all_blocks_are_free(pool))
    if kind == "Pool":
        pool.join()


def filled(number):
    array = shmarray.empty(MB // 8)
    array.fill(number)
    return array


def test_a_task_that_forks(one, make):
    for _ in range(2):
        assert list(one.imap(tasks.fork_and_look, map(filled, range(3)))) == [1, 2, 3]
        assert len(list(one.imap(tasks.overwrite, map(make, range(20))))) == 20
        assert call(one, tasks.reap, None) == [b"1"] * 3


def wait_and_look(channel, array):
    channel.recv()
    return np.array_equal(array, ramp(MB, 3))


def test_a_forked_child_holds_what_it_has(one, make):
    """Its parent gives the array away, and the child does not see what is then written to that memory."""
    array = [make(3)]
    with Child(wait_and_look, array[0]) as child:
        place, *seen = one.apply_async(places_and_ends, (array.pop(),)).get(60)
        assert seen == [3, 3 + MB // 8 - 1]
        assert place != make.places[0]
        assert len(list(one.imap(tasks.overwrite, map(make, range(20))))) == 20
        child.tell()
        assert child.result()
    wait_until(lambda: tasks.all_blocks_are_free(one))


def test_a_fork_between_the_check_of_an_array_and_its_end():
    """The child still has the array when this process no longer has it; made deterministic."""
    blocks = BlockAllocator.create(1)
    try:
        array = blocks.lend(MB)
        (place,) = blocks.claim([array]).values()
        with Child(lambda channel: channel.recv()) as child:
            del array
            assert forks.is_child() or blocks.take(place.reference) is None
            blocks.unclaim(place.reference)
            assert blocks.allocate(Use.ARGUMENT).index != place.reference.index
            child.tell()
            child.result()
    finally:
        blocks.close()


def forking(make, children):
    for number in range(COUNT):
        array = [make(number)]
        if number % 2:
            child = Child(wait_and_look, ramp(MB, 3))
            children.append(child)
        yield array.pop()


def test_a_generator_that_forks(one, make):
    children = []
    results = list(one.imap(places_and_ends, forking(make, children)))
    assert [result[1:] for result in results] == ends(COUNT)
    assert first_of(results)[::2] == make.places[::2]
    assert all(place != made for place, made in zip(first_of(results)[1::2], make.places[1::2], strict=True))
    for child in children:
        with child:
            child.tell()
            assert child.result()
    wait_until(lambda: tasks.all_blocks_are_free(one))
