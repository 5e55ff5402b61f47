"""The limit: the minimum cost of sending large arrays, with nothing but processes and copies.

For each array there is one copy to the worker, the function itself, and one copy of the result
to the caller, in memory that was used before, with the work spread over the workers.  Every
source and every result has its own memory, as in real programs: a single buffer for all of
them would be in the processor's cache.  If the result is the argument itself, it stays where
it is, which saves one copy.

The results of the first call are in new memory, so that call shows the cost of that many new
pages with the same number of processes.
"""

import mmap
import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

_AHEAD = 2  # argument buffers per worker


class Limit:
    """Plain processes with shared memory that exists before them; see the module.

    Parameters
    ----------
    workers : int
    function : callable
    items : list of ndarray
        All have the same shape and dtype.
    """

    def __init__(self, workers: int, function: Callable[[Any], Any], items: list[NDArray[Any]]) -> None:
        probe = items[0][:1].copy()
        self._in_place = function(probe) is probe
        self._function = function
        self._sources = _shared(len(items), items[0])
        self._sources[:] = items
        self._results = _shared(len(items), items[0])
        self._arguments = _shared(_AHEAD * workers, items[0])
        self._numbers = _shared(len(items), np.zeros(1))
        self._workers = workers

    @contextmanager
    def running(self) -> Iterator[Callable[[], list[Any]]]:
        """A context with running workers; its value is a function that makes one call."""
        context = multiprocessing.get_context("fork")
        ends = [context.Pipe() for _ in range(self._workers)]
        processes = [context.Process(target=self._serve, args=(place, ends)) for place in range(self._workers)]
        for process in processes:
            process.start()
        workers = [near for near, _ in ends]
        try:
            for worker in workers:
                worker.recv_bytes()
            yield lambda: self._call(workers)
        finally:
            for near, far in ends:
                near.close()
                far.close()
            for process in processes:
                process.join()

    def _call(self, workers: list[Any]) -> list[Any]:
        for worker in workers:
            worker.send_bytes(b"go")
        if b"scalar" in [worker.recv_bytes() for worker in workers]:
            return [float(number[0]) for number in self._numbers]
        return list(self._results)

    def _serve(self, place: int, ends: list[Any]) -> None:
        for other, (near, far) in enumerate(ends):
            near.close()
            if other != place:
                far.close()
        buffers = cycle(self._arguments[place :: self._workers])
        # The same tasks in every call, so that the worker's result memory is mapped from the second call on.
        tasks = range(place, len(self._sources), self._workers)
        caller = ends[place][1]
        for task in tasks:
            self._sources[task].max()  # maps the array in this process, as in a process that created it
        caller.send_bytes(b"ready")
        try:
            while caller.recv_bytes():
                kinds = {self._carry(task, next(buffers)) for task in tasks}
                caller.send_bytes(b"scalar" if kinds == {False} else b"array")
        except EOFError:
            os._exit(0)

    def _carry(self, task: int, buffer: NDArray[Any]) -> bool:
        argument = self._results[task] if self._in_place else buffer
        np.copyto(argument, self._sources[task])
        result = self._function(argument)
        if not isinstance(result, np.ndarray):
            self._numbers[task] = result
        elif result is not argument:
            np.copyto(self._results[task], result)
        return isinstance(result, np.ndarray)


def _shared(count: int, like: NDArray[Any]) -> NDArray[Any]:
    """Return an array in memory that forked children share."""
    octets = mmap.mmap(-1, count * like.nbytes)
    return np.ndarray((count, *like.shape), like.dtype, octets)
