"""Lay out consecutive buffers, and copy arrays into them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64

Octets = NDArray[np.uint8]
# Of the others there may be bytes that numpy does not copy (padding).
_NUMBERS = frozenset("biufc")
# Bytes that are copied while holding the GIL: getting it back from another thread would take longer than the copy
# (benchmarks/constants.py: _SHORT).
_SHORT = 512 << 10


def layout(buffers: Sequence[NDArray[Any]], start: int = 0, alignment: int = ALIGNMENT) -> tuple[list[int], int]:
    """The offset of each buffer, one after the other, and the end of the last one, in bytes."""
    offsets = []
    end = start
    for buffer in buffers:
        first = -(-end // alignment) * alignment
        offsets.append(first)
        end = first + buffer.nbytes
    return offsets, end


def copy_into(target: memoryview, buffer: NDArray[Any]) -> None:
    """Copy an array to these bytes, in column-major order if it has that and in row-major order otherwise."""
    dtype, flags = buffer.dtype, buffer.flags
    if dtype.kind in _NUMBERS:  # both take half the time of making octets
        if flags.c_contiguous and buffer.nbytes:  # memoryview casts no empty array
            copy_bytes(target, buffer.data.cast("B"))
        else:
            np.copyto(np.ndarray(buffer.shape, dtype, target, 0, None, "F" if flags.fnc else "C"), buffer)
    elif flags.forc:
        copy_bytes(target, octets_of(buffer).data)
    else:
        np.copyto(np.ndarray(buffer.shape, dtype, target), buffer)


def copy_bytes(target: memoryview, source: memoryview) -> None:
    """Copy bytes; releases the GIL if there are many."""
    if len(source) <= _SHORT:
        target[:] = source
    else:
        np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8))


def copy_all_into(target: memoryview, buffers: Sequence[NDArray[Any]], offsets: Sequence[int]) -> None:
    for buffer, offset in zip(buffers, offsets, strict=True):
        copy_into(target[offset : offset + buffer.nbytes], buffer)


def octets_of(array: NDArray[Any]) -> Octets:
    """The memory of a contiguous array; not a copy."""
    return np.ndarray((array.nbytes,), np.uint8, np.asarray(_Memory(array)))


class _Memory:
    """An array's memory as bytes; ``view("u1")`` fails for some dtypes and some read-only arrays."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array
        address, readonly = array.__array_interface__["data"]
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (array.nbytes,),
            "data": (address, readonly),
        }
