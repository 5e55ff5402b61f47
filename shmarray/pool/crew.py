"""The workers of a Pool: started, given tasks, taken tasks back from, buried."""

import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

from shmarray.core.posix import send_packet
from shmarray.errors import WorkerDiedError
from shmarray.pool import forks, interrupts, link
from shmarray.pool.arena import Arena
from shmarray.pool.link import Receiver
from shmarray.pool.obituary import exit_code, how_it_ended, watch
from shmarray.pool.serve import Descriptor, Start, serve
from shmarray.pool.traffic import Keeper, Trip

# So many more than there are workers may die before they are ready, one after the other.
_TRIES = 3


class Hand:
    """A worker, as its caller sees it.

    Attributes
    ----------
    flight : deque of Trip
        What was sent to it and is not answered; it is running the first, or is about to.
    sock, far : socket
        Both ends of its channel: through the far one its unread tasks are taken back.
    watch : int
        A descriptor that is readable when it is dead.
    complaint : str
        Why it could not start, if it could say.
    """

    def __init__(self, process: Any, sock: socket.socket, far: socket.socket, life: int) -> None:
        self.process = process
        self.sock = sock
        self.far = far
        self.life = life
        self.watch = -1
        self.receiver = Receiver(sock)
        self.flight: deque[Trip] = deque()
        self.keeper = Keeper()
        self.sent = 0
        self.is_alive = True
        self.is_ready = False
        self.is_full = False
        self.complaint = ""

    def take(self, trip: Trip) -> None:
        self.flight.append(trip)
        self.sent += 1

    def obituary(self, task: str, *, at_start: bool = False) -> WorkerDiedError:
        """The error for the call whose task it was running, or for all if workers cannot start."""
        code = exit_code(self.process)
        message = f"worker {self.process.pid} {how_it_ended(code)} while it ran {task}"
        if at_start:
            message = f"workers die as soon as they start; the last, {self.process.pid}, {how_it_ended(code)}"
        if self.complaint:
            message += f'\n"""\n{self.complaint}"""'
        return WorkerDiedError(message, self.process.pid, code, task)


class Crew:
    """All workers of a Pool.

    Parameters
    ----------
    make : callable
        Makes a process that is not started, from `target` and `args`.
    context : multiprocessing context
    processes : list
        Where the processes are shown; its length is the number of workers, always.
    arguments : tuple
        Initializer, its arguments, and how many tasks a worker runs at most.
    arena : Arena or None
    """

    def __init__(
        self,
        make: Callable[..., Any],
        context: Any,
        size: int,
        processes: list[Any],
        arguments: tuple[Any, ...],
        arena: Arena | None,
    ) -> None:
        self.lock = threading.RLock()
        self.hands: list[Hand] = []
        # Whether dead workers are replaced.
        self.is_willing = True
        self._make = make
        self._context = context
        self._size = size
        self._processes = processes
        self._arguments = arguments
        self._most: int | None = arguments[2]
        self._arena = arena
        self._lives = forks.Descriptors()
        self._failures = 0
        forks.register(self)

    # --- starting ---

    def man(self) -> Iterator[Hand]:
        """Start the workers that are missing."""
        while len(self.hands) < self._size and self.is_willing:
            yield self._start()

    def _start(self) -> Hand:
        # Under the lock of forks, so that no other thread's child inherits the ends meant
        # for this worker; it closes its copies of all the others (after_fork_in_child).
        with interrupts.deferred(), forks.lock, ExitStack() as lent, ExitStack() as kept:
            sock, far = map(kept.enter_context, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            reader, writer = self._lives.pipe()
            lent.callback(os.close, reader)
            kept.callback(self._lives.close, writer)
            channel = Descriptor.copy_of(far.fileno(), lent)
            start = Start(Descriptor(reader), self._arena, lent)
            hand = Hand(self._make(target=serve, args=(channel, start, *self._arguments)), sock, far, writer)
            try:
                with self.lock:
                    self.hands.append(hand)
                hand.process.name = hand.process.name.replace("Process", "PoolWorker")
                hand.process.daemon = True
                with interrupts.blocked_in_children(self._context), interrupts.silent(hand.process):
                    hand.process.start()
                forks.own([hand.process])
                hand.watch = watch(hand.process)
            except BaseException:
                self._close(hand)
                raise
            kept.pop_all()
        self._show(hand)
        return hand

    def _show(self, hand: Hand) -> None:
        # In the place of a dead one: who divides by the length of the list must not see it empty.
        shown = [other.process for other in self.hands]
        for place, process in enumerate(self._processes):
            if process not in shown:
                self._processes[place] = hand.process
                return
        self._processes.append(hand.process)

    def became_ready(self, hand: Hand) -> None:
        hand.is_ready = True
        self._failures = 0

    def is_dying_out(self, hand: Hand) -> bool:
        """Whether, with this one, too many workers have died before they were ready; then no more are started."""
        return not hand.is_ready and self.could_not_start()

    def could_not_start(self) -> bool:
        self._failures += 1
        if self._failures < self._size + _TRIES:
            return False
        self._failures = 0
        self.is_willing = False
        return True

    # --- tasks; under the lock ---

    def idlest(self, depth: int | None) -> Hand | None:
        """The worker with least to do that may be given a task, and has fewer than `depth`."""
        best = None
        least = sys.maxsize if depth is None else depth
        for hand in self.hands:
            load = len(hand.flight)
            if load < least and self.may_have_more(hand):
                best = hand
                least = load
                if not load:
                    break
        return best

    def may_have_more(self, hand: Hand) -> bool:
        return (
            hand.is_alive
            and not hand.is_full
            and (self._most is None or hand.sent < self._most)
            and not (hand.flight and hand.flight[-1].is_long)
        )

    def give(self, hand: Hand, trip: Trip, data: bytes) -> bool:
        """Send a short task, if there is room for it now."""
        trip.data = data
        hand.take(trip)  # first: the answer may be there before send returns
        if send_packet(hand.sock.fileno(), data):
            return True
        hand.flight.pop()
        hand.sent -= 1
        hand.is_full = bool(hand.flight)
        return False

    def take_back_from_busiest(self, idle: Hand) -> list[tuple[Trip, bytes]]:
        """Half of what the worker with most to do has not read yet."""
        busiest = max(self.hands, key=lambda hand: len(hand.flight))
        if busiest is idle or len(busiest.flight) < 2:
            return []
        return self._take_back(busiest, len(busiest.flight) // 2)

    def _take_back(self, hand: Hand, most: int) -> list[tuple[Trip, bytes]]:
        if hand.flight and hand.flight[0].is_long:
            return []
        taken = []
        for _ in range(most):
            try:
                data = hand.far.recv(link.PACKET, socket.MSG_DONTWAIT)
            except OSError:
                break
            if not data:
                break
            taken.append(data)
        trips = {trip.key: trip for trip in hand.flight}
        back = [(trips.pop(link.key(data)), data) for data in taken]
        hand.flight = deque(trips.values())
        hand.sent -= len(back)
        return back

    # --- the end ---

    def bury(self, hand: Hand) -> list[tuple[Trip, bytes]]:
        """Forget a dead worker; returns what it had not read.  In its flight stays what it was running."""
        hand.is_alive = False
        back = self._take_back(hand, len(hand.flight))
        hand.process.join()
        self._close(hand)
        return back

    def _close(self, hand: Hand) -> None:
        if hand in self.hands:
            self.hands.remove(hand)
        hand.is_alive = False
        with suppress(OSError):
            hand.sock.shutdown(socket.SHUT_RDWR)  # wakes who waits to send
        hand.sock.close()
        hand.far.close()
        self._lives.close(hand.life)
        if hand.watch >= 0 and hand.watch != getattr(hand.process, "sentinel", None):
            os.close(hand.watch)

    def dismiss(self) -> None:
        """Let the workers end when they have done what they have."""
        for hand in self.hands:
            with suppress(OSError):
                hand.sock.shutdown(socket.SHUT_WR)

    def kill(self, grace: float) -> None:
        """End all workers: by SIGTERM, and after `grace` seconds by SIGKILL."""
        for hand in self.hands:
            with suppress(OSError):
                hand.process.terminate()
        deadline = time.monotonic() + grace
        for hand in tuple(self.hands):
            hand.process.join(max(0.0, deadline - time.monotonic()))
            if hand.process.exitcode is None:
                hand.process.kill()
                hand.process.join()
            with self.lock:
                self._close(hand)
        self._processes.clear()  # they have descriptors

    # --- forks ---

    def before_fork(self) -> None:
        pass

    def after_fork_in_child(self) -> None:
        for hand in self.hands:
            hand.sock.close()
            hand.far.close()
