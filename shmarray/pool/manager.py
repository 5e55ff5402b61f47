"""What an executor's managing thread does when a worker dies, so that it never waits for ever.

The stdlib's does wait, where a worker is killed in the middle of a result (the rest of it
never comes), while it holds the lock of a queue and the executor is shutting down, or when
one of those that are to be ended takes no notice of SIGTERM.
"""

import time
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import wait
from typing import Any

from shmarray.pool.recruiter import Recruiter
from shmarray.pool.stdlib import StockManager, guarded_results, refuse_calls

# Seconds that the other workers of a broken executor have to end after SIGTERM.
_GRACE = 1.0
# Seconds between a process's end as its descriptors tell it, and its exit code, at most.
_REAPING = 1.0


class Manager(StockManager):  # type: ignore[misc]
    """The managing thread of an executor.

    Parameters
    ----------
    executor : ProcessPoolExecutor
    broken : callable
        Called with the pid and exit code of the worker that died, before any future is told.
    recruiter : Recruiter
    left : callable
        Called with the pid of a worker that has ended after its last task.
    ended : callable
        Called when the workers are joined, and nobody uses the boxes.  That may be long
        after ``shutdown(wait=False)``, or after the executor is garbage.
    """

    def __init__(
        self,
        executor: Any,
        broken: Callable[[int | None, int | None], object],
        recruiter: Recruiter,
        left: Callable[[int], object],
        ended: Callable[[], object],
    ) -> None:
        super().__init__(executor)
        self._tell_broken = broken
        self._recruiter = recruiter
        self._tell_left = left
        self._ended = ended
        self._leaving: list[int] = []
        self.result_queue: Any = guarded_results(executor, partial(_wait_for_more, self.processes))

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:  # noqa: BLE001 - such as: no process can be started; else all calls wait for ever
            self.terminate_broken(traceback.format_exception(error))
        finally:
            # Not when this object is garbage: that may be in the main thread, where Ctrl-C would
            # raise inside of a finalizer, and be lost.
            self._ended()

    def is_shutting_down(self) -> bool:
        """Whether no more calls come; those that are there get workers in the place of those that have ended."""
        if not super().is_shutting_down():
            return False
        wanted = min(self._recruiter.most, len(self.pending_work_items))
        if self.max_tasks_per_child is not None and len(self.processes) < wanted:
            self._recruiter.start_one()
        return True

    def process_result_item(self, item: Any) -> None:
        super().process_result_item(item)
        leaving = getattr(item, "exit_pid", None)
        if leaving is not None:  # it is joined after this
            self._leaving.append(leaving)

    def wait_result_broken_or_wakeup(self) -> Any:
        while self._leaving:
            self._tell_left(self._leaving.pop())
        return super().wait_result_broken_or_wakeup()

    def terminate_broken(self, cause: Any) -> None:
        self._tell_broken(*_who_died(_by_sentinel(self.processes)))
        # A submit that holds the lock may be starting a worker, which before 3.12 nobody would
        # end, and this thread would wait for it for ever.  From now on none starts any.
        executor = self.executor_reference()
        if executor is not None:
            with self.shutdown_lock:
                refuse_calls(executor)
        del executor
        _end(_by_sentinel(self.processes))
        super().terminate_broken(cause)

    def join_executor_internals(self) -> None:
        """Wait for the workers to end; if one is killed now, it may hold the lock that the others wait for."""
        self.shutdown_workers()
        left = _by_sentinel(self.processes)
        while left:
            for sentinel in wait(left):
                process = left.pop(sentinel)
                process.join(_REAPING)
                if process.exitcode:
                    _end(left)
        super().join_executor_internals()


def _by_sentinel(processes: dict[int, Any]) -> dict[Any, Any]:
    return {process.sentinel: process for process in tuple(processes.values())}


def _wait_for_more(processes: dict[int, Any], results: Any) -> None:
    """Wait for the rest of a result; EOFError if a worker has died, which may be the one that was sending it.

    One that ended well, after its last task, has been forgotten by then: the message
    that says so came before this one.
    """
    if results not in wait([results, *_by_sentinel(processes)]):
        raise EOFError("a worker died in the middle of a result")


def _who_died(by_sentinel: dict[Any, Any]) -> tuple[int | None, int | None]:
    """The worker that died, rather one that did not end of its own accord, and its exit code."""
    found: tuple[int | None, int | None] = None, None
    for sentinel in wait(by_sentinel, 0):
        process = by_sentinel[sentinel]
        process.join(_REAPING)
        found = process.pid, process.exitcode
        if process.exitcode:
            break
    return found


def _end(by_sentinel: dict[Any, Any]) -> None:
    """End these workers, also those that ignore SIGTERM, or are busy where it is not seen."""
    for process in by_sentinel.values():
        process.terminate()
    left = set(by_sentinel)
    deadline = time.monotonic() + _GRACE
    while left and time.monotonic() < deadline:
        left.difference_update(wait(left, deadline - time.monotonic()))
    for sentinel in left:
        by_sentinel[sentinel].kill()
