"""ProcessPoolExecutor: the methods of concurrent.futures.ProcessPoolExecutor, on this library's engine."""

import itertools
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import ProcessPoolExecutor as StockExecutor
from typing import Any, ParamSpec, TypeVar

from shmarray.errors import WorkerDiedError
from shmarray.pool._stdlib import (
    TERMINATE,
    ExecutorTraceback,
    call_at_end_of_main_thread,
    chunk_function,
    process_chunk,
)
from shmarray.pool.arrays import BlockAllocator, ExceptionEncoder, Lending, RepeatedArrays, repeated_arrays
from shmarray.pool.buffered import buffered_map
from shmarray.pool.engine.feeder import NO_EXTRA, Extra
from shmarray.pool.engine.frontend import (
    checked_buffersize,
    checked_context,
    checked_size,
    checked_timeout,
    checked_workers,
    default_workers,
)
from shmarray.pool.engine.scheduler import Scheduler
from shmarray.pool.engine.state import PoolState
from shmarray.pool.engine.worker_main import WorkerSpec
from shmarray.pool.engine.workers import WorkerSet
from shmarray.pool.executor_calls import ExecutorCalls
from shmarray.pool.interrupts import deferred
from shmarray.pool.threads import WeakObjects

P = ParamSpec("P")
T = TypeVar("T")

# A call can be cancelled until it is assigned to a worker, so few are assigned in advance unless
# they are tiny.
_TASKS_AHEAD = 2
# Seconds that the first call needs to reach a worker.
_MOMENT = 0.1


class ProcessPoolExecutor(StockExecutor):
    """`concurrent.futures.ProcessPoolExecutor`, with arrays sent through shared memory.

    Parameters
    ----------
    max_workers : int, optional
        Number of workers; by default, the number of CPUs that this process may use.
    mp_context : multiprocessing context, optional
    initializer : callable, optional
        Called in each worker when it starts, with `initargs`.
    initargs : tuple, optional
    max_tasks_per_child : int, optional
        Number of calls after which a worker is replaced; not with the start method fork.
    replace_workers : bool, optional
        If True, the death of a worker fails only the call that it was running, and the worker
        is replaced.  By default it breaks the executor, as in the standard library.
    task_timeout : float, optional
        Time limit for a call, in seconds; for a chunk of a `map`, the limit per item.  The
        worker of a call that takes longer is killed and replaced, and the call raises
        `TaskTimeoutError`.

    Raises
    ------
    ValueError, TypeError
        As `concurrent.futures.ProcessPoolExecutor` does, and for invalid limits.

    Notes
    -----
    All methods are those of the standard library's executor, and plain arrays behave as they
    do there: a call gets its own writable copy of its arguments, and the caller gets its own
    writable copy of the result.  Arrays from `create`, `attach` or `scoped`, and memory maps,
    are the same memory on both sides.  `map` takes ``buffersize=`` on every Python version, as
    in 3.14: it limits the number of submitted calls whose results have not been taken.

    A large array that many calls of one `map` receive is copied once, with the first of them.
    Do not change it until the results are complete; with the standard library, too, it is
    undefined which state each call would get.

    The executor's memory, besides what the caller holds, consists of the arguments and results
    of two calls per worker (more if they have less than 4 MB together), of results that have
    not been taken yet, and of memory used within the last second.  An idle executor frees all
    of it after a second.

    If shared memory is not available (no memfd, ``ulimit -f``, no address space), arrays are
    sent through a pipe, with one RuntimeWarning.  If memory itself runs out, the call raises
    `SharedMemoryFullError`, a MemoryError.

    The death of a worker breaks the executor: all pending and later calls raise
    `WorkerDiedError`, a `BrokenProcessPool` that names the worker, how it ended, and what it
    was running.  If a call cannot be unpickled, only that call fails.  Ctrl-C in a with block
    cancels the waiting calls.

    A call can be cancelled until it is assigned to a worker; except for tiny calls, few are
    assigned in advance.  Safe to use from many threads.  A forked child cannot use its
    parent's executor, but may create its own.

    Examples
    --------
    >>> import numpy
    >>> import shmarray
    >>> with shmarray.ProcessPoolExecutor(2) as executor:
    ...     float(executor.submit(numpy.sum, numpy.ones(100_000)).result())
    100000.0
    """

    def __init__(  # no call of the base: nothing of its engine is used
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        replace_workers: bool = False,
        task_timeout: float | None = None,
    ) -> None:
        max_workers = checked_workers("max_workers", default_workers() if max_workers is None else max_workers)
        mp_context = checked_context(mp_context or ("spawn" if max_tasks_per_child is not None else None))
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._forks = mp_context.get_start_method(allow_none=False) == "fork"
        max_tasks_per_child = _checked_quota(max_tasks_per_child, forks=self._forks)
        task_timeout = checked_timeout(task_timeout)
        # Monitoring programs read the next four attributes.
        self._max_workers = max_workers
        self._mp_context: Any = mp_context
        self._processes: dict[int, Any] | None = {}  # type: ignore[assignment]
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._is_shut_down = False
        self._numbers = itertools.count(1)
        if initializer is not None:
            initializer, initargs = _initialize, (initializer, tuple(initargs))
        encoder = ExceptionEncoder(wraps_encoding_errors=False)
        spec = WorkerSpec(initializer, tuple(initargs), max_tasks_per_child, encoder)
        with deferred():  # an interrupt would leave descriptors without an owner
            self._scheduler = self._made(spec, replace_workers, task_timeout)
            self._finalizer = weakref.finalize(self, _close, self._scheduler)
            self._finalizer.atexit = False

    def _made(self, spec: WorkerSpec, replace_workers: bool, task_timeout: float | None) -> Scheduler:
        allocator = BlockAllocator.create(self._max_workers)
        assert self._processes is not None  # noqa: S101
        registry = _Registry(self._processes)
        method = self._mp_context.get_start_method()
        self._workers = WorkerSet(self._mp_context.Process, method, 0, spec, registry, allocator, daemon=False)
        self._lending = Lending(allocator, ExecutorTraceback)
        self._calls = ExecutorCalls()
        state = PoolState(
            self._workers,
            self._lending,
            self._calls,
            registry,
            ahead=_TASKS_AHEAD,
            replaces_workers=replace_workers,
        )
        scheduler = Scheduler(state, task_timeout)
        self._calls.on_empty = scheduler.wake
        return scheduler

    @property
    def _broken(self) -> Any:  # type: ignore[override]
        return self._scheduler.failure or False

    # --- calls ---

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        func, arguments, extra = _without_map(fn, args)
        # A handler might raise while a worker starts, or submit or shut down while this thread has the lock.
        with deferred(), self._lock:
            self._check_running()
            future: Future[T] = Future()
            job = next(self._numbers)
            self._calls.add(job, future)
            try:
                self._ensure_workers()
            except BaseException:
                self._calls.remove(job)
                raise
            if self._scheduler.phase == TERMINATE:  # since the check; this call may have been missed at the termination
                self._calls.terminated(self._scheduler.failure)
            tasks = [(job, 0, func, arguments, kwargs, extra)]
            # This thread must not hold arrays that are given away with the call when the feeder packs it.
            del args, arguments, kwargs
            self._scheduler.tasks.put((tasks, None))
            return future

    submit.__doc__ = StockExecutor.submit.__doc__

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Call a function with the items of iterables, as `concurrent.futures.Executor.map` does.

        Parameters
        ----------
        fn : callable
        *iterables : iterable
            As many as `fn` has arguments; the shortest ends it.
        timeout : float, optional
            Seconds from this call in which each result must be there.
        chunksize : int
            Items that are sent together.
        buffersize : int, optional
            How many chunks may be submitted whose results have not been taken.  By default the
            iterables are read at once.

        Returns
        -------
        iterator
            The results, in order.

        Raises
        ------
        TimeoutError
            From the iterator.
        TypeError, ValueError
            If `chunksize` or `buffersize` is not a positive integer.
        """
        chunksize = checked_size("chunksize", chunksize)
        buffersize = checked_buffersize(buffersize)
        arrays: RepeatedArrays = {}
        for iterable in iterables:
            arrays.update(repeated_arrays(iterable, chunksize))
        function = _MapFunction(fn, arrays, -next(self._numbers), self._lending)
        return buffered_map(self.submit, function, iterables, timeout, chunksize, buffersize)

    def _check_running(self) -> None:
        if self._owner != os.getpid():
            raise RuntimeError(
                "cannot schedule new futures: the executor belongs to the process that forked this one; make one here"
            )
        failure = self._scheduler.failure
        if isinstance(failure, WorkerDiedError) and not self._is_shut_down:
            raise WorkerDiedError(str(failure), failure.pid, failure.exitcode, failure.task, failure.items)
        if self._is_shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if failure is not None:
            raise RuntimeError("the executor has ended because of an error") from failure
        if _running.is_ending:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    def _ensure_workers(self) -> None:
        """Start a worker for each pending call, up to the maximum; with fork, start all at once.

        With fork they start at once because a process should not fork once it has threads.
        """
        wanted = self._max_workers if self._forks else min(self._max_workers, self._calls.unanswered)
        if self._scheduler.was_started:
            if wanted > self._workers.size:
                self._workers.size = wanted
                self._scheduler.spawn_missing()
            return
        self._workers.size = wanted
        try:
            self._scheduler.start()
        except WorkerDiedError:
            raise
        except RuntimeError as error:  # no new threads, as during interpreter exit
            raise WorkerDiedError(f"the workers could not be started: {error}") from error
        _running.add(self._scheduler)

    # --- the end ---

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT002 - the stdlib's
        with deferred(), self._lock:
            is_first, self._is_shut_down = not self._is_shut_down, True
        if self._owner != os.getpid():
            return
        if cancel_futures:
            # As with the stdlib, calls that idle workers can take at once are not cancelled.
            if len(self._calls) and self._scheduler.was_started:
                self._calls.began.wait(_MOMENT)
            self._calls.cancel()
        if is_first:
            _close(self._scheduler)
            self._finalizer.detach()  # it holds the scheduler, whose error may hold the caller's frames
        if wait and self._scheduler.was_started:
            self._scheduler.join()
        self._processes = None

    shutdown.__doc__ = StockExecutor.shutdown.__doc__

    def terminate_workers(self) -> None:
        """Cancel the waiting calls, end the workers with SIGTERM, and shut down without waiting.

        Running calls raise `WorkerDiedError`.  Safe to call from any thread.
        """
        self._end_workers("terminate")

    def kill_workers(self) -> None:
        """As `terminate_workers`, but with SIGKILL."""
        self._end_workers("kill")

    def _end_workers(self, method: str) -> None:
        processes = list((self._processes or {}).values())
        self.shutdown(wait=False, cancel_futures=True)
        if self._owner != os.getpid() or not self._scheduler.was_started:
            return
        with self._workers.lock:  # processes are reaped under this lock, so their pids are still valid
            for process in processes:
                if process.exitcode is None:
                    getattr(process, method)()
        self._scheduler.fail_for_good(WorkerDiedError(f"{method}_workers() ended the workers"))

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        # After Ctrl-C the waiting calls are cancelled, as when the stdlib's idle workers die of it.
        self.shutdown(wait=True, cancel_futures=isinstance(error, KeyboardInterrupt))


def _checked_quota(max_tasks_per_child: Any, *, forks: bool) -> int | None:
    if max_tasks_per_child is None:
        return None
    quota = checked_size("max_tasks_per_child", max_tasks_per_child)
    if forks:
        raise ValueError(
            "max_tasks_per_child is incompatible with the 'fork' multiprocessing start method; "
            "supply a different mp_context."
        )
    return quota


def _initialize(initializer: Callable[..., object], initargs: tuple[Any, ...]) -> None:
    try:
        initializer(*initargs)
    except BaseException:
        logger = logging.getLogger("concurrent.futures")
        if logger.handlers:  # without handlers it would print what the error tells the caller anyway
            logger.critical("Exception in initializer:", exc_info=True)
        raise


def _close(scheduler: Scheduler) -> None:
    if scheduler.was_started:
        scheduler.close()
    else:
        scheduler.end()


class _Registry:
    """The dictionary of an executor's processes, by pid."""

    def __init__(self, processes: dict[int, Any]) -> None:
        self._processes = processes

    def add(self, process: Any, others: list[Any]) -> None:
        self._processes[process.pid] = process

    def remove(self, process: Any) -> None:
        self._processes.pop(process.pid, None)

    def clear(self) -> None:
        self._processes.clear()


class _MapFunction:
    """The function of one `map`, with what its calls have in common.

    The stdlib's `map` calls `submit` with it, in 3.14 also long after it has returned.
    """

    def __init__(self, func: Callable[..., Any], arrays: RepeatedArrays, group: int, lending: Lending) -> None:
        self.func = func
        self._arrays = arrays
        self._group = group
        self._count = 0
        if arrays:
            weakref.finalize(self, lending.exhausted, group).atexit = False

    def next_task(self, items: int) -> Extra:
        """For a call that has so many of the items."""
        first, self._count = self._count, self._count + items
        return Extra(self._arrays, self._group, range(first, self._count), self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.func(*args, **kwargs)

    def __reduce__(self) -> Any:  # by a subclass that wraps what it submits
        return _itself, (self.func,)


def _itself(func: Any) -> Any:
    return func


def _without_map(func: Any, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...], Extra]:
    """The call to run, and what it shares with other calls of a map."""
    if type(func) is _MapFunction:
        return func.func, args, func.next_task(1)
    inner = chunk_function(func)
    if type(inner) is _MapFunction:
        return process_chunk, (inner.func, *args), inner.next_task(len(args[0]))
    if inner is not None:
        return process_chunk, (inner, *args), NO_EXTRA
    return func, args, NO_EXTRA


class _Running:
    """The schedulers whose calls are completed before the interpreter exits."""

    def __init__(self) -> None:
        self._schedulers: WeakObjects[Scheduler] = WeakObjects()
        self.is_ending = False
        os.register_at_fork(after_in_child=self._after_fork_in_child)
        call_at_end_of_main_thread(self._complete)

    def add(self, scheduler: Scheduler) -> None:
        self._schedulers.add(scheduler)

    def _complete(self) -> None:
        self.is_ending = True
        for scheduler in self._schedulers.alive():
            scheduler.close()
        for scheduler in self._schedulers.alive():
            scheduler.join()

    def _after_fork_in_child(self) -> None:
        self._schedulers = WeakObjects()  # the parent's


_running = _Running()
