"""The workers of a pool: start them, send them tasks, take tasks back, replace and end them."""

import errno
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any, Protocol

from shmarray.errors import WorkerDiedError
from shmarray.pool import forks, main_module
from shmarray.pool._stdlib import close_pipes_of_failed_fork, disown, is_importing_main
from shmarray.pool.arrays import BlockAllocator, RetainedBlocks, messages
from shmarray.pool.engine import exit_status, signals
from shmarray.pool.engine.channel import Channel
from shmarray.pool.engine.exit_status import ProcessEnd
from shmarray.pool.engine.tasks import InFlightTask
from shmarray.pool.engine.worker_main import Inheritance, WorkerSpec, worker_main
from shmarray.pool.interrupts import deferred
from shmarray.pool.threads import Fence

# The number of consecutive deaths before a worker is ready, beyond the number of workers, that is tolerated.
_TRIES = 3
# Seconds that idle workers have to end after their sockets are closed.
_POLITE = 0.5
# Seconds to wait for the exit status of a process that has ended, and for those of all at the end of a pool.
_STATUS = 1.0
_LAST_STATUS = 0.2
# The exit status of a child whose main module starts processes while it is imported.
_MISSING_GUARD = 113
# What limits the number of workers.
_REMEDIES = {
    errno.EAGAIN: "use fewer, or raise the limit of processes (ulimit -u, or pids.max of the control group)",
    errno.EMFILE: "use fewer, or raise the limit of open files (ulimit -n)",
    errno.ENFILE: "use fewer, or raise the system's limit of open files",
    errno.ENOMEM: "use fewer, or free memory",
}
_GUARD = 'put the code that starts processes or sets the start method under `if __name__ == "__main__":`'


class ProcessRegistry(Protocol):
    """Where a pool publishes its processes."""

    def add(self, process: Any, others: list[Any]) -> None:
        """Add a process that was started; `others` are those that are still running."""

    def remove(self, process: Any) -> None:
        """Remove a process that has ended."""

    def clear(self) -> None:
        """Remove all processes."""


class WorkerHandle:
    """The caller's view of a worker.

    Attributes
    ----------
    in_flight : deque of InFlightTask
        What was sent to it and is not answered; it runs the first of these, or is about to.
        The collecting thread alone removes answered tasks, without a lock; all other changes
        are made under the lock of the worker set.
    channel, far : Channel
        Both ends: its unread tasks are taken back through the far one.
    since : float
        When it can have begun with the first task in flight, by the monotonic clock.
    sent : int
        How many tasks it was given.
    is_listed : bool
        Whether the placement will look at it.
    timeout : float or None
        The limit that its task exceeded, when it was killed for that.
    trouble : str
        Why it could not start, if it could say.
    """

    def __init__(self, process: Any, channel: Channel, far: Channel, life: int) -> None:
        self.process = process
        self.channel = channel
        self.far = far
        self.life = life
        self.end: ProcessEnd | None = None
        self.in_flight: deque[InFlightTask] = deque()
        self.retained = RetainedBlocks()
        self.since = 0.0
        self.sent = 0
        self.is_alive = True
        self.is_ready = False
        self.is_full = False
        self.is_listed = False
        self.timeout: float | None = None
        self.trouble = ""

    @property
    def has_failed_import(self) -> bool:
        """Whether it ended because the main module cannot be imported, which another attempt would not change."""
        return not self.is_ready and not self.trouble and exit_status.exit_code(self.process) == 1

    @property
    def pid(self) -> int | None:
        return self.process.pid  # type: ignore[no-any-return]

    @property
    def first(self) -> InFlightTask | None:
        """The task that it runs or is about to run; may be called without the lock."""
        with suppress(IndexError):  # sending it has failed meanwhile
            return self.in_flight[0]
        return None

    def add(self, task: InFlightTask) -> None:
        if not self.in_flight:
            self.since = time.monotonic()
        self.in_flight.append(task)
        self.sent += 1

    def remove_last(self) -> None:
        """Undo `add`."""
        self.in_flight.pop()
        self.sent -= 1

    def has_long_task(self) -> bool:
        """Whether it has a task that must be answered before anything else is sent."""
        try:
            return self.in_flight[-1].is_long
        except IndexError:  # the last may be answered at any moment
            return False

    def kill(self) -> None:
        if self.end is not None:
            self.end.signal(signal.SIGKILL)

    def start_error(self) -> WorkerDiedError:
        """The error of all calls when workers cannot start."""
        code = exit_status.exit_code(self.process)
        if code == _MISSING_GUARD:
            message = f"the main module starts processes while a worker imports it: {_GUARD}"
        else:
            message = f"workers die as soon as they start; the last one, {self.pid}, {exit_status.description(code)}"
            if self.has_failed_import:
                message += f"; if an error from importing the main module is printed above, {_GUARD}"
        if self.trouble:
            message = f'{message}\n"""\n{self.trouble}"""'
        return WorkerDiedError(message, self.pid, code)


class WorkerSet:
    """All workers of one pool.

    Parameters
    ----------
    make : callable
        Makes a process that is not started, from `target` and `args`.
    start_method : str
    size : int
        How many workers there are to be; may be raised later.
    spec : WorkerSpec
    registry : ProcessRegistry
    allocator : BlockAllocator or None
    daemon : bool
        Whether the workers are daemonic, so that they cannot have children of multiprocessing's.

    Attributes
    ----------
    lock : threading.RLock
        Guards what each worker has in flight, and which workers there are.  No code of the
        user's runs under it.
    fence : Fence
        Between the answered tasks that the collecting thread removes, without the lock, and what
        it reads then.
    forks : bool
        Whether workers are forked, and so begin with all that this process has.
    is_willing : bool
        Whether workers that have ended are replaced.
    """

    def __init__(
        self,
        make: Callable[..., Any],
        start_method: str,
        size: int,
        spec: WorkerSpec,
        registry: ProcessRegistry,
        allocator: BlockAllocator | None,
        *,
        daemon: bool,
    ) -> None:
        self.lock = threading.RLock()
        self.fence = Fence()
        self.workers: list[WorkerHandle] = []
        self.size = size
        self.forks = start_method == "fork"
        self.is_willing = True
        self._make = make
        self._start_method = start_method
        self._spec = spec
        self._registry = registry
        self._allocator = allocator
        self._daemon = daemon
        self._lives = forks.PrivateDescriptors()
        self._failures = 0
        self._has_been_ready = False
        forks.register(self)

    # --- starting ---

    def spawn_missing(self) -> Iterator[WorkerHandle]:
        """Start the workers that are missing."""
        while len(self.workers) < self.size and self.is_willing:
            try:
                worker = self._spawn()
            except OSError as error:
                close_pipes_of_failed_fork(error)
                remedy = _REMEDIES.get(error.errno or 0)
                if remedy is None:
                    raise
                message = f"{error.strerror}: {len(self.workers)} of {self.size} workers could be started; {remedy}"
                raise OSError(error.errno, message) from error
            yield worker

    def _spawn(self) -> WorkerHandle:
        if is_importing_main():
            os._exit(_MISSING_GUARD)  # the caller reports the reason; multiprocessing would print a long traceback
        with deferred(), forks.DescriptorsForChild() as descriptors, ExitStack() as undo:
            # Under the fork lock, so that another thread's child closes these descriptors, and the
            # worker all that are not its own.  Not around the start: before a fork, other libraries
            # may take locks that a forking thread which waits for this one already holds.
            with forks.lock:
                worker = self._prepared(descriptors, undo)
            process = worker.process
            with (
                signals.blocked_in_children(self._start_method),
                signals.blocked_from_the_first(process),
                main_module.hidden_if_no_file(),
            ):
                self._start(process)
            with forks.lock:
                worker.end = ProcessEnd(process)
            undo.pop_all()
        self._registry.add(process, [other.process for other in self.workers if other is not worker])
        return worker

    def _prepared(self, descriptors: forks.DescriptorsForChild, undo: ExitStack) -> WorkerHandle:
        """A worker that is not started, with all of its descriptors."""
        channel, far = Channel.pair()
        undo.callback(channel.close)
        undo.callback(far.close)
        reader, writer = os.pipe()
        descriptors.add(reader)
        self._lives.add(writer)
        undo.callback(self._lives.close, writer)
        inheritance = Inheritance.of(far, reader, self._allocator, descriptors)
        process = self._make(target=worker_main, args=(inheritance, self._spec))
        process.daemon = self._daemon
        forks.add_workers([process])
        worker = WorkerHandle(process, channel, far, writer)
        with self.lock:
            self.workers.append(worker)
        undo.callback(self._remove, worker)
        return worker

    def _start(self, process: Any) -> None:
        if self._start_method != "forkserver":
            process.start()
            return
        signals.start_forkserver()
        try:
            process.start()
        except (ConnectionError, EOFError):
            # In Python 3.14 the forkserver itself imports the main module, and ends if that fails.
            message = f"the forkserver died; if it died while importing the main module, {_GUARD}"
            raise WorkerDiedError(message) from None

    def became_ready(self, worker: WorkerHandle) -> None:
        worker.is_ready = self._has_been_ready = True
        worker.since = time.monotonic()
        self._failures = 0

    def has_failed_to_start(self, worker: WorkerHandle) -> bool:
        """Whether too many workers, including this one, have died before they were ready; then no more are started."""
        if worker.is_ready:
            return False
        if worker.process.exitcode == _MISSING_GUARD or (worker.has_failed_import and not self._has_been_ready):
            self._failures = self.size + _TRIES
        return self.could_not_start()

    def could_not_start(self) -> bool:
        self._failures += 1
        if self._failures < self.size + _TRIES:
            return False
        self._failures = 0
        self.is_willing = False
        return True

    # --- tasks; under the lock ---

    def may_have_more(self, worker: WorkerHandle) -> bool:
        most = self._spec.max_tasks
        return (
            worker.is_alive
            and worker.end is not None  # its start may still fail
            and not worker.is_full
            and (most is None or worker.sent < most)
            and not worker.has_long_task()
        )

    def has_quota(self, worker: WorkerHandle) -> bool:
        """Whether it has received its maximum number of tasks, and so will end."""
        return self._spec.max_tasks is not None and worker.sent >= self._spec.max_tasks

    def give(self, worker: WorkerHandle, task: InFlightTask) -> bool:
        """Send a short task if there is room for it."""
        worker.add(task)  # first, because the answer may arrive before the call returns
        try:
            if worker.channel.send_now(task.data):
                return True
        except OSError:  # it is about to be ended: it never has room again
            worker.remove_last()
            worker.is_full = True
            return False
        worker.remove_last()
        worker.is_full = True
        self.fence()
        if not worker.in_flight:
            worker.is_full = False  # the last answer may have come before the line above, and no other will come
        return False

    def take_back_from_busiest(self, idle: WorkerHandle) -> list[InFlightTask]:
        """Half of the unread tasks of the busiest worker."""
        busiest = max(self.workers, key=lambda worker: len(worker.in_flight))
        if busiest is idle or len(busiest.in_flight) < 2:
            return []
        return self._take_back(busiest, len(busiest.in_flight) // 2)

    def _take_back(self, worker: WorkerHandle, most: int) -> list[InFlightTask]:
        if worker.in_flight and worker.in_flight[0].is_long:
            return []
        taken = []
        for _ in range(most):
            data = worker.far.take_back()
            if data is None:
                break
            taken.append(messages.key(data))
        if not taken:
            return []
        tasks = {task.key: task for task in worker.in_flight}
        back = [tasks.pop(key) for key in taken]
        worker.in_flight = deque(tasks.values())
        worker.sent -= len(back)
        return back

    # --- the end ---

    def remove_worker(self, worker: WorkerHandle) -> list[InFlightTask]:
        """Forget a worker that has ended, and return its unread tasks.  The task that it ran stays in flight."""
        worker.is_alive = False
        back = self._take_back(worker, len(worker.in_flight))
        self._reap(worker, _STATUS)
        self._remove(worker)
        return back

    def _reap(self, worker: WorkerHandle, patience: float) -> None:
        """Take the exit status of a worker that has ended."""
        # A forkserver that inherited a blocked SIGCHLD never reports it.
        worker.process.join(patience if self._start_method == "forkserver" else None)

    def _remove(self, worker: WorkerHandle) -> None:
        with self.lock, suppress(ValueError):
            self.workers.remove(worker)
        worker.is_alive = False
        with suppress(OSError):
            worker.channel.sock.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits to send
        worker.channel.close()
        worker.far.close()
        self._lives.close(worker.life)
        if worker.end is not None:
            worker.end.close()
            if worker.process.exitcode is None:
                disown([worker.process])  # its status was taken elsewhere, so its pid may have been reused

    def close_inputs(self) -> None:
        """Let the workers end after their current tasks."""
        for worker in list(self.workers):
            with suppress(OSError):
                worker.channel.sock.shutdown(socket.SHUT_WR)

    def end_all(self, grace: float) -> list[WorkerHandle]:
        """End all workers: close their sockets, send SIGTERM if they are busy, and finally SIGKILL."""
        self.close_inputs()
        ends = {worker.end: worker for worker in self.workers if worker.end is not None}
        busy = {end for end, worker in ends.items() if worker.in_flight or not worker.is_ready}
        for end in busy:
            end.signal(signal.SIGTERM)
        left = exit_status.wait_for_all(set(ends) - busy, _POLITE)
        for end in left:
            end.signal(signal.SIGTERM)
        for end in exit_status.wait_for_all(left | busy, grace):
            end.signal(signal.SIGKILL)
        gone = self.workers.copy()
        deadline = time.monotonic() + _LAST_STATUS
        for worker in gone:
            self._reap(worker, max(0.0, deadline - time.monotonic()))
            with self.lock:
                self._remove(worker)
            self._registry.remove(worker.process)
        self._registry.clear()
        # So that the user's objects do not live until the garbage collector runs.
        self._spec = self._spec._replace(initializer=None, initargs=())
        return gone

    # --- forks ---

    def before_fork(self) -> None:
        pass

    def after_fork_in_child(self) -> None:
        for worker in self.workers:
            worker.channel.close()
            worker.far.close()
