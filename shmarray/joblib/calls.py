"""Calls that joblib sends together, by value, as users of joblib expect."""

from collections import Counter
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import numpy as np

from shmarray.pool.arrays.by_reference import by_reference
from shmarray.pool.arrays.by_value import Pickled, Pickler, load

Call = tuple[Any, tuple[Any, ...], dict[str, Any]]


class Calls:
    """Calls that are sent together; each arrives with its own arguments, even if several share them here.

    joblib decides how many travel together by how long they take.  If one saw what another
    has written to an argument of both, the answer would depend on how busy the machine is.
    """

    def __init__(self, calls: list[Call]) -> None:
        self._calls = calls

    def __reduce__(self) -> Any:
        pickler = Pickler()
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


class _Arrived:
    """The calls in a worker; each is created when the previous one is done."""

    def __init__(self, common: Pickled, own: list[Pickled], beside: list[Any], is_shared: list[bool]) -> None:
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

    def _load(self, pickled: Pickled) -> Any:
        return load(pickled[0], [self._take(place) for place in pickled[1]])

    def _take(self, place: int) -> Any:
        """An array for one call: a copy, or the array itself for the last call or if it is shared explicitly."""
        self._uses[place] -= 1
        thing = self._beside[place]
        if not self._uses[place]:
            self._beside[place] = None
        elif isinstance(thing, np.ndarray) and not self._is_shared[place]:
            thing = thing.copy(order="K")
        return thing
