"""Find the arrays in leased memory, so that they can be passed on without a copy."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shmarray.core.posix import Part
from shmarray.pool.arrays.blocks import LeaseRef
from shmarray.pool.arrays.messages import Span


class Place(NamedTuple):
    """Where an array lies in a block, without keeping it."""

    reference: LeaseRef
    part: Part
    offset: int
    nbytes: int
    kind: tuple[Any, ...]

    def span(self) -> Span:
        return self.reference.index, self.offset, self.nbytes, False

    def array(self) -> NDArray[Any]:
        """The array again, lying in the mapping, which outlives the lease."""
        shape, dtype, order = self.kind
        return np.ndarray(shape, dtype, self.part.octets()[self.offset : self.offset + self.nbytes], 0, None, order)


def places(buffers: Sequence[NDArray[Any]], references: Sequence[LeaseRef]) -> dict[int, Place]:
    """Which of these arrays lie in leased memory that other processes can read, and none over another; by position."""
    leased = []
    for reference in references:
        lease = reference()
        if lease is not None and not lease.part.private:
            leased.append((lease.part.address + reference.offset, reference, lease.part))
    leased.sort(key=lambda entry: entry[0])
    starts = [start for start, _, _ in leased]
    addresses = {
        position: buffer.__array_interface__["data"][0] for position, buffer in enumerate(buffers) if buffer.flags.forc
    }
    found = {}
    end = 0
    for position in sorted(addresses, key=addresses.__getitem__):
        address, buffer = addresses[position], buffers[position]
        number = bisect_right(starts, address) - 1
        if number < 0 or address < end:  # two arrays that share memory: one of them is copied
            continue
        start, reference, part = leased[number]
        if address + buffer.nbytes <= start + reference.size:
            end = address + buffer.nbytes
            kind = buffer.shape, buffer.dtype, "F" if buffer.flags.fnc else "C"
            found[position] = Place(reference, part, address - part.address, buffer.nbytes, kind)
    return found
