"""The processes of the joblib backend: how they start, and how they are kept between calls.

They start as those of joblib's own default do, which is "loky"'s way: a new interpreter,
with its own environment, that does not import the caller's __main__.  Fork would be faster,
but OpenMP hangs in a forked child, a library that is loaded already does not look at
OMP_NUM_THREADS again, and callers have threads; multiprocessing's spawn and forkserver
import __main__, so that each script would need its ``if __name__ == "__main__"``.
"""

import atexit
import os
import signal
import threading
from contextlib import suppress
from typing import Any, NamedTuple

from joblib.externals.loky.backend.context import LokyContext
from joblib.externals.loky.backend.process import LokyProcess

from shmarray.pool import Pool
from shmarray.pool.arrays.by_value import dumps


class WorkerOptions(NamedTuple):
    """The requirements of a call for its workers."""

    n_jobs: int
    environment: dict[str, str]
    initializer: Any = None
    initargs: tuple[Any, ...] = ()


class Workers(NamedTuple):
    """A call's workers, and whether they are suitable for another call."""

    pool: Pool
    key: bytes


class _Process(LokyProcess):  # type: ignore[misc]
    def kill(self) -> None:
        """What the stdlib's processes can do, unlike loky's."""
        if self.exitcode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


class _Context(LokyContext):  # type: ignore[misc]
    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment

    def Process(self, **options: Any) -> _Process:  # noqa: N802 - as in multiprocessing
        return _Process(env=self._environment, **options)


class WorkerCache:
    """Where workers wait for the next call: those of the last call that ended, and no others.

    A call has its workers to itself.  So what ends the one does not end the other: not an
    error, nor a generator of results that is dropped half-way.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: tuple[Workers, threading.Timer] | None = None
        self._foreign: Any = None
        os.register_at_fork(after_in_child=self._after_fork_in_child)

    def take(self, options: WorkerOptions) -> Workers:
        """Workers for a call: the kept ones, if they are suitable, or new ones."""
        # The arguments by content: the same object may have changed since workers began with it.
        key = dumps(tuple(options))
        kept = self._replace(None)
        if kept is not None and kept[0].key == key:
            kept[1].cancel()
            return Workers(kept[0].pool, key)
        self._end(kept)
        context = _Context(options.environment)
        return Workers(Pool(options.n_jobs, options.initializer, options.initargs, context=context), key)

    def put(self, workers: Workers, patience: float) -> None:
        """Keep idle workers for a number of seconds."""
        timer = threading.Timer(patience, self._expire, [workers])
        timer.name = "shmarray-idle-workers"
        timer.daemon = True
        self._end(self._replace((workers, timer)))
        try:
            timer.start()
        except RuntimeError:  # no more threads, as at the end of the interpreter
            self.clear()

    def clear(self) -> None:
        self._end(self._replace(None))

    def _replace(self, new: Any) -> Any:
        with self._lock:
            kept, self._kept = self._kept, new
        return kept

    def _expire(self, workers: Workers) -> None:
        with self._lock:
            if self._kept is None or self._kept[0] is not workers:
                return
            self._kept = None
        workers.pool.terminate()

    @staticmethod
    def _end(kept: Any) -> None:
        if kept is not None:
            kept[1].cancel()
            kept[0].pool.terminate()

    def _after_fork_in_child(self) -> None:
        self._lock = threading.Lock()
        self._foreign = self._kept, self._foreign  # the parent's; not even garbage here
        self._kept = None


CACHE = WorkerCache()


def end_idle_workers() -> None:
    """End the workers that wait for the next call of `joblib.Parallel`, and free what they use.

    They end by themselves after the backend's `idle_worker_timeout`, and with the process.
    """
    CACHE.clear()


atexit.register(end_idle_workers)
