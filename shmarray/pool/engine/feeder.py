"""The thread that iterates over calls, packs their tasks and sends them.

The user's generators run in this thread, and arguments are pickled in it: a call's tasks are
packed when the stdlib would pickle them, but not before a worker can take them.
"""

import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple

from shmarray.pool.arrays import FunctionCache, PickledObject, RepeatedArrays, compact, dumps, users_function
from shmarray.pool.engine.state import PoolState
from shmarray.pool.engine.tasks import InFlightTask, kind_of
from shmarray.pool.engine.workers import WorkerHandle


class Extra(NamedTuple):
    """Additional values of a task, besides the five of the stdlib.

    Attributes
    ----------
    arrays : mapping of int to ndarray
        By id, those that many tasks of the group have.
    group : int or None
        The tasks that share them; those of the call by default.
    items : range or None
        Which items of an iterable the task has, if the feeder cannot count them.
    owner : object
        Lives until the task is packed; the group may end with it.
    """

    arrays: RepeatedArrays
    group: int | None = None
    items: range | None = None
    owner: object = None


NO_EXTRA = Extra({})
# How many values there are in place of a task that is packed already: its call, its index, and itself.
_PACKED = 3


class _Terminated(Exception):  # noqa: N818 - no error: it ends the feeder's waiting
    """The pool is being terminated."""


class _CallFailed(Exception):  # noqa: N818 - no error: it ends the feeder's waiting
    """The call of the waiting task has failed in the meantime."""


class Feeder:
    """Sends the tasks of calls, one call after the other.

    Attributes
    ----------
    is_done : bool
        Whether the thread has seen the end of the tasks.
    on_lost : callable
        Called with a worker and a list of tasks, if the worker died while it got the last of them.
    tells : bool
        Whether the collecting thread, which may be waiting for ever, is told of a worker that
        has something to do now.
    """

    def __init__(self, state: PoolState) -> None:
        self.is_done = False
        self.tells = False
        self.on_lost: Callable[[WorkerHandle, list[InFlightTask]], object]
        self._state = state
        self._workers = state.workers
        self._placement = state.placement
        self._lending = state.lending
        self._calls = state.calls
        self._room = threading.Condition(self._workers.lock)
        self._is_waiting = False
        self._refill = 0
        self._job = 0
        self.thread = threading.Thread(target=self._run, name="shmarray-feeder", daemon=True)

    def _run(self) -> None:
        self._lending.prefer()  # the arrays that the user's generators make
        try:
            self._feed_all()
        except BaseException as error:  # noqa: BLE001 - an error of our own: nothing may wait for this thread
            self._state.fail_for_good(error)
        self.is_done = True
        self._state.waker.wake()

    def _feed_all(self) -> None:
        while True:
            item = self._state.tasks.get()
            if item is None:
                # The tasks of a call that is registered may come a moment after the pool was closed.
                if self._state.is_terminated or not self._calls:
                    break
                continue
            sequence, set_length = item
            try:
                self._feed(sequence, set_length)
            except _Terminated:
                break
            except BaseException as error:  # noqa: BLE001 - such as MemoryError: without this thread all calls hang
                self._state.fail_all(error)
            item = sequence = set_length = None  # otherwise they would live until the next call

    def _feed(self, sequence: Any, set_length: Callable[[int], None] | None) -> None:
        # A single call is a list of one task; the tasks of a map come from a generator.
        first, tasks = (None, _emptied(sequence)) if type(sequence) is list else (0, iter(sequence))
        job = None
        index = -1
        cache = FunctionCache()
        while held := list(islice(tasks, 1)):  # a for loop would keep a reference to the task
            job, index = held[0][:2]
            if self._state.is_terminated:
                raise _Terminated
            if len(held[0]) == _PACKED:
                self._feed_packed(held.pop()[2])
            elif job in self._calls:  # otherwise it has already failed
                first = self._feed_task(held, first, cache)
        sequence = tasks = None  # the traceback of an error also refers to this frame
        if set_length is not None and (job is None or job in self._calls):
            set_length(index + 1)
        if job is not None:
            self._lending.exhausted(job)

    def _feed_task(self, held: list[Any], first: int | None, cache: FunctionCache) -> int | None:
        """Send a task whose first item has the given number; return the number for the next task.

        The task is taken out of `held`: arrays that are given away with it nothing else may hold.
        """
        job, index = held[0][:2]
        extra = held[0][5] if len(held[0]) > 5 else NO_EXTRA  # its owner lives until the task is packed
        self._job = job
        if self._calls.can_be_cancelled and not self._may_begin(job, kind_of(users_function(*held[0][2:4]))):
            return first
        try:
            flight, pickled, first = self._pickled(held, extra, first, cache)
            self._place(flight, pickled)
        except _Terminated:
            raise
        except _CallFailed:
            pass
        except BaseException as error:  # noqa: BLE001 - user code: __reduce__ of an argument
            if self._state.is_terminated:  # so the blocks may be gone already, and no call has to be told
                raise _Terminated from None
            self._not_sent(job, index, error)
        return first

    def packed(self, held: list[Any]) -> InFlightTask | None:
        """Pack a task in the user's thread, at once; None if that failed, which its call is told."""
        job, index = held[0][:2]
        try:
            task, pickled, _ = self._pickled(held, held[0][5], None, FunctionCache())
            task.data = self._lending.pack(job, index, pickled, task.blocks, task.group)
        except BaseException as error:  # noqa: BLE001 - user code: __reduce__ of an argument
            self._not_sent(job, index, error)
            return None
        return task

    def _feed_packed(self, task: InFlightTask) -> None:
        self._job = task.job
        if task.job not in self._calls:
            self._lending.lost(task.blocks, ran=False)
            return
        with suppress(_CallFailed):
            self._send(task, self._placement.depth(task.kind, self._lending.result_bytes))

    def _not_sent(self, job: int, index: int, error: BaseException) -> None:
        # They hold the arguments, and the call holds the error: in a cycle, once that was raised.
        traceback.clear_frames(error.__traceback__)
        self._calls.not_sent(job, index, error)

    def _may_begin(self, job: int, kind: int) -> bool:
        """Wait until a worker can take a call; False if it was cancelled or has failed by then."""
        try:
            self._wait(self._placement.depth(kind, self._lending.result_bytes))
        except _CallFailed:
            return False
        if self._calls.begin(job):
            return True
        self._state.waker.wake()  # it may have been the last
        return False

    def _pickled(
        self, held: list[Any], extra: Extra, first: int | None, cache: FunctionCache
    ) -> tuple[InFlightTask, PickledObject, int | None]:
        task = held.pop()
        job, index, func, args, kwargs = task[:5]
        call = compact(func, args, kwargs, cache)
        items = extra.items
        if first is not None:
            items = range(first, first + (call.items or 1))
            first = items.stop
        flight = InFlightTask(job, index, call.func, items, job if extra.group is None else extra.group)
        return flight, dumps(call.compact, extra.arrays, forked=self._workers.forks), first

    def _place(self, task: InFlightTask, pickled: PickledObject) -> None:
        """Pack a task and send it to the least busy worker, waiting until one has room."""
        depth = self._placement.depth(task.kind, pickled.nbytes + self._lending.result_bytes)
        if pickled.buffers:
            self._wait(depth)  # before it takes memory
        task.data = self._lending.pack(task.job, task.index, pickled, task.blocks, task.group)
        self._send(task, depth)

    def _send(self, task: InFlightTask, depth: int) -> None:
        """Send a packed task; if it need not be sent any more, its blocks are given back."""
        try:
            while True:
                with self._workers.lock:
                    worker = self._placement.find(depth) or self._wait(depth)
                    task.is_long = worker.channel.is_long(task.data)
                    if task.is_long:
                        worker = self._placement.find(1) or self._wait(1)
                        task.is_being_sent = True
                        worker.add(task)
                        self._given(worker)
                    elif self._workers.give(worker, task):
                        self._given(worker)
                        return
                if task.is_long and self.send_long(worker, task):
                    return
        except (_Terminated, _CallFailed):
            self._lending.lost(task.blocks, ran=False)
            raise

    def _given(self, worker: WorkerHandle) -> None:
        self._placement.given(worker)
        if self.tells and len(worker.in_flight) <= 1:
            self._state.waker.wake()

    def send_long(self, worker: WorkerHandle, task: InFlightTask) -> bool:
        """Send a message that the worker reads meanwhile; False if it did not get all of it, and so did not run it."""
        try:
            worker.channel.send(task.data)
            sent = True
        except OSError:
            sent = False
        with self._workers.lock:
            worker.since = time.monotonic()
            task.is_being_sent = False
            if worker.is_alive and not sent:
                worker.in_flight.remove(task)
                worker.kill()  # it has a partial message, and would wait for the rest
            # It may as well have answered, and ended after its last task.
            died_meanwhile = not worker.is_alive and task in worker.in_flight
        if self.tells:
            self._state.waker.wake()
        if sent and died_meanwhile:  # after the last byte; the collecting thread left this task to us
            sent = self._lending.has_begun(task.blocks)
            if sent:
                self.on_lost(worker, [task])
        return sent

    def _wait(self, depth: int) -> WorkerHandle:
        with self._workers.lock:
            self._refill = depth // 2  # not at each answer: waking a thread costs as much as a small task
            while True:
                if self._state.is_terminated:
                    raise _Terminated
                if self._job not in self._calls:
                    raise _CallFailed
                worker = self._placement.find(depth)
                if worker is not None:
                    return worker
                if not self._is_waiting:
                    # An answer after this line notifies this thread; earlier ones are seen by checking again.
                    self._is_waiting = True
                    self._workers.fence()
                    continue
                if not self._workers.is_willing:
                    self._workers.is_willing = True  # after a time of dying at start: try again for this call
                    self._state.waker.wake()
                self._room.wait()

    def answered(self, worker: WorkerHandle) -> None:
        """Note that a worker has one task less; called in the collecting thread, without the lock."""
        if self._is_waiting and len(worker.in_flight) <= self._refill:
            self.notify()

    def notify(self) -> None:
        """Make the thread look for a worker again."""
        with self._workers.lock:
            self._is_waiting = False
            self._room.notify_all()

    @property
    def is_waiting(self) -> bool:
        """Whether the thread has a task for which no worker has room."""
        return self._is_waiting


def _emptied(tasks: list[Any]) -> Iterator[Any]:
    """The tasks of a list, removed from it because others still refer to it and must not hold their arrays."""
    while tasks:
        yield tasks.pop(0)
