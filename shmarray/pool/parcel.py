"""Parcels: objects -> (pickle, buffers) -> objects.  Knows nothing of processes.

The arrays inside an object, 64 KB and up, are left out of its pickle: that names a buffer
for each (PEP 574), and the buffers are copied once, from where they are to where the
other process can read them.  Arrays that are shared already travel as references.

PEP 574 alone would leave datetime64, strided, broadcast, record, matrix and masked arrays
in the pickle, give back read-only what was read-only, and copy memory maps.
"""

import copyreg
import io
import pickle
from collections import ChainMap
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from shmarray.pool.references import by_reference
from shmarray.pool.stdlib import registered

# Smaller arrays are faster in the pickle than in a box: equal at 40 to 90 kB
# (benchmarks/constants.py: SMALL).
SMALL = 64 << 10
# Longer pickles go into the box as well: messages stay one packet (benchmarks/constants.py: LONG).
LONG = 24 << 10
_ALIGNMENT = 64
# Not objects, and not numpy's StringDType: theirs are pointers.
_PLAIN_KINDS = frozenset("biufcmMSUV")

Octets = NDArray[np.uint8]


Span = tuple[int, int, int, bool]
"""Where a buffer lies: the number of its box, or LOOSE; its offset and size in bytes; and
whether it is the buffer of many tasks, none of which may see another's writes.  A plain
tuple, because that pickles in a third of the time."""
LOOSE = -1


class Contents(NamedTuple):
    """What a parcel carries; inert, whatever the object is.

    Attributes
    ----------
    pickled : bytes-like
        The pickle.  Empty if it lies in a box itself: then the first span says where.
    spans : tuple of Span
        Where the buffers are, in the order of the pickle.
    loose : bytes-like
        The buffers themselves, one after the other, where no box could be had.
    """

    pickled: bytes | memoryview
    spans: tuple[Span, ...] = ()
    loose: bytes | memoryview = b""


class Repeated(NamedTuple):
    """Stands for the buffer of an array that many tasks carry; it is copied once for all of them."""

    array: NDArray[Any]


class Bundle(NamedTuple):
    """An object taken apart: nothing of it is copied yet but the pickle."""

    pickle: bytes
    pieces: list["NDArray[Any] | Repeated"]


def take_apart(obj: object, repeated: Mapping[int, NDArray[Any]] | None = None) -> Bundle:
    """Pickle an object without the buffers of its arrays.

    Parameters
    ----------
    obj : object
    repeated : mapping of int to ndarray, optional
        By id, the arrays that many parcels carry.

    Raises
    ------
    Exception
        Whatever pickling the object raises.
    """
    # Making a pickler takes as long as pickling a small task.  One that has failed is not
    # used again, nor one that is in use: pickling runs code that may get here.
    try:
        packer = _idle_packers.pop()
    except IndexError:
        packer = _Packer()
    bundle = packer.take_apart(obj, repeated)
    if len(bundle.pickle) <= LONG:
        _idle_packers.append(packer)
    return bundle


def put_together(pickled: Any, buffers: Sequence[Octets]) -> Any:
    """The object again, its arrays lying in these buffers."""
    return pickle.loads(pickled, buffers=buffers)  # noqa: S301 - from our own process's child or parent


def unpacked(contents: Contents, buffers: list[Octets]) -> Any:
    """What a parcel carries; takes from `buffers` the pickle, if that lies in a box itself."""
    return put_together(contents.pickled or buffers.pop(0), buffers)


class _Packer(pickle.Pickler):
    # As ForkingPickler's, so that what is registered there or in copyreg at any time counts.
    dispatch_table: ClassVar[Any] = ChainMap[Any, Any](registered, copyreg.dispatch_table)  # type: ignore[misc]

    def __init__(self) -> None:
        pieces: list[NDArray[Any] | Repeated] = []
        marked: dict[int, tuple[pickle.PickleBuffer, NDArray[Any] | Repeated]] = {}

        # A closure and not a method: the pickler keeps it, and a cycle would keep this one
        # until the garbage collector runs.
        def out_of_band(buffer: pickle.PickleBuffer) -> bool:
            found = marked.get(id(buffer))
            if found is not None:
                pieces.append(found[1])
                return False
            raw = buffer.raw()
            if raw.nbytes < SMALL:
                return True
            pieces.append(np.frombuffer(raw, np.uint8))
            return False

        self._file = io.BytesIO()
        super().__init__(self._file, 5, buffer_callback=out_of_band)
        self._pieces = pieces
        self._marked = marked
        self._repeated: Mapping[int, NDArray[Any]] = {}

    def take_apart(self, obj: object, repeated: Mapping[int, NDArray[Any]] | None) -> Bundle:
        if repeated:
            self._repeated = repeated
        self.dump(obj)
        bundle = Bundle(self._file.getvalue(), self._pieces.copy())
        self._forget(repeated)
        return bundle

    def _forget(self, repeated: Mapping[int, NDArray[Any]] | None) -> None:
        """Keep nothing of the object."""
        self.clear_memo()
        self._file.seek(0)
        self._file.truncate()
        if self._pieces:
            self._pieces.clear()
            self._marked.clear()
        if repeated:
            self._repeated = {}

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is np.ndarray:
            return self._array(obj)
        if isinstance(obj, np.ndarray):
            return self._subclass(obj)
        return NotImplemented

    def _array(self, array: NDArray[Any]) -> Any:
        reference = by_reference(array)
        if reference is not None:
            return reference
        if array.dtype.kind not in _PLAIN_KINDS or array.dtype.hasobject:
            return array.__reduce__()  # __reduce_ex__(5) would arrive read-only if this is
        if array.nbytes < SMALL:
            return array.__reduce__() if array.dtype.isnative else _as_bytes(np.ndarray, array)
        return self._placed(np.ndarray, array)

    def _subclass(self, array: NDArray[Any]) -> Any:
        cls: Any = type(array)
        if cls in self.dispatch_table or not (_pickles_as_ndarray(cls) or cls is np.ma.MaskedArray):
            return NotImplemented  # it has more to it, and does its own
        if cls is np.ma.MaskedArray:
            return self._masked(array)
        reference = by_reference(array)
        if reference is not None:
            return reference
        if array.dtype.kind not in _PLAIN_KINDS or array.dtype.hasobject:
            return NotImplemented
        if array.nbytes < SMALL:
            return NotImplemented if array.dtype.isnative else _as_bytes(cls, array)
        return self._placed(cls, array)

    def _masked(self, array: NDArray[Any]) -> Any:
        if array.base is None and array.nbytes < SMALL:
            return NotImplemented
        return _restore_masked, _masked_parts(array)

    def _placed(self, cls: type, array: NDArray[Any]) -> Any:
        """Reduce to a call with the array's buffer; that is only marked here, and copied by who has a box."""
        marker = pickle.PickleBuffer(bytearray())  # writable, or the array would not be
        source = Repeated(array) if id(array) in self._repeated else np.asarray(array)
        self._marked[id(marker)] = marker, source
        return _restore, (cls, marker, array.dtype, array.shape, _order(array))


_idle_packers: list[_Packer] = []


@lru_cache(maxsize=256)
def _pickles_as_ndarray(cls: Any) -> bool:
    names = ("__reduce__", "__reduce_ex__", "__setstate__")
    return all(getattr(cls, name) is getattr(np.ndarray, name) for name in names)


def _as_bytes(cls: type, array: NDArray[Any]) -> Any:
    """Reduce a small array whose byte order is not this machine's; numpy's own pickle of it would arrive with that."""
    order = _order(array)
    return _restore, (cls, bytearray(array.tobytes(order)), array.dtype, array.shape, order)


def _order(array: NDArray[Any]) -> Any:
    return "F" if array.flags.fnc else "C"


def _restore(
    cls: type, buffer: Octets | bytearray, dtype: DTypeLike, shape: tuple[int, ...], order: Any
) -> NDArray[Any]:
    # As numpy's own unpickling makes it: a new object of its class, not a view of another.
    array: NDArray[Any] = np.ndarray.__new__(cls, shape, dtype, buffer, 0, None, order)
    return array


def _masked_parts(array: Any) -> tuple[Any, ...]:
    return array._baseclass, np.ma.getdata(array, subok=False), np.ma.getmaskarray(array), array._fill_value  # noqa: SLF001


def _restore_masked(baseclass: type, data: NDArray[Any], mask: NDArray[Any], fill_value: Any) -> NDArray[Any]:
    array: Any = np.ma.MaskedArray(data.view(baseclass), mask=mask)
    array.fill_value = fill_value
    return array  # type: ignore[no-any-return]


# --- copying -------------------------------------------------------------------------


def plan(pieces: Sequence[NDArray[Any]]) -> tuple[list[int], int]:
    """Where each piece begins, one after the other, and where the last one ends; bytes."""
    offsets = []
    end = 0
    for piece in pieces:
        start = -(-end // _ALIGNMENT) * _ALIGNMENT
        offsets.append(start)
        end = start + piece.nbytes
    return offsets, end


def pour(piece: NDArray[Any], target: Octets) -> None:
    """Copy an array to these bytes, in column-major order if it has that and in row-major order otherwise."""
    if piece.flags.forc:
        np.copyto(target, octets_of(piece))
    else:
        np.copyto(np.ndarray(piece.shape, piece.dtype, target), piece)


def octets_of(piece: NDArray[Any]) -> Octets:
    """The memory of a contiguous array; not a copy."""
    return np.ndarray((piece.nbytes,), np.uint8, np.asarray(_Memory(piece)))


class _Memory:
    """An array's memory as bytes: a view as uint8 is not to be had of every dtype and of every read-only array."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array
        address, readonly = array.__array_interface__["data"]
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (array.nbytes,),
            "data": (address, readonly),
        }


def fill(target: Octets, pieces: Sequence[NDArray[Any]], offsets: Sequence[int]) -> None:
    for piece, offset in zip(pieces, offsets, strict=True):
        pour(piece, target[offset : offset + piece.nbytes])


def loosely(bundle: Bundle) -> Contents:
    """The parcel without a box."""
    pieces = [piece.array if isinstance(piece, Repeated) else piece for piece in bundle.pieces]
    offsets, end = plan(pieces)
    target = np.empty(end, np.uint8)
    fill(target, pieces, offsets)
    spans = tuple((LOOSE, offset, piece.nbytes, False) for piece, offset in zip(pieces, offsets, strict=True))
    return Contents(bundle.pickle, spans, target.data)


def boxed(bundle: Bundle) -> list[NDArray[Any] | Repeated]:
    """What goes into a box: the pieces, and before them the pickle if it is too long for a message."""
    if len(bundle.pickle) <= LONG:
        return bundle.pieces
    return [np.frombuffer(bundle.pickle, np.uint8), *bundle.pieces]
