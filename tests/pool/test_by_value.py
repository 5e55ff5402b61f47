"""Functions and classes that no module holds: by value with cloudpickle, an error with the remedies without it."""

import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest

import shmarray
from shmarray.pool.arrays import by_value, pickling
from tests.helpers import processes
from tests.pool.tasks import START_METHODS, call, call_each, make

BIG = 50_000


@pytest.fixture(params=["Pool", "Executor"])
def kind(request):
    return request.param


@pytest.fixture(params=START_METHODS)
def pool(request, kind):
    with make(kind, request.param) as pool:
        yield pool


def test_lambdas_and_closures(pool):
    base, rest = 10, [1, 2]
    assert call_each(pool, lambda x: x + base, range(4)) == [10, 11, 12, 13]
    assert call(pool, lambda x, *, y=3: (x, y, rest), 1) == (1, 3, [1, 2])


def test_local_classes_come_back_as_themselves(pool):
    class Local:
        def __init__(self, content):
            self.content = content

        def twice(self):
            return Local(self.content * 2)

    result = call(pool, Local.twice, Local(np.ones(BIG)))
    assert type(result) is Local
    assert (result.content == 2).all()


def test_exceptions_of_local_classes(pool):
    class LocalError(Exception):
        pass

    def fail():
        raise LocalError("as it was")

    with pytest.raises(LocalError, match="as it was"):
        call(pool, fail)


def test_arrays_in_closures_and_defaults_are_not_pickled():
    array, shared = np.ones(BIG), []

    def function(x, weights=array * 2):
        return x + array + weights + len(shared)

    pickled = pickling.dumps(function)
    assert sorted(buffer.nbytes for buffer in pickled.buffers) == [8 * BIG, 8 * BIG]
    assert len(pickled.pickle) < 3000


def test_shared_arrays_in_closures_are_shared(pool):
    with shmarray.scoped(BIG) as shared:

        def write(place):
            shared[place] = place

        call_each(pool, write, [3, 4])
        assert list(shared[3:5]) == [3, 4]


def test_what_a_closure_holds_is_as_it_is_when_the_task_is_packed(kind):
    amount = [0]

    def items():
        for value in range(5):
            amount[0] = 10 * value
            yield 1

    def add(x):
        return amount[0] + x

    if kind == "Pool":
        with make(kind, "fork", 2) as pool:
            assert list(pool.imap(add, items())) == [1, 11, 21, 31, 41]


def test_what_cannot_be_sent_either_way_fails_as_with_plain_pickle(pool):
    with pytest.raises(TypeError, match="cannot pickle"):
        call(pool, lambda x: x, threading.Lock())
    with pytest.raises(ZeroDivisionError):
        call(pool, lambda x: x, Unsendable())
    assert call(pool, len, "abc") == 3


class Unsendable:
    def __reduce__(self):
        return 1 / 0


# --- without cloudpickle ---


def test_without_cloudpickle_one_line_says_what_and_the_remedies(pool, monkeypatch):
    monkeypatch.setattr(by_value, "cloudpickle", lambda: None)
    with pytest.raises(shmarray.UnsendableError, match="lambda") as caught:
        call(pool, lambda x: x, 1)
    assert isinstance(caught.value, (pickle.PicklingError, AttributeError))
    text = str(caught.value)
    assert "\n" not in text
    assert "module" in text
    assert "shmarray[cloudpickle]" in text
    assert call(pool, len, "abc") == 3


# --- __main__ ---

PROGRAM = """
import multiprocessing, shmarray

def main(method):
    exec("def f(x): return x + 1", globals())
    context = multiprocessing.get_context(method)
    with shmarray.Pool(2, context=context) as pool, shmarray.ProcessPoolExecutor(2, context) as executor:
        first = pool.map(f, [1, 2]), list(executor.map(f, [1, 2]))
        exec("def f(x): return x + 100", globals())
        second = pool.map(f, [1, 2]), list(executor.map(f, [1, 2]))
    print(method, first, second)

for method in {methods}:
    main(method)
"""
EXPECTED = "".join(f"{method} ([2, 3], [2, 3]) ([101, 102], [101, 102])\n" for method in START_METHODS)


@pytest.mark.parametrize("how", ["-c", "stdin", "prompt"])
def test_a_main_that_workers_cannot_import_goes_by_value_and_anew(how):
    program = PROGRAM.replace("{methods}", repr(START_METHODS))
    command = {
        "-c": [sys.executable, "-c", program],
        "stdin": [sys.executable, "-"],
        "prompt": [sys.executable, "-i", "-q", "-"],
    }[how]
    text = program if how == "stdin" else f"exec({program!r})\n" if how == "prompt" else ""
    done = subprocess.run(
        command,
        input=text,
        capture_output=True,
        text=True,
        timeout=100,
        cwd=processes.ROOT,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, EXPECTED), done.stderr
    if how != "prompt":
        assert done.stderr == ""


def test_a_main_that_workers_cannot_import_says_so_without_cloudpickle():
    program = PROGRAM.replace("{methods}", '["spawn"]')
    hidden = "import sys; sys.modules['cloudpickle'] = None\n" + program
    done = subprocess.run(
        [sys.executable, "-c", hidden], capture_output=True, text=True, timeout=100, cwd=processes.ROOT, check=False
    )
    assert done.returncode == 1
    assert "shmarray[cloudpickle]" in done.stderr.splitlines()[-1]


def test_functions_of_a_script_go_by_name(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, sys\nimport shmarray\n\ndef f(x):\n    return x + 1, 'cloudpickle' in sys.modules\n\n"
        "if __name__ == '__main__':\n"
        "    with shmarray.Pool(1, context=multiprocessing.get_context('spawn')) as pool:\n"
        "        print(pool.map(f, [1]))\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": processes.ROOT},
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[(2, False)]\n", "")
