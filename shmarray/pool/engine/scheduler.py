"""The scheduler of a pool: its state, and the two threads that do the work.

Each worker has its own pair of sockets, and processes share no locks, so a worker that is killed
at any moment blocks no other.  The caller also keeps the worker's end of every pair, so it can
take back tasks that a worker has not read.  The task that a dead worker was running is the one
that was sent to it, but neither answered nor taken back: at most one.

::

    Pool.map -> tasks -> feeder -> channel -> worker -> channel -> collector -> ApplyResult
                           |                                          |
                           +-- blocks of the allocator, lent ---- and taken back

Locks are only taken in this order: ``forks.lock`` (during a fork, and while a worker's
descriptors are created, but not by a thread that is about to fork), ``WorkerSet.lock`` (the
workers and their tasks in flight), ``Lending._lock`` (blocks that several tasks use),
``BlockAllocator._lock`` (leases that have ended).  No user code runs under the last three, and
finalizers take neither of the last two: they append to a queue instead.  Where two threads write
and read without a lock, there is a fence in between (see threads): ``WorkerSet.fence``,
``BlockAllocator._fence``.

Shutdown: `close` ends the feeder after the pending calls; when the last call is done, the
collector closes the workers' sockets, and ends with the last worker.  `terminate` makes the
collector end all workers at once.  In both cases the collector frees everything (`end`), so
that nothing depends on the calling thread.
"""

import threading
from contextlib import ExitStack
from typing import Any

from shmarray.pool import forks
from shmarray.pool._stdlib import CLOSE, TERMINATE
from shmarray.pool.engine.collector import Collector
from shmarray.pool.engine.feeder import Feeder
from shmarray.pool.engine.state import PoolState
from shmarray.pool.interrupts import deferred

# Seconds that a worker has to end after SIGTERM, and that a user's generator has to release its thread.
_GRACE = 1.0


class Scheduler:
    """Runs the tasks that a front half puts into `tasks`, and hands the results to its calls.

    Parameters
    ----------
    state : PoolState
    task_timeout : float or None
        Seconds that each item may take.
    """

    def __init__(self, state: PoolState, task_timeout: float | None) -> None:
        self._state = state
        self._feeder = Feeder(state)
        self._collector = Collector(state, self._feeder, task_timeout, self.end)
        self.tasks = state.tasks

    def start(self) -> None:
        """Start the workers and the threads; errors from starting a process are raised, with nothing left behind."""
        try:
            with deferred():
                # First the workers: a process with threads should not fork.
                self._collector.spawn_missing()
                self._collector.thread.start()
                self._feeder.thread.start()
                self._state.lending.open()
        except BaseException as error:  # Ctrl-C too: there is no pool yet that one could terminate
            self._state.failure = RuntimeError(f"the workers could not be started: {error!r}")
            self._state.phase = TERMINATE
            if self._collector.thread.ident is not None:
                self.terminate()
            else:
                self.end()
            raise

    def submit_packed(self, held: list[Any]) -> None:
        """Pack a task, which is taken out of `held`, and then put it into `tasks`."""
        job, index = held[0][:2]
        task = self._feeder.packed(held)
        if task is not None:
            self.tasks.put(([(job, index, task)], None))

    @property
    def was_started(self) -> bool:
        return self._collector.thread.ident is not None

    @property
    def phase(self) -> Any:
        """RUN, CLOSE or TERMINATE."""
        return self._state.phase

    @property
    def failure(self) -> BaseException | None:
        """Why the pool can no longer be used."""
        return self._state.failure

    def wake(self) -> None:
        self._state.waker.wake()

    def spawn_missing(self) -> None:
        """Start missing workers; raise any error from starting a process."""
        self._collector.spawn_missing()

    def fail_for_good(self, error: BaseException) -> None:
        """End the pool; all calls fail with this error, and later ones too."""
        self._state.fail_for_good(error)

    def fail_call(self, job: int, index: int, error: BaseException) -> None:
        """Fail one call at once."""
        self._state.calls.fail(job, index, error)

    def put(self, _: None) -> None:
        """Notify that the dictionary of calls is empty; the stdlib's dictionary calls this."""
        self.wake()

    def close(self) -> None:
        """Let the workers finish and end; no more tasks follow."""
        self._state.phase = CLOSE
        self.tasks.put(None)
        self.wake()

    def terminate(self) -> None:
        """End the workers now, even if they are busy, and free everything.

        Also called by the garbage collector, in any thread: in one of ours, or in one that holds
        the lock of forks, the collecting thread does the rest on its own.
        """
        self.begin_to_terminate()
        if not forks.holds_lock():
            self.join(_GRACE)

    def begin_to_terminate(self) -> None:
        """Make the collecting thread end everything, without waiting for it."""
        self._state.terminate()

    def join(self, patience: float | None = None) -> None:
        """Wait for the end; wait for the user's generators only for a limited time."""
        feeder, collector = self._feeder.thread, self._collector.thread
        if threading.get_ident() in {feeder.ident, collector.ident}:
            return
        if collector.ident is not None:
            collector.join()
        if feeder.ident is not None:
            feeder.join(patience)

    # --- the end ---

    def end(self) -> None:
        """Free everything; called in the collecting thread, or if that was never started."""
        self._state.phase = TERMINATE
        with ExitStack() as steps:  # in reverse; all run even if one raises, so that no call waits forever
            steps.callback(self._state.calls.terminated)
            if self._state.lending.allocator is not None:
                steps.callback(self._state.lending.allocator.close)
            steps.callback(self._collector.close)
            steps.callback(self._end_workers)

    def _end_workers(self) -> None:
        self._feeder.notify()
        self._collector.no_more_workers()
        for worker in self._state.workers.end_all(_GRACE):
            with self._state.workers.lock:
                self._state.placement.forget(worker)
