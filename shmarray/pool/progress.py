"""Progress bars, which some methods of Pool show with ``progress=True`` or a label.

The thread that waits for the results draws the bar, not the engine's threads, so that a slow
or blocked terminal delays only the caller that asked for the bar.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import TimeoutError as NotYet
from multiprocessing.pool import IMapIterator
from typing import Any, TypeVar

from shmarray.pool._stdlib import StockPool, items_done, new_call
from shmarray.pool.buffered import BufferedResults
from shmarray.pool.engine.feeder import Extra
from shmarray.pool.engine.frontend import checked_buffersize, checked_size
from shmarray.pool.engine.scheduler import Scheduler
from shmarray.pool.interrupts import deferred, uninterrupted
from shmarray.pool.threads import WeakObjects

# Seconds between two checks of a map's progress; tqdm does not draw more often either.
_LOOK = 0.1

S = TypeVar("S")
T = TypeVar("T")

# Creates a bar from the total number of items and the number that are done.
_BarMaker = Callable[[int | None, int], Any]


class ShowsProgress(StockPool):
    """The methods of a Pool that can show a bar."""

    _shown: "WeakObjects[Shown]"
    _scheduler: Scheduler

    def map(
        self,
        func: Callable[[S], T],
        iterable: Iterable[S],
        chunksize: int | None = None,
        *,
        progress: bool | str = False,
        buffersize: None = None,
    ) -> list[T]:
        """As the stdlib's; with `progress`, True or a label, shows a tqdm bar, chunk by chunk.

        Only `imap` and `imap_unordered` take a `buffersize`: a list holds all results.
        """
        _refuse("map", buffersize)
        return self._map_showing(super().map_async, func, iterable, chunksize, progress)

    def starmap(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        *,
        progress: bool | str = False,
        buffersize: None = None,
    ) -> list[T]:
        """As the stdlib's; with `progress`, True or a label, shows a tqdm bar, chunk by chunk.

        Only `imap` and `imap_unordered` take a `buffersize`: a list holds all results.
        """
        _refuse("starmap", buffersize)
        return self._map_showing(super().starmap_async, func, iterable, chunksize, progress)

    def imap(
        self,
        func: Callable[[S], T],
        iterable: Iterable[S],
        chunksize: int | None = 1,
        *,
        progress: bool | str = False,
        buffersize: int | None = None,
    ) -> "IMapIterator[T]":
        """As the stdlib's; with `progress`, True or a label, shows a tqdm bar of the results taken.

        With `buffersize`, no more than so many items are taken from the iterable before their
        results are taken; the iterable is then read in the thread that takes these.
        """
        start = super().imap
        return self._imap_showing(start, func, iterable, chunksize, progress, buffersize, ordered=True)

    def imap_unordered(
        self,
        func: Callable[[S], T],
        iterable: Iterable[S],
        chunksize: int | None = 1,
        *,
        progress: bool | str = False,
        buffersize: int | None = None,
    ) -> "IMapIterator[T]":
        """As the stdlib's; with `progress`, True or a label, shows a tqdm bar of the results taken.

        With `buffersize`, no more than so many items are taken from the iterable before their
        results are taken; the iterable is then read in the thread that takes these.
        """
        start = super().imap_unordered
        return self._imap_showing(start, func, iterable, chunksize, progress, buffersize, ordered=False)

    def _map_showing(
        self, start: Any, func: Any, iterable: Any, chunksize: int | None, progress: bool | str
    ) -> list[Any]:
        make_bar = bar_maker(progress) if progress else None
        if make_bar is not None and not hasattr(iterable, "__len__"):
            iterable = list(iterable)  # as the stdlib would
        result = start(func, iterable, chunksize)
        if make_bar is not None:
            with make_bar(len(iterable), 0) as bar:
                _follow(result, len(iterable), bar)
        items: list[Any] = result.get()
        return items

    def _imap_showing(
        self,
        start: Any,
        func: Any,
        iterable: Any,
        chunksize: int | None,
        progress: bool | str,
        buffersize: int | None,
        *,
        ordered: bool,
    ) -> "IMapIterator[Any]":
        # An object with IMapIterator's methods, because that class cannot be subclassed here.
        make_bar = bar_maker(progress) if progress else None
        chunksize = checked_size("chunksize", chunksize)
        buffersize = checked_buffersize(buffersize)
        results: Any
        if buffersize is None:
            results = uninterrupted(start, func, iterable, chunksize)
        else:
            results = BufferedResults(self._submit_items, func, iterable, chunksize, buffersize, ordered=ordered)
        if make_bar is not None:
            results = Shown(results, make_bar, _length(iterable))
            self._shown.add(results)
        return results  # type: ignore[no-any-return]

    def _submit_items(self, func: Any, held: list[Any], items: range, callback: Any, error_callback: Any) -> Any:
        """Start a task for these items of an iterable, which may reuse their memory for the next one."""
        self._check_running()  # type: ignore[attr-defined]
        with deferred():
            call, job = new_call(self, callback, error_callback)
            held[:] = [(job, 0, func, held.pop(), {}, Extra({}, None, items))]
            self._scheduler.submit_packed(held)
        return call

    def _close_bars(self) -> None:
        for shown in self._shown.alive():
            shown.close()


def _refuse(method: str, buffersize: object) -> None:
    if buffersize is not None:
        raise TypeError(f"Pool.{method}() takes no buffersize, because it returns all results at once: use Pool.imap()")


def bar_maker(progress: bool | str) -> _BarMaker:
    """Return the function that creates the bars for a call.

    Raises
    ------
    TypeError
        If `progress` is neither True nor a str.
    ModuleNotFoundError
        If tqdm is not installed.
    """
    if progress is not True and not isinstance(progress, str):
        raise TypeError(f"progress must be True, False or a label, not {progress!r}")
    try:
        from tqdm.auto import tqdm  # noqa: PLC0415 - only needed for bars
    except ModuleNotFoundError as error:
        message = "progress bars require tqdm, which is not installed: pip install tqdm"
        raise ModuleNotFoundError(message, name=error.name) from None
    label = progress if isinstance(progress, str) else None
    return lambda total, done: tqdm(desc=label, total=total, initial=done)


def _follow(result: Any, length: int, bar: Any) -> None:
    """Update a bar until its map is done; if the map fails, the bar stays where it is."""
    while not result.ready():
        bar.update(items_done(result, length) - bar.n)
        result.wait(_LOOK)
    if result.successful():
        bar.update(length - bar.n)


def _length(iterable: Any) -> int | None:
    try:
        return len(iterable)
    except (TypeError, AttributeError):  # as in tqdm: some classes have a __len__ that raises
        return None


class Shown(Iterator[Any]):
    """The results of an imap, counted on a bar as they are taken.

    An error closes the bar, so that a traceback starts on its own line; if the caller takes
    more results, the bar reappears.  tqdm itself closes bars that are garbage-collected.
    """

    def __init__(self, results: Any, make_bar: _BarMaker, total: int | None) -> None:
        self._results = results
        self._make_bar = make_bar
        self._total = total
        self._lock = threading.Lock()
        self._done = 0
        self._bar: Any = make_bar(total, 0)

    def __next__(self) -> Any:
        return self._take(self._results.__next__)

    def next(self, timeout: float | None = None) -> Any:
        """As in the stdlib's iterator, which has it only with a chunksize of 1."""
        take = self._results.next
        return self._take(lambda: take(timeout))

    def _take(self, take: Callable[[], Any]) -> Any:
        try:
            item = take()
        except NotYet:
            raise
        except StopIteration:
            self.close()
            raise
        except Exception:
            self._count()
            self.close()
            raise
        except BaseException:
            self.close()
            raise
        self._count()
        return item

    def _count(self) -> None:
        with self._lock:
            if self._bar is None:
                self._bar = self._make_bar(self._total, self._done)
            self._done += 1
            self._bar.update()

    def close(self) -> None:
        with self._lock:
            if self._bar is not None:
                self._bar.close()
            self._bar = None
