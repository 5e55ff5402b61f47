"""ProcessPoolExecutor: the interface of concurrent.futures.ProcessPoolExecutor on a Dask cluster."""

import concurrent.futures
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from itertools import chain
from typing import Any

import distributed
from distributed import Client

from shmarray.dask.calls import (
    Call,
    Shares,
    chunks_of,
    close,
    is_by_reference,
    name_of,
    pack,
    perform,
    share_repeated,
    submit,
    values,
)
from shmarray.dask.sharing import install


class ProcessPoolExecutor(Executor):
    """`concurrent.futures.ProcessPoolExecutor` on the workers of a Dask cluster.

    Parameters
    ----------
    client : distributed.Client
        A client that is not asynchronous.  The executor does not close it.
    **options
        Other options of `Client.get_executor`: ``workers``, ``resources``, ``retries``,
        ``allow_other_workers``.

    Raises
    ------
    TypeError
        If the client is asynchronous, or does not accept an option.

    Notes
    -----
    As with `shmarray.dask.Pool`, tasks and callers get their own copies of arrays.  A large
    array that many calls of one `map` receive as an argument has one copy on each host.  For
    an array that many `submit` calls receive, see `shmarray.dask.share`.

    The death of a worker does not break the executor: Dask runs its calls again.

    Safe to use from many threads.

    Examples
    --------
    >>> import numpy
    >>> from distributed import Client
    >>> from shmarray.dask import ProcessPoolExecutor
    >>> with Client(n_workers=2) as client, ProcessPoolExecutor(client) as executor:  # doctest: +SKIP
    ...     float(executor.submit(numpy.sum, numpy.ones(100_000)).result())
    100000.0
    """

    def __init__(self, client: Client, **options: Any) -> None:
        install(client)
        self._client = client
        self._options = options
        self._inner = client.get_executor(pure=False, **options)
        self._calls: weakref.WeakSet[Future[Any]] = weakref.WeakSet()
        self._chunks: weakref.WeakSet[distributed.Future] = weakref.WeakSet()
        self._is_open = True

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self._check_open()
        packed = pack(Call(fn, args, kwargs), {}, is_copied=is_by_reference(self._client))
        future: Future[Any] = self._inner.submit(perform, packed.pickled, values(self._client, packed))
        self._calls.add(future)
        return future

    submit.__doc__ = Executor.submit.__doc__

    def map(
        self, fn: Callable[..., Any], *iterables: Any, timeout: float | None = None, chunksize: int = 1, **_: Any
    ) -> Iterator[Any]:
        self._check_open()
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        deadline = None if timeout is None else time.monotonic() + timeout
        # Other iterables may fill one buffer again and again.
        is_lazy = any(type(each) not in (list, tuple) for each in iterables)
        is_copied = is_lazy or is_by_reference(self._client)
        shares = share_repeated(self._client, iterables, chunksize)
        try:
            chunks = chunks_of(fn, zip(*iterables, strict=False), chunksize, is_star=True)
            packed = (pack(chunk, shares, is_copied=is_copied) for chunk in chunks)
            futures = submit(self._client, name_of(fn), packed, self._options)
        except BaseException:
            close(shares)
            raise
        self._chunks.update(futures)
        # A generator begins to run when it is asked for its first item, and that may never be.
        return chain.from_iterable(_Chunks(futures, shares, deadline))

    map.__doc__ = Executor.map.__doc__  # noqa: A003 - the stdlib's name

    def _check_open(self) -> None:
        if not self._is_open:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT002 - the stdlib's
        self._is_open = False
        if cancel_futures:
            for call in tuple(self._calls):
                call.cancel()
            self._client.cancel([future for future in self._chunks if not future.done()])
        if wait:
            concurrent.futures.wait(tuple(self._calls))
            distributed.wait([future for future in self._chunks if not future.done()])

    shutdown.__doc__ = Executor.shutdown.__doc__


class _Chunks(Iterator[list[Any]]):
    """The results of a map's chunks, in order; the rest is cancelled when this is dropped or fails."""

    def __init__(self, futures: list[distributed.Future], shares: Shares, deadline: float | None) -> None:
        self._waiting = deque(futures)
        self._deadline = deadline
        self._end = weakref.finalize(self, _end, self._waiting, shares)

    def __next__(self) -> list[Any]:
        if not self._waiting:
            self._end()
            raise StopIteration
        timeout = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        try:
            results: list[Any] = self._waiting[0].result(timeout)
        except BaseException:
            self._end()
            raise
        self._waiting.popleft()
        return results


def _end(waiting: deque[distributed.Future], shares: Shares) -> None:
    waiting.clear()  # what nobody holds, the scheduler cancels
    close(shares)
