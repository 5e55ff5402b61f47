"""ProcessPoolExecutor: the stdlib's executor and engine, with our parcels.

A call is packed when the stdlib pickles it, in the thread of its call queue; a result is
unpacked when it is set on the future.  What the stdlib itself pickles and unpickles is
inert, because an error there breaks the executor.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from typing import Any

from shmarray.errors import WorkerDiedError
from shmarray.pool import interrupts, parcel
from shmarray.pool.arena import Arena
from shmarray.pool.link import Message
from shmarray.pool.manager import Manager
from shmarray.pool.obituary import how_it_ended
from shmarray.pool.parcel import Contents
from shmarray.pool.recruiter import Recruiter
from shmarray.pool.serve import executor_worker
from shmarray.pool.stdlib import Executor, ExecutorManners, asked_for, managers_at_exit
from shmarray.pool.traffic import Keeper, Traffic, Trip
from shmarray.pool.worker import Errand


class ProcessPoolExecutor(Executor):
    """`concurrent.futures.ProcessPoolExecutor`, with arrays going through shared memory.

    Parameters
    ----------
    max_workers, mp_context, initializer, initargs, **options
        As the running Python's `concurrent.futures.ProcessPoolExecutor` takes them.

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

    Memory in use, beyond what the caller holds: arguments and results of the calls that run
    and of as many more, plus one; results that wait to be taken; and what was in use in
    the last second.  An idle executor gives all of it back after a second.  Where shared
    memory cannot be had, arrays go through a pipe, with one RuntimeWarning.

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
            arena = Arena.create()
            self._recruiter = Recruiter(self, arena)
            self._desk = _Desk(arena)
            self._pending_work_items = _WorkItems(self._desk, self._pending_work_items)
            # The queue that tells of calls that do not pickle has to look there too.
            queue: Any = self._call_queue  # type: ignore[attr-defined]
            queue.pending_work_items = self._pending_work_items

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        try:
            with interrupts.deferred():  # half submitted, the call would be waited for at the end, for ever
                return super().submit(_perform, _Call(self._desk, (fn, args, kwargs)))
        except BrokenProcessPool as error:
            raise self._desk.broken_for_good() from error
        except OSError as error:
            if self._broken:  # it broke while a worker was started for this call, with queues that are closed now
                raise self._desk.broken_for_good() from error
            raise

    submit.__doc__ = Executor.submit.__doc__

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
        self._executor_manager_thread = manager = Manager(self, self._desk.broken, self._recruiter, ended)
        manager.start()
        self._was_used = True
        managers_at_exit[manager] = self._executor_manager_thread_wakeup


def _close(desk: "_Desk", recruiter: Recruiter) -> None:
    desk.close()
    recruiter.close()


def _perform(call: Any) -> "_Sent":
    """Carry out a call, in a worker; raises nothing."""
    number, box, reserved, contents = call
    answer = executor_worker().perform(Errand(Contents(*contents), box, reserved))
    return _Sent((number, *_plain(answer.contents)), answer[1:])


def _plain(contents: Contents) -> tuple[bytes, Any, bytes]:
    return bytes(contents.pickled), contents.spans, bytes(contents.loose)


class _Sent:
    """A result on its way through the stdlib's queue."""

    def __init__(self, contents: tuple[Any, ...], notes: tuple[Any, ...]) -> None:
        self._state = contents, notes

    def __reduce__(self) -> Any:
        return _Result, self._state


class _Result:
    """A result as the caller's side of the queue gets it: not opened yet."""

    def __init__(self, contents: tuple[Any, ...], notes: tuple[Any, ...]) -> None:
        self.number, *rest = contents
        self.contents = Contents(*rest)
        self.notes = notes


class _Call:
    """A call that is packed when the stdlib's queue pickles it."""

    def __init__(self, desk: "_Desk", call: tuple[Callable[..., Any], Any, Any]) -> None:
        self._desk = desk
        self.call = call

    def __reduce__(self) -> Any:
        return tuple, (self._desk.pack(self.call),)


class _Desk:
    """Where an executor's calls are packed and its results unpacked."""

    def __init__(self, arena: Arena | None) -> None:
        self.traffic = Traffic(arena, 1)
        self._trips: dict[int, Trip] = {}
        self._failures: dict[int, BaseException] = {}
        self._keeper = Keeper()
        self._count = 0
        self._lock = threading.Lock()
        self._death: WorkerDiedError | None = None

    def pack(self, call: tuple[Callable[..., Any], Any, Any]) -> tuple[Any, ...]:
        """Make the call ready to send; raises nothing.

        An error in the stdlib's queue would take the queue's thread along if it is no
        Exception or has EPIPE, and can deadlock a shutdown.  So a call that does not pickle
        is sent as one that does nothing, and fails when that is answered.
        """
        with self._lock:
            self._count += 1
            number = self._count
        func, args, _ = call
        trip = self._trips[number] = Trip(number, 0, asked_for(func, args))
        try:
            message = self.traffic.pack(parcel.take_apart(call), trip)
        except BaseException as error:  # noqa: BLE001 - user code: __reduce__ of an argument
            self._failures[number] = ExecutorManners.unpicklable(error)
            message = self.traffic.pack(parcel.take_apart((bool, (), {})), trip)
        return number, message.box, message.reserved, _plain(message.contents)

    def unpack(self, result: _Result) -> tuple[bool, Any]:
        trip = self._trips.pop(result.number)
        message = Message(trip.job, 0, 0, 0, result.contents, result.notes)
        outcome = self.traffic.unpack(trip, message, self._keeper)
        failure = self._failures.pop(result.number, None)
        return outcome if failure is None else (False, failure)

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
        if not isinstance(result, _Result):
            self._set(super().set_result, result)
            return
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
