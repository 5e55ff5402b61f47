"""Pool: the methods of multiprocessing.Pool, on this library's engine."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from multiprocessing import util
from multiprocessing.pool import AsyncResult
from typing import Any, TypeVar

from shmarray.pool import _stdlib
from shmarray.pool._stdlib import CLOSE, INIT, RUN, TERMINATE, PoolTraceback
from shmarray.pool.arrays import BlockAllocator, ExceptionEncoder, Lending, RepeatedArrays, repeated_arrays
from shmarray.pool.engine.feeder import Extra
from shmarray.pool.engine.frontend import (
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
from shmarray.pool.interrupts import deferred, uninterrupted
from shmarray.pool.pool_calls import CallCache, PoolCalls
from shmarray.pool.progress import ShowsProgress
from shmarray.pool.threads import WeakObjects

T = TypeVar("T")


class Pool(ShowsProgress):
    """`multiprocessing.Pool`, with arrays in arguments and results sent through shared memory.

    Parameters
    ----------
    processes : int, optional
        Number of workers; by default, the number of CPUs that this process may use.
    initializer : callable, optional
        Called in each worker when it starts, with `initargs`.
    initargs : tuple, optional
    maxtasksperchild : int, optional
        Number of tasks (chunks) after which a worker is replaced.
    context : multiprocessing context, optional
    tasks_ahead : int, optional
        Number of tasks with large arrays that are assigned to each worker at a time: the one
        that it runs, and others that wait.  2 by default.
    task_timeout : float, optional
        Time limit for a task, in seconds; for a chunk of a `map`, the limit per item.  The
        worker of a task that takes longer is killed and replaced, and the call raises
        `TaskTimeoutError`.

    Raises
    ------
    ValueError, TypeError
        As `multiprocessing.Pool` does, and for invalid limits.

    Notes
    -----
    All methods are those of `multiprocessing.pool.Pool`, and plain arrays behave as they do
    there: a task gets its own writable copy of its arguments, and the caller gets its own
    writable copy of the result.  Arrays from `create`, `attach` or `scoped`, and memory maps,
    are the same memory on both sides.

    `map`, `starmap`, `imap` and `imap_unordered` also take ``progress=True``, or a label, to
    show a progress bar; this requires tqdm (the extra ``progress``).

    The pool's memory, besides what the caller holds, consists of the arguments and results of
    `tasks_ahead` tasks per worker, of results that have not been taken yet, and of memory used
    within the last second.  An idle pool frees all of it after a second, a closed pool at once.

    If shared memory is not available (no memfd, ``ulimit -f``, no address space), arrays are
    sent through a pipe, with one RuntimeWarning.  If memory itself runs out, the call raises
    `SharedMemoryFullError`, a MemoryError.

    A worker that dies is replaced.  The call whose task it was running raises
    `WorkerDiedError`; other calls are not affected.

    Safe to use from many threads.  A forked child cannot use its parent's pool, but may
    create its own.

    Examples
    --------
    >>> import numpy
    >>> import shmarray
    >>> with shmarray.Pool(2) as pool:
    ...     pool.map(numpy.sum, [numpy.ones(100_000), numpy.ones(200_000)])
    [np.float64(100000.0), np.float64(200000.0)]
    """

    # More costs memory and gains nothing (benchmarks/constants.py: tasks_ahead).
    tasks_ahead: int = 2

    # __del__ uses them, even if there was a wrong argument.
    _state = INIT
    _change_notifier = None

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
        *,
        tasks_ahead: int | None = None,
        task_timeout: float | None = None,
    ) -> None:
        self._pool: list[Any] = []
        self._shown = WeakObjects()
        self._ctx = checked_context(context)
        self._processes = checked_workers("processes", default_workers() if processes is None else processes)
        _check(initializer, maxtasksperchild)
        if tasks_ahead is not None:
            self.tasks_ahead = tasks_ahead
        if isinstance(self.tasks_ahead, bool):
            raise TypeError(f"tasks_ahead must be an int, not {self.tasks_ahead}")
        self.tasks_ahead = checked_size("tasks_ahead", self.tasks_ahead)
        task_timeout = checked_timeout(task_timeout)
        self._owner = os.getpid()
        encoder = ExceptionEncoder(wraps_encoding_errors=True)
        spec = WorkerSpec(initializer, tuple(initargs), maxtasksperchild, encoder)
        try:
            with deferred():  # an interrupt would leave workers without a pool
                self._scheduler = scheduler = self._made(spec, task_timeout)
                scheduler.start()
                self._terminate = util.Finalize(self, Scheduler.terminate, args=(scheduler,), exitpriority=15)
                self._state = RUN
        except BaseException:  # perhaps it came at the end: nobody has the pool
            if self._state == RUN:
                self.terminate()
            raise

    def _made(self, spec: WorkerSpec, task_timeout: float | None) -> Scheduler:
        allocator = BlockAllocator.create(self._processes)
        registry = _Registry(self._pool)
        make, method = _Maker(self.Process, self._ctx), self._ctx.get_start_method()
        workers = WorkerSet(make, method, self._processes, spec, registry, allocator, daemon=True)
        lending = Lending(allocator, PoolTraceback)
        self._cache = CallCache()
        self._calls = calls = PoolCalls(self._cache)
        state = PoolState(workers, lending, calls, registry, ahead=self.tasks_ahead, replaces_workers=True)
        scheduler = Scheduler(state, task_timeout)
        self._cache.notifier = scheduler
        self._cache.is_over = lambda: _is_over(scheduler, calls)
        self._taskqueue = scheduler.tasks
        return scheduler

    def _check_running(self) -> None:
        super()._check_running()  # type: ignore[misc]
        if self._owner != os.getpid():
            raise ValueError("Pool not running: it belongs to the process that forked this one; make one here")
        if self._scheduler.failure is not None:
            raise RuntimeError("the pool has ended because of an error") from self._scheduler.failure

    def _map_async(
        self,
        func: Callable[..., Any],
        iterable: Any,
        mapper: Any,
        chunksize: int | None = None,
        callback: Callable[..., object] | None = None,
        error_callback: Callable[..., object] | None = None,
    ) -> Any:
        self._check_running()
        if chunksize is not None:
            chunksize = checked_size("chunksize", chunksize)
        if not hasattr(iterable, "__len__"):
            iterable = list(iterable)  # here, where Ctrl-C interrupts it
        if type(iterable) in (list, tuple):
            arrays = repeated_arrays(iterable, chunksize or -(-len(iterable) // (len(self._pool) * 4)))
            if arrays:
                mapper = _Repeating(mapper, arrays)
        start = super()._map_async  # type: ignore[misc]
        try:
            # Interrupted, it would leave a call that is registered and never run, for which `join` waits.
            items = _Sized(iterable, len(iterable))
            return uninterrupted(start, func, items, mapper, chunksize, callback, error_callback)
        except BaseException:  # such as MemoryError: the call is registered before its list of results is made
            self._cache.forget_half_made()
            raise

    def apply_async(
        self,
        func: Callable[..., T],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] | None = None,
        callback: Callable[[T], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[T]:
        start: Callable[..., AsyncResult[T]] = super().apply_async
        return uninterrupted(start, func, args, kwds or {}, callback, error_callback)

    apply_async.__doc__ = _stdlib.StockPool.apply_async.__doc__

    def _guarded_task_generation(self, result_job: int, func: Any, iterable: Iterable[Any]) -> Iterator[Any]:
        # The stdlib's version keeps each item until it has the next; this one must not hold arrays
        # that are given away with a task.
        extra: tuple[Extra, ...] = ()
        if isinstance(func, _Repeating):
            func, extra = func.mapper, (Extra(func.arrays),)
        count = 0
        error: BaseException = ValueError("the iterable has fewer items than its len()")
        iterator = None
        while True:
            try:
                if iterator is None:
                    iterator = iter(iterable)
                args = [next(iterator)]
            except StopIteration:
                break
            except BaseException as raised:  # noqa: BLE001 - user code: whatever it raises is the caller's
                error = raised
                yield result_job, count, _stdlib.reraise, (raised,), {}, *extra
                count += 1
                break
            yield result_job, count, func, (args.pop(),), {}, *extra
            count += 1
        # With the stdlib, a map would wait forever for the missing items.
        if count < _stdlib.chunks_expected(self._cache.get(result_job)):
            self._scheduler.fail_call(result_job, count, error)

    def _repopulate_pool(self) -> None:
        self._scheduler.wake()

    def close(self) -> None:
        util.debug("closing pool")
        if self._state == RUN:
            self._state = CLOSE
            self._scheduler.close()

    def terminate(self) -> None:
        util.debug("terminating pool")
        self._state = TERMINATE
        with deferred():  # after this, the termination continues on its own
            self._calls.fail_when_terminated = True
            self._scheduler.begin_to_terminate()
        self._close_bars()
        self._terminate()

    def join(self) -> None:
        util.debug("joining pool")
        if self._state == RUN:
            raise ValueError("Pool is still running")
        if self._state not in (CLOSE, TERMINATE):
            raise ValueError("In unknown state")
        self._scheduler.join()


# Errors about their arguments, and help(), name the class that the user knows.
for _method in (Pool.map, Pool.starmap, Pool.imap, Pool.imap_unordered):
    _method.__module__, _method.__qualname__ = Pool.__module__, f"Pool.{_method.__name__}"


def _check(initializer: Any, maxtasksperchild: Any) -> None:
    if maxtasksperchild is not None and (not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0):
        raise ValueError(f"maxtasksperchild must be a positive int or None, not {maxtasksperchild!r}")
    if initializer is not None and not callable(initializer):
        raise TypeError("initializer must be a callable")


class _Maker:
    """Creates processes without a reference to the pool."""

    def __init__(self, process: Any, context: Any) -> None:
        self._process = process
        self._context = context

    def __call__(self, **options: Any) -> Any:
        process = self._process(self._context, **options)
        process.name = process.name.replace("Process", "PoolWorker")
        return process


class _Registry:
    """The list of a pool's processes; its length is always the number of workers.

    The chunk size depends on it, so a dead process stays until another replaces it.
    """

    def __init__(self, processes: list[Any]) -> None:
        self._processes = processes

    def add(self, process: Any, others: list[Any]) -> None:
        for place, shown in enumerate(self._processes):
            if shown not in others:
                self._processes[place] = process
                return
        self._processes.append(process)

    def remove(self, process: Any) -> None:
        pass

    def clear(self) -> None:
        self._processes.clear()  # they have descriptors


def _is_over(scheduler: Scheduler, calls: PoolCalls) -> bool:
    """Whether the pool accepts no more calls; during interpreter exit, late calls wait like all others."""
    if scheduler.phase == TERMINATE:
        return calls.fail_when_terminated or scheduler.failure is not None
    return bool(scheduler.phase == CLOSE)


class _Sized:
    """The items of an iterable, which must not be more than its len() says: with the stdlib, some results are None."""

    def __init__(self, iterable: Iterable[Any], length: int) -> None:
        self._iterable = iterable
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        iterator = iter(self._iterable)
        yield from islice(iterator, max(0, self._length - 1))
        last = list(islice(iterator, min(1, self._length)))
        for _ in iterator:  # before the last is sent, as with its result the call is done
            raise ValueError("the iterable has more items than its len() says")
        while last:
            yield last.pop()


class _Repeating:
    """Replaces the mapper between `_map_async` and the tasks."""

    def __init__(self, mapper: Any, arrays: RepeatedArrays) -> None:
        self.mapper = mapper
        self.arrays = arrays
