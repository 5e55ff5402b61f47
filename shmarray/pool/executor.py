"""ProcessPoolExecutor: the stdlib's executor and engine, with our parcels.

A call is packed when the stdlib pickles it, in the thread of its call queue; a result is
unpacked when it is set on the future.  What the stdlib itself pickles and unpickles is
inert, because an error there breaks the executor.
"""

import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from typing import Any

from shmarray.errors import WorkerDiedError
from shmarray.pool import interrupts, link, parcel, watcher
from shmarray.pool.arena import Arena
from shmarray.pool.calls import shortened
from shmarray.pool.manager import Manager
from shmarray.pool.obituary import how_it_ended
from shmarray.pool.recruiter import Recruiter
from shmarray.pool.serve import executor_worker
from shmarray.pool.sharing import Repeated, repeated
from shmarray.pool.stdlib import Executor, ExecutorManners, equip, managers_at_exit, named_semaphores, unwrapped
from shmarray.pool.traffic import Keeper, Traffic, Trip
from shmarray.pool.wakeup import Wakeup
from shmarray.pool.worker import Notes


class ProcessPoolExecutor(Executor):
    """`concurrent.futures.ProcessPoolExecutor`, with arrays going through shared memory.

    Parameters
    ----------
    max_workers : int, optional
        Number of workers; as many as this process may use processors by default.
    mp_context : multiprocessing context, optional
    initializer : callable, optional
        Called in each worker when it starts, with `initargs`.
    initargs : tuple, optional
    **options
        What else the running Python's `concurrent.futures.ProcessPoolExecutor` takes.

    Raises
    ------
    ValueError, TypeError
        As that does.

    Notes
    -----
    All methods are those of the stdlib's, and so is what tasks and callers see of plain
    arrays: a call has its own, writable copy, and so has who asks for the result.  Arrays
    that `create`, `attach` or `scoped` gave, and memory maps, are the same memory on both
    sides.

    A large array that many calls of one `map` carry is copied once, with the first of them;
    leave it alone until the results are there, as with the stdlib, whose calls would have
    it as it was at one time or another.

    Memory in use, beyond what the caller holds: arguments and results of the calls that run
    and of as many more, plus one; results that wait to be taken; and what was in use in
    the last second.  An idle executor gives all of it back after a second.

    Where shared memory cannot be had (no memfd, ``ulimit -f``, no address space), arrays go
    through a pipe, with one RuntimeWarning; where memory itself does not suffice, the call
    raises `SharedMemoryFullError`, a MemoryError.

    As with the stdlib, a worker that dies breaks the executor.  The error is a
    `WorkerDiedError`, a `BrokenProcessPool` that names the worker, how it ended, and what it
    was running.  A call that does not unpickle fails alone.  Ctrl-C in a with-block gives up
    the calls that wait.

    Examples
    --------
    >>> import numpy
    >>> import shmarray
    >>> with shmarray.ProcessPoolExecutor(2) as executor:
    ...     float(executor.submit(numpy.sum, numpy.ones(100_000)).result())
    100000.0
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        **options: Any,
    ) -> None:
        with interrupts.deferred():  # or descriptors without an owner
            super().__init__(max_workers, mp_context, initializer, initargs, **options)
            self._was_used = False
            self._recruiter = Recruiter(self)
            self._desk = _Desk(self._recruiter.arena)
            equip(self, _WorkItems(self._desk, self._pending_work_items), Wakeup())
            for semaphore, path in named_semaphores(self):
                watcher.watch_semaphore(semaphore, path)
        # What the map that this thread is in has to say to its submits.
        self._mapping = threading.local()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        call: Any = _Call(self._desk, (fn, args, kwargs), getattr(self._mapping, "sharing", None))
        try:
            with interrupts.deferred():  # half submitted, the call would be waited for at the end, for ever
                return super().submit(_perform, call)
        except BrokenProcessPool as error:
            raise self._desk.broken_for_good() from error
        except OSError as error:
            if self._broken:  # it broke while a worker was started for this call, with queues that are closed now
                raise self._desk.broken_for_good() from error
            raise

    submit.__doc__ = Executor.submit.__doc__

    def map(
        self, fn: Callable[..., Any], *iterables: Any, timeout: float | None = None, chunksize: int = 1, **options: Any
    ) -> Iterator[Any]:
        if chunksize >= 1:
            arrays = {key: array for each in iterables for key, array in repeated(each, chunksize).items()}
            self._mapping.sharing = _Sharing(self._desk, arrays) if arrays else None
        try:
            return super().map(fn, *iterables, timeout=timeout, chunksize=chunksize, **options)
        finally:
            self._mapping.sharing = None

    map.__doc__ = Executor.map.__doc__  # noqa: A003 - the stdlib's name

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT002 - the stdlib's
        super().shutdown(wait, cancel_futures=cancel_futures)
        if not self._was_used:  # else that is for the end of the managing thread
            _close(self._desk, self._recruiter)

    shutdown.__doc__ = Executor.shutdown.__doc__

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        # Ctrl-C: as when the stdlib's idle workers die of it, the calls that wait are given up.
        self.shutdown(wait=True, cancel_futures=isinstance(error, KeyboardInterrupt))

    def _spawn_process(self) -> None:
        self._recruiter.start_one()

    def _adjust_process_count(self) -> None:
        # The stdlib counts idle workers with a semaphore that it raises late, so that it may
        # count one that has ended by max_tasks_per_child, and wait for it for ever (gh-115634).
        if self._processes:
            super()._adjust_process_count()
        elif not self._shutdown_thread:  # else that is the managing thread's
            self._recruiter.start_one()

    def _start_executor_manager_thread(self) -> None:
        if self._executor_manager_thread is not None:
            return
        # As the stdlib does it, with a thread of our own.
        if not self._safe_to_dynamically_spawn_children:
            self._launch_processes()
        ended = partial(_close, self._desk, self._recruiter)
        manager = Manager(self, self._desk.broken, self._recruiter, self._desk.left, ended)
        self._executor_manager_thread = manager
        manager.start()
        self._was_used = True
        managers_at_exit[manager] = self._executor_manager_thread_wakeup


# What is sent in the place of a call that does not pickle.
_NOTHING, _ = shortened(bool, (), {})


def _close(desk: "_Desk", recruiter: Recruiter) -> None:
    desk.close()
    recruiter.close()


def _perform(message: bytes) -> bytes:
    """Carry out a call, in a worker; raises nothing."""
    return executor_worker().perform(message)


class _Sharing:
    """The arrays that many calls of one map carry; they share them until the last of these is packed or dropped."""

    def __init__(self, desk: "_Desk", arrays: Repeated) -> None:
        self.arrays = arrays
        self.group = -desk.next_number()  # calls by themselves have their own, positive numbers
        weakref.finalize(self, desk.traffic.exhausted, self.group).atexit = False


class _Call:
    """A call that is packed when the stdlib's queue pickles it."""

    def __init__(self, desk: "_Desk", call: tuple[Callable[..., Any], Any, Any], sharing: _Sharing | None) -> None:
        self._desk = desk
        self._sharing = sharing
        self.call = call

    def __reduce__(self) -> Any:
        return bytes, (self._desk.pack(self.call, self._sharing),)


class _Desk:
    """Where an executor's calls are packed and its results unpacked."""

    def __init__(self, arena: Arena | None) -> None:
        self.traffic = Traffic(arena, 1)
        self._trips: dict[int, Trip] = {}
        self._failures: dict[int, BaseException] = {}
        # By pid: several workers may keep one box, if many calls carry it.
        self._keepers: defaultdict[int, Keeper] = defaultdict(Keeper)
        self._count = 0
        self._lock = threading.Lock()
        self._death: WorkerDiedError | None = None

    def next_number(self) -> int:
        with self._lock:
            self._count += 1
            return self._count

    def pack(self, call: tuple[Callable[..., Any], Any, Any], sharing: _Sharing | None) -> bytes:
        """Make the call ready to send; raises nothing.

        An error in the stdlib's queue would take the queue's thread along if it is no
        Exception or has EPIPE, and can deadlock a shutdown.  So a call that does not pickle
        is sent as one that does nothing, and fails when that is answered.
        """
        number = self.next_number()
        group, arrays = (sharing.group, sharing.arrays) if sharing else (None, None)
        short, func = shortened(*unwrapped(*call))
        trip = self._trips[number] = Trip(number, 0, func, group)
        try:
            message = self.traffic.pack(parcel.take_apart(short, arrays), trip)
        except BaseException as error:  # noqa: BLE001 - user code: __reduce__ of an argument
            self._failures[number] = ExecutorManners.unpicklable(error)
            message = self.traffic.pack(parcel.take_apart(_NOTHING), trip)
        return link.encode(message)

    def unpack(self, result: bytes) -> tuple[bool, Any]:
        message = link.decode(result)
        trip = self._trips.pop(message.job)
        outcome = self.traffic.unpack(trip, message, self._keepers[Notes(*message.notes).worker])
        failure = self._failures.pop(message.job, None)
        return outcome if failure is None else (False, failure)

    def left(self, pid: int) -> None:
        """A worker has ended well, and lets go of what it kept."""
        keeper = self._keepers.pop(pid, None)
        if keeper is not None:
            self.traffic.bury(keeper, ())

    def broken(self, pid: int | None, code: int | None) -> None:
        """A worker has died, and so has the executor."""
        task = ", ".join(
            f"call {trip.job}, {trip.function}"
            for trip in tuple(self._trips.values())
            if pid and self._runner(trip) == pid
        )
        message = f"worker {pid} {how_it_ended(code)} while it ran {task or 'no task'}; the executor is broken"
        self._death = WorkerDiedError(message, pid, code, task)

    def death(self, error: BaseException) -> BaseException:
        """The error that says which worker died, and over what, instead of the stdlib's."""
        death = self._death
        if death is None:
            return error
        death.__cause__ = error
        return death

    def _runner(self, trip: Trip) -> int | None:
        arena = self.traffic.arena
        return None if arena is None or trip.result is None else abs(arena.word(trip.result.index))

    def broken_for_good(self) -> BaseException:
        death = self._death
        if death is None:
            return WorkerDiedError("a worker died; the executor is broken")
        return WorkerDiedError(f"the executor is broken: {death}", death.pid, death.exitcode, death.task)

    def close(self) -> None:
        if self.traffic.arena is not None:
            self.traffic.arena.close()


class _WorkItems(dict[int, Any]):
    """The calls that are not done; what is put here gets a future that knows our results."""

    def __init__(self, desk: _Desk, items: dict[int, Any]) -> None:
        super().__init__(items)
        self._desk = desk

    def __setitem__(self, work_id: int, item: Any) -> None:
        # Before any worker has the call; later, and its result might come first.
        item.future.__class__ = _Future
        item.future.desk = self._desk
        super().__setitem__(work_id, item)


class _Future(Future[Any]):
    """Opens results when they are set, and says of a broken executor why it is."""

    desk: _Desk

    def set_result(self, result: Any) -> None:
        is_value, value = self.desk.unpack(result)
        del result
        self._set(super().set_result if is_value else super().set_exception, value)

    def set_exception(self, exception: BaseException | None) -> None:
        if type(exception) is not BrokenProcessPool:
            self._set(super().set_exception, exception)
            return
        # One that was cancelled meanwhile ends the stdlib's thread (before 3.12), and all others wait for ever.
        with suppress(InvalidStateError):
            self._set(super().set_exception, self.desk.death(exception))

    @staticmethod
    def _set(method: Callable[[Any], None], value: Any) -> None:
        try:
            method(value)
        except Exception:
            raise
        except BaseException as error:  # noqa: BLE001 - of a callback; the stdlib logs Exceptions, these would end its thread
            threading.excepthook(threading.ExceptHookArgs((type(error), error, error.__traceback__, None)))
