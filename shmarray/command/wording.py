"""Format numbers and untrusted text for people.  Pure."""

import math
from typing import Any

import numpy as np

from shmarray.errors import ShmArrayError

_LONGEST_DTYPE = 32


def size(count: float) -> str:
    """Bytes in binary units, as `df -h` and dask write them: 80 B, 7.6 MiB."""
    if count < 1024:
        return f"{count:.0f} B"
    units = iter(("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"))
    count, unit = count / 1024, next(units)
    while round(count, 1) >= 1024:
        count, unit = count / 1024, next(units)
    return f"{count:.1f} {unit}"


def exact_size(count: int) -> str:
    """In a unit and in bytes."""
    return f"{count} B" if count < 1024 else f"{size(count)} ({count:,} bytes)"


def duration(seconds: float) -> str:
    """In the largest unit that fits at least twice: 90 s, 59 min, 47 h, 12 d."""
    seconds = max(0.0, seconds)  # the clock may have been set back
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def count(number: int, thing: str) -> str:
    """``1 array``, ``2 arrays``, ``2 processes``."""
    plural = f"{thing}es" if thing.endswith("s") else f"{thing}s"
    return f"{number} {thing if number == 1 else plural}"


def not_looked_at(processes: int) -> str:
    return f"Not counted, because you may not inspect them: {count(processes, 'process')}."


def safe(text: str) -> str:
    """Escape untrusted text, so that a terminal does not interpret it: escapes, newlines, direction overrides."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 3)] + "..."


def dtype(kind: np.dtype[Any]) -> str:
    """A dtype in one word, as numpy prints it; a structured dtype by its fields, shortened."""
    if kind.subdtype is not None:
        return f"{dtype(kind.base)} {kind.shape}"
    if kind.names is None:
        return str(kind)
    fields = ", ".join(f"{safe(name)}: {dtype(kind[name])}" for name in kind.names)
    return shortened("{" + fields, _LONGEST_DTYPE - 1) + "}"


def descr(kind: np.dtype[Any]) -> Any:
    """A dtype as in .npy headers: a string such as '<f8', or a list of fields."""
    return np.lib.format.dtype_to_descr(kind)


def number(value: Any) -> Any:
    """A numpy scalar as a JSON value: non-finite numbers and times as strings, complex numbers as pairs."""
    if value is None or isinstance(value, (int, str)):
        return value
    if isinstance(value, (np.datetime64, np.timedelta64)):
        return str(value)
    if isinstance(value, (np.bool_, np.integer)):
        return value.item()
    if isinstance(value, (complex, np.complexfloating)):
        return [number(float(value.real)), number(float(value.imag))]
    plain = float(value)
    return plain if math.isfinite(plain) else str(plain)


def failure(error: BaseException) -> str:
    """An error in one line.  Errors of this library are complete; a bare OSError needs its file's name."""
    if isinstance(error, OSError) and error.strerror and not isinstance(error, ShmArrayError):
        what = f"{error.filename!r}: " if error.filename else ""
        return safe(f"{what}{error.strerror}")
    return safe(str(error) or type(error).__name__)
