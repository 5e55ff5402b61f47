"""Which arrays many tasks of one call have, so that each is copied once for all of them.

Only where that is provably the same as a copy for each: the iterable is exactly a list or
tuple, and the array is an item or directly in an item's built-in container.  Anything else may
be lazy, whatever its length says, and fill one buffer again and again.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Below this, a copy for each task costs less than a private mapping of one for all, if
# tasks write to it (benchmarks/constants.py: _WORTH_SHARING).
_WORTH_SHARING = 1 << 20

# An item may be an array, or one of these containers of arrays.
_CONTAINERS = frozenset((np.ndarray, list, tuple, dict))

RepeatedArrays = dict[int, NDArray[Any]]
"""Arrays by their id."""


def repeated_arrays(iterable: Any, chunksize: int) -> RepeatedArrays:
    """The large arrays that occur in at least two chunks of an iterable."""
    if type(iterable) not in (list, tuple) or _CONTAINERS.isdisjoint(map(type, iterable)):
        return {}
    first: dict[int, int] = {}
    found: RepeatedArrays = {}
    for place, item in enumerate(iterable):
        for array in _arrays(item):
            if first.setdefault(id(array), place // chunksize) != place // chunksize:
                found[id(array)] = array
    return found


def _arrays(item: Any) -> Iterable[NDArray[Any]]:
    kind = type(item)
    if kind is np.ndarray:
        parts: Iterable[Any] = (item,)
    elif kind in (list, tuple):
        parts = item
    elif kind is dict:
        parts = item.values()
    else:
        return ()
    return [part for part in parts if type(part) is np.ndarray and part.nbytes >= _WORTH_SHARING]
