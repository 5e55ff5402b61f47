"""The private names of the standard library that the pool layer uses; no other module uses any.

Checked on 3.11.7, 3.12.1 and 3.13.0, by running CPython's own tests against what is
built on them.

From ``multiprocessing.pool``: the states of a pool, the dictionary of calls that are not
done yet, what the calls themselves are made of, how much of a map is done, and how errors
travel.  The seam is ``Pool._taskqueue`` (what puts tasks there), ``Pool._cache`` (where
results are told, by ``_set``) and ``Pool._pool`` (the processes, counted for the size of
chunks).

From ``multiprocessing.reduction``: what was registered with ForkingPickler.

From ``concurrent.futures.process``: how errors travel.  The seam is
``ProcessPoolExecutor._pending_work_items``, ``_spawn_process``, ``_initializer``,
``_initargs``, ``_processes``, ``_adjust_process_count`` and ``_start_executor_manager_thread``.
"""

# ruff: noqa: SLF001

import traceback
from collections.abc import Callable
from concurrent.futures import process
from concurrent.futures.process import ProcessPoolExecutor as Executor
from multiprocessing import pool, reduction
from multiprocessing.pool import Pool as StockPool
from multiprocessing.reduction import DupFd
from typing import Any, Protocol

# Private names are in nobody's stubs.
_pool: Any = pool
_process: Any = process
_ForkingPickler: Any = reduction.ForkingPickler

INIT, RUN, CLOSE, TERMINATE = _pool.INIT, _pool.RUN, _pool.CLOSE, _pool.TERMINATE
MapResult: Any = _pool.MapResult
PoolCache: Any = _pool._PoolCache
registered: dict[type, Callable[[Any], Any]] = _ForkingPickler._extra_reducers
"""What was registered with multiprocessing's pickler; others add to it at any time."""

Task = tuple[int, int, Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""As the front half of Pool makes it: number of the call, index in it, function, arguments."""


class Manners(Protocol):
    """How a front door's errors reach its user."""

    @staticmethod
    def failed(error: BaseException, func: Any) -> object:
        """What to send for an exception of a task."""

    @staticmethod
    def unsendable(error: BaseException, result: object) -> object:
        """What to send for a result that does not pickle."""


class PoolManners:
    """As multiprocessing.pool.worker does it."""

    @staticmethod
    def failed(error: BaseException, func: Any) -> object:
        if func is _pool._helper_reraises_exception:
            return error  # the caller's iterable raised it: there is no traceback of ours
        return _pool.ExceptionWithTraceback(error, error.__traceback__)

    @staticmethod
    def unsendable(error: BaseException, result: object) -> object:
        return _pool.MaybeEncodingError(error, result)


class ExecutorManners:
    """As concurrent.futures.process._process_worker does it."""

    @staticmethod
    def failed(error: BaseException, func: Any) -> object:
        return _process._ExceptionWithTraceback(error, error.__traceback__)

    @staticmethod
    def unsendable(error: BaseException, result: object) -> object:
        return _process._ExceptionWithTraceback(error, error.__traceback__)

    @staticmethod
    def unpicklable(error: BaseException) -> BaseException:
        """As the stdlib's call queue shows the error of a call that does not pickle."""
        text = "".join(traceback.format_exception(error))
        error.__traceback__ = None  # it holds the arguments
        error.__cause__ = _process._RemoteTraceback(f'\n"""\n{text}"""')
        return error


def asked_for(func: Any, args: tuple[Any, ...]) -> Any:
    """The user's function in a task: chunks of map, starmap and Executor.map have it inside."""
    if func in (_pool.mapstar, _pool.starmapstar) and args and isinstance(args[0], tuple):
        return args[0][0]
    inner = getattr(func, "func", None)
    if inner is _process._process_chunk:
        return func.args[0]
    return func


def items_done(result: Any, length: int) -> int:
    """How many items of a map are answered: of its last chunk, which may be short, none before all are."""
    unanswered: int = result._number_left * result._chunksize
    return max(0, length - unanswered)


__all__ = [
    "CLOSE",
    "INIT",
    "RUN",
    "TERMINATE",
    "DupFd",
    "Executor",
    "ExecutorManners",
    "Manners",
    "MapResult",
    "PoolCache",
    "PoolManners",
    "StockPool",
    "Task",
    "asked_for",
    "items_done",
    "registered",
]
