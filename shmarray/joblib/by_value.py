"""Sending what plain pickle refuses: lambdas, local functions and classes, and what __main__ defines.

cloudpickle sends those by value.  It is what joblib's users are used to, and workers that do
not import the caller's __main__ need it.  Its pickle has no arrays in it: they stand beside
it, in a list, for the parcel to take up, as if they were arguments themselves.
"""

import io
import pickle
from collections import ChainMap, Counter
from collections.abc import Iterator
from types import FunctionType
from typing import Any, ClassVar, NamedTuple

import numpy as np

from shmarray.pool._stdlib import registered
from shmarray.pool.arrays.references import by_reference

try:
    from joblib.externals.cloudpickle import Pickler
except ModuleNotFoundError:  # joblib 1.6 has it no longer inside, but depends on it
    from cloudpickle import Pickler

Call = tuple[Any, tuple[Any, ...], dict[str, Any]]


class ByValue:
    """Anything; arrives as what it holds."""

    def __init__(self, content: object) -> None:
        self._content = content

    def __reduce__(self) -> Any:
        pickler = _Pickler()
        pickled, places = pickler.pickled(self._content)
        return _load, (pickled, [pickler.beside[place] for place in places])


def dumps(content: object) -> bytes:
    """A pickle by value, arrays and all."""
    file = io.BytesIO()
    Pickler(file).dump(content)
    return file.getvalue()


def _load(pickled: bytes, beside: list[Any]) -> Any:
    return pickle.loads(pickled, buffers=beside)  # noqa: S301 - from our own process's child or parent


class Calls:
    """Calls that travel together; each arrives with arguments of its own, though several may have the same here.

    joblib decides how many travel together by how long they take.  If one saw what another
    has written to an argument of both, the answer would depend on how busy the machine is.
    """

    def __init__(self, calls: list[Call]) -> None:
        self._calls = calls

    def __reduce__(self) -> Any:
        pickler = _Pickler()
        # Functions once: one that goes by value is the larger part of a small call.
        functions = {id(func): func for func, _, _ in self._calls if type(func) is FunctionType}
        number = {key: place for place, key in enumerate(functions)}
        common = pickler.pickled(list(functions.values()))
        own = [
            pickler.pickled(
                (number[id(func)], None, args, kwargs) if id(func) in number else (None, func, args, kwargs)
            )
            for func, args, kwargs in self._calls
        ]
        is_shared = [isinstance(thing, np.ndarray) and by_reference(thing) is not None for thing in pickler.beside]
        return _Arrived, (common, own, pickler.beside, is_shared)


class _Pickled(NamedTuple):
    pickled: bytes
    places: list[int]
    """Of its arrays, in what stands beside."""


class _Arrived:
    """The calls, in a worker: one comes into being when the one before it is done."""

    def __init__(self, common: _Pickled, own: list[_Pickled], beside: list[Any], is_shared: list[bool]) -> None:
        self._own = own
        self._beside = beside
        self._is_shared = is_shared
        self._uses = Counter(place for _, places in (common, *own) for place in places)
        self._functions = self._load(common)

    def __iter__(self) -> Iterator[Call]:
        for pickled in self._own:
            number, func, args, kwargs = self._load(pickled)
            yield func if number is None else self._functions[number], args, kwargs
            del func, args, kwargs

    def _load(self, pickled: _Pickled) -> Any:
        return _load(pickled[0], [self._take(place) for place in pickled[1]])

    def _take(self, place: int) -> Any:
        """An array for one of those that have it: itself for the last, and for all if it is shared on purpose."""
        self._uses[place] -= 1
        thing = self._beside[place]
        if not self._uses[place]:
            self._beside[place] = None
        elif isinstance(thing, np.ndarray) and not self._is_shared[place]:
            thing = thing.copy(order="K")
        return thing


class _Pickler(Pickler):  # type: ignore[misc]
    """Pickles one thing after the other, each by itself, with what stands beside them in one list."""

    # As ForkingPickler's, besides.
    dispatch_table: ClassVar[Any] = ChainMap(*Pickler.dispatch_table.maps, registered)

    def __init__(self) -> None:
        beside: list[Any] = []
        places: list[int] = []
        known: dict[int, int] = {}
        marked: dict[int, tuple[pickle.PickleBuffer, Any]] = {}

        # A closure and not a method: see parcel._Packer.
        def out_of_band(buffer: pickle.PickleBuffer) -> bool:
            thing = marked[id(buffer)][1] if id(buffer) in marked else buffer
            place = known.setdefault(id(thing), len(beside))
            if place == len(beside):
                beside.append(thing)
            places.append(place)
            return False

        self._file = io.BytesIO()
        super().__init__(self._file, 5, out_of_band)
        self.beside = beside
        self._places = places
        self._marked = marked

    def pickled(self, thing: object) -> _Pickled:
        self.clear_memo()
        self._file.seek(0)
        self._file.truncate()
        self._places.clear()
        self.dump(thing)
        return _Pickled(self._file.getvalue(), self._places.copy())

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, np.ndarray) and _goes_beside(obj):
            # Pickle takes whatever is given for a buffer, as long as that is said to be writable.
            marker = pickle.PickleBuffer(bytearray())
            self._marked[id(marker)] = marker, obj
            return _itself, (marker,)
        return super().reducer_override(obj)


def _goes_beside(array: np.ndarray[Any, Any]) -> bool:
    # Objects may need cloudpickle, and so may a class that is not numpy's.
    return not array.dtype.hasobject and type(array).__module__.partition(".")[0] == "numpy"


def _itself(obj: Any) -> Any:
    return obj
