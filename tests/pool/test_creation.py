"""empty, zeros and the like: they return numpy arrays, and in a task their arrays are returned without a copy."""

import gc
import os
import signal
import threading

import numpy as np
import pytest

import shmarray
from shmarray.pool.arrays import allocator
from tests.helpers.processes import wait_until
from tests.pool import tasks
from tests.pool.tasks import call, call_each

MB = 1 << 20
KEPT = []


@pytest.fixture(params=["Pool", "Executor"])
def pool(request):
    with tasks.make(request.param, "fork") as pool:
        yield pool
    if request.param == "Pool":
        pool.join()


@pytest.fixture
def one_worker():
    with tasks.make("Pool", "fork", 1) as pool:
        yield pool
    pool.join()


def ramp(nbytes, start=0.0):
    """Return numbers that increase by one."""
    return np.arange(start, start + nbytes // 8)


def placed(nbytes, start=0.0):
    """Return the same numbers, created where the result goes."""
    array = shmarray.empty(nbytes // 8)
    array[:] = ramp(nbytes, start)
    return array


# --- compared with numpy --------------------------------------------------------------

PROTOTYPES = {
    "plain": np.ones((300, 400)),
    "fortran": np.ones((300, 400), order="F"),
    "transposed": np.ones((30, 40, 50)).transpose(1, 0, 2),
    "strided": np.ones((600, 800))[::2, ::-2],
    "small": np.ones(3),
    "no items": np.ones((0, 5)),
    "scalar": np.array(1.0),
    "big-endian": np.ones(50_000, ">f8"),
    "text": np.full(50_000, "ab", "U3"),
    "record": np.ones(50_000, [("a", "i4"), ("b", "f8")]),
    "time": np.zeros(50_000, "M8[us]"),
    "objects": np.full(50_000, None, object),
    "matrix": np.ones((300, 400)).view(np.matrix),
    "list": [[1.5] * 400] * 300,
}


def likenesses():
    """Return the differences from numpy's arrays, by call."""
    wrong = []
    for name, prototype in PROTOTYPES.items():
        for ours, theirs in ((shmarray.empty_like, np.empty_like), (shmarray.zeros_like, np.zeros_like)):
            for arguments in ({}, {"dtype": "f4", "order": "A"}, {"subok": False}, {"shape": (7, 30_000)}):
                mine, expected = ours(prototype, **arguments), theirs(prototype, **arguments)
                if not is_like(mine, expected, zeroed=theirs is np.zeros_like):
                    wrong.append(f"{theirs.__name__} of {name} with {arguments}")
    for ours, theirs in ((shmarray.empty, np.empty), (shmarray.zeros, np.zeros)):
        for arguments in ((50_000,), ((3, 50_000), "i2"), ((300, 400), "c16", "F"), ((), "S5"), (200_000, "S5")):
            mine, expected = ours(*arguments), theirs(*arguments)
            if not is_like(mine, expected, zeroed=theirs is np.zeros):
                wrong.append(f"{theirs.__name__}{arguments}")
    return wrong


def is_like(mine, expected, *, zeroed):
    mine_is = type(mine), mine.shape, mine.dtype, mine.strides, mine.flags.writeable
    return mine_is == (type(expected), expected.shape, expected.dtype, expected.strides, True) and (
        not zeroed or np.array_equal(mine, expected)
    )


def test_outside_a_task_they_equal_numpys_arrays():
    assert likenesses() == []
    assert shmarray.empty(MB).base is None


def fill_with_rubbish(nbytes):
    shmarray.empty(nbytes, "u1")[:] = 255


def test_in_a_task_they_equal_numpys_arrays_whatever_was_in_the_memory(pool):
    call_each(pool, fill_with_rubbish, [32 * MB] * 8)
    assert call(pool, likenesses) == []


@pytest.mark.parametrize("arguments", [(-1,), ("x",), (3, "no type"), (3, "f8", "Z")])
def test_bad_arguments_raise_what_numpy_raises(pool, arguments):
    for ours, theirs in ((shmarray.empty, np.empty), (shmarray.zeros, np.zeros)):
        with pytest.raises((TypeError, ValueError)) as expected:
            theirs(*arguments)
        with pytest.raises(type(expected.value)):
            ours(*arguments)
        with pytest.raises(type(expected.value)):
            call(pool, ours, *arguments)


# --- returned --------------------------------------------------------------------------


def test_a_result_is_not_copied(one_worker):
    """The array needs memory once; a copy would need twice as much."""
    result = call(one_worker, placed, 8 * MB)
    assert np.array_equal(result, ramp(8 * MB))
    assert 8 * MB <= tasks.shared_memory_of(one_worker) < 12 * MB
    result += 1  # the caller's own memory
    assert np.array_equal(call(one_worker, placed, 8 * MB), ramp(8 * MB))
    assert result[0] == 1


def shapes_of_results(kind):
    whole = placed(2 * MB)
    half = len(whole) // 2
    return {
        "part": lambda: whole[100:-100],
        "reshaped": lambda: whole.reshape(-1, 64).T,
        "parts": lambda: [whole[:half], whole[half:]],
        "other type": lambda: whole.view("i8"),
        "strided": lambda: whole[::2],
        "overlapping": lambda: (whole[: half + 5000], whole[half:]),
        "twice": lambda: (whole, whole, whole[:]),
        "read-only": lambda: np.broadcast_to(whole, (2, len(whole))),
        "several": lambda: [placed(size * MB // 4, size) for size in range(1, 9)],
        "with others": lambda: {"a": ramp(MB), "b": (whole, "text"), "c": [np.ones(3), ramp(3 * MB, 5)]},
        "with a long pickle": lambda: (whole, "x" * MB, ramp(MB)),
        "some forgotten": lambda: [placed(MB, k) for k in range(8)][3],
        "filled by threads": lambda: from_threads(8),
    }[kind]()


def from_threads(count):
    made = [None] * count
    threads = [
        threading.Thread(target=lambda k: made.__setitem__(k, placed(MB // 2, k)), args=(k,)) for k in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return made


KINDS = (
    "part",
    "reshaped",
    "parts",
    "other type",
    "strided",
    "overlapping",
    "twice",
    "read-only",
    "several",
    "with others",
    "with a long pickle",
    "some forgotten",
    "filled by threads",
)


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return np.array_equal(one, other)


def test_results_of_every_shape_arrive_equal_and_writable(pool):
    results = call_each(pool, shapes_of_results, KINDS * 3)
    expected = [shapes_of_results(kind) for kind in KINDS] * 3
    for kind, result, right in zip(KINDS * 3, results, expected, strict=True):
        assert same(result, right), kind
    for array in arrays_in(results):
        assert array.flags.writeable
        array.fill(-1)  # writes to nobody else's memory
    assert all(map(same, call_each(pool, shapes_of_results, KINDS), expected))


def arrays_in(result):
    if isinstance(result, np.ndarray):
        return [result]
    parts = result.values() if isinstance(result, dict) else result if isinstance(result, list | tuple) else ()
    return [array for part in parts for array in arrays_in(part)]


def argument_and_new(array):
    array *= 2
    return array, placed(array.nbytes), array[:5].copy()


def test_an_argument_and_a_new_array_go_back_uncopied_together(one_worker):
    argument = ramp(8 * MB)
    doubled, new, few = call(one_worker, argument_and_new, argument)
    assert np.array_equal(doubled, 2 * argument)
    assert np.array_equal(new, argument)
    assert np.array_equal(few, doubled[:5])
    assert tasks.shared_memory_of(one_worker) < 20 * MB


# --- not returned ----------------------------------------------------------------------


def many_in_turn(count):
    return sum(placed(MB, k)[0] for k in range(count)), placed(MB, 7.0)


def test_the_memory_of_garbage_is_reused_within_the_task(one_worker):
    total, array = call(one_worker, many_in_turn, 100)
    assert total == 4950
    assert np.array_equal(array, ramp(MB, 7.0))
    assert tasks.shared_memory_of(one_worker) < 8 * MB


def test_memory_that_is_not_returned_is_freed(one_worker):
    kept = call_each(one_worker, shapes_of_results, ["some forgotten"] * 4)
    wait_until(lambda: tasks.shared_memory_of(one_worker) < 4 * 2.5 * MB)
    assert all(np.array_equal(array, ramp(MB, 3)) for array in kept)
    del kept
    call(one_worker, abs, call(one_worker, fill_with_rubbish, 16 * MB) or 1)
    wait_until(lambda: tasks.shared_memory_of(one_worker) < MB)
    wait_until(lambda: call(one_worker, abs, 1) and tasks.all_blocks_are_free(one_worker))


def keep(nbytes):
    KEPT.append(placed(nbytes))
    return KEPT[-1], KEPT[-1][: nbytes // 16]


def change_what_is_kept():
    for array in KEPT:
        np.add(array, 1, out=array)
    return [array.copy() for array in KEPT]


def test_what_a_task_keeps_is_its_own_and_the_caller_has_a_copy(one_worker):
    results = [call(one_worker, keep, 2 * MB) for _ in range(3)]
    call_each(one_worker, fill_with_rubbish, [2 * MB] * 8)
    kept = call(one_worker, change_what_is_kept)
    assert all(np.array_equal(array, ramp(2 * MB) + 1) for array in kept)
    assert all(np.array_equal(whole, ramp(2 * MB)) for whole, _ in results)
    assert all(np.array_equal(part, ramp(MB)) for _, part in results)
    del results, kept
    call(one_worker, forget)
    wait_until(lambda: call(one_worker, abs, 1) and tasks.all_blocks_are_free(one_worker))


def keep_and_return(array):
    KEPT.extend([array, placed(MB, 2.0)])
    return KEPT[-2:]


def change_kept_and_tell(path):
    change_what_is_kept()
    with open(path, "x", encoding="ascii"):
        pass


def test_a_result_that_the_task_keeps_is_as_it_was_returned(kind, tmp_path):
    """The next task changes the kept array before the caller has taken the result."""
    go, changed = tmp_path / "go", tmp_path / "changed"
    taken = threading.Event()
    with tasks.make(kind, "fork", 1) as pool:
        # The callback blocks the thread that takes all results.
        if kind == "Pool":
            pool.apply_async(tasks.wait_for_file, (str(go),), callback=lambda _: taken.wait(60))
            later = pool.apply_async
        else:
            pool.submit(tasks.wait_for_file, str(go)).add_done_callback(lambda _: taken.wait(60))
            later = lambda func, args: pool.submit(func, *args)  # noqa: E731
        try:
            go.touch()
            result = later(keep_and_return, (ramp(MB, 1.0),))
            later(change_kept_and_tell, (str(changed),))
            wait_until(changed.exists)
        finally:
            taken.set()
        argument, new = result.get(60) if kind == "Pool" else result.result(60)
        assert np.array_equal(argument, ramp(MB, 1.0))
        assert np.array_equal(new, ramp(MB, 2.0))
    if kind == "Pool":
        pool.join()


def leave_a_thread(go, made):
    def make():
        tasks.wait_for_file(go)
        KEPT.append(placed(MB, 5.0))
        with open(made, "x", encoding="ascii"):
            pass

    threading.Thread(target=make, daemon=True).start()


def last_kept():
    return KEPT[-1]


def test_a_thread_that_the_task_has_left_has_memory_of_its_own(one_worker, tmp_path):
    """Arrays that the thread makes after the task must not be where the next task's result goes."""
    go, made = tmp_path / "go", tmp_path / "made"
    call(one_worker, leave_a_thread, str(go), str(made))
    go.touch()
    wait_until(made.exists)
    call_each(one_worker, fill_with_rubbish, [4 * MB] * 4)
    assert np.array_equal(call(one_worker, last_kept), ramp(MB, 5.0))


def forget():
    KEPT.clear()


def in_a_cycle():
    array = placed(MB)
    cycle = [array]
    cycle.append(cycle)
    return array


def test_an_array_in_a_garbage_cycle_is_not_kept(one_worker):
    for _ in range(20):
        assert np.array_equal(call(one_worker, in_a_cycle), ramp(MB))
    gc.collect()
    wait_until(lambda: call(one_worker, abs, 1) and tasks.all_blocks_are_free(one_worker))


# --- forks, deaths, lack of memory -----------------------------------------------------


def forked():
    before = placed(MB)
    child = os.fork()
    if not child:
        before[:] = -1
        own = shmarray.zeros(MB, "u1")
        own[:] = 1
        os._exit(0 if own.sum() == MB and (before == -1).all() else 1)
    before += 1
    after = placed(MB, 5.0)
    return before, after, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_child_that_the_task_forks_has_copies(pool):
    for _ in range(3):
        before, after, code = call(pool, forked)
        assert code == 0
        assert np.array_equal(before, ramp(MB) + 1)
        assert np.array_equal(after, ramp(MB, 5.0))


def die():
    placed(8 * MB)
    os.kill(os.getpid(), signal.SIGKILL)


def fork_and_make_more():
    """Return whether the child's array is unchanged after the task has dropped its own and made others."""
    array = placed(MB, 1.0)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0 if np.array_equal(array, ramp(MB, 1.0)) else 1)
    os.close(reader)
    del array
    others = [placed(MB, float(i)) for i in range(4)]
    os.write(writer, b"x")
    os.close(writer)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, others


def test_memory_used_by_a_child_of_the_task_is_not_reused(one_worker):
    is_as_it_was, others = call(one_worker, fork_and_make_more)
    assert is_as_it_was
    assert all(np.array_equal(other, ramp(MB, float(i))) for i, other in enumerate(others))


def test_a_worker_that_dies_leaves_no_memory(one_worker):
    for _ in range(3):
        with pytest.raises(shmarray.WorkerDiedError):
            call(one_worker, die)
    wait_until(lambda: tasks.shared_memory_of(one_worker) < MB)
    assert np.array_equal(call(one_worker, placed, MB), ramp(MB))


def scarce(errno):
    """Make the system refuse new memory for a worker's files."""

    def posix_fallocate(*_):
        raise OSError(errno, os.strerror(errno))

    os.posix_fallocate = posix_fallocate


def test_full_memory_fails_only_that_task(monkeypatch):
    import errno

    monkeypatch.setattr(allocator, "IDLE", 60.0)  # seconds, so that a busy machine does not free the memory too early
    with tasks.make("Pool", "fork", 1, initializer=scarce, initargs=(errno.ENOSPC,)) as pool:
        with pytest.raises(shmarray.SharedMemoryFullError):
            call(pool, placed, 8 * MB)
        assert np.array_equal(call(pool, ramp, MB), ramp(MB))
        wait_until(lambda: tasks.results_are_dropped(pool))
        assert np.array_equal(call(pool, placed, MB // 2), ramp(MB // 2))  # fits in the memory of the existing block
    pool.join()


def test_without_shared_memory_they_are_numpys_arrays():
    import errno

    with tasks.make("Pool", "fork", 1, initializer=scarce, initargs=(errno.EFBIG,)) as pool:
        assert np.array_equal(call(pool, placed, 8 * MB), ramp(8 * MB))
    pool.join()
