"""Functions and classes that are in no module: lambdas, local ones, and those of prompts and of scripts."""

import functools
import os
import pickle
import subprocess
import sys
import threading
from collections import namedtuple

import numpy as np
import pytest

import shmarray
from shmarray.pool import main_module
from shmarray.pool.arrays import by_value, pickling
from tests.helpers import processes
from tests.pool import tasks
from tests.pool.programs_by_value import PROMPT, WITHOUT_THE_EXTRA

pytest.importorskip("cloudpickle", reason="tests the extra cloudpickle")

BIG = 100_000  # items of 8 bytes: travels in a block
KINDS = ["Pool", "Executor"]


@pytest.fixture(params=KINDS)
def pool(request, start_method):
    with tasks.make(request.param, start_method) as made:
        yield made
    if request.param == "Pool":
        made.join()


def run(*arguments, stdin="", timeout=60, **environment):
    """Run Python with these arguments; return its status, and what it wrote to both streams."""
    done = subprocess.run(
        [sys.executable, *processes.WARNINGS, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=processes.ROOT,
        env=os.environ | {"PYTHONPATH": processes.ROOT} | environment,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


# --- lambdas, local functions and classes ---------------------------------------------


def test_lambdas_local_functions_and_local_classes_go_both_ways(pool):
    class Point:
        def __init__(self, array):
            self.array = array

    class LocalError(Exception):
        pass

    def double(point):
        return Point(point.array * 2)

    def fail(point):
        raise LocalError(point.array.sum())

    result = tasks.call(pool, double, Point(np.ones(BIG)))
    assert type(result) is Point
    assert result.array.sum() == 2 * BIG
    with pytest.raises(LocalError, match=str(BIG)) as caught:
        tasks.call(pool, fail, Point(np.ones(BIG)))
    assert "in fail" in str(caught.value.__cause__)
    assert tasks.call(pool, lambda: lambda x: x + 1)(1) == 2
    assert tasks.call_each(pool, lambda x: x * x, range(5)) == [0, 1, 4, 9, 16]
    assert tasks.call(pool, functools.partial(lambda a, b: a - b, 5), 2) == 3


def test_arguments_that_plain_pickle_sends_can_be_mixed_in(pool):
    function = tasks.double
    assert [tasks.call(pool, call, 3) for call in (function, lambda x: x, function)] == [6, 3, 6]


def test_a_closure_is_as_it_is_when_the_task_is_packed(pool):
    numbers = np.zeros(BIG)
    small = [0]

    def seen(add, small_default=small):
        numbers[0] += add  # changes only the task's copy
        return float(numbers.sum()), small_default[0]

    for value in range(3):
        numbers[...] = value
        small[0] = value
        assert tasks.call(pool, seen, 1) == (value * BIG + 1, value)
        assert (numbers == value).all()


def test_the_class_of_a_result_keeps_what_it_has_here(pool):
    class Counter:
        count = 0

        def next(self):
            return Counter

    counter = tasks.call(pool, lambda c: c, Counter())
    Counter.count = 5
    Counter.added = 6
    again = tasks.call(pool, lambda c: (c, c.count, type(c).next(c)), counter)
    assert type(again[0]) is Counter is again[2]
    assert again[1] == 5
    Counter.count = 7
    assert type(tasks.call(pool, lambda c: c, counter)) is Counter
    assert (Counter.count, Counter.added) == (7, 6)


def test_shared_arrays_in_a_closure_are_the_same_memory(pool):
    with shmarray.scoped(BIG) as shared:

        def write(i):
            shared[i] = i + 1

        tasks.call_each(pool, write, range(3))
        assert shared[:4].tolist() == [1, 2, 3, 0]
        del write
        assert tasks.call(pool, lambda: 0) == 0  # otherwise the last task would still hold it


def test_the_bytes_of_arrays_in_functions_are_not_pickled():
    array, other = np.zeros(BIG), np.ones(BIG)

    def function(x=other):
        return array, x

    pickled = pickling.dumps((function, array))
    assert len(pickled.pickle) < 3000
    assert [buffer.nbytes for buffer in pickled.buffers] == [8 * BIG] * 2


def test_the_blocks_of_closures_are_free_after_the_task(start_method):
    array = np.ones(BIG)
    with tasks.make("Pool", start_method) as pool:
        for _ in range(4):
            assert tasks.call(pool, lambda: float(array.sum())) == BIG
        pool.close()
        pool.join()
        assert tasks.all_blocks_are_free(pool)


def test_initializers_may_be_local(kind_and_method):
    kind, method = kind_and_method
    amount = np.full(BIG, 3.0)

    def initialize(thing):
        os.environ["SHMARRAY_TEST"] = str(amount[-1] + thing.value)

    Thing = namedtuple("Thing", "value")  # noqa: PYI024 - it must not be found in its module
    with tasks.make(kind, method, initializer=initialize, initargs=(Thing(4),)) as pool:
        assert tasks.call(pool, os.getenv, "SHMARRAY_TEST") == "7.0"
    if kind == "Pool":
        pool.join()


@pytest.fixture(params=[(kind, method) for kind in KINDS for method in tasks.START_METHODS], ids="-".join)
def kind_and_method(request):
    return request.param


def test_the_error_for_an_unsendable_object_names_it(pool):
    lock = threading.Lock()
    for function, arguments in ((tasks.identity, (lock,)), (lambda: lock, ())):
        with pytest.raises(TypeError, match="lock"):
            tasks.call(pool, function, *arguments)
    with pytest.raises(Exception, match="lock"):
        tasks.call(pool, lambda: (threading.Lock(),))
    assert tasks.call(pool, abs, -1) == 1


def test_an_error_of_the_users_own_pickling_is_raised_without_a_second_try():
    class Hostile:
        tries = 0

        def __reduce__(self):
            type(self).tries += 1
            raise pickle.PicklingError("no")

    with pytest.raises(pickle.PicklingError, match=r"^no$"):
        pickling.dumps(Hostile())
    assert Hostile.tries == 1


def test_plain_pickle_is_tried_first_and_cloudpickle_not_imported():
    code = """
import sys
import shmarray
import numpy as np
if __name__ == "__main__":
    sys.modules["cloudpickle"] = None  # importing it would fail
    with shmarray.Pool(2) as pool, shmarray.ProcessPoolExecutor(2) as executor:
        for each in (pool.map, executor.map):
            assert list(each(np.sum, [np.ones(100_000)])) == [100_000]
            assert list(each(str, ["__main__"])) == ["__main__"]
"""
    assert run("-c", code) == (0, "", "")


# --- prompts --------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["-c", "stdin", "-i"])
def test_what_a_prompt_defines_works_with_both_doors(way, start_method):
    code = PROMPT.replace("METHOD", repr(start_method))
    if way == "-c":
        assert run("-c", code) == (0, "fine\n", "")
    elif way == "stdin":
        assert run("-", stdin=code) == (0, "fine\n", "")
    else:
        status, out, err = run("-i", "-q", stdin=code)
        assert (status, out) == (0, "fine\n"), err
        assert "Error" not in err  # stderr contains only prompts


def test_a_prompt_after_a_script(tmp_path, start_method):
    """Functions of the script, and functions that are typed afterwards, work together."""
    script = tmp_path / "script.py"
    script.write_text("def of_script(x):\n    return 2 * x\n")
    typed = f"""
import multiprocessing, shmarray
pool = shmarray.Pool(1, context=multiprocessing.get_context({start_method!r}))
def typed(x):
    return of_script(x) + 1

print(pool.map(typed, [1, 2]), pool.map(of_script, [3]))
pool.close(); pool.join()
"""
    status, out, err = run("-i", "-q", script, stdin=typed)
    assert (status, out) == (0, "[3, 5] [6]\n"), err


def test_the_functions_of_a_package_run_with_m(tmp_path, start_method):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(f"""
import multiprocessing, shmarray
def double(x):
    return 2 * x
if __name__ == "__main__":
    with shmarray.Pool(1, context=multiprocessing.get_context({start_method!r})) as pool:
        print(pool.map(double, [1, 2]))
""")
    path = f"{tmp_path}:{processes.ROOT}"
    assert run("-m", "package", PYTHONPATH=path) == (0, "[2, 4]\n", "")


def test_what_cannot_be_sent_by_value_goes_by_name_to_forked_workers():
    """As without the extra: a forked worker has inherited the lock."""
    code = """
import multiprocessing, threading, shmarray
lock = multiprocessing.get_context("fork").Lock()
def locked(x):
    with lock:
        return x
with shmarray.Pool(2, context=multiprocessing.get_context("fork")) as pool:
    print(pool.map(locked, [1, 2]))
"""
    assert run("-c", code) == (0, "[1, 2]\n", "")


def test_the_functions_of_a_script_go_by_name(tmp_path, start_method):
    script = tmp_path / "script.py"
    script.write_text(f"""
import multiprocessing, sys, shmarray
state = None
class Point:
    pass
def init():
    global state
    state = Point()
def is_known(x):
    return isinstance(state, Point) and isinstance(x, Point) and "cloudpickle" not in sys.modules
def result(_):
    return Point()
if __name__ == "__main__":
    with shmarray.Pool(1, init, context=multiprocessing.get_context({start_method!r})) as pool:
        assert pool.map(is_known, [Point()]) == [True]
        assert type(pool.map(result, [0])[0]) is Point
        assert "cloudpickle" not in sys.modules
        assert pool.map(lambda x: isinstance(state, Point) and isinstance(x, Point), [Point()]) == [True]
    print("fine")
""")
    assert run(script) == (0, "fine\n", "")


def test_the_error_for_a_function_missing_in_the_worker_says_where_to_put_it(tmp_path, start_method):
    script = tmp_path / "script.py"
    script.write_text(f"""
import multiprocessing, shmarray
if __name__ == "__main__":
    with shmarray.Pool(1, context=multiprocessing.get_context({start_method!r})) as pool:
        def late(x):
            return x
        try:
            pool.map(late, [1])
        except AttributeError as error:
            print("late" in str(error), *error.__notes__)
""")
    status, out, err = run(script)
    assert (status, err) == (0, "")
    assert out.startswith("True (a worker has")


def test_a_global_array_is_let_go_after_the_task(start_method):
    code = f"""
import multiprocessing, numpy as np, shmarray
from tests.helpers.processes import wait_until
from tests.pool import tasks
array = np.ones(100_000)
def total():
    return float(array.sum())
with shmarray.Pool(1, context=multiprocessing.get_context({start_method!r})) as pool:
    for number in range(3):
        array[:] = number
        assert pool.apply(total) == number * 100_000
    wait_until(lambda: tasks.all_blocks_are_free(pool))
    pool.close(); pool.join()
"""
    assert run("-c", code) == (0, "", "")


# --- without the extra ----------------------------------------------------------------


@pytest.fixture
def without_extra():
    """Return a path for Python that hides cloudpickle."""
    return f"{processes.ROOT}/tests/helpers/without_cloudpickle:{processes.ROOT}"


def test_without_the_extra_an_error_of_one_line_names_both_remedies(without_extra, start_method):
    code = WITHOUT_THE_EXTRA.replace("METHOD", repr(start_method))
    status, out, err = run("-c", code, PYTHONPATH=without_extra)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 4
    if start_method == "fork":  # a forked worker has everything that was defined before the fork
        assert lines[::2] == ["[2, 4]"] * 2
        lines = lines[1::2]
    for line in lines:
        assert line.startswith("UnsendableError ")
        assert "double" in line or "<lambda>" in line
        assert "move it to a module" in line
        assert "install cloudpickle" in line


def test_without_the_extra_an_initializer_fails_before_there_is_a_pool(without_extra):
    code = """
import multiprocessing, pickle, shmarray
def init():
    pass
for method in ("spawn", "forkserver"):
    for function in (init, lambda: None):
        for door in (shmarray.Pool, shmarray.ProcessPoolExecutor):
            context = multiprocessing.get_context(method)
            try:
                pool = door(1, initializer=function, **{
                    "context" if door is shmarray.Pool else "mp_context": context})
                pool.submit(abs, 1)
            except pickle.PicklingError as error:
                assert "install cloudpickle" in str(error), error
                print(type(error).__name__)
"""
    assert run("-c", code, PYTHONPATH=without_extra) == (0, "UnsendableError\n" * 8, "")


def test_without_the_extra_an_unsendable_result_is_an_error_too(monkeypatch):
    monkeypatch.setattr(by_value, "is_available", lambda: False)
    with tasks.make("Executor", "fork") as pool, pytest.raises(pickle.PicklingError, match=r"install cloudpickle"):
        tasks.call(pool, tasks.lambda_result, 0)


def test_without_cloudpickle_one_line_says_what_and_the_remedies(pool, monkeypatch):
    monkeypatch.setattr(by_value, "is_available", lambda: False)
    with pytest.raises(shmarray.UnsendableError, match="lambda") as caught:
        tasks.call(pool, lambda x: x, 1)
    assert isinstance(caught.value, (pickle.PicklingError, AttributeError))
    text = str(caught.value)
    assert "\n" not in text
    assert "module" in text
    assert "install cloudpickle" in text
    assert tasks.call(pool, len, "abc") == 3


# --- scripts without a guard ----------------------------------------------------------

GUARD = 'under `if __name__ == "__main__":`'
MAKE = {
    "Pool": "shmarray.Pool(2, context=context)",
    "Executor": "shmarray.ProcessPoolExecutor(2, mp_context=context)",
}
UNGUARDED = {
    "at the top": "with {make} as pool:\n    print(list(pool.map(abs, [1, 2])))\n",
    "in a function": "def work():\n    with {make} as pool:\n        return list(pool.map(abs, [1, 2]))\n\nwork()\n",
}


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("code", UNGUARDED)
def test_a_missing_guard_is_one_error_that_names_it(tmp_path, kind, method, code):
    script = tmp_path / "script.py"
    head = f"import multiprocessing, shmarray\ncontext = multiprocessing.get_context({method!r})\n"
    script.write_text(head + UNGUARDED[code].format(make=MAKE[kind]))
    status, out, err = run(script)
    assert (status, out) == (1, "")
    assert GUARD in err.splitlines()[-1]
    assert err.count("Traceback") == 1, err


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_missing_guard_in_a_module_that_the_main_module_imports(tmp_path, method):
    (tmp_path / "module.py").write_text(
        f"import multiprocessing, shmarray\ncontext = multiprocessing.get_context({method!r})\n"
        + UNGUARDED["at the top"].format(make=MAKE["Pool"])
    )
    script = tmp_path / "script.py"
    script.write_text("import module\n")
    status, _, err = run(script)
    assert status == 1
    assert GUARD in err.splitlines()[-1]
    assert err.count("Traceback") == 1, err


def test_an_error_of_importing_the_main_module_is_not_tried_again(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, shmarray\nmultiprocessing.set_start_method('spawn')\n"
        "with shmarray.Pool(1) as pool:\n    print(pool.map(abs, [1]))\n"
    )
    status, _, err = run(script)
    assert status == 1
    assert GUARD in err.splitlines()[-1]
    assert err.count("RuntimeError: context") == 1
    assert err.count("Traceback") == 2, err


def test_a_raising_initializer_shows_its_traceback_once(tmp_path, kind_and_method):
    kind, method = kind_and_method
    script = tmp_path / "script.py"
    script.write_text(f"""
import multiprocessing, shmarray
def initialize():
    raise ValueError("not today")
if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    make = {{
        "Pool": lambda: shmarray.Pool(2, initialize, context=context),
        "Executor": lambda: shmarray.ProcessPoolExecutor(2, context, initialize),
    }}[{kind!r}]
    with make() as pool:
        list(pool.map(abs, [1, 2]))
""")
    status, out, err = run(script)
    assert (status, out) == (1, "")
    assert err.count("ValueError: not today") == 1, err
    assert err.count("in initialize") == 1


# --- hiding the main module -----------------------------------------------------------


def test_a_main_module_of_which_there_is_no_file_is_shown_again_afterwards(monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "<stdin>", raising=False)
    with main_module.hidden_if_no_file():
        assert not hasattr(sys.modules["__main__"], "__file__")
    assert sys.modules["__main__"].__file__ == "<stdin>"
