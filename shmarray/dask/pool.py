"""Pool: the interface of multiprocessing.Pool on a Dask cluster."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from threading import Thread
from typing import Any, Self

from distributed import Client, Future, as_completed, wait

from shmarray.dask.calls import Call, Shares, chunks_of, close, is_by_reference, name_of, pack, share_repeated, submit
from shmarray.dask.results import AsyncResult, Results, UnorderedResults
from shmarray.dask.sharing import install

# How many chunks of an imap are under way, for each thread of the cluster's workers.
_AHEAD = 4


class Pool:
    """`multiprocessing.Pool` on the workers of a Dask cluster.

    Parameters
    ----------
    client : distributed.Client
        A client that is not asynchronous.  The pool does not close it.
    **options
        Other options of `Client.submit`, for all tasks: ``workers``, ``resources``,
        ``retries``, ``priority``, ``allow_other_workers``.

    Raises
    ------
    TypeError
        If the client is asynchronous.

    Notes
    -----
    The methods are those of `multiprocessing.pool.Pool`, and arrays behave as they do there: a
    task (or a chunk of tasks) gets its own writable copy, and so does the caller of a result.
    This includes arrays from `shmarray.create` or `scoped`, because writes to shared memory do
    not reach other hosts.

    A large array (1 MB or more) that many tasks of one `map` or `starmap` receive is shared:
    each host has one copy, and tasks get it copy-on-write.  As in `shmarray.Pool`, the iterable
    must be a list or tuple, not a subclass, and the array an item or directly in an item.
    Other arrays are ordinary Dask values.

    `map`, `starmap`, `imap` and `imap_unordered` take ``progress=True``, or a label, to show a
    progress bar; this requires tqdm (the extra ``progress``).  `imap` takes items as its results
    are taken, with a few items per thread of the cluster in advance.

    If a worker dies, its tasks run again on another one, by Dask's rules, so a task may run more
    than once.  The first error of a `map` is raised at once, and tasks that have not started
    are cancelled.

    Safe to use from many threads.  A forked child cannot use its parent's pools.

    Examples
    --------
    >>> import numpy
    >>> from distributed import Client
    >>> from shmarray.dask import Pool
    >>> def column_mean(table, column):
    ...     return float(table[:, column].mean())
    >>> with Client(n_workers=2) as client, Pool(client) as pool:  # doctest: +SKIP
    ...     table = numpy.ones((100_000, 8))
    ...     pool.starmap(column_mean, [(table, column) for column in range(8)])
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """

    def __init__(self, client: Client, **options: Any) -> None:
        install(client)
        self._client = client
        self._options = options
        self._futures: weakref.WeakSet[Future] = weakref.WeakSet()
        self._is_open = True

    # --- one call ---

    def apply(self, func: Callable[..., Any], args: Iterable[Any] = (), kwds: dict[str, Any] | None = None) -> Any:
        """As the stdlib's."""
        return self._submitted(func, args, kwds).result()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: dict[str, Any] | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult:
        """As the stdlib's."""
        future = self._submitted(func, args, kwds)
        result = AsyncResult(future.result, callback, error_callback)
        future.add_done_callback(result.start)
        return result

    def _submitted(self, func: Callable[..., Any], args: Iterable[Any], kwds: dict[str, Any] | None) -> Future:
        self._check_open()
        packed = pack(Call(func, tuple(args), kwds or {}), {}, is_copied=is_by_reference(self._client))
        (future,) = submit(self._client, name_of(func), [packed], self._options)
        self._futures.add(future)
        return future

    # --- many ---

    def map(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        *,
        progress: bool | str = False,
    ) -> list[Any]:
        """As the stdlib's; with `progress`, True or a label, shows a tqdm bar, chunk by chunk."""
        return self._map(func, iterable, chunksize, progress=progress, is_star=False)

    def starmap(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        *,
        progress: bool | str = False,
    ) -> list[Any]:
        """As the stdlib's; with `progress`, True or a label, shows a tqdm bar, chunk by chunk."""
        return self._map(func, iterable, chunksize, progress=progress, is_star=True)

    def map_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[list[Any]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult:
        """As the stdlib's."""
        return self._map_async(func, iterable, chunksize, callback, error_callback, is_star=False)

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[Any]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult:
        """As the stdlib's."""
        return self._map_async(func, iterable, chunksize, callback, error_callback, is_star=True)

    def _map(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None,
        *,
        progress: bool | str,
        is_star: bool,
    ) -> list[Any]:
        make_bar = bar_maker(progress) if progress else None
        futures, shares, length = self._started(func, iterable, chunksize, is_star=is_star)
        try:
            if make_bar is not None:
                with make_bar(length) as bar:
                    for done in as_completed(futures, with_results=True):
                        bar.update(len(done[1]))
            return list(chain.from_iterable(self._client.gather(futures)))
        finally:
            close(shares)

    def _map_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None,
        callback: Callable[[list[Any]], object] | None,
        error_callback: Callable[[BaseException], object] | None,
        *,
        is_star: bool,
    ) -> AsyncResult:
        futures, shares, _ = self._started(func, iterable, chunksize, is_star=is_star)

        def collect() -> list[Any]:
            try:
                return list(chain.from_iterable(self._client.gather(futures)))
            finally:
                close(shares)

        result = AsyncResult(collect, callback, error_callback)
        Thread(target=result.start, name="shmarray-map-async", daemon=True).start()
        return result

    def _started(
        self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None, *, is_star: bool
    ) -> tuple[list[Future], Shares, int]:
        self._check_open()
        if type(iterable) not in (list, tuple):
            items = list(iterable)
            repeating: list[Any] = []  # may be lazy, and fill one buffer again and again
        else:
            items = iterable  # type: ignore[assignment]
            repeating = [items]
        if chunksize is None:
            chunksize = -(-len(items) // (4 * self._threads())) or 1
        shares = share_repeated(self._client, repeating, chunksize)
        try:
            is_copied = is_by_reference(self._client)
            packed = (pack(chunk, shares, is_copied=is_copied) for chunk in chunks_of(func, items, chunksize, is_star))
            futures = submit(self._client, name_of(func), packed, self._options)
        except BaseException:
            close(shares)
            raise
        self._futures.update(futures)
        return futures, shares, len(items)

    # --- one after the other ---

    def imap(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int = 1,
        *,
        progress: bool | str = False,
    ) -> Iterator[Any]:
        """As the stdlib's; with `progress`, True or a label, shows a tqdm bar of the results taken."""
        return self._imap(Results, func, iterable, chunksize, progress)

    def imap_unordered(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int = 1,
        *,
        progress: bool | str = False,
    ) -> Iterator[Any]:
        """As the stdlib's; with `progress`, True or a label, shows a tqdm bar of the results taken."""
        return self._imap(UnorderedResults, func, iterable, chunksize, progress)

    def _imap(
        self,
        kind: type[Results],
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int,
        progress: bool | str,
    ) -> Iterator[Any]:
        self._check_open()
        if chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize}")
        make_bar = bar_maker(progress) if progress else None
        chunks = chunks_of(func, iterable, chunksize, is_star=False)

        def more(count: int) -> list[Future]:
            self._check_open()
            # Copied, because the iterable may fill one buffer again and again.
            packed = [pack(chunk, {}, is_copied=True) for chunk in islice(chunks, count)]
            futures = submit(self._client, name_of(func), packed, self._options)
            self._futures.update(futures)
            return futures

        results = kind(self._client, more, _AHEAD * self._threads())
        return results if make_bar is None else _shown(results, make_bar, _length(iterable))

    def _threads(self) -> int:
        return sum(self._client.nthreads().values()) or 1

    # --- the end ---

    def _check_open(self) -> None:
        if not self._is_open:
            raise ValueError("Pool not running")

    def close(self) -> None:
        """Accept no more calls."""
        self._is_open = False

    def terminate(self) -> None:
        """Accept no more calls, and cancel pending calls."""
        self.close()
        self._client.cancel([future for future in self._futures if not future.done()])

    def join(self) -> None:
        """Wait for pending calls; ValueError before `close` or `terminate`."""
        if self._is_open:
            raise ValueError("Pool is still running")
        wait([future for future in self._futures if not future.done()])

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.terminate()


def bar_maker(progress: bool | str) -> Callable[[int | None], Any]:
    """Return a function that creates a bar for a number of items.

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
        from tqdm.auto import tqdm  # noqa: PLC0415 - needed for bars only
    except ModuleNotFoundError as error:
        message = "progress bars require tqdm, which is not installed: pip install tqdm"
        raise ModuleNotFoundError(message, name=error.name) from None
    label = progress if isinstance(progress, str) else None
    return lambda total: tqdm(desc=label, total=total)


def _shown(results: Iterator[Any], make_bar: Callable[[int | None], Any], total: int | None) -> Iterator[Any]:
    with make_bar(total) as bar:
        for result in results:
            bar.update()
            yield result


def _length(iterable: Any) -> int | None:
    try:
        return len(iterable)
    except TypeError:
        return None
