"""Choose the worker for the next task, and limit how many tasks a worker may have.

A worker is assigned tasks in advance so that it never waits for the caller, but no more than it
needs: tasks in flight use memory, cannot be cancelled, and may wait behind a slow task.  So
their number is limited by a maximum, by bytes, and by the time that recent tasks of the same
function took.

The cost of a choice does not depend on the number of workers: idle workers and those with room
are in separate queues, and outdated entries are dropped when they are found.
"""

import time
from collections import deque

from shmarray.pool.engine.workers import WorkerHandle, WorkerSet

# Maximum number of tasks per worker (benchmarks/constants.py: DEEP).
DEEP = 64
# Bytes of arguments and results that a worker may have, if that is more than `ahead` tasks
# (benchmarks/constants.py: WINDOW_BYTES).
WINDOW_BYTES = 4 << 20
# Seconds of work that a worker may have, if that is more than `ahead` tasks
# (benchmarks/constants.py: WINDOW_SECONDS).
WINDOW_SECONDS = 0.002
# Functions whose times are kept: programs that make functions have any number of them.
_MOST_FUNCTIONS = 100


class Placement:
    """Chooses workers.

    Parameters
    ----------
    workers : WorkerSet
    ahead : int
        How many tasks a worker may have in any case.
    """

    def __init__(self, workers: WorkerSet, ahead: int) -> None:
        self._workers = workers
        self.ahead = ahead
        # How long recent tasks of each kind of function took: rises at once, and falls slowly.
        self._seconds: dict[int, float] = {}
        self._idle: deque[WorkerHandle] = deque()
        self._with_room: deque[WorkerHandle] = deque()

    def depth(self, kind: int, nbytes: float) -> int:
        """The maximum number of tasks per worker for this size and the duration of the function's recent tasks."""
        seconds = self._seconds.get(kind, WINDOW_SECONDS)
        most = min(DEEP, WINDOW_SECONDS / seconds) if seconds > 0 else DEEP
        if nbytes:
            most = min(most, WINDOW_BYTES / nbytes)
        return max(self.ahead, int(most))

    def answered(self, kind: int, seconds: float) -> None:
        """Note how long a task took; in the collecting thread, without the lock."""
        before = self._seconds.get(kind)
        if before is None:
            before = WINDOW_SECONDS
            if len(self._seconds) >= _MOST_FUNCTIONS:
                self._seconds.clear()
        self._seconds[kind] = max(seconds, 0.75 * before)

    def offer(self, worker: WorkerHandle) -> None:
        """Note that a worker may have room."""
        if not worker.in_flight:
            self._idle.append(worker)
        elif not worker.is_listed:
            worker.is_listed = True
            self._with_room.append(worker)

    # --- under the lock of the workers ---

    def forget(self, worker: WorkerHandle) -> None:
        """Forget a worker that has ended, because its process object has descriptors."""
        for queue in (self._idle, self._with_room):
            while worker in queue:
                queue.remove(worker)

    def find(self, depth: int) -> WorkerHandle | None:
        """An idle worker, or otherwise one that has fewer than `depth` tasks."""
        while self._idle:
            worker = self._idle[0]
            if not worker.in_flight and self._workers.may_have_more(worker):
                return worker
            self._idle.popleft()
        while self._with_room:
            worker = self._with_room[0]
            if self._has_room(worker, depth):
                return worker
            self._with_room.popleft()
            worker.is_listed = False
            # An answer that came before the line above saw it listed, and did not list it again.
            self._workers.fence()
            if self._has_room(worker, depth):
                self.offer(worker)
        return None

    def _has_room(self, worker: WorkerHandle, depth: int) -> bool:
        count = len(worker.in_flight)
        if count >= depth or not self._workers.may_have_more(worker):
            return False
        # A worker that has not answered for some time runs a slow task; no other task should wait behind it.
        return count < self.ahead or time.monotonic() - worker.since < 4 * WINDOW_SECONDS

    def given(self, worker: WorkerHandle) -> None:
        """Note that the chosen worker has got a task, so that the next one goes to another worker."""
        if self._idle and self._idle[0] is worker:
            self._idle.popleft()
            self.offer(worker)
        elif self._with_room and self._with_room[0] is worker:
            self._with_room.rotate(-1)
