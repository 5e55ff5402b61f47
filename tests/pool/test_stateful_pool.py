"""Random programs of calls, mutations, kept references, forks and collections, against the serial answer.

Each call is also made here, on what the stdlib's pickle would deliver.  What callers hold and
what tasks keep must be, after every step, as with that.
"""

import gc
import multiprocessing
import os
import pickle
import signal
import warnings
import zlib
from itertools import islice

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.pool.tasks import make

WORKERS = 2
MOST = 5  # arrays that a caller holds, that a worker keeps
SECOND = 20  # seconds after which a forked child that nobody asks ends

# --- tasks; in the caller they give the serial answer ---

KEPT = []  # of this process: (a function that gives the array, what it held)
BROKEN = []
CHILDREN = []  # that tasks of this process forked: (pid, where it says what it saw, where it is asked)


def octets(array):
    return np.asarray(array).tobytes()


def _in_worker():
    return multiprocessing.parent_process() is not None


def _check_kept():
    assert not BROKEN, BROKEN
    for get, content in KEPT:
        assert octets(get()) == content, "what a task kept has changed"


def _keep(get):
    KEPT.append((get, octets(get())))
    del KEPT[:-MOST]


def read(x):
    return zlib.crc32(octets(x)), x.shape, x.dtype, x.flags.writeable


def change(x):
    """Write in place, whatever the dtype."""
    x[...] = np.roll(x, 1)
    return x


def new(x):
    return np.roll(x, 3)


def view(x):
    change(x)
    return x[1 : len(x) // 2]


def backwards(x):
    return x[::-1]


def twice(x):
    return x, x


def overlapping(x):
    return [x[: len(x) // 2 + 1], x, {"end": x[len(x) // 2 :]}]


def with_another(x):
    return {"changed": change(x), "new": new(x), "count": len(x)}


def keep_global(x):
    _keep(lambda: x)
    return x.shape


def keep_and_return(x):
    _keep(lambda: x)
    return x


def keep_view(x):
    end = x[len(x) // 2 :]
    _keep(lambda: end)
    return new(x)


def keep_result(x):
    result = np.roll(x, 5)
    _keep(lambda: result)
    return result


def keep_memoryview(x):
    held = memoryview(x.reshape(-1, order="A").view(np.uint8))
    _keep(lambda: held)
    return x


class Cycle:
    """Garbage that only a collection finds, and that looks at its array then."""

    def __init__(self, array):
        self.own = self
        self.array = array
        self.content = octets(array)

    def __del__(self):
        if octets(self.array) != self.content:
            BROKEN.append("what a cycle kept has changed")


def leave_in_cycle(x):
    result = x[::2]
    Cycle(x)
    return result


def change_kept(x):
    """What a task does to what others kept is that process's own affair."""
    arrays = [np.asarray(get()) for get, _ in KEPT]
    for array in arrays:
        array[...] = np.roll(array, 1)
    KEPT[:] = [(get, octets(get())) for get, _ in KEPT]  # some may be of one array
    return x


def forget_kept(x):
    KEPT.clear()
    return gc.collect() >= 0, x


def fork_and_leave(x):
    """A child that looks at the argument when it is asked, calls later."""
    if not _in_worker():
        return change(x)
    _ask_children(1)
    CHILDREN.append(fork_watch([(x, octets(x))], CHILDREN))
    return change(x)


def fork_and_wait(x):
    """A child that writes to its copy and ends."""
    if not _in_worker():
        return x
    child = os.fork()
    if child == 0:
        x[...] = np.roll(x, 7)
        os._exit(0)
    os.waitpid(child, 0)
    return x


def _ask_children(most):
    while len(CHILDREN) > most:
        assert ask(CHILDREN.pop(0)), "what a forked child sees has changed"


def fork_watch(pairs, others=()):
    """Fork a child that waits to be asked, and then compares arrays with what they held."""
    said, say = os.pipe()
    asked, wake = os.pipe()
    child = os.fork()
    if child == 0:
        _watch(pairs, asked, say, [wake, said, *(fd for other in others for fd in other[1:])])
    os.close(say)
    os.close(asked)
    return child, said, wake


def _watch(pairs, asked, say, not_ours):
    signal.alarm(SECOND)
    try:
        for fd in not_ours:
            os.close(fd)
        if os.read(asked, 1):  # else whoever asks is gone
            same = all(octets(array) == content for array, content in pairs)
            for array, _ in pairs:
                array[...] = np.zeros((), array.dtype)  # nobody else sees that
            os.write(say, b"1" if same else b"0")
    finally:
        os._exit(0)


def ask(child):
    pid, said, wake = child
    os.write(wake, b"?")
    answer = os.read(said, 1)
    os.close(said)
    os.close(wake)
    os.waitpid(pid, 0)
    return answer == b"1"


FUNCTIONS = [
    read, change, new, view, backwards, twice, overlapping, with_another, keep_global, keep_and_return, keep_view,
    keep_result, keep_memoryview, leave_in_cycle, change_kept, forget_kept, fork_and_leave, fork_and_wait,
]  # fmt: skip


class Task:
    """A function of one array, which first looks whether all that was kept is as it was."""

    def __init__(self, function):
        self.function = function

    def __call__(self, x):
        _check_kept()
        return self.function(x)


class Starred(Task):
    """Of an array and more, some of them arrays: all are written to."""

    def __call__(self, x, number, *others):
        result = super().__call__(x)
        return number, [result, *[other if other is x else change(other) for other in others]]


class Numbered(Starred):
    def __call__(self, item):
        return super().__call__(*item)


# --- arrays ---

DTYPES = ["u1", "?", "<i4", "<f8", "c16", "M8[us]", [("a", "<i8"), ("b", "S8")]]
# Bytes, near to where arrays begin to go in blocks, results stay in them, and blocks are of many tasks.
THRESHOLDS = [56 << 10, 512 << 10, 1 << 20]
SIZES = st.one_of(
    st.sampled_from([0, 16, 4096]),
    st.builds(lambda size, more: size + 16 * more, st.sampled_from(THRESHOLDS), st.sampled_from([-1, 0, 1, 600])),
)
LAYOUTS = {
    "line": lambda x: x,
    "rows": lambda x: x[: len(x) // 16 * 16].reshape(16, -1),
    "columns": lambda x: x[: len(x) // 16 * 16].reshape(-1, 16).T,
    "strided": lambda x: np.repeat(x, 2)[::2],
    "backwards": lambda x: x[::-1],
}
INDEX = st.integers(0, 99)
CHUNKS = st.sampled_from([1, 1, 2, 3, None])


def made(dtype, size, layout, seed):
    pattern = np.arange(seed, seed + 241).astype(np.uint8)
    if dtype == "?":
        pattern %= 2
    return LAYOUTS[layout](np.resize(pattern, size).view(dtype))


def delivered(thing):
    return pickle.loads(pickle.dumps(thing))


def leaves(thing):
    """The arrays in a result, in order; one that occurs twice comes twice."""
    if isinstance(thing, np.ndarray):
        return [thing]
    if isinstance(thing, dict):
        thing = list(thing.values())
    return [leaf for part in thing for leaf in leaves(part)] if isinstance(thing, (list, tuple)) else []


def assert_same(got, expected):
    assert type(got) is type(expected)
    if isinstance(expected, np.ndarray):
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        assert got.flags.writeable
        assert octets(got) == octets(expected)
    elif isinstance(expected, (list, tuple)):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, dict):
        assert list(got) == list(expected)
        assert_same(list(got.values()), list(expected.values()))
    else:
        assert got == expected
    where, there = ([[a is b for b in leaves(thing)] for a in leaves(thing)] for thing in (got, expected))
    assert where == there


class Refilled:
    """One buffer, filled again for each item, behind something that has a length."""

    def __init__(self, buffer, content, count):
        self.buffer, self.content, self.count = buffer, content, count

    def __len__(self):
        return self.count

    def __iter__(self):
        for i in range(self.count):
            self.buffer[...] = np.roll(self.content, i)
            yield self.buffer


# --- programs ---


class Programs(RuleBasedStateMachine):
    """`buffers` are the caller's, `held` are results; both are pairs of an array and what it must be."""

    kind = ""

    def __init__(self):
        super().__init__()
        self.pool = make(self.kind, "fork", WORKERS)
        self.buffers = [self.pair(made("u1", 200_000, "line", 1)), self.pair(made("<f8", 1 << 20, "rows", 2))]
        self.held = []
        self.children = []

    @staticmethod
    def pair(array):
        return array, np.array(array)

    def array(self, index):
        """One of the caller's buffers, or one that a result is made of."""
        arrays = [array for array, _ in self.buffers] + [leaf for result, _ in self.held for leaf in leaves(result)]
        return arrays[index % len(arrays)]

    def hold(self, got, expected):
        assert_same(got, expected)
        self.assert_alone(leaves(got))
        if leaves(got):
            self.held.append((got, expected))
            del self.held[:-MOST]

    def assert_alone(self, arrays):
        """Each has memory of its own, that nobody else writes."""
        others = [array for array, _ in self.buffers] + [leaf for result, _ in self.held for leaf in leaves(result)]
        for i, array in enumerate(arrays):
            for other in others + arrays[:i]:
                assert other is array or not np.may_share_memory(array, other)

    def serially(self, task, chunks, star=False):
        """As the stdlib does it: a chunk is pickled as one, and so are its results."""
        results = []
        for chunk in chunks:
            args = delivered(tuple(chunk))
            results.extend(delivered([task(*arg) if star else task(arg) for arg in args]))
        return results

    def chunks(self, items, size):
        if size is None:
            size = 1 if self.kind == "Executor" else -(-len(items) // (4 * WORKERS))
        return [items[i : i + size] for i in range(0, len(items), size)]

    # --- the caller's arrays ---

    @rule(dtype=st.sampled_from(DTYPES), size=SIZES, layout=st.sampled_from([*LAYOUTS]), seed=st.integers(0, 255))
    def make_buffer(self, dtype, size, layout, seed):
        self.buffers.append(self.pair(made(dtype, size, layout, seed)))
        del self.buffers[:-MOST]

    @rule(which=INDEX, by=st.integers(1, 50))
    def change_buffer(self, which, by):
        for array in self.buffers[which % len(self.buffers)]:
            array[...] = np.roll(array, by)

    # --- calls ---

    @rule(function=st.sampled_from(FUNCTIONS), which=INDEX, at_once=st.integers(1, 4))
    def call(self, function, which, at_once):
        arrays = [self.array(which + i) for i in range(at_once)]
        task = Task(function)
        if self.kind == "Pool":
            results = [self.pool.apply_async(task, (array,)) for array in arrays]
        else:
            results = [self.pool.submit(task, array) for array in arrays]
        answers = [result.get(30) if self.kind == "Pool" else result.result(30) for result in results]
        for array, answer in zip(arrays, answers, strict=True):
            self.hold(answer, self.serially(task, [[array]])[0])

    @rule(function=st.sampled_from(FUNCTIONS), which=st.lists(INDEX, min_size=1, max_size=7), size=CHUNKS)
    def map(self, function, which, size):
        items = [self.array(i) for i in which]
        task = Task(function)
        if self.kind == "Pool":
            got = self.pool.map_async(task, items, size).get(30)
        else:
            got = list(self.pool.map(task, items, timeout=30, chunksize=size or 1))
        self.hold(got, self.serially(task, self.chunks(items, size)))

    @rule(function=st.sampled_from(FUNCTIONS), which=INDEX, other=INDEX, count=st.integers(2, 7), size=CHUNKS)
    def starmap_with_one_array_in_all(self, function, which, other, count, size):
        big, more = self.array(which), self.array(other)
        items = [(big, i, *[more] * (i % 2)) for i in range(count)]
        if self.kind == "Pool":
            task = Starred(function)
            got = self.pool.starmap_async(task, items, size).get(30)
            expected = self.serially(task, self.chunks(items, size), star=True)
        else:
            task = Numbered(function)
            got = list(self.pool.map(task, items, timeout=30, chunksize=size or 1))
            expected = self.serially(task, [[(item,) for item in c] for c in self.chunks(items, size)], star=True)
        self.hold(got, expected)

    @precondition(lambda self: self.kind == "Pool")
    @rule(
        function=st.sampled_from(FUNCTIONS),
        which=INDEX,
        count=st.integers(1, 6),
        size=st.sampled_from([1, 1, 3]),
        at_once=st.booleans(),
    )
    def refill(self, function, which, count, size, at_once):
        """Over a generator that has a length and changes one buffer."""
        buffer, content = self.buffers[which % len(self.buffers)]
        task = Task(function)
        items = Refilled(buffer, content, count)
        got = self.pool.map_async(task, items, size).get(30) if at_once else list(self.pool.imap(task, items, size))
        items = iter(Refilled(content, content.copy(), count))
        expected = []
        while chunk := tuple(islice(items, size)):
            expected += self.serially(task, [chunk])
        self.hold(got, expected)

    @precondition(lambda self: self.kind == "Pool")
    @rule(function=st.sampled_from(FUNCTIONS), which=st.lists(INDEX, min_size=1, max_size=5))
    def imap_unordered(self, function, which):
        items = [(self.array(i), number) for number, i in enumerate(which)]
        task = Numbered(function)
        got = sorted(self.pool.imap_unordered(task, items), key=lambda result: result[0])
        expected = self.serially(task, [[item] for item in items])
        for one, other in zip(got, expected, strict=True):
            self.hold(one, other)

    # --- results ---

    @precondition(lambda self: self.held)
    @rule(which=INDEX, leaf=INDEX, by=st.integers(1, 50))
    def change_result(self, which, leaf, by):
        for result in self.held[which % len(self.held)]:
            found = leaves(result)
            array = found[leaf % len(found)]
            array[...] = np.roll(array, by)

    @precondition(lambda self: self.held)
    @rule(which=INDEX, leaf=INDEX)
    def hold_only_a_view(self, which, leaf):
        which %= len(self.held)
        found = [leaves(result) for result in self.held[which]]
        self.held[which] = tuple(arrays[leaf % len(arrays)][::2] for arrays in found)

    @precondition(lambda self: self.held)
    @rule(which=INDEX)
    def drop(self, which):
        del self.held[which % len(self.held)]

    @rule()
    def collect(self):
        gc.collect()

    # --- forks, other pools ---

    @rule()
    def fork(self):
        """A child that compares what is held now when other calls have run; and this goes on."""
        self.ask_child(1)
        pairs = [(leaf, octets(leaf)) for result, _ in self.held for leaf in leaves(result)]
        distinct = {id(leaf): (leaf, content) for leaf, content in pairs}
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            self.children.append(fork_watch([*distinct.values()], self.children))

    @precondition(lambda self: self.children)
    @rule()
    def ask_child(self, most=0):
        while len(self.children) > most:
            assert ask(self.children.pop(0))

    @precondition(lambda self: len(self.held) > 2)
    @rule()
    def replace_pool(self):
        """Results outlive their pool."""
        self.close_pool()
        self.pool = make(self.kind, "fork", WORKERS)

    def close_pool(self):
        if self.kind == "Pool":
            self.pool.close()
            self.pool.join()
        else:
            self.pool.shutdown()

    # --- always ---

    @invariant()
    def results_are_as_they_were(self):
        for got, expected in self.held:
            assert_same(got, expected)

    @invariant()
    def buffers_are_as_they_were(self):
        for array, expected in self.buffers:
            assert octets(array) == octets(expected)

    @invariant()
    def no_cycle_saw_a_change(self):
        _check_kept()

    def teardown(self):
        try:
            self.ask_child()
        finally:
            if self.kind == "Pool":
                self.pool.terminate()
                self.pool.join()
            else:
                self.pool.shutdown()
            KEPT.clear()
            BROKEN.clear()
            self.held.clear()


class PoolPrograms(Programs):
    kind = "Pool"


class ExecutorPrograms(Programs):
    kind = "Executor"


TestPool = PoolPrograms.TestCase
TestProcessPoolExecutor = ExecutorPrograms.TestCase
TestPool.settings = TestProcessPoolExecutor.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)
