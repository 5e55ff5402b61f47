"""The engine of Pool: one thread that feeds the workers, one that collects, and deaths.

Each worker has a pair of sockets of its own, and there is no lock between workers: one that
is killed, at any moment, holds up nobody.  The caller keeps the far end of every pair too,
so it can take back what a worker has not read.  What a dead worker was running is what was
sent to it, not answered and not taken back: one task at most.

::

    Pool.map -> tasks -> feeder -> socket -> worker -> socket -> collector -> ApplyResult
                           |                                        |
                           +--- boxes of the arena, lent ---- and taken back
"""

import os
import selectors
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from queue import SimpleQueue
from typing import Any

from shmarray.core.posix import PacketSpace
from shmarray.errors import SharedMemoryFullError, WorkerDiedError
from shmarray.pool import interrupts, link, parcel
from shmarray.pool.arena import Arena
from shmarray.pool.calls import Functions, shortened
from shmarray.pool.crew import Crew, Hand
from shmarray.pool.stdlib import CLOSE, RUN, TERMINATE, MapResult
from shmarray.pool.traffic import Traffic, Trip

# Seconds that a worker has to end after SIGTERM, and a generator of the user's to give up its thread.
_GRACE = 1.0
# Seconds that a worker may be idle while another has tasks it has not read: tiny tasks come
# to it by themselves in that time, and moving them costs more than they do
# (benchmarks/constants.py: _SHARING).
_SHARING = 0.002


class Engine:
    """Runs the tasks that a Pool's front half puts into `tasks`, and tells the results to `calls`.

    Parameters
    ----------
    crew : Crew
        The workers; not started yet.
    calls : dict
        The calls that are not done yet, by number.
    ahead : int
        How many tasks with arrays each worker may have at a time.

    Notes
    -----
    `lock` guards the crew's lists of what each worker has.  Whoever holds it runs no code
    of the user's.
    """

    def __init__(self, crew: Crew, calls: dict[int, Any], arena: Arena | None, ahead: int) -> None:
        self.state = RUN
        self.tasks: SimpleQueue[Any] = SimpleQueue()
        self._crew = crew
        self._calls = calls
        self._arena = arena
        self._lock = crew.lock
        self._room = threading.Condition(self._lock)
        self._traffic = Traffic(arena, ahead)
        self._back: deque[tuple[Trip, bytes]] = deque()
        self._fed = False
        self._refill = 0
        self._is_waiting = False
        # When to look whether tasks should go from a busy worker to an idle one; 0: no need.
        self._share_at = 0.0
        self._selector = selectors.DefaultSelector()
        self._space = PacketSpace(link.PACKET)
        self._waker = _Waker()
        self._selector.register(self._waker, selectors.EVENT_READ)
        self._feeder = threading.Thread(target=self._feed, name="shmarray-feeder", daemon=True)
        self._collector = threading.Thread(target=self._collect, name="shmarray-collector", daemon=True)

    def start(self) -> None:
        """Start the workers and the threads; whatever starting a process raises, with nothing left."""
        try:
            with interrupts.deferred():
                self._man()
                self._collector.start()
                self._feeder.start()
        except BaseException:  # Ctrl-C too: there is no pool yet that one could terminate
            if self._collector.ident is not None:
                self.terminate()
            else:
                self.state = TERMINATE
                self._end()
            raise

    def wake(self) -> None:
        self._waker.wake()

    def put(self, _: None) -> None:
        """As the notifier that the stdlib's dictionary of calls has: it is empty now."""
        self.wake()

    def close(self) -> None:
        """Let the workers finish and end; no tasks come any more."""
        self.state = CLOSE
        self.tasks.put(None)
        self.wake()

    def terminate(self) -> None:
        """End the workers now, whatever they do, and free everything.

        Also called by the garbage collector, in any thread: in one of ours, the collecting
        thread does the rest on its own.
        """
        self.begin_to_terminate()
        self.join(_GRACE)

    def begin_to_terminate(self) -> None:
        """Have the collecting thread end everything, without waiting for it."""
        self.state = TERMINATE
        self.tasks.put(None)
        self.wake()

    def join(self, patience: float | None = None) -> None:
        """Wait for the end; for the user's generators only so many seconds."""
        if threading.get_ident() in {self._feeder.ident, self._collector.ident}:
            return
        if self._collector.ident is not None:
            self._collector.join()
        if self._feeder.ident is not None:
            self._feeder.join(patience)

    # --- feeding ---

    def _feed(self) -> None:
        """Iterate over the calls' tasks (the user's generators run here) and send them."""
        for sequence, set_length in iter(self.tasks.get, None):
            try:
                if not self._feed_call(sequence, set_length):
                    break
            except BaseException as error:  # noqa: BLE001 - such as MemoryError: without this thread all calls hang
                self._fail_all(error)
            sequence = set_length = None  # noqa: PLW2901 - or they would live until the next call
        self._fed = True
        self.wake()

    def _feed_call(self, sequence: Any, set_length: Callable[[int], None] | None) -> bool:
        task = None
        index = -1
        job = None
        functions = Functions()
        for task in sequence:
            job, index = task[:2]
            if self.state == TERMINATE:
                return False
            if job in self._calls:  # else it has failed already
                try:
                    self._feed_task(task, functions)
                except _Terminated:
                    return False
        sequence = task = None  # the traceback of an error knows this frame, too
        if set_length is not None and (job is None or job in self._calls):
            set_length(index + 1)
        if job is not None:
            self._traffic.exhausted(job)
        return True

    def _feed_task(self, task: Any, functions: Functions) -> None:
        try:
            trip, data = self._pack(task, functions)
        except _Terminated:
            raise
        except BaseException as error:  # noqa: BLE001 - user code: __reduce__ of an argument
            if self.state == TERMINATE:  # so the boxes may be closed already: that is nobody's error
                raise _Terminated from None
            job, index = task[:2]
            task = None
            if isinstance(error, SharedMemoryFullError):
                traceback.clear_frames(error.__traceback__)  # they hold the arguments, and the call holds the error
            self._tell(job, index, (False, error))
        else:
            self._place(trip, data)

    def _pack(self, task: Any, functions: Functions) -> tuple[Trip, bytes]:
        job, index, func, args, kwargs = task[:5]
        short, func = shortened(func, args, kwargs, functions)
        bundle = parcel.take_apart(short, *task[5:])
        if bundle.pieces:
            ahead = self._traffic.ahead
            self._wait(lambda: self._crew.idlest(ahead), ahead)
        trip = Trip(job, index, func)
        return trip, link.encode(self._traffic.pack(bundle, trip))

    def _place(self, trip: Trip, data: bytes) -> None:
        """Send a task to the worker that has least to do, waiting until one has room."""
        long = link.is_long(data)
        depth = 1 if long else self._traffic.depth(trip)
        while True:
            with self._lock:
                hand = self._crew.idlest(depth) or self._wait(lambda: self._crew.idlest(depth), depth)
                if not long:
                    if self._crew.give(hand, trip, data):
                        return
                    hand.is_full = True
                    continue
                trip.is_long = trip.is_being_sent = True
                trip.data = data
                hand.take(trip)
            if self._send_long(hand, trip, data):
                return

    def _send_long(self, hand: Hand, trip: Trip, data: bytes) -> bool:
        """Send what the worker reads meanwhile; False if it has not got all of it, so that nobody has run it."""
        try:
            link.send(hand.sock, data)
            sent = True
        except OSError:
            sent = False
        with self._lock:
            trip.is_being_sent = False
            if hand.is_alive and not sent:
                hand.flight.remove(trip)
                hand.process.kill()  # it has half a message, and would wait for the rest
            died_meanwhile = not hand.is_alive
        if sent and died_meanwhile:  # after the last byte; who buried it left this to us
            sent = self._traffic.has_begun(trip)
            if sent:
                self._lost(hand, [trip])
        return sent

    def _wait(self, ready: Callable[[], Any], depth: int) -> Any:
        with self._lock:
            self._refill = depth // 2  # not at each answer: waking a thread costs as much as a small task
            while True:
                if self.state == TERMINATE:
                    raise _Terminated
                found = ready()
                if found:
                    return found
                if not self._is_waiting:
                    self._is_waiting = True
                    continue
                if not self._crew.is_willing:
                    self._crew.is_willing = True  # after a time of dying at start: try again for this call
                    self.wake()
                self._room.wait()

    # --- collecting ---

    def _collect(self) -> None:
        try:
            while not self._is_over():
                for key, _ in self._selector.select(self._patience()):
                    if key.data is not None:
                        key.data()
                    else:
                        self._waker.clear()
                self._send_again()
                self._man_if_needed()
                if self._share_at and time.monotonic() >= self._share_at:
                    self._share_out()
                self._send_again()
        except BaseException as error:
            self._fail_all(error)
            raise
        finally:
            self._end()

    def _patience(self) -> float | None:
        return max(0.0, self._share_at - time.monotonic()) if self._share_at else None

    def _is_over(self) -> bool:
        if self.state == TERMINATE:
            return True
        if self.state == RUN or not self._fed or self._calls:
            return False
        self._crew.dismiss()
        return not self._crew.hands

    def _drain(self, hand: Hand, most: int = 64) -> None:
        with suppress(OSError):  # it is dead, which its watch tells
            for data in islice(hand.receiver.arrived(self._space), most):
                self._answered(hand, link.decode(data))
        if not hand.flight and not self._share_at and self._is_rich():
            self._share_at = time.monotonic() + _SHARING

    def _answered(self, hand: Hand, message: link.Message) -> None:
        if (message.job, message.task) == (link.READY, 0):
            self._crew.became_ready(hand)
            return self._notify()
        if message.job == link.READY:
            hand.complaint = bytes(message.contents.pickled).decode()
            return None
        # Without the lock, for which one would wait half the time: only this thread takes
        # from a flight, and who waits for room looks once more after having said so.
        trip = hand.flight.popleft()
        hand.is_full = False
        if self._is_waiting and len(hand.flight) <= self._refill:
            self._notify()
        self._tell(trip.job, trip.index, self._traffic.unpack(trip, message, hand.keeper))
        return None

    def _tell(self, job: int, index: int, result: tuple[bool, Any]) -> None:
        call = self._calls.get(job)
        if call is None:
            return
        try:
            call._set(index, result)  # noqa: SLF001 - the seam
        except BaseException as error:  # noqa: BLE001 - a callback of the user's: it must not end this thread
            threading.excepthook(threading.ExceptHookArgs((type(error), error, error.__traceback__, None)))
            if self._calls.pop(job, None) is not None and hasattr(call, "_event"):
                call._event.set()  # noqa: SLF001
            self.wake()

    def _notify(self) -> None:
        with self._lock:
            self._is_waiting = False
            self._room.notify_all()

    # --- taking back ---

    def _is_rich(self) -> bool:
        return any(len(hand.flight) > 1 for hand in self._crew.hands)

    def _share_out(self) -> None:
        """Give idle workers some of what busy ones have not read yet."""
        self._share_at = 0.0
        with self._lock:
            for idle in self._crew.hands:
                if not idle.flight and self._crew.may_have_more(idle):
                    self._back.extend(self._crew.take_back_from_busiest(idle))

    def _send_again(self) -> None:
        if not self._back:
            return
        with self._lock:
            for _ in range(len(self._back)):
                trip, data = self._back.popleft()
                if trip.job not in self._calls:
                    self._traffic.lost(trip, ran=False)
                    continue
                hand = self._crew.idlest(1 if trip.is_long else None)
                if hand is not None and trip.is_long:
                    self._send_long_again(hand, trip, data)
                elif hand is None or not self._crew.give(hand, trip, data):
                    self._back.append((trip, data))

    def _send_long_again(self, hand: Hand, trip: Trip, data: bytes) -> None:
        """In a thread of its own: this one must not wait for a worker to read."""

        def send() -> None:
            if not self._send_long(hand, trip, data):
                self._back.append((trip, data))
                self.wake()

        trip.is_being_sent = True
        hand.take(trip)
        threading.Thread(target=send, name="shmarray-sender", daemon=True).start()

    # --- deaths ---

    def _died(self, hand: Hand) -> None:
        self._drain(hand, 1 << 30)
        with self._lock:
            self._selector.unregister(hand.sock)
            self._selector.unregister(hand.watch)
            self._back.extend(self._crew.bury(hand))
            lost = [trip for trip in hand.flight if not trip.is_being_sent]
            taken = [trip for trip in lost if trip.data and not self._traffic.has_begun(trip)]
            self._back.extend((trip, trip.data) for trip in taken)
        if self.state == TERMINATE:
            return
        self._lost(hand, [trip for trip in lost if trip not in taken])
        if self._crew.is_dying_out(hand):
            self._fail_all(hand.obituary("", at_start=True))
        self._notify()

    def _lost(self, hand: Hand, trips: list[Trip]) -> None:
        forked = self._traffic.bury(hand.keeper, trips)
        for trip in trips:
            error = hand.obituary(f"task {trip.index} of call {trip.job}, {trip.function}")
            self._traffic.lost(trip, ran=True, forked=forked)
            self._tell_now(trip.job, trip.index, error)

    def _fail_all(self, error: BaseException) -> None:
        call: Any
        for job, call in tuple(self._calls.items()):
            self._tell_now(job, getattr(call, "_index", 0), error)
            if job in self._calls:  # an iterator: it ends after the error
                with suppress(KeyError):
                    call._set_length(call._index)  # noqa: SLF001

    def _tell_now(self, job: int, index: int, error: BaseException) -> None:
        """Fail a call at once; a map would else wait until its other tasks are done."""
        call = self._calls.get(job)
        if isinstance(call, MapResult):
            call._number_left = 1  # noqa: SLF001
        self._tell(job, index, (False, error))

    def _man_if_needed(self) -> None:
        if self._back and not self._crew.hands:
            self._crew.is_willing = True
        if self.state == RUN or (self.state == CLOSE and (self._calls or not self._fed)):
            try:
                self._man()
            except (OSError, RuntimeError) as error:
                if self._crew.could_not_start():
                    self._fail_all(WorkerDiedError(f"no worker could be started: {error}"))

    def _man(self) -> None:
        """Start what workers are missing."""
        for hand in self._crew.man():
            self._selector.register(hand.sock, selectors.EVENT_READ, lambda hand=hand: self._drain(hand))
            self._selector.register(hand.watch, selectors.EVENT_READ, lambda hand=hand: self._died(hand))

    # --- the end ---

    def _end(self) -> None:
        self._notify()
        self._crew.kill(_GRACE)
        self._selector.close()
        self._waker.close()
        if self._arena is not None:
            self._arena.close()


class _Terminated(Exception):  # noqa: N818 - no error: it ends the feeder's waiting
    """The pool is being terminated."""


class _Waker:
    """Interrupts the collecting thread's waiting."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._lock = threading.RLock()

    def fileno(self) -> int:
        return self._reader

    def wake(self) -> None:
        with self._lock, suppress(BlockingIOError):
            if self._writer >= 0:
                os.write(self._writer, b"x")

    def clear(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._reader, 4096)

    def close(self) -> None:
        with self._lock:
            if self._writer >= 0:
                os.close(self._reader)
                os.close(self._writer)
                self._writer = -1
