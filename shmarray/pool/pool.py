"""Pool: the face of multiprocessing.Pool on an engine of our own."""

import multiprocessing
import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import util
from typing import Any

from shmarray.pool import interrupts
from shmarray.pool.arena import Arena
from shmarray.pool.crew import Crew
from shmarray.pool.engine import Engine
from shmarray.pool.progress import ShowsProgress
from shmarray.pool.sharing import Repeated, repeated
from shmarray.pool.stdlib import CLOSE, INIT, RUN, TERMINATE, PoolCache


class Pool(ShowsProgress):
    """`multiprocessing.Pool`, with the arrays in arguments and results going through shared memory.

    Parameters
    ----------
    processes : int, optional
        Number of workers; as many as this process may use processors by default.
    initializer : callable, optional
        Called in each worker when it starts, with `initargs`.
    initargs : tuple, optional
    maxtasksperchild : int, optional
        After so many tasks (chunks) a worker is replaced.
    context : multiprocessing context, optional

    Attributes
    ----------
    tasks_ahead : int
        How many tasks with arrays each worker has at a time: one that it runs and others
        that wait.  2 by default; set it in a subclass.

    Raises
    ------
    ValueError, TypeError
        As `multiprocessing.Pool` does.

    Notes
    -----
    All methods are those of `multiprocessing.pool.Pool`, and so is what tasks and callers
    see of plain arrays: a task has its own, writable copy, and so has the caller of a
    result.  Arrays that `create`, `attach` or `scoped` gave, and memory maps, are the same
    memory on both sides.

    `map`, `starmap`, `imap` and `imap_unordered` also take ``progress=True``, or a label,
    and show a bar; that takes tqdm (the extra ``progress``).

    Memory in use, beyond what the caller holds: for each worker `tasks_ahead` tasks'
    arguments and results; results that wait to be taken; and what was in use in the last
    second.  An idle pool gives all of it back after a second, a closed one at once.

    Where shared memory cannot be had (no memfd, ``ulimit -f``, no address space), arrays go
    through a pipe, with one RuntimeWarning; where memory itself does not suffice, the call
    raises `SharedMemoryFullError`, a MemoryError.

    A worker that dies is replaced; the call whose task it ran raises `WorkerDiedError`, the
    others do not notice.

    Safe to use from many threads.  A forked child cannot use its parent's pool, but may
    make its own.

    Examples
    --------
    >>> import numpy
    >>> import shmarray
    >>> with shmarray.Pool(2) as pool:
    ...     pool.map(numpy.sum, [numpy.ones(100_000), numpy.ones(200_000)])
    [np.float64(100000.0), np.float64(200000.0)]
    """

    # One more costs memory and gains nothing (benchmarks/constants.py: tasks_ahead).
    tasks_ahead = 2

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
    ) -> None:
        # First what __del__ looks at.
        self._pool: list[Any] = []
        self._state = INIT
        self._change_notifier = None
        self._shown = weakref.WeakSet()
        self._ctx = context or multiprocessing.get_context()
        if processes is None:
            processes = getattr(os, "process_cpu_count", os.cpu_count)() or 1
        _check(processes, initializer, maxtasksperchild)
        self._processes = processes
        self._owner = os.getpid()
        with interrupts.deferred():  # or workers without a pool
            self._engine = engine = self._made(initializer, tuple(initargs), maxtasksperchild)
            engine.start()
            self._terminate = util.Finalize(self, Engine.terminate, args=(engine,), exitpriority=15)
            self._state = RUN

    def _made(self, *arguments: Any) -> Engine:
        arena = Arena.create(self._processes)
        crew = Crew(_Maker(self.Process, self._ctx), self._ctx, self._processes, self._pool, arguments, arena)
        self._cache: dict[int, Any] = PoolCache()
        engine = Engine(crew, self._cache, arena, self.tasks_ahead)
        self._cache.notifier = engine
        self._taskqueue = engine.tasks
        return engine

    def _check_running(self) -> None:
        super()._check_running()  # type: ignore[misc]
        if self._owner != os.getpid():
            raise ValueError("Pool not running: it belongs to the process that forked this one")

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
        if type(iterable) in (list, tuple):
            arrays = repeated(iterable, chunksize or -(-len(iterable) // (len(self._pool) * 4)))
            if arrays:
                mapper = _Sharing(mapper, arrays)
        return super()._map_async(func, iterable, mapper, chunksize, callback, error_callback)  # type: ignore[misc]

    def _guarded_task_generation(self, result_job: int, func: Any, iterable: Iterable[Any]) -> Iterator[Any]:
        if type(iterable) not in (list, tuple):
            iterable = _carefully(iterable)
        if not isinstance(func, _Sharing):
            yield from super()._guarded_task_generation(result_job, func, iterable)  # type: ignore[misc]
            return
        for task in super()._guarded_task_generation(result_job, func.mapper, iterable):  # type: ignore[misc]
            yield *task, func.arrays

    def _repopulate_pool(self) -> None:
        self._engine.wake()

    def close(self) -> None:
        util.debug("closing pool")
        if self._state == RUN:
            self._state = CLOSE
            self._engine.close()

    def terminate(self) -> None:
        util.debug("terminating pool")
        self._state = TERMINATE
        with interrupts.deferred():  # and after this it goes on by itself
            self._engine.begin_to_terminate()
        self._close_bars()
        self._terminate()

    def join(self) -> None:
        util.debug("joining pool")
        if self._state == RUN:
            raise ValueError("Pool is still running")
        if self._state not in (CLOSE, TERMINATE):
            raise ValueError("In unknown state")
        self._engine.join()


def _check(processes: int, initializer: Any, maxtasksperchild: Any) -> None:
    if processes < 1:
        raise ValueError("Number of processes must be at least 1")
    if maxtasksperchild is not None and (not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0):
        raise ValueError("maxtasksperchild must be a positive int or None")
    if initializer is not None and not callable(initializer):
        raise TypeError("initializer must be a callable")


def _carefully(iterable: Iterable[Any]) -> Iterator[Any]:
    """The items of what may be the user's generator.

    The stdlib sends an Exception of it to the call.  Others, such as KeyboardInterrupt,
    would end the thread that feeds all workers; so they go as one.
    """
    iterator = None
    while True:
        try:
            if iterator is None:
                iterator = iter(iterable)
            item = next(iterator)
        except StopIteration:
            return
        except Exception:
            raise
        except BaseException as error:  # noqa: BLE001 - user code: whatever it raises is the caller's
            raise _CarriedError(error) from None
        yield item
        del item


class _CarriedError(Exception):
    """An exception that is no Exception, until it is unpickled."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __reduce__(self) -> Any:
        return _itself, (self._error,)


def _itself(error: BaseException) -> BaseException:
    return error


class _Maker:
    """Makes processes, without holding the pool."""

    def __init__(self, process: Any, context: Any) -> None:
        self._process = process
        self._context = context

    def __call__(self, **options: Any) -> Any:
        return self._process(self._context, **options)


class _Sharing:
    """Takes the place of the mapper on the way from `_map_async` to the tasks."""

    def __init__(self, mapper: Any, arrays: Repeated) -> None:
        self.mapper = mapper
        self.arrays = arrays
