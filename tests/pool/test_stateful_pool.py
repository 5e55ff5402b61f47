"""Random programs of calls, mutations, kept references, forks and collections, compared with serial execution.

Each call is also made in this process, on objects as the stdlib's pickle would deliver them.  After every step,
what callers hold and what tasks keep must be the same as in serial execution.
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
MOST = 5  # arrays that a caller holds or a worker keeps
SECOND = 20  # seconds after which a forked child ends if it is not asked

# --- tasks; the caller runs them for the expected result ---

KEPT = []  # in this process: (a function that returns the array, its content when kept)
BROKEN = []
CHILDREN = []  # forked by tasks of this process: (pid, the pipe for its answer, the pipe to ask it)


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
    """Change the array in place, whatever its dtype."""
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
    """Garbage that only a collection finds, and which checks its array then."""

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
    """Change what other tasks of this process kept; this must not affect any other process."""
    arrays = [np.asarray(get()) for get, _ in KEPT]
    for array in arrays:
        array[...] = np.roll(array, 1)
    KEPT[:] = [(get, octets(get())) for get, _ in KEPT]  # several may refer to one array
    return x


def forget_kept(x):
    KEPT.clear()
    return gc.collect() >= 0, x


def fork_and_leave(x):
    """Fork a child that checks the argument when it is asked, some calls later."""
    if not _in_worker():
        return change(x)
    _ask_children(1)
    CHILDREN.append(fork_watch([(x, octets(x))], CHILDREN))
    return change(x)


def fork_and_wait(x):
    """Fork a child that writes to its copy and ends."""
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
    """Fork a child that waits to be asked, and then compares arrays with their earlier content."""
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
        if os.read(asked, 1):  # otherwise the parent has ended
            same = all(octets(array) == content for array, content in pairs)
            for array, _ in pairs:
                array[...] = np.zeros((), array.dtype)  # no other process may see this
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
    """A function of one array, which first checks that everything kept is unchanged."""

    def __init__(self, function):
        self.function = function

    def __call__(self, x):
        _check_kept()
        return self.function(x)


class Starred(Task):
    """A function of an array and further arguments; it writes to all that are arrays."""

    def __call__(self, x, number, *others):
        result = super().__call__(x)
        return number, [result, *[other if other is x else change(other) for other in others]]


class Numbered(Starred):
    def __call__(self, item):
        return super().__call__(*item)


# --- arrays ---

DTYPES = ["u1", "?", "<i4", "<f8", "c16", "M8[us]", [("a", "<i8"), ("b", "S8")]]
# Bytes, near the limits at which arrays go in blocks, results stay in them, and tasks share blocks.
THRESHOLDS = [32 << 10, 128 << 10, 512 << 10, 1 << 20]
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
    """Return the arrays in a result, in order and with repetitions."""
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
    """A single buffer, refilled for each item, in an iterable with a length."""

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
    """`buffers` are the caller's, `held` are results; both are pairs of an array and its expected content."""

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
        """Return one of the caller's buffers, or an array of a held result."""
        arrays = [array for array, _ in self.buffers] + [leaf for result, _ in self.held for leaf in leaves(result)]
        return arrays[index % len(arrays)]

    def hold(self, got, expected):
        assert_same(got, expected)
        self.assert_alone(leaves(got))
        if leaves(got):
            self.held.append((got, expected))
            del self.held[:-MOST]

    def assert_alone(self, arrays):
        """Assert that each array has its own memory, which no other array shares."""
        others = [array for array, _ in self.buffers] + [leaf for result, _ in self.held for leaf in leaves(result)]
        for i, array in enumerate(arrays):
            for other in others + arrays[:i]:
                assert other is array or not np.may_share_memory(array, other)

    def serially(self, task, chunks, star=False):
        """Execute as the stdlib does: a chunk is pickled as one object, and so are its results."""
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
        """Map over an iterable that has a length and changes one buffer."""
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
        """Fork a child that checks later, after other calls, that what is held now has not changed for it."""
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
        """Replace the pool; results outlive it."""
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
