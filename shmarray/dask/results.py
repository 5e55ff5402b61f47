"""The results that the methods of Pool return, as in multiprocessing."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing import TimeoutError as NotYet
from typing import Any

from distributed import Client, Future, wait

Finish = Callable[[], object]


class AsyncResult:
    """The result of `apply_async`, `map_async` or `starmap_async`; as `multiprocessing.pool.AsyncResult`.

    Parameters
    ----------
    collect : callable
        Returns the result or raises; called once, in its own thread.
    callback, error_callback : callable, optional
        Called in that thread with the result, or with the error.
    """

    def __init__(
        self,
        collect: Callable[[], Any],
        callback: Callable[[Any], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> None:
        self._collect = collect
        self._callbacks = callback, error_callback
        self._is_ready = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None

    def start(self, *_: Any) -> None:
        """Get the result when it is ready, in this thread."""
        callback, error_callback = self._callbacks
        try:
            self._value = self._collect()
        except BaseException as error:  # noqa: BLE001 - of a task: whatever it is, the caller gets it
            self._error = error
        self._is_ready.set()
        if self._error is None and callback is not None:
            callback(self._value)
        elif self._error is not None and error_callback is not None:
            error_callback(self._error)

    def ready(self) -> bool:
        return self._is_ready.is_set()

    def successful(self) -> bool:
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._error is None

    def wait(self, timeout: float | None = None) -> None:
        self._is_ready.wait(timeout)

    def get(self, timeout: float | None = None) -> Any:
        self.wait(timeout)
        if not self.ready():
            raise NotYet
        if self._error is not None:
            raise self._error
        return self._value


class Results(Iterator[Any]):
    """The iterator that `imap` returns: results in order; calls are submitted as results are taken.

    Parameters
    ----------
    client : distributed.Client
    more : callable
        Called with a number; submits that many chunks of calls, or fewer if there are no more.
    width : int
        Maximum number of chunks in progress.
    """

    def __init__(self, client: Client, more: Callable[[int], list[Future]], width: int) -> None:
        self._client = client
        self._more = more
        self._width = width
        self._waiting: deque[Future] = deque()
        self._items: deque[Any] = deque()
        self._lock = threading.RLock()
        self._submit()

    def next(self, timeout: float | None = None) -> Any:
        """The next result; `multiprocessing.TimeoutError` if it is not ready in time."""
        with self._lock:
            while not self._items:
                if not self._waiting:
                    raise StopIteration
                self._take(timeout)
            return self._items.popleft()

    def __next__(self) -> Any:
        return self.next()

    def _take(self, timeout: float | None) -> None:
        self._wait_for([self._waiting[0]], timeout)
        future = self._waiting.popleft()
        self._submit()
        self._items += future.result()

    def _wait_for(self, futures: list[Future], timeout: float | None) -> set[Future]:
        try:
            done: set[Future] = wait(futures, timeout, return_when="FIRST_COMPLETED").done
        except TimeoutError:
            raise NotYet from None
        return done

    def _submit(self) -> None:
        # Not one by one: a message to the scheduler costs as much for one as for many.
        if len(self._waiting) <= self._width // 2:
            self._waiting += self._more(self._width - len(self._waiting))


class UnorderedResults(Results):
    """The iterator that `imap_unordered` returns: results as they arrive."""

    def _take(self, timeout: float | None) -> None:
        done = self._wait_for(list(self._waiting), timeout)
        future = next(iter(done))
        self._waiting.remove(future)
        self._submit()
        self._items += future.result()
