"""The thread that collects answers and notices deaths.

It replaces workers that have ended, moves unread tasks from busy workers to idle ones, ends
workers whose task takes too long, and releases memory that was not used for a second.  It waits
for all of these events in one selector, whose timeout is the earliest deadline.
"""

import selectors
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from shmarray.core.posix import PacketSpace
from shmarray.errors import WorkerDiedError
from shmarray.pool._stdlib import CLOSE, RUN, TERMINATE
from shmarray.pool.arrays import messages
from shmarray.pool.engine import exit_status
from shmarray.pool.engine.channel import PACKET
from shmarray.pool.engine.feeder import Feeder
from shmarray.pool.engine.state import PoolState
from shmarray.pool.engine.tasks import InFlightTask, died, timed_out
from shmarray.pool.engine.workers import WorkerHandle

# Seconds that a worker may be idle while another has unread tasks: tiny tasks reach it anyway in
# that time, and moving them costs more than they do
# (benchmarks/constants.py: _BALANCING).
_BALANCING = 0.002
# Seconds; selectors accept no more than some weeks.
_LONGEST_WAIT = 3600.0
# Answers that are read from one worker before the others are checked.
_MOST_ANSWERS = 64
# Answers that are received with one system call (benchmarks/constants.py: _MOST_AT_ONCE).
_MOST_AT_ONCE = 16


class Collector:
    """Collects answers.

    Parameters
    ----------
    state : PoolState
    feeder : Feeder
    task_timeout : float or None
        Seconds that each item of a task may take.
    end : callable
        Called at the end of the thread, to free everything.
    """

    def __init__(self, state: PoolState, feeder: Feeder, task_timeout: float | None, end: Callable[[], object]) -> None:
        self._state = state
        self._workers = state.workers
        self._placement = state.placement
        self._lending = state.lending
        self._calls = state.calls
        self._waker = state.waker
        self._feeder = feeder
        self._end = end
        feeder.on_lost = self._lost
        if state.lending.allocator is not None:
            state.lending.allocator.wake = self._trim_soon
        self._task_timeout = task_timeout
        feeder.tells = task_timeout is not None  # its time begins
        self._space = PacketSpace(PACKET, _MOST_AT_ONCE)
        # Tasks that must be sent again: taken back, or not begun by a worker that died.
        self._returned: deque[InFlightTask] = deque()
        # When to do these things, by the monotonic clock; infinity means never.
        self._balance_at = float("inf")
        self._trim_at = 0.0
        # Whether the ends of some workers may be hidden, and when they were last asked for.
        self._must_look = False
        self._looked_at = 0.0
        self._spawning = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._waker, selectors.EVENT_READ)
        self.thread = threading.Thread(target=self._run, name="shmarray-collector", daemon=True)

    def _run(self) -> None:
        try:
            while not self._is_over():
                for key, _ in self._selector.select(self._patience()):
                    (key.data or self._waker.clear)()
                self._send_returned()
                self._spawn_if_needed()
                self._do_what_is_due()
        except BaseException as error:  # noqa: BLE001 - an error of our own: nothing may wait for this thread
            self._state.fail_for_good(error)
        finally:
            self._end()

    def no_more_workers(self) -> None:
        """Wait for the start of a worker in another thread; after this none starts any."""
        with self._spawning:
            pass

    def close(self) -> None:
        """Free the thread's resources; no worker is left."""
        self._returned.clear()
        self._selector.close()
        self._waker.close()

    def _is_over(self) -> bool:
        state = self._state.phase
        if state == TERMINATE:
            return True
        if state == RUN or self._has_work():
            if state == CLOSE and not self._calls:
                self._state.tasks.put(None)  # the feeder went on, for a call that was made while the pool was closed
            return False
        self._workers.close_inputs()
        return not self._workers.workers

    def _has_work(self) -> bool:
        return not self._feeder.is_done or bool(self._calls)

    # --- times ---

    def _patience(self) -> float | None:
        due = min(self._balance_at, self._trim_at, self._next_look(), self._next_timeout())
        return None if due == float("inf") else min(max(0.0, due - time.monotonic()), _LONGEST_WAIT)

    def _do_what_is_due(self) -> None:
        now = time.monotonic()
        if now >= self._balance_at:
            self._balance()
            self._send_returned()
        if now >= self._next_look():
            self._look_for_deaths()
        if now >= self._trim_at and self._lending.allocator is not None:
            self._trim_at = float("inf")  # before, as another thread may set it meanwhile
            patience = self._lending.trim()
            if patience is not None:
                self._trim_at = now + patience
        if self._task_timeout is not None and now >= self._next_timeout():
            self._end_slow_workers(now)

    def _trim_soon(self) -> None:
        """Note that memory was released; any thread may call this, including finalizers."""
        self._trim_at = 0.0
        self._waker.wake()

    def _next_timeout(self) -> float:
        if self._task_timeout is None:
            return float("inf")
        return min((self._deadline(worker) for worker in self._workers.workers), default=float("inf"))

    def _deadline(self, worker: WorkerHandle) -> float:
        first = worker.first
        if not worker.is_ready or worker.timeout is not None or first is None or first.is_being_sent:
            return float("inf")  # the time of a task begins when the worker has all of it
        return worker.since + self._limit(first)

    def _limit(self, task: InFlightTask) -> float:
        assert self._task_timeout is not None  # noqa: S101
        return self._task_timeout * (len(task.items) if task.items else 1)

    def _end_slow_workers(self, now: float) -> None:
        for worker in list(self._workers.workers):
            if now < self._deadline(worker) or worker.end is None:
                continue
            # Stopped, it does not begin with its next task while its last answer is looked for.
            worker.end.signal(signal.SIGSTOP)
            task = worker.first
            self._drain(worker, len(worker.in_flight))
            if task is not None and worker.first is task:
                worker.timeout = self._limit(task)
                worker.end.signal(signal.SIGKILL)
            else:
                worker.end.signal(signal.SIGCONT)

    # --- answers ---

    def _drain(self, worker: WorkerHandle, most: int = _MOST_ANSWERS) -> None:
        for arrived in worker.channel.arrived(self._space):
            self._answered(worker, list(map(messages.decode, arrived)))
            most -= len(arrived)
            if most <= 0:
                break
        if not worker.in_flight and self._balance_at == float("inf") and not self._feeder.is_waiting:
            self._balance_at = time.monotonic() + _BALANCING

    def _answered(self, worker: WorkerHandle, answers: list[messages.Message]) -> None:
        if answers and answers[0].job == messages.READY:
            self._is_ready(worker, answers.pop(0))
        tasks = [self._removed(worker, answer) for answer in answers]
        if not tasks:
            return
        worker.is_full = False
        worker.since = time.monotonic()
        self._workers.fence()
        self._placement.offer(worker)
        self._feeder.answered(worker)
        for task, answer in zip(tasks, answers, strict=True):
            outcome = self._lending.unpack(task.blocks, answer, worker.retained)
            self._calls.set_result(task.job, task.index, outcome)

    def _removed(self, worker: WorkerHandle, answer: messages.Message) -> InFlightTask:
        """The task that was answered, which is not in flight any more."""
        # Without the lock, because of contention: only this thread removes answered tasks, and
        # the feeder checks again after it has announced that it waits.
        task = worker.in_flight.popleft()
        if task.index != answer.index or task.job != answer.job:
            raise RuntimeError(f"worker {worker.pid} answered another task than the first that it has")
        self._placement.answered(task.kind, answer.seconds)
        return task

    def _is_ready(self, worker: WorkerHandle, message: messages.Message) -> None:
        if message.index:
            worker.trouble = bytes(message.payload.pickled).decode()
            return
        self._workers.became_ready(worker)
        self._placement.offer(worker)
        self._feeder.notify()

    # --- taking back ---

    def _balance(self) -> None:
        """Move unread tasks from busy workers to idle ones."""
        self._balance_at = float("inf")
        with self._workers.lock:
            for idle in self._workers.workers:
                if not idle.in_flight and self._workers.may_have_more(idle):
                    self._returned.extend(self._workers.take_back_from_busiest(idle))

    def _send_returned(self) -> None:
        if not self._returned:
            return
        with self._workers.lock:
            for _ in range(len(self._returned)):
                task = self._returned.popleft()
                if task.job not in self._calls:
                    self._lending.lost(task.blocks, ran=False)
                elif not self._send_again(task):
                    self._returned.append(task)

    def _send_again(self, task: InFlightTask) -> bool:
        workers = [worker for worker in self._workers.workers if self._workers.may_have_more(worker)]
        worker = min(workers, key=lambda worker: len(worker.in_flight), default=None)
        if worker is None or (task.is_long and worker.in_flight):
            return False
        if task.is_long:
            self._send_long_again(worker, task)
            return True
        return self._workers.give(worker, task)

    def _send_long_again(self, worker: WorkerHandle, task: InFlightTask) -> None:
        """In a separate thread, because this one must not wait for a worker to read."""

        def send() -> None:
            if not self._feeder.send_long(worker, task):
                self._returned.append(task)
                self._waker.wake()

        task.is_being_sent = True
        worker.add(task)
        try:
            threading.Thread(target=send, name="shmarray-sender", daemon=True).start()
        except RuntimeError:  # no new threads, as during interpreter exit
            send()

    # --- deaths ---

    def _next_look(self) -> float:
        if not (self._must_look and any(worker.in_flight or not worker.is_ready for worker in self._workers.workers)):
            return float("inf")
        return self._looked_at + exit_status.LOOK

    def _look_for_deaths(self) -> None:
        """Poll for deaths that are not visible without pidfds while a task's child still runs."""
        self._looked_at = time.monotonic()
        watched = self._selector.get_map()  # not yet one that another thread is starting
        for worker in list(self._workers.workers):
            if worker.channel in watched and worker.end and worker.end.may_be_hidden and worker.end.has_ended():
                self._died(worker)

    def _died(self, worker: WorkerHandle) -> None:
        self._drain(worker, 1 << 30)
        has_quota = self._workers.has_quota(worker)
        with self._workers.lock:
            self._selector.unregister(worker.channel)
            if worker.end is not None:
                self._selector.unregister(worker.end.fd)
            self._returned.extend(self._workers.remove_worker(worker))
            self._placement.forget(worker)
            left = [task for task in worker.in_flight if not task.is_being_sent]
            lost = [task for task in left if self._lending.has_begun(task.blocks)]
            self._returned.extend(task for task in left if task not in lost)
        self._state.registry.remove(worker.process)
        if self._state.phase == TERMINATE:
            return
        ended_well = (has_quota and not worker.in_flight) or (self._state.phase == CLOSE and not self._has_work())
        if not (self._state.replaces_workers or worker.timeout is not None or ended_well):
            self._break(worker, lost)
        else:
            self._lost(worker, lost)
            if not ended_well and self._workers.has_failed_to_start(worker):
                self._state.fail_all(worker.start_error())
        self._feeder.notify()

    def _lost(self, worker: WorkerHandle, tasks: list[InFlightTask]) -> None:
        """Fail the tasks that a worker was running when it ended."""
        forked = self._lending.worker_removed(worker.retained, [task.blocks for task in tasks])
        code = exit_status.exit_code(worker.process) if tasks else None
        for task in tasks:
            self._lending.lost(task.blocks, ran=True, forked=forked)
            error: Exception
            if worker.timeout is not None:
                error = timed_out(task, worker.timeout, worker.pid)
            else:
                error = died(task, exit_status.description(code), worker.pid, code)
            self._calls.fail(task.job, task.index, error)

    def _break(self, worker: WorkerHandle, lost: list[InFlightTask]) -> None:
        """End the whole pool because of the death of one worker, as executors do."""
        if not worker.is_ready:
            error = worker.start_error()
        else:
            code = exit_status.exit_code(worker.process)
            what = lost[0].description() if lost else "no task"
            how = exit_status.description(code)
            message = f"worker {worker.pid} {how} while it ran {what}; the executor is broken"
            error = WorkerDiedError(message, worker.pid, code, what if lost else "", lost[0].items if lost else None)
        self._state.fail_for_good(error)

    # --- starting ---

    def _spawn_if_needed(self) -> None:
        if self._returned and not self._workers.workers:
            self._workers.is_willing = True
        state = self._state.phase
        if state == RUN or (state == CLOSE and self._has_work()):
            try:
                self.spawn_missing(waits=False)
            except Exception as error:  # noqa: BLE001 - also user code: initargs that do not pickle any more
                if self._workers.could_not_start():
                    self._no_worker_started(error)
                elif not self._workers.workers:
                    self._waker.wake()  # there is nothing else that would wake this thread to try again

    def _no_worker_started(self, cause: Exception) -> None:
        """Continue with the existing workers; if there are none, all calls fail."""
        if not self._workers.workers:
            error = WorkerDiedError(f"no worker could be started: {type(cause).__name__}: {cause}")
            error.__cause__ = cause
            self._state.fail_all(error)
            self._feeder.notify()

    def spawn_missing(self, *, waits: bool = True) -> None:
        """Start missing workers; `submit` may also call this.

        If another thread is doing that, wait for it, or leave it to that thread, which wakes this one.
        """
        if not self._spawning.acquire(blocking=waits):
            return
        try:
            if self._state.phase == TERMINATE:
                return
            for worker in self._workers.spawn_missing():
                assert worker.end is not None  # noqa: S101 - it was started
                if worker.end.may_be_hidden:
                    self._must_look = self._feeder.tells = True
                self._selector.register(worker.channel, selectors.EVENT_READ, partial(self._drain, worker))
                self._selector.register(worker.end.fd, selectors.EVENT_READ, partial(self._died, worker))
                self._placement.offer(worker)
                if self._state.phase == TERMINATE:
                    break
        finally:
            self._spawning.release()
            if threading.get_ident() != self.thread.ident:
                self._waker.wake()  # also because a selector that is no epoll or kqueue waits for what it had before
