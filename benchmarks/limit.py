"""The limit: what carrying large arrays costs at least, with nothing but processes and copies.

For each array one copy to a worker's side, the function itself, and one copy of the result
to the caller's side, with the work spread over the workers, in memory that was touched
before.  Every source and every result has its own memory, as in reality: one buffer for
all of them would lie in the processor's cache.  A result that is the argument itself stays
where it is: one copy less.

The results of the first call lie in fresh memory, so that call shows what touching those
pages costs as many processes.
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

_AHEAD = 2  # argument buffers of a worker


class Limit:
    """Bare processes over shared memory that is there before them; see the module.

    Parameters
    ----------
    workers : int
    function : callable
    items : list of ndarray
        All of one shape and dtype.
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
        """The workers; gives what makes one call."""
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
        # Always the same ones, so that what a worker writes to is mapped there from the second call on.
        tasks = range(place, len(self._sources), self._workers)
        caller = ends[place][1]
        for task in tasks:
            self._sources[task].max()  # mapped here, as an array is where it was made
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
    """Arrays in memory that forked children share."""
    octets = mmap.mmap(-1, count * like.nbytes)
    return np.ndarray((count, *like.shape), like.dtype, octets)
