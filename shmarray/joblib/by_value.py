"""Sending what plain pickle refuses: lambdas, local functions and classes, and what __main__ defines.

cloudpickle sends those by value.  It is what joblib's users are used to, and workers that do
not import the caller's __main__ need it.  Its pickle has no arrays in it: they stand beside
it, in a list, for the parcel to take up, as if they were arguments themselves.
"""

import io
import pickle
from collections import ChainMap
from typing import Any, ClassVar

import numpy as np

from shmarray.pool.stdlib import registered

try:
    from joblib.externals.cloudpickle import Pickler
except ModuleNotFoundError:  # joblib 1.6 has it no longer inside, but depends on it
    from cloudpickle import Pickler


class ByValue:
    """Anything; arrives as what it holds."""

    def __init__(self, content: object) -> None:
        self._content = content

    def __reduce__(self) -> Any:
        file = io.BytesIO()
        pickler = _Pickler(file)
        pickler.dump(self._content)
        return _load, (file.getvalue(), pickler.beside)


def dumps(content: object) -> bytes:
    """A pickle by value, arrays and all."""
    file = io.BytesIO()
    Pickler(file).dump(content)
    return file.getvalue()


def _load(pickled: bytes, beside: list[Any]) -> Any:
    return pickle.loads(pickled, buffers=beside)  # noqa: S301 - from our own process's child or parent


class _Pickler(Pickler):  # type: ignore[misc]
    # As ForkingPickler's, besides.
    dispatch_table: ClassVar[Any] = ChainMap(*Pickler.dispatch_table.maps, registered)

    def __init__(self, file: io.BytesIO) -> None:
        beside: list[Any] = []
        marked: dict[int, tuple[pickle.PickleBuffer, Any]] = {}

        # A closure and not a method: see parcel._Packer.
        def out_of_band(buffer: pickle.PickleBuffer) -> bool:
            beside.append(marked[id(buffer)][1] if id(buffer) in marked else buffer)
            return False

        super().__init__(file, 5, out_of_band)
        self.beside = beside
        self._marked = marked

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
