"""Minimum, maximum, mean, NaNs and zeros of an array, in chunks, so that a huge array is not copied."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Fits into the L2 cache, so that five passes read memory only once.
_CHUNK = 1 << 20  # bytes


@dataclass(slots=True)
class Summary:
    """Statistics of an array or of one of its fields.

    NaN (NaT) is counted, and excluded from everything else.

    Attributes
    ----------
    fields : tuple of str
        The path to the field in a structured dtype; () for an array of plain numbers.
    kind : str
        As ``dtype.kind``.
    items, missing : int
        How many there are, and how many of them are NaN or NaT.
    zeros : int or None
        None for times, for which zero has no special meaning.
    least, greatest : scalar or None
        None if there is nothing to compare, and for complex numbers.
    """

    fields: tuple[str, ...]
    kind: str
    items: int = 0
    missing: int = 0
    zeros: int | None = None
    least: Any = None
    greatest: Any = None
    _total: Any = 0

    @property
    def mean(self) -> Any:
        """float64, or as precise as the numbers; a time, rounded down to its unit; None if there are no numbers."""
        present = self.items - self.missing
        if not present:
            return None
        if self.kind in "mM":
            dtype = self.least.dtype
            return np.int64(self._total // present).view(dtype.newbyteorder("="))
        return self._total / present

    def take(self, chunk: NDArray[Any]) -> None:
        for name in self.fields:
            chunk = chunk[name]
        self.items += chunk.size
        chunk = self._present(chunk.reshape(-1))
        if not chunk.size:
            return
        if self.kind != "c":
            least, greatest = chunk.min(), chunk.max()
            self.least = least if self.least is None else min(self.least, least)
            self.greatest = greatest if self.greatest is None else max(self.greatest, greatest)
        if self.kind in "mM":
            self._total += _exact_sum(chunk)
        else:
            self._total += chunk.sum(dtype=np.result_type(chunk.dtype, np.float64))
            self.zeros = (self.zeros or 0) + chunk.size - int(np.count_nonzero(chunk))

    def _present(self, chunk: NDArray[Any]) -> NDArray[Any]:
        if self.kind not in "fcmM":
            return chunk
        missing = np.isnat(chunk) if self.kind in "mM" else np.isnan(chunk)
        count = int(np.count_nonzero(missing))
        self.missing += count
        return chunk[~missing] if count else chunk


def summaries(array: NDArray[Any]) -> list[Summary]:
    """One for an array of numbers or times, one for each such field of a structured one; none for strings."""
    found = [Summary(fields, kind) for fields, kind in _numbers(array.dtype, ())]
    flat = array.reshape(-1, order="A")  # a view, because arrays of this library are contiguous
    step = max(1, _CHUNK // (array.dtype.itemsize or 1))
    with np.errstate(all="ignore"):  # on inf - inf or overflow the mean is nan or inf, as in numpy
        for start in range(0, flat.size if found else 0, step):
            for summary in found:
                summary.take(flat[start : start + step])
    return found


def _numbers(dtype: np.dtype[Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    for name in dtype.names or ():
        yield from _numbers(dtype[name].base, (*path, name))
    generic = dtype.kind == "M" and np.datetime_data(dtype)[0] == "generic"  # the unit is unknown
    if dtype.kind in "biufcmM" and not generic:
        yield path, dtype.kind


def _exact_sum(times: NDArray[Any]) -> int:
    """The sum as a Python int: six times in nanoseconds since 1970 already overflow 64 bits."""
    numbers = times.astype(times.dtype.newbyteorder("=")).view(np.int64)
    return (int((numbers >> 32).sum()) << 32) + int((numbers & 0xFFFFFFFF).sum())
