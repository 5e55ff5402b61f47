"""Starts the workers of an executor, also when the executor itself has let go of everything."""

import os
import weakref
from contextlib import ExitStack
from typing import Any

from shmarray.pool import forks, interrupts
from shmarray.pool.arena import Arena
from shmarray.pool.obituary import watch
from shmarray.pool.serve import Descriptor, Start, prepare
from shmarray.pool.stdlib import ExecutorManners, WorkerStarter, is_told_of_by


class Recruiter:
    """Starts workers.

    The stdlib's executor forgets its queues in ``shutdown(wait=False)``, and is then asked
    for new workers in the place of those that `max_tasks_per_child` has ended; one that is
    garbage is not even asked.

    Parameters
    ----------
    executor : ProcessPoolExecutor
        This keeps what its workers are made of, not it.

    Attributes
    ----------
    arena : Arena or None
    most : int
        How many workers the executor may have.
    """

    def __init__(self, executor: Any) -> None:
        self._starter: WorkerStarter | None = WorkerStarter(executor)
        self.most = self._starter.most
        self.arena = Arena.create(self.most)
        self._lives = forks.Descriptors()
        self._life_of: dict[Any, int] = {}

    def start_one(self) -> None:
        starter = self._starter
        assert starter is not None  # noqa: S101 - closed after the last use
        with interrupts.deferred(), forks.lock, ExitStack() as lent:
            self._forget_dead()
            reader, writer = self._lives.pipe()
            lent.callback(os.close, reader)
            try:
                start = Start(Descriptor(reader), self.arena, lent, starter.connections)
                with interrupts.blocked_in_children(starter.context):
                    arguments = (start, ExecutorManners, starter.initializer, starter.initargs)
                    process = starter.start(prepare, arguments, interrupts.silent)
            except BaseException:
                self._lives.close(writer)
                raise
            forks.own([process])
            self._life_of[process] = writer
            _watch_end(process)

    def _forget_dead(self) -> None:
        # Not those that are about to end: the kernel would kill them, with locks of the queues in their hands.
        for process in [process for process in self._life_of if not process.is_alive()]:
            self._lives.close(self._life_of.pop(process))

    def close(self) -> None:
        """No worker is left, or none is to be."""
        self._lives.close_all()
        self._life_of.clear()
        self._starter = None  # the queues and the processes have descriptors


def _watch_end(process: Any) -> None:
    """Have its sentinel tell of its end, whatever children its tasks leave behind."""
    fd = watch(process)
    if fd != process.sentinel:
        is_told_of_by(process, fd)
        weakref.finalize(process, os.close, fd).atexit = False
