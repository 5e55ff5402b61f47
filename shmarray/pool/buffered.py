"""imap and map with a limited buffer: they do not read the iterable faster than the results are consumed.

The iterable is read in the consumer's thread, as results are taken, so other calls of the pool
do not wait for it.  `concurrent.futures.Executor.map` has the same argument since Python 3.14.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from multiprocessing import TimeoutError as NotYet
from queue import Empty, SimpleQueue
from typing import Any

from shmarray.pool._stdlib import mapstar, process_chunk

Submit = Callable[..., Any]
"""Starts a task: function, a list with its arguments, which are taken out of it, the range of its items, what is
called with its result or its error.  When it returns, the arguments may be changed."""


class BufferedResults(Iterator[Any]):
    """The results of a bounded imap.

    Parameters
    ----------
    submit : Submit
    func : callable
    iterable : iterable
    chunksize : int
        Items that travel together.
    buffersize : int
        Items that were taken from the iterable and whose results were not, at most; one chunk
        at least.
    ordered : bool

    Notes
    -----
    Safe to use from many threads.
    """

    def __init__(
        self,
        submit: Submit,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int,
        buffersize: int,
        *,
        ordered: bool,
    ) -> None:
        self._submit = submit
        self._func = func
        self._chunksize = chunksize
        self._most = max(1, buffersize // chunksize)
        self._lock = threading.RLock()
        self._items: Iterator[Any] | None = iter(iterable)
        self._error: BaseException | None = None
        self._position = 0
        # Calls whose results were not taken; for unordered ones, only their number.
        self._calls: deque[Any] = deque()
        self._outcomes: SimpleQueue[tuple[bool, Any]] | None = None if ordered else SimpleQueue()
        self._ready: deque[Any] = deque()
        self._fill()

    def __next__(self) -> Any:
        return self.next()

    def next(self, timeout: float | None = None) -> Any:
        """The next result; `multiprocessing.TimeoutError` if there is none in time."""
        with self._lock:
            if self._ready:
                return self._ready.popleft()
            self._fill()
            if not self._calls:
                self._stop()
            call = self._calls.popleft()
        try:
            result = self._result_of(call, timeout)
        except NotYet:
            with self._lock:
                self._calls.appendleft(call)
            raise
        if self._chunksize == 1:
            return result
        with self._lock:
            self._ready.extend(result)
            return self._ready.popleft()

    def _result_of(self, call: Any, timeout: float | None) -> Any:
        if self._outcomes is None:
            return call.get(timeout)
        try:
            succeeded, value = self._outcomes.get(timeout=timeout)
        except Empty:
            raise NotYet from None
        if not succeeded:
            raise value
        return value

    def _stop(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error
        raise StopIteration

    def _fill(self) -> None:
        while self._items is not None and len(self._calls) < self._most:
            try:
                held = [tuple(islice(self._items, self._chunksize))]
            except BaseException as error:  # noqa: BLE001 - user code: it is raised after the results before it
                self._error, self._items = error, None
                return
            if not held[0]:
                self._items = None
                return
            self._calls.append(self._start(held))

    def _start(self, held: list[Any]) -> Any:
        first, self._position = self._position, self._position + len(held[0])
        func = self._func
        if self._chunksize > 1:
            held[:] = [((func, held.pop()),)]
            func = mapstar
        tell = self._tell
        return self._submit(func, held, range(first, self._position), tell(succeeded=True), tell(succeeded=False))

    def _tell(self, *, succeeded: bool) -> Callable[[Any], object] | None:
        outcomes = self._outcomes
        return None if outcomes is None else lambda value: outcomes.put((succeeded, value))


def buffered_map(
    submit: Callable[..., Any],
    func: Callable[..., Any],
    iterables: tuple[Iterable[Any], ...],
    timeout: float | None,
    chunksize: int,
    buffersize: int | None,
) -> Iterator[Any]:
    """`ProcessPoolExecutor.map` of Python 3.14, with its `buffersize`, which counts chunks; the same on all Pythons."""
    deadline = None if timeout is None else timeout + time.monotonic()
    # Without zip and for loops, which keep a reference to the last item, which may be given away.
    items = map(_together, *iterables) if iterables else iter(())
    chunks = iter(lambda: tuple(islice(items, chunksize)), ())
    start = partial(submit, partial(process_chunk, func))
    futures = deque(map(start, islice(chunks, buffersize)))
    # An unused executor ends when it is garbage, even if its results are still referenced.
    start_another = None if buffersize is None else start

    def results() -> Iterator[Any]:
        try:
            while futures:
                if start_another is not None:
                    futures.extend(map(start_another, islice(chunks, 1)))
                patience = None if deadline is None else deadline - time.monotonic()
                chunk = _result_or_cancel(futures.popleft(), patience)
                chunk.reverse()
                while chunk:
                    yield chunk.pop()  # what was given out is not kept here
        finally:
            for future in futures:
                future.cancel()

    return results()


def _result_or_cancel(future: Any, patience: float | None) -> Any:
    try:
        return future.result(patience)
    finally:
        future.cancel()
        del future  # its error holds this frame


def _together(*items: Any) -> tuple[Any, ...]:
    return items
