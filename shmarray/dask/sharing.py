"""share: an array with one copy on each host of a cluster."""

import asyncio
import threading
import uuid
import weakref
import zlib
from typing import Any, Self

import numpy as np
from distributed import Client, Future
from numpy.typing import ArrayLike, NDArray

from shmarray.core import is_masked
from shmarray.dask import hooks, plugin
from shmarray.dask.copies import COPIES, Copy, Description, host_id, new_memory, open_register, sweep, update
from shmarray.dask.handle import ClusterHandle
from shmarray.dask.site import CLIENT, PART

# Seconds between two questions of a worker whether an array is still wanted, and for how
# many workers: the scheduler answers some 64 such questions in a second, however many there are.
_INTERVAL, _WORKERS = 0.5, 32

_installed: "weakref.WeakSet[Client]" = weakref.WeakSet()
_shares: "weakref.WeakValueDictionary[str, Share]" = weakref.WeakValueDictionary()


def install(client: Client) -> None:
    """Prepare all workers of a cluster for shared arrays, including later and restarted workers.

    Parameters
    ----------
    client : distributed.Client

    Notes
    -----
    `share`, `Pool` and `ProcessPoolExecutor` call it themselves; calling it twice is harmless.
    The workers and the scheduler must have shmarray installed.

    Raises
    ------
    TypeError
        If the client is an asynchronous one.
    """
    if getattr(client, "asynchronous", None) is not False:
        raise TypeError(f"client must be a distributed.Client that is not asynchronous, not {client!r}")
    if client not in _installed:
        sweep()
        client.register_plugin(plugin.NannyPart())
        client.register_plugin(plugin.ClusterPlugin())
        client.subscribe_topic(_topic(client), _send)
        _installed.add(client)


def share(client: Client, array: ArrayLike, *, writable: bool = False) -> "Share":
    """Share an array with a Dask cluster, with one copy on each host for all of its workers.

    Parameters
    ----------
    client : distributed.Client
        A client that is not asynchronous.
    array : array_like
        Any dtype except Python objects.  It is copied now; later changes to it have no effect.
    writable : bool, optional
        Whether tasks get the array copy-on-write instead of read-only.  Each task then starts
        with the shared content; its writes are private, and each page it writes is copied.

    Returns
    -------
    Share
        A context manager; leave it, or `close` it, when the array is no longer needed.

    Raises
    ------
    TypeError
        If the client is asynchronous, or the array holds Python objects or is masked.
    SharedMemoryFullError
        If this host does not have enough memory for the copy.  Nothing is left behind.

    Notes
    -----
    If the share itself, or its ``future``, is passed to a task, the task gets a `ClusterHandle`,
    whose ``array`` is the array.  A task of `shmarray.dask.Pool` or `ProcessPoolExecutor` gets
    the array itself.  With ``future``, the array remains until the task is done, even if the
    share is closed earlier; otherwise the share must stay open until then.

    All hosts start to fetch the array at once, each from a host that already has parts of it.
    Each host that has workers holds one copy, and so does the client's host (the same copy if
    it has workers).  The memory is anonymous: it has no name, is not limited by the size of
    ``/dev/shm``, and is freed by the kernel however the processes end.

    If all workers that have the array die, the client sends it again.  If the client ends,
    the workers release it.  `Client.restart` closes all shares.

    Examples
    --------
    >>> import numpy
    >>> from distributed import Client
    >>> from shmarray.dask import share
    >>> def column_mean(table, column):
    ...     return float(table.array[:, column].mean())
    >>> with Client(n_workers=2) as client:  # doctest: +SKIP
    ...     with share(client, numpy.ones((100_000, 8))) as table:
    ...         client.gather(client.map(column_mean, [table.future] * 8, range(8)))
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    install(client)
    return Share(client, array, writable)


class Share(ClusterHandle):
    """The object that `share` returns: a `ClusterHandle` that keeps the array in the cluster's memory.

    Attributes
    ----------
    future : distributed.Future
        A future of the handle; a task that receives it keeps the array until the task is done.

    Notes
    -----
    A context manager.  It closes itself when it is garbage-collected.  Safe to use from many
    threads.  A forked child must not use its parent's shares.
    """

    __slots__ = ("_client", "_end", "_sending", "future")

    def __init__(self, client: Client, array: ArrayLike, writable: bool) -> None:
        source, octets, strides = _taken_apart(array)
        facts = client.run(host_id)
        about = Description(
            f"shmarray-{uuid.uuid4().hex}",
            source.shape,
            source.dtype,
            strides,
            octets.nbytes,
            _topic(client),
            _INTERVAL * max(1.0, len(facts) / _WORKERS),
        )
        super().__init__(about, writable=writable)
        self._client = client
        self._sending = threading.Lock()
        self._end: weakref.finalize[..., Any] = weakref.finalize(self, _nothing)
        self._keep(octets)
        try:
            self.future: Future = client.submit(_itself, ClusterHandle(about, writable=writable), key=about.key)
            self._distribute(facts)
        except BaseException:
            self.close()
            raise

    def _keep(self, octets: NDArray[np.uint8]) -> None:
        """Put the array into memory that this host's workers attach, and from which it is sent to the others."""
        about = self._about
        copy = Copy.of(*new_memory(about.nbytes, octets))
        holder = object()
        COPIES.add(about, copy, holder)
        self._end.detach()
        self._end = weakref.finalize(self, COPIES.release, about.key, holder)
        register = open_register(about.key)
        if register is not None:  # nobody else knows the key yet
            with register:
                update(register, copy)
        _shares[about.key] = self

    def _distribute(self, hosts: dict[str, str]) -> None:
        """Start the transfer on one worker of each host, in a binary tree."""
        # As soon as workers have it they ask whether it is still wanted.
        while not hooks.is_wanted(self._client, self._about.key):
            if self.future.cancelled():
                raise RuntimeError(
                    "the cluster was restarted or the client was closed while the array was being shared"
                )
        workers = _one_of_each_host(hosts, self._about.key)
        sources = {address: workers[(place - 1) // 2] if place else CLIENT for place, address in enumerate(workers)}
        if sources:
            # Where it fails, the task that wants it there gets the error.
            self._client.run(plugin.begin, self._about, sources, workers=workers, on_error="ignore")

    def send(self, address: str) -> None:
        """Send the array to a worker that has found no copy of it."""
        copy = COPIES.get(self._about.key)
        if copy is None or not self._sending.acquire(blocking=False):
            return
        try:
            start: int | None = 0
            part = copy.octets[:0]  # first ask how much it has
            while start is not None:
                answers = self._client.run(
                    plugin.store, self._about.key, start, part, workers=[address], on_error="ignore"
                )
                start = answers.get(address)
                part = copy.octets[start : start + PART] if start is not None else part
        except (Exception, asyncio.CancelledError):
            if self._client.status == "running":
                raise
        finally:
            self._sending.release()

    def close(self) -> None:
        """Release the array: hosts free their copies when no task needs it.  Closing twice is harmless."""
        _shares.pop(self._about.key, None)
        future, self.future = getattr(self, "future", None), None
        if future is not None:
            future.release()
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _topic(client: Client) -> str:
    return f"shmarray-{client.id}"


def _itself(handle: ClusterHandle) -> ClusterHandle:
    return handle


def _nothing() -> None:
    pass


def _taken_apart(array: ArrayLike) -> tuple[NDArray[Any], NDArray[np.uint8], tuple[int, ...] | None]:
    """A contiguous array, its bytes in memory order, and its strides (None for row-major)."""
    if is_masked(type(array)):
        raise TypeError("masked arrays cannot be shared: share array.filled(value), or .data and .mask separately")
    source = np.asarray(array)
    if source.dtype.hasobject:
        raise TypeError(f"an array of Python objects cannot be shared (dtype {source.dtype}): convert it first")
    if not (source.flags.c_contiguous or source.flags.f_contiguous):
        source = source.copy(order="K")
    octets = source.ravel(order="K").view(np.uint8) if source.nbytes else np.empty(0, np.uint8)
    return source, octets, None if source.flags.c_contiguous else source.strides


def _one_of_each_host(hosts: dict[str, str], key: str) -> list[str]:
    """One worker of each host, starting with this host; which one depends on the array."""
    workers: dict[str, list[str]] = {}
    for address, host in sorted(hosts.items(), key=lambda item: (item[1] != host_id(), item)):
        workers.setdefault(host, []).append(address)
    number = zlib.crc32(key.encode())
    return [addresses[number % len(addresses)] for addresses in workers.values()]


def _send(event: Any) -> None:
    """Handle a worker's request; runs in the client's event loop, which must not block."""
    _, message = event
    share = _shares.get(message["key"])
    if share is not None:
        name = "shmarray-send"
        threading.Thread(target=share.send, args=(message["worker"],), name=name, daemon=True).start()
