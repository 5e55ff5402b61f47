"""Objects to (pickle, buffers) and back.

Arrays of 32 kB or more are left out of an object's pickle, which refers to a buffer for each
(PEP 574).  Each buffer is copied once, to memory that the other process can read.  Arrays that
are already shared are sent as references.

Objects that pickle refuses are sent by value (`by_value`).

PEP 574 alone would leave datetime64, strided, broadcast, record, matrix and masked arrays in the
pickle, deliver read-only arrays as read-only, and copy memory maps.
"""

import copyreg
import io
import pickle
import traceback
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import FunctionType
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from shmarray.core import is_masked
from shmarray.pool._stdlib import registered
from shmarray.pool.arrays import by_value
from shmarray.pool.arrays.buffers import Octets, copy_all_into, layout
from shmarray.pool.arrays.by_reference import by_reference
from shmarray.pool.arrays.messages import INLINE, Payload, Span

# Smaller arrays are faster in the pickle than in a block (benchmarks/constants.py: SMALL).
SMALL = 32 << 10
# Longer pickles go into the block as well: messages stay one packet (benchmarks/constants.py: LONG).
LONG = 60 << 10
# Not objects, and not numpy's StringDType: theirs are pointers.
_PLAIN_KINDS = frozenset("biufcmMSUV")


def is_plain(dtype: np.dtype[Any]) -> bool:
    """Whether the bytes of an array are all there is to it."""
    return dtype.kind in _PLAIN_KINDS and not dtype.hasobject


class RepeatedArray(NamedTuple):
    """Stands for the buffer of an array that many tasks have; it is copied once for all of them."""

    array: NDArray[Any]


class GivenArray(NamedTuple):
    """Stands for the buffer of an array that lies in a block of the task already."""

    array: NDArray[Any]
    span: Span


Buffer = NDArray[Any] | RepeatedArray | GivenArray


# Made for each task, in half the time that a named tuple takes.
@dataclass(slots=True)
class PickledObject:
    """A pickled object; its buffers are not copied yet."""

    pickle: bytes
    buffers: list[Buffer]

    @property
    def needs_block(self) -> bool:
        """Whether it is more than a short pickle."""
        return bool(self.buffers) or len(self.pickle) > LONG

    @property
    def nbytes(self) -> int:
        """Of the buffers that are this object's alone, and of a pickle that needs a block."""
        size = len(self.pickle) if len(self.pickle) > LONG else 0
        for buffer in self.buffers:
            if isinstance(buffer, np.ndarray):
                size += buffer.nbytes
        return size

    def for_block(self) -> list[Buffer]:
        """What goes into a block: the buffers, and before them the pickle if it is too long for a message."""
        if len(self.pickle) <= LONG:
            return self.buffers
        return [np.frombuffer(self.pickle, np.uint8), *self.buffers]

    def inline(self) -> Payload:
        """The object with its buffers in the message itself, where no block can be had."""
        arrays = [buffer if isinstance(buffer, np.ndarray) else buffer.array for buffer in self.buffers]
        offsets, end = layout(arrays)
        target = np.empty(end, np.uint8)
        copy_all_into(target.data, arrays, offsets)
        spans = tuple((INLINE, offset, array.nbytes, False) for array, offset in zip(arrays, offsets, strict=True))
        return Payload(self.pickle, spans, target.data)


def dumps(obj: object, repeated: Mapping[int, NDArray[Any]] | None = None, *, forked: bool = False) -> PickledObject:
    """Pickle an object without the buffers of its arrays; by value what cannot be sent by name.

    Parameters
    ----------
    obj : object
    repeated : mapping of int to ndarray, optional
        By id, the arrays that many tasks have.
    forked : bool
        Whether the receiver is forked from this process, and so has its ``__main__``.

    Raises
    ------
    UnsendableError
        If that takes cloudpickle, and there is none.
    Exception
        Whatever pickling the object raises.
    """
    pickled = _sendable(obj, repeated)
    if pickled is None:
        return _plain(by_value.ByValue(obj, by_value.sending), repeated)
    if not by_value.names_missing_main(pickled.pickle):
        return pickled
    if by_value.is_available():
        try:
            return _plain(by_value.ByValue(obj, by_value.sending), repeated)
        except Exception:
            if not forked:
                raise
            return pickled  # something that its globals hold cannot be sent, such as a lock
    name = None if forked else _name_in_main(obj)
    if name is not None:
        raise by_value.not_found(name)
    return pickled


def dumps_result(obj: object) -> PickledObject:
    """As `dumps`, on the way back to the process that sent the task."""
    pickled = _sendable(obj, None)
    if pickled is None or (by_value.names_missing_main(pickled.pickle) and by_value.is_available()):
        return _plain(by_value.ByValue(obj, by_value.returning), None)
    return pickled


def _sendable(obj: object, repeated: Mapping[int, NDArray[Any]] | None) -> PickledObject | None:
    """An object in a plain pickle; None if it must go by value."""
    try:
        return _plain(obj, repeated)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        if not _is_refusal(error):
            raise
        if not by_value.is_available():
            raise by_value.refused(error) from None
    return None


def dumps_by_name(obj: object) -> bytes | None:
    """The pickle of a function that goes by its name; None of one that does not."""
    try:
        pickled = _plain(obj, None).pickle
    except (AttributeError, pickle.PicklingError):
        return None
    return None if by_value.names_missing_main(pickled) else pickled


def _plain(obj: object, repeated: Mapping[int, NDArray[Any]] | None) -> PickledObject:
    # Making a pickler takes as long as pickling a small task.  One that has failed is not used
    # again, nor one that is in use: pickling runs code that may get here.
    try:
        pickler = _idle_picklers.pop()
    except IndexError:
        pickler = _Pickler()
    pickled = pickler.pickled(obj, repeated)
    if len(pickled.pickle) <= LONG:
        _idle_picklers.append(pickler)
    return pickled


def _is_refusal(error: BaseException) -> bool:
    """Whether pickle itself refused an object, and not a method of the object."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1].f_code is _Pickler.pickled.__code__


def _name_in_main(obj: object) -> str | None:
    """The name of something that is pickled by its name in ``__main__``."""
    finder = _MainFinder()
    finder.pickled(obj, None)
    return finder.found


def loads(pickled: Any, buffers: Sequence[Octets] = ()) -> Any:
    """The object again, its arrays lying in these buffers."""
    return pickle.loads(pickled, buffers=buffers)  # noqa: S301 - from our own process's child or parent


def loads_payload(payload: Payload, buffers: list[Octets]) -> Any:
    """The object in a payload; takes from `buffers` the pickle, if that lies in a block itself."""
    return loads(payload.pickled or buffers.pop(0), buffers)


class _Pickler(pickle.Pickler):
    # As ForkingPickler's, so that what is registered there or in copyreg at any time counts.
    dispatch_table: ClassVar[Any] = ChainMap[Any, Any](registered, copyreg.dispatch_table)  # type: ignore[misc]

    def __init__(self) -> None:
        buffers: list[Buffer] = []
        marked: dict[int, tuple[pickle.PickleBuffer, Buffer]] = {}

        # A closure and not a method: the pickler keeps it, and a cycle would keep this one
        # until the garbage collector runs.
        def out_of_band(buffer: pickle.PickleBuffer) -> bool:
            found = marked.get(id(buffer))
            if found is not None:
                buffers.append(found[1])
                return False
            raw = buffer.raw()
            if raw.nbytes < SMALL:
                return True
            buffers.append(np.frombuffer(raw, np.uint8))
            return False

        self._file = io.BytesIO()
        super().__init__(self._file, 5, buffer_callback=out_of_band)
        self._buffers = buffers
        self._marked = marked
        self._repeated: Mapping[int, NDArray[Any]] = {}

    def pickled(self, obj: object, repeated: Mapping[int, NDArray[Any]] | None) -> PickledObject:
        if repeated:
            self._repeated = repeated
        self.dump(obj)
        pickled = PickledObject(self._file.getvalue(), self._buffers.copy())
        self._forget(repeated)
        return pickled

    def _forget(self, repeated: Mapping[int, NDArray[Any]] | None) -> None:
        """Keep nothing of the object."""
        self.clear_memo()
        self._file.seek(0)
        self._file.truncate()
        if self._buffers:
            self._buffers.clear()
            self._marked.clear()
        if repeated:
            self._repeated = {}

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, np.ndarray):
            return self._array(obj) if type(obj) is np.ndarray else self._subclass(obj)
        return NotImplemented

    def _array(self, array: NDArray[Any]) -> Any:
        reference = by_reference(array)
        if reference is not None:
            return reference
        if not is_plain(array.dtype):
            return array.__reduce__()  # __reduce_ex__(5) would arrive read-only if this is
        name = _NAMES.get(id(array.dtype))
        if array.nbytes < SMALL:
            if name is not None:
                order = _order(array)
                return _restore_small, (array.tobytes(order), name, array.shape, order)
            return array.__reduce__() if array.dtype.isnative else _as_bytes(np.ndarray, array)
        if name is not None:
            return _restore_named, (self._marker(array), name, array.shape, _order(array))
        return self._out_of_band(np.ndarray, array)

    def _subclass(self, array: NDArray[Any]) -> Any:
        cls: Any = type(array)
        if is_masked(cls) and cls is np.ma.MaskedArray and cls not in self.dispatch_table:
            return self._masked(array)
        if cls in self.dispatch_table or not _pickles_as_ndarray(cls):
            return NotImplemented  # it has more to it, and does its own
        reference = by_reference(array)
        if reference is not None:
            return reference
        if not is_plain(array.dtype):
            return NotImplemented
        if array.nbytes < SMALL:
            return NotImplemented if array.dtype.isnative else _as_bytes(cls, array)
        return self._out_of_band(cls, array)

    def _masked(self, array: NDArray[Any]) -> Any:
        if array.base is None and array.nbytes < SMALL:
            return NotImplemented
        return _restore_masked, _masked_parts(array)

    def _out_of_band(self, cls: type, array: NDArray[Any]) -> Any:
        """Reduce to a call with the array's buffer."""
        return _restore, (cls, self._marker(array), array.dtype, array.shape, _order(array))

    def _marker(self, array: NDArray[Any]) -> pickle.PickleBuffer:
        """What stands for the array's buffer, which is copied later."""
        marker = pickle.PickleBuffer(_WRITABLE)  # or the array would not be
        source = RepeatedArray(array) if id(array) in self._repeated else np.asarray(array)
        self._marked[id(marker)] = marker, source
        return marker


_idle_picklers: list[_Pickler] = []
_WRITABLE = bytearray()
# numpy's own dtypes of one number, by identity: others are equal to these and are more (metadata).
# To pickle and unpickle a dtype takes longer than to copy 64 kB.
_NAMES = {id(np.dtype(code)): np.dtype(code).str for code in "?bBhHiIlLqQefdgFDG"}


class _MainFinder(_Pickler):
    """Notes what is pickled by its name in ``__main__``."""

    found: str | None = None

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, FunctionType | type) and obj.__module__ == "__main__":
            self.found = obj.__qualname__
        return super().reducer_override(obj)


@lru_cache(maxsize=256)
def _pickles_as_ndarray(cls: Any) -> bool:
    names = ("__reduce__", "__reduce_ex__", "__setstate__")
    return all(getattr(cls, name) is getattr(np.ndarray, name) for name in names)


def _as_bytes(cls: type, array: NDArray[Any]) -> Any:
    """Reduce a small array of another byte order; numpy's own pickle would arrive in this machine's."""
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


def _restore_named(buffer: Octets, name: str, shape: tuple[int, ...], order: Any) -> NDArray[Any]:
    return np.ndarray(shape, name, buffer, 0, None, order)


def _restore_small(data: bytes, name: str, shape: tuple[int, ...], order: Any) -> NDArray[Any]:
    # A copy, which is writable, and owns its memory as what numpy unpickles.
    return np.ndarray(shape, name, data, 0, None, order).copy("K")


def _masked_parts(array: Any) -> tuple[Any, ...]:
    return array._baseclass, np.ma.getdata(array, subok=False), np.ma.getmaskarray(array), array._fill_value  # noqa: SLF001


def _restore_masked(baseclass: type, data: NDArray[Any], mask: NDArray[Any], fill_value: Any) -> NDArray[Any]:
    array: Any = np.ma.MaskedArray(data.view(baseclass), mask=mask)
    array.fill_value = fill_value
    return array  # type: ignore[no-any-return]
