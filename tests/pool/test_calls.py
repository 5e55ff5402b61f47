"""Calls are compact when they are pickled, and unchanged when they arrive."""

import math
import pickle
import sys
from multiprocessing.pool import mapstar, starmapstar

import pytest

from shmarray.pool import _stdlib as stdlib
from shmarray.pool.arrays import pickling
from shmarray.pool.arrays.calls import FunctionCache, FunctionLoader, compact, restored
from tests.pool import tasks

WRAPPERS = (mapstar, starmapstar, stdlib.process_chunk)
CALLS = {
    "plain": (tasks.double, (1,), {}),
    "keywords": (tasks.double, (), {"x": 1}),
    "map": (mapstar, ((tasks.double, (1, 2)),), {}),
    "starmap": (starmapstar, ((tasks.double, ((1,), (2,))),), {}),
    "chunk of an executor": (stdlib.process_chunk, (tasks.double, ((1,), (2,))), {}),
    "builtin function": (mapstar, ((math.sqrt, (1, 2)),), {}),
    "bytes in the place of a function": (b"not callable", (1,), {}),
    "None in the place of a function": (None, (1,), {}),
}


@pytest.mark.parametrize("functions", [None, FunctionCache()], ids=["each by itself", "once"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_arrives_as_it_was(call, functions):
    compacted = compact(*call, functions)
    inner = call[1][0] if call[0] in (mapstar, starmapstar) else call[1]
    assert compacted.func is (call[0] if call[0] in (tasks.double, b"not callable", None) else inner[0])
    assert compacted.items == (2 if inner is not call[0] and call[0] in WRAPPERS else 0)
    arrived = pickle.loads(pickling.dumps(compacted.compact).pickle)
    assert restored(arrived, FunctionLoader()) == call


def test_a_function_is_pickled_once_for_all_tasks():
    functions = FunctionCache()
    first = functions.pickled(tasks.double)
    assert first is functions.pickled(tasks.double)
    assert pickle.loads(functions.pickled(tasks.add_one_in_place)) is tasks.add_one_in_place


def test_a_worker_looks_up_a_function_again_if_its_module_has_another(monkeypatch):
    loader = FunctionLoader()
    pickled = FunctionCache().pickled(tasks.double)
    assert loader.load(pickled) is loader.load(pickled) is tasks.double
    monkeypatch.setattr(tasks, "double", tasks.add_one_in_place)
    assert loader.load(pickled) is loader.load(pickled) is tasks.add_one_in_place
    monkeypatch.delattr(tasks, "double")
    with pytest.raises(AttributeError, match="double"):
        loader.load(pickled)
    monkeypatch.setitem(sys.modules, "tests.pool.tasks", None)
    with pytest.raises(ImportError):
        loader.load(pickled)


class Holder:
    """In the place of a module; it has no dictionary."""

    __slots__ = ("function",)

    @staticmethod
    def static(x):
        return x


def test_a_function_that_is_not_in_the_dictionary_of_a_module_is_found(monkeypatch):
    loader = FunctionLoader()
    pickled = FunctionCache().pickled(Holder.static)
    assert loader.load(pickled) is loader.load(pickled) is Holder.static

    def function():
        """Have another module."""

    function.__module__, function.__qualname__ = "holder", "function"
    holder = Holder()
    holder.function = function
    monkeypatch.setitem(sys.modules, "holder", holder)
    pickled = FunctionCache().pickled(function)
    assert loader.load(pickled) is loader.load(pickled) is function


class Adds:
    """A callable with changing state."""

    def __init__(self):
        self.amount = 0

    def __call__(self, x):
        return self.amount + x


def test_callable_objects_are_pickled_with_each_task(start_method):
    add = Adds()

    def items():
        for amount in range(5):
            add.amount = 10 * amount
            yield 1

    with tasks.make("Pool", start_method, 2) as pool:
        assert list(pool.imap(add, items())) == [1, 11, 21, 31, 41]


def test_wrong_calls_of_the_stdlibs_functions_fail_normally(kind):
    with tasks.make(kind, "fork", 1) as pool:
        for func in (mapstar, stdlib.process_chunk):
            with pytest.raises((TypeError, IndexError)):
                tasks.call(pool, func)
            with pytest.raises((TypeError, IndexError)):
                tasks.call(pool, func, 5)
        with pytest.raises(TypeError, match="not callable"):
            tasks.call(pool, None, 5)
        assert tasks.call(pool, len, "abc") == 3
