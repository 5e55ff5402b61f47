"""Calls as they are sent: a pickle, and beside it the arrays, as Dask values or shared arrays."""

import io
import pickle
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from cloudpickle import Pickler
from dask.utils import funcname
from distributed import Client, Future
from numpy.typing import NDArray

from shmarray.dask.handle import ClusterHandle
from shmarray.dask.sharing import Share, share

# Below this an array travels in the pickle; and one in many tasks is copied for each (as in shmarray.Pool).
_LARGE = 1 << 20
# The scheduler is to get no larger message at once; from 10 MB on Dask warns.
_MESSAGE = 8 << 20

# What an array may be, or be in, if many tasks are to have one copy of it.
_CARRIERS = frozenset((np.ndarray, list, tuple, dict))

Shares = dict[int, Share]
"""Shared arrays, by the id of what they are copies of."""


class Packed(NamedTuple):
    """A call, ready to be submitted."""

    pickled: bytes
    beside: list[Any]
    """Arrays to scatter, and shares."""


class Call(NamedTuple):
    """One call of a function, or several with one argument each."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self) -> Any:
        return self.func(*self.args, **self.kwargs)


class Chunk(NamedTuple):
    """Items of a map that travel together; with `is_star` each is a tuple of arguments."""

    func: Callable[..., Any]
    items: list[Any]
    is_star: bool

    def __call__(self) -> list[Any]:
        if self.is_star:
            return [self.func(*item) for item in self.items]
        return [self.func(item) for item in self.items]


def pack(call: Call | Chunk, shares: Shares, *, is_copied: bool) -> Packed:
    """Pickle a call; raises what that raises.

    Parameters
    ----------
    call : Call or Chunk
    shares : dict
        What to send in the place of which arrays.
    is_copied : bool
        Whether to copy the arrays that go beside the pickle: they may change before they are sent.
    """
    packer = _Packer(shares, is_copied=is_copied)
    packer.dump(call)
    return Packed(packer.file.getvalue(), packer.beside)


def submit(client: Client, name: str, packed: Iterable[Packed], options: dict[str, Any]) -> list[Future]:
    """Give calls to the cluster, under keys that begin with a name."""
    futures: list[Future] = []
    for batch in _batches(packed):
        arguments: list[list[Any]] = [[each.pickled for each in batch]]
        if any(each.beside for each in batch):
            arguments.append(_values(client, batch))
        futures += client.map(perform, *arguments, key=name, pure=False, **options)
    return futures


def values(client: Client, packed: Packed) -> list[Any]:
    """What goes with a single call, beside its pickle."""
    return _values(client, [packed])[0]


def name_of(func: Callable[..., Any]) -> str:
    """What Dask's dashboard and messages call a task."""
    name: str = funcname(func)
    return name


def is_by_reference(client: Client) -> bool:
    """Whether workers live in the client's process, and have what it sends without a copy."""
    address: str = client.scheduler.address
    return address.startswith("inproc:")


def share_repeated(client: Client, iterables: Iterable[Any], chunksize: int) -> Shares:
    """Share the large arrays that occur in at least two chunks of an iterable; raises as `share` does.

    Only where that is provably the same thing as a copy for each chunk: the iterable is
    exactly a list or tuple, and the array is an item or directly in an item's built-in
    container.  Anything else may be lazy, and fill one buffer again and again.
    """
    shares: Shares = {}
    try:
        for iterable in iterables:
            for array in _repeated(iterable, chunksize):
                if id(array) not in shares:
                    shares[id(array)] = share(client, array, writable=True)
    except BaseException:
        close(shares)
        raise
    return shares


def close(shares: Shares) -> None:
    for each in shares.values():
        each.close()


def chunks_of(func: Callable[..., Any], iterable: Iterable[Any], chunksize: int, is_star: bool) -> Iterator[Chunk]:
    """The items of an iterable, taken as they are asked for."""
    iterator = iter(iterable)
    while items := list(islice(iterator, chunksize)):
        yield Chunk(func, items, is_star)


# --- in a worker ---------------------------------------------------------------------


def perform(pickled: bytes, beside: Sequence[Any] = ()) -> Any:
    """The task: make the call."""
    try:
        return _result(pickled, beside)
    except BaseException as error:
        # Dask keeps the traceback, whose frames would keep the arrays.
        traceback.clear_frames(error.__traceback__)
        raise


def _result(pickled: bytes, beside: Sequence[Any]) -> Any:
    arrays = [value.array if isinstance(value, ClusterHandle) else value for value in beside]
    return pickle.loads(pickled, buffers=arrays)()  # noqa: S301 - as Dask's own tasks


# --- in the client -------------------------------------------------------------------


class _Packer(Pickler):  # type: ignore[misc]
    def __init__(self, shares: Shares, *, is_copied: bool) -> None:
        self.file = io.BytesIO()
        self.beside: list[Any] = []
        self._shares = shares
        self._is_copied = is_copied
        super().__init__(self.file, 5, self._is_in_band)
        # Markers that stand for arrays, and what else has buffers and stays in the pickle.
        self._markers: dict[int, pickle.PickleBuffer] = {}

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Share):
            return self._beside(obj)
        if type(obj) is np.ndarray and obj.nbytes >= _LARGE and not obj.dtype.hasobject:
            shared = self._shares.get(id(obj))
            return self._beside(shared or (obj.copy(order="K") if self._is_copied else obj))
        return super().reducer_override(obj)

    def _beside(self, thing: Any) -> Any:
        # Pickle takes whatever is given for a buffer, as long as that is said to be writable.
        marker = pickle.PickleBuffer(bytearray())
        self._markers[id(marker)] = marker
        self.beside.append(thing)
        return _itself, (marker,)

    def _is_in_band(self, buffer: pickle.PickleBuffer) -> bool:
        return id(buffer) not in self._markers


def _itself(thing: Any) -> Any:
    return thing


def _values(client: Client, batch: Sequence[Packed]) -> list[list[Any]]:
    """What the calls get beside their pickles: futures.

    An array is scattered once for each call that has it: values are Dask's, and what one
    task writes into one another may see.
    """
    arrays = [thing for packed in batch for thing in packed.beside if not isinstance(thing, Share)]
    scattered = iter(client.scatter(arrays, hash=False) if arrays else ())
    return [
        [thing.future if isinstance(thing, Share) else next(scattered) for thing in packed.beside] for packed in batch
    ]


def _batches(packed: Iterable[Packed]) -> Iterator[list[Packed]]:
    batch: list[Packed] = []
    size = 0
    for each in packed:
        if batch and size + len(each.pickled) > _MESSAGE:
            yield batch
            batch, size = [], 0
        batch.append(each)
        size += len(each.pickled)
    if batch:
        yield batch


def _repeated(iterable: Any, chunksize: int) -> list[NDArray[Any]]:
    if type(iterable) not in (list, tuple) or _CARRIERS.isdisjoint(map(type, iterable)):
        return []
    first: dict[int, int] = {}
    found: dict[int, NDArray[Any]] = {}
    for place, item in enumerate(iterable):
        for array in _arrays(item):
            if first.setdefault(id(array), place // chunksize) != place // chunksize:
                found[id(array)] = array
    return list(found.values())


def _arrays(item: Any) -> list[NDArray[Any]]:
    kind = type(item)
    parts: Iterable[Any] = (
        (item,) if kind is np.ndarray else item.values() if kind is dict else item if kind in (list, tuple) else ()
    )
    return [part for part in parts if type(part) is np.ndarray and part.nbytes >= _LARGE and not part.dtype.hasobject]
