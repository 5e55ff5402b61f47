"""Every error is also the builtin that a caller would already catch, and can be pickled."""

import copy
import errno
import pickle
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pytest

import shmarray
from shmarray import errors
from tests.helpers.workers import raise_error

TREE = {
    errors.ArrayExistsError: ((FileExistsError,), errno.EEXIST),
    errors.ArrayNotFoundError: ((FileNotFoundError,), errno.ENOENT),
    errors.ArrayFormatError: ((OSError, ValueError), errno.EINVAL),
    errors.InvalidNameError: ((OSError, ValueError), errno.EINVAL),
    errors.ArrayPermissionError: ((PermissionError,), errno.EACCES),
    errors.LockTimeoutError: ((TimeoutError,), errno.ETIMEDOUT),
    errors.SharedMemoryFullError: ((OSError, MemoryError), errno.ENOSPC),
}
EXAMPLES = [
    *(error("a sentence about 'it'", "it") for error in TREE if error is not errors.SharedMemoryFullError),
    errors.SharedMemoryFullError("no space", "it", 100, 10),
    errors.ArrayPermissionError("the file system is read-only", "it", errno.EROFS),
    errors.WorkerDiedError("a worker died", 123, -9, "square"),
    errors.WorkerDiedError(),
    errors.WorkerDiedError("a worker died", 123, -9, "items 4 to 7 of the map over f()", range(4, 8)),
    errors.UnsendableError("f() cannot be sent"),
    errors.TaskTimeoutError("too slow", 123, 1.5, "item 4 of the map over f()", range(4, 5)),
]
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def test_the_tree_is_complete():
    found = {error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, Exception)}
    public = {error for error in found if error.__module__ == "shmarray.errors" and not error.__name__.startswith("_")}
    assert public == {
        *TREE,
        errors.ShmArrayError,
        errors.WorkerDiedError,
        errors.TaskTimeoutError,
        errors.UnsendableError,
    }
    assert all(getattr(shmarray, error.__name__) is error for error in public)
    assert {type(example) for example in EXAMPLES} == public - {errors.ShmArrayError}


@pytest.mark.parametrize("error", TREE, ids=lambda error: error.__name__)
def test_an_error_is_also_the_builtin(error):
    builtins, code = TREE[error]
    raised = error("a sentence", "it")

    assert isinstance(raised, errors.ShmArrayError)
    assert all(isinstance(raised, builtin) for builtin in builtins)
    assert raised.errno == code
    assert raised.name == raised.filename == "it"
    assert str(raised) == "a sentence"


def test_a_dead_worker_is_a_broken_pool():
    assert issubclass(errors.WorkerDiedError, (errors.ShmArrayError, BrokenProcessPool))
    assert issubclass(errors.WorkerDiedError, errors.ShmArrayError)
    assert issubclass(errors.TaskTimeoutError, (errors.ShmArrayError, TimeoutError))
    assert issubclass(errors.TaskTimeoutError, errors.ShmArrayError)


def attributes(error):
    return {
        key: getattr(error, key, None)
        for key in ("errno", "strerror", "filename", "name", "asked", "free", "pid", "exitcode", "task", "args")
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_survives_a_pickle(error, protocol):
    again = pickle.loads(pickle.dumps(error, protocol))

    assert type(again) is type(error)
    assert str(again) == str(error)
    assert attributes(again) == attributes(error)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_survives_a_copy(error):
    assert attributes(copy.copy(error)) == attributes(copy.deepcopy(error)) == attributes(error)


def test_notes_survive_a_pickle():
    error = errors.ArrayNotFoundError("gone", "it")
    error.add_note("while opening the third of five")
    assert pickle.loads(pickle.dumps(error)).__notes__ == error.__notes__


def test_errors_cross_a_stock_pool_without_breaking_it():
    with ProcessPoolExecutor(1) as pool:
        for error in EXAMPLES:
            raised = pool.submit(raise_error, pickle.dumps(error)).exception(timeout=30)
            assert type(raised) is type(error)
            assert attributes(raised) == attributes(error)
        assert pool.submit(abs, -1).result(timeout=30) == 1
