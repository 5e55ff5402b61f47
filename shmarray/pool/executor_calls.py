"""The calls of a ProcessPoolExecutor that are not complete."""

import copy
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from shmarray.errors import WorkerDiedError
from shmarray.pool._stdlib import ExecutorTraceback
from shmarray.pool.engine.frontend import guarded


class ExecutorCalls:
    """The futures of an executor's pending calls, by number."""

    can_be_cancelled = True

    def __init__(self) -> None:
        self._futures: dict[int, Future[Any]] = {}
        # The thread that removes a future notifies its waiters, because cancelling it twice raises an error.
        self._lock = threading.RLock()
        # Each is counted by one thread at a time: under the executor's lock, and in the collecting thread.
        self._added = 0
        self._answered = 0
        # Set once a worker is about to have a call.
        self.began = threading.Event()
        self.on_empty: Callable[[], object] = bool

    def __contains__(self, job: object) -> bool:
        return job in self._futures

    def __len__(self) -> int:
        return len(self._futures)

    @property
    def unanswered(self) -> int:
        """As the stdlib counts: a call that was cancelled or could not be sent has no answer either."""
        return self._added - self._answered

    def add(self, job: int, future: Future[Any]) -> None:
        self._futures[job] = future
        self._added += 1

    def remove(self, job: int) -> Future[Any] | None:
        with self._lock:
            future = self._futures.pop(job, None)
        if not self._futures:
            self.on_empty()
        return future

    def begin(self, job: int) -> bool:
        with self._lock:
            future = self._futures.get(job)
            begins = future is not None and future.set_running_or_notify_cancel()
            if not begins:
                self.remove(job)
        if begins:
            self.began.set()
        return begins

    def set_result(self, job: int, index: int, outcome: tuple[bool, Any]) -> None:
        # Removed first, because the receiver may submit another call at once, which needs no further worker.
        future = self.remove(job)
        self._answered += 1
        if future is not None:
            succeeded, value = outcome
            guarded(future.set_result if succeeded else future.set_exception, value)

    def not_sent(self, job: int, index: int, error: BaseException) -> None:
        text = "".join(traceback.format_exception(error))
        error.__traceback__ = None  # it holds the arguments
        error.__cause__ = ExecutorTraceback(f'\n"""\n{text}"""')
        self.fail(job, index, error)

    def fail(self, job: int, index: int, error: BaseException) -> None:
        future = self.remove(job)
        if future is not None:
            guarded(_set_exception, future, error)

    def fail_all(self, error: BaseException) -> None:
        for job in list(self._futures):
            # One for each future: what raises an exception again adds to its traceback.
            self.fail(job, 0, copy.copy(error) if isinstance(error, WorkerDiedError) else error)

    def cancel(self) -> None:
        """Cancel the calls that no worker is about to have."""
        for job, future in list(self._futures.items()):
            if guarded(future.cancel) and future.cancelled() and self.remove(job) is future:
                future.set_running_or_notify_cancel()

    def terminated(self, error: BaseException | None = None) -> None:
        self.fail_all(error or WorkerDiedError("the executor ended before this call finished"))


def _set_exception(future: Future[Any], error: BaseException) -> None:
    if future.running() or future.set_running_or_notify_cancel():
        future.set_exception(error)
