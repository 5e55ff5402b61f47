"""The private names of the standard library that the pool layer uses; no other module uses any.

CPython's own tests of `Pool` and `ProcessPoolExecutor` run against this library, on every
supported Python version (tests/pool/test_stdlib_suites.py).

``multiprocessing.pool``
    The states of a pool, the dictionary of its pending calls, and the result objects.  The
    interface consists of ``Pool._taskqueue`` (receives tasks), ``Pool._cache`` (receives
    results, through ``_set``) and ``Pool._pool`` (the processes, whose number determines the
    chunk size).
``concurrent.futures.process``
    The wrapper around the chunks of ``Executor.map``, and the class of a worker's traceback.
``multiprocessing.reduction``
    The reducers registered with ForkingPickler.
``threading``
    The callbacks at the end of the main thread, before other threads are joined; who holds a
    reentrant lock, and that nobody does after a fork.
``multiprocessing.popen_fork``
    The pipes of a process, in the frame of a failed fork.
``multiprocessing.process``
    The set of all children, and whether this process is a child that still imports the main module.
``_signal``
    The functions that the signal module wraps in enumerations, which is slower.
"""

# ruff: noqa: SLF001

import atexit
import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import process
from contextlib import suppress
from functools import partial
from importlib import import_module
from multiprocessing import pool, popen_fork, reduction
from multiprocessing import process as processes
from multiprocessing.pool import Pool as StockPool
from typing import Any

# Private names are in no stubs.
_pool: Any = pool
_signal: Any = import_module("_signal")
_popen_fork: Any = popen_fork
_process: Any = process
_processes: Any = processes
_ForkingPickler: Any = reduction.ForkingPickler

INIT, RUN, CLOSE, TERMINATE = _pool.INIT, _pool.RUN, _pool.CLOSE, _pool.TERMINATE
PoolCache: Any = _pool._PoolCache
mapstar: Any = _pool.mapstar
starmapstar: Any = _pool.starmapstar
reraise: Any = _pool._helper_reraises_exception
process_chunk: Any = _process._process_chunk
getsignal: Any = _signal.getsignal
set_signal: Any = _signal.signal
registered: dict[type, Callable[[Any], Any]] = _ForkingPickler._extra_reducers
"""What was registered with multiprocessing's pickler; others add to it at any time."""
MaybeEncodingError: type[Exception] = _pool.MaybeEncodingError
PoolTraceback: type[Exception] = _pool.RemoteTraceback
ExecutorTraceback: type[Exception] = _process._RemoteTraceback


# --- multiprocessing.pool ------------------------------------------------------------


def new_call(pool: Any, callback: Any, error_callback: Any) -> tuple[Any, int]:
    """A call of one task, as of `apply_async`, and its number."""
    result = _pool.ApplyResult(pool, callback, error_callback)
    return result, result._job


def is_reraising(func: Any) -> bool:
    """Whether this raises what the caller's own iterable raised: there is no traceback of a task then."""
    return func is reraise


def with_traceback(error: BaseException) -> object:
    """An exception that brings its traceback along, as text, when it is pickled."""
    return _pool.ExceptionWithTraceback(error, error.__traceback__)


def encoding_error(error: BaseException, result: object) -> BaseException:
    """The error of a Pool for a result that does not pickle; the result's own repr may raise."""
    return _pool.MaybeEncodingError(error, result)  # type: ignore[no-any-return]


def items_done(result: Any, length: int) -> int:
    """How many items of a map are answered: of its last chunk, which may be short, none before all are."""
    unanswered: int = result._number_left * result._chunksize
    return max(0, length - unanswered)


def chunks_expected(call: Any) -> int:
    """How many tasks a map has, by the length of its iterable; 0 for any other call."""
    return -(-len(call._value) // call._chunksize) if isinstance(call, _pool.MapResult) and call._chunksize else 0


def is_half_made(call: Any) -> bool:
    """Whether a map was registered, and making its list of results then failed."""
    return isinstance(call, _pool.MapResult) and not hasattr(call, "_number_left")


def set_result(call: Any, index: int, outcome: tuple[bool, Any]) -> None:
    """Tell a call of a Pool the result of a task; callbacks of the user's run here."""
    call._set(index, outcome)


def fail_call(calls: dict[int, Any], job: int, index: int | None, error: BaseException) -> None:
    """Fail a call of a Pool at once: a map would else wait until its other tasks are done.

    Without an index, an iterator ends after the error.
    """
    call: Any = calls[job]
    if isinstance(call, _pool.MapResult):
        call._number_left = 1
    call._set(getattr(call, "_index", 0) if index is None else index, (False, error))
    if index is None and job in calls and hasattr(call, "_set_length"):
        with suppress(KeyError):
            call._set_length(call._index)


def drop_callbacks(call: Any) -> None:
    """Have no callback called for this result."""
    if hasattr(call, "_error_callback"):
        call._callback = call._error_callback = None


def release_waiters(call: Any) -> None:
    """Wake the threads that wait for a call whose callback has raised."""
    event = getattr(call, "_event", None)
    if event is not None:
        event.set()


# --- concurrent.futures --------------------------------------------------------------


def chunk_function(func: Any) -> Any:
    """The user's function in the partial object that Executor.map wraps its chunks in; None for any other callable."""
    if type(func) is partial and func.func is process_chunk and len(func.args) == 1 and not func.keywords:
        return func.args[0]
    return None


# --- threading -----------------------------------------------------------------------


def call_at_end_of_main_thread(function: Callable[[], object]) -> None:
    """Call this when the main thread has ended, before atexit's functions and before other threads are waited for."""
    getattr(threading, "_register_atexit", atexit.register)(function)


def is_owned(lock: Any) -> bool:
    """Whether this thread holds a reentrant lock."""
    return bool(lock._is_owned())


def free_in_child(lock: Any) -> None:
    """Nobody holds a reentrant lock in the child of a fork."""
    lock._at_fork_reinit()


# --- multiprocessing.popen_fork and process ------------------------------------------


def disown(children: Iterable[Any]) -> None:
    """These are not children of this process, or not any more: it does not end them at its exit."""
    _processes._children.difference_update(children)


def close_pipes_of_failed_fork(error: OSError) -> None:
    """Close what multiprocessing leaves open if it could not fork: only the error's traceback refers to it."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code is _popen_fork.Popen._launch.__code__:
            for name in ("parent_r", "child_w", "child_r", "parent_w"):
                if name in frame.f_locals:
                    os.close(frame.f_locals[name])


def is_importing_main() -> bool:
    """Whether this is a child of spawn or forkserver that has not finished importing its parent's main module."""
    return bool(getattr(multiprocessing.current_process(), "_inheriting", False))


__all__ = [
    "CLOSE",
    "INIT",
    "RUN",
    "TERMINATE",
    "ExecutorTraceback",
    "MaybeEncodingError",
    "PoolCache",
    "PoolTraceback",
    "StockPool",
    "call_at_end_of_main_thread",
    "chunk_function",
    "chunks_expected",
    "close_pipes_of_failed_fork",
    "disown",
    "drop_callbacks",
    "encoding_error",
    "fail_call",
    "free_in_child",
    "getsignal",
    "is_half_made",
    "is_importing_main",
    "is_owned",
    "is_reraising",
    "items_done",
    "mapstar",
    "new_call",
    "process_chunk",
    "registered",
    "release_waiters",
    "reraise",
    "set_result",
    "set_signal",
    "starmapstar",
    "with_traceback",
]
