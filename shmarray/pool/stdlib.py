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
``_initargs``, ``_max_workers``, ``_processes``, ``_adjust_process_count`` and
``_start_executor_manager_thread``, ``_executor_manager_thread_wakeup`` (also in ``_call_queue``),
the names of the locks of ``_call_queue`` and ``_result_queue``,
and of the managing thread ``processes``, ``result_queue._reader``, ``process_result_item``,
``wait_result_broken_or_wakeup``, ``shutdown_workers``,
``terminate_broken`` and ``join_executor_internals``.

From ``multiprocessing.resource_tracker``: the pid of its process.

From ``signal``: what it wraps, which takes a tenth of the time.

From ``multiprocessing.connection`` and ``multiprocessing.process``: ``Connection._recv``,
where a process keeps the descriptor that tells of its end, and the set of all children.
"""

# ruff: noqa: SLF001

import os
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import process
from concurrent.futures.process import ProcessPoolExecutor as Executor
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from importlib import import_module
from multiprocessing import pool, reduction, resource_tracker
from multiprocessing import process as processes
from multiprocessing.connection import Connection
from multiprocessing.pool import Pool as StockPool
from multiprocessing.reduction import DupFd
from types import SimpleNamespace
from typing import Any, Protocol

# What a pipe holds on Linux: a read gives no more.
_PIPE = 64 << 10

# Private names are in nobody's stubs.
_pool: Any = pool
_signal: Any = import_module("_signal")
_process: Any = process
_processes: Any = processes
_resource_tracker: Any = resource_tracker
_ForkingPickler: Any = reduction.ForkingPickler

INIT, RUN, CLOSE, TERMINATE = _pool.INIT, _pool.RUN, _pool.CLOSE, _pool.TERMINATE
MapResult: Any = _pool.MapResult
mapstar: Any = _pool.mapstar
starmapstar: Any = _pool.starmapstar
process_chunk: Any = _process._process_chunk
PoolCache: Any = _pool._PoolCache
getsignal: Any = _signal.getsignal
set_signal: Any = _signal.signal
StockManager: Any = _process._ExecutorManagerThread
managers_at_exit: Any = _process._threads_wakeups
"""The managing threads that the interpreter waits for at its end, and what wakes them."""
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


def unwrapped(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """The same call without the partial object that Executor.map wraps its chunks in: that takes long to pickle."""
    if type(func) is partial and func.func is _process._process_chunk:
        return func.func, (*func.args, *args), kwargs
    return func, args, kwargs


def disown(siblings: Iterable[Any]) -> None:
    """In a child of os.fork: these are not its children, which it would end at its exit."""
    _processes._children.difference_update(siblings)


def is_told_of_by(process: Any, fd: int) -> None:
    """From now on this descriptor is the sentinel of a process."""
    process._sentinel = fd


class GuardedReader(Connection):
    """The reading end of a queue that has one reader.

    Parameters
    ----------
    connection : Connection
        Its end as it was; this one has a descriptor of its own.
    wait_for_more : callable
        Called, with this, when there is nothing to read in the middle of a message.
    """

    def __init__(self, connection: Connection, wait_for_more: Callable[[Connection], object]) -> None:
        super().__init__(os.dup(connection.fileno()), writable=False)
        os.set_blocking(self.fileno(), False)
        self._wait_for_more = wait_for_more

    def _recv(self, size: int, _: Any = None) -> Any:
        return super()._recv(size, self._read_when_there)  # type: ignore[misc]

    def _read_when_there(self, fd: int, size: int) -> bytes:
        while True:
            try:
                return os.read(fd, min(size, _PIPE))
            except BlockingIOError:
                self._wait_for_more(self)


def guarded_results(executor: Any, wait_for_more: Callable[[Connection], object]) -> Any:
    """All that the managing thread uses of the queue of results."""
    queue = executor._result_queue
    # The queue itself is kept, too: with it its locks would go, which workers that start now still look for.
    return SimpleNamespace(_reader=GuardedReader(queue._reader, wait_for_more), queue=queue)


def equip(executor: Any, work_items: Any, wakeup: Any) -> None:
    """Give a new executor our dictionary of calls that are not done, and our way to wake its managing thread."""
    executor._pending_work_items = executor._call_queue.pending_work_items = work_items
    executor._executor_manager_thread_wakeup.close()
    executor._executor_manager_thread_wakeup = executor._call_queue.thread_wakeup = wakeup


def named_semaphores(executor: Any) -> list[tuple[object, str]]:
    """The semaphores of an executor's queues that are files, and where those are if the system has them there.

    Under fork they have lost their names by now; else workers find them by these.
    """
    calls, results = executor._call_queue, executor._result_queue
    if calls._sem._semlock.name is None or executor._mp_context.get_start_method() == "fork":
        return []
    locks = calls._rlock, calls._wlock, calls._sem, results._rlock, results._wlock
    return [(lock, f"/dev/shm/sem.{lock._semlock.name.lstrip('/')}") for lock in locks]


def tracker_pid() -> int:
    """The process that deletes semaphores when all who use them have ended; 0 if there is none."""
    return _resource_tracker._resource_tracker._pid or 0


def refuse_calls(executor: Any) -> None:
    """As an executor does that is broken."""
    executor._broken = "A child process terminated abruptly, the process pool is not usable anymore"
    executor._shutdown_thread = True


class WorkerStarter:
    """What an executor starts its workers with and from, without the executor.

    Attributes
    ----------
    context : multiprocessing context
    most : int
        How many workers there may be.
    processes : dict
        The workers, by pid; the executor's own dictionary.
    initializer, initargs
        As given to the executor.
    connections : tuple
        The ends of its queues.
    """

    def __init__(self, executor: Any) -> None:
        self.context = executor._mp_context
        self.most: int = executor._max_workers
        self.processes: dict[int, Any] = executor._processes
        self.initializer, self.initargs = executor._initializer, executor._initargs
        calls, results = executor._call_queue, executor._result_queue
        self.connections = calls._reader, calls._writer, results._reader, results._writer
        # All that `_spawn_process` looks at.
        names = ("_call_queue", "_result_queue", "_max_tasks_per_child", "_processes")
        self._parts = SimpleNamespace(**{name: getattr(executor, name) for name in names})

    def start(
        self,
        initializer: Callable[..., object],
        initargs: tuple[Any, ...],
        starting: Callable[[Any], AbstractContextManager[None]],
    ) -> Any:
        """Start a worker, in the context that `starting` makes for its process, and return that."""
        made = []

        def make(**options: Any) -> Any:
            made.append(self.context.Process(**options))
            stack.enter_context(starting(made[0]))
            return made[0]

        parts = SimpleNamespace(**vars(self._parts), _initializer=initializer, _initargs=initargs)
        parts._mp_context = SimpleNamespace(Process=make)
        with ExitStack() as stack:
            _process.ProcessPoolExecutor._spawn_process(parts)
        return made[0]


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
    "StockManager",
    "StockPool",
    "Task",
    "WorkerStarter",
    "disown",
    "equip",
    "getsignal",
    "guarded_results",
    "is_told_of_by",
    "items_done",
    "managers_at_exit",
    "mapstar",
    "named_semaphores",
    "process_chunk",
    "refuse_calls",
    "registered",
    "set_signal",
    "starmapstar",
    "tracker_pid",
    "unwrapped",
]
