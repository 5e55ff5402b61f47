"""Find the arrays that many tasks of one call share, so that each is copied once for all of them.

Only where this is provably equivalent to a copy for each task: the iterable is a list or tuple
(not a subclass), and the array is an item or directly in an item's built-in container.  Anything
else may be lazy, even if it has a length, and reuse one buffer.
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
