r"""The bytes before an array's data: the header of numpy's .npy format.  Pure: no system call, no state.

=========  ========  ==============================================================
bytes      field     content
=========  ========  ==============================================================
0-5        magic     ``\x93NUMPY``
6-7        version   1.0, 2.0 or 3.0
8-9        length    of the text, little-endian uint16 (8-11, uint32, from 2.0 on)
10- (12-)  text      a dict literal with the keys descr, fortran_order and shape;
                     latin-1, UTF-8 from 3.0 on; spaces and a newline at its end
                     bring the data to a multiple of 64 bytes
=========  ========  ==============================================================

So ``numpy.load`` opens our arrays, and we open files that ``numpy.save`` wrote.  numpy's own
reader is not used: it has no public function for version 3.0, and a hostile header makes it
raise TokenError or MemoryError, or return a negative or huge shape.

The format cannot express the align flag of a structured dtype.  We write it as a padding
field of zero bytes at the end of the aligned structure's description, which every reader of
the format ignores.
"""

import ast
import copy
import math
import operator
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import DTypeLike

MAGIC = b"\x93NUMPY"
# numpy.load refuses a longer text unless told otherwise: some 400 fields.
LONGEST_TEXT = 10_000
# Bytes that a processor stores at once; a header's first ones tell it from anything else.
WORD = 8
# What numpy writes for any dtype but a structured one; longer headers need a second read.
USUAL_SIZE = 128
_ALIGNMENT = 64
# numpy.ndarray's own limit, NPY_MAXDIMS.
_MOST_DIMENSIONS = 64
_LARGEST = 2**63 - 1

_ALIGNED = ("", "|V0")

# Only what numpy.save writes: no sign, no operator, no name or call.  Python's parser
# recurses on operators and can be made to exhaust the C stack; on brackets it stops at
# 200.  The group is atomic, so that matching is linear whatever the text.
# The escapes are those of repr(); any other would be a SyntaxWarning on stderr.
_ESCAPE = r"""\\(?:[\\'"nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})"""
_LITERAL = re.compile(
    rf"""(?>(?:'(?:[^'\\\n]|{_ESCAPE})*'|"(?:[^"\\\n]|{_ESCAPE})*"|[0-9]+|True|False|[\[\](){{}},:]|[ \n])*)"""
)
# The string that dtype.str gives; without 'O', whose items are pointers.
_SCALAR = re.compile(r"[<>|=]?(?:[biufcSUV][0-9]{1,19}|[Mm]8(?:\[[0-9]{0,19}[A-Za-z]{1,2}\])?|\?)")


class Layout(NamedTuple):
    """How an array lies in its file.

    Attributes
    ----------
    dtype : numpy.dtype
    shape : tuple of int
        Items along each axis.
    order : {'C', 'F'}
        'F', column-major, only where that is not the same as 'C'.
    offset : int
        Where the data begins, in bytes: the length of the header.
    nbytes : int
        Bytes of the data alone.
    size : int
        Bytes of the whole, header and data.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    offset: int
    nbytes: int
    size: int


def _layout(dtype: np.dtype[Any], shape: tuple[int, ...], fortran: bool, offset: int) -> Layout:
    nbytes = math.prod(shape) * dtype.itemsize
    return Layout(dtype, shape, "F" if fortran else "C", offset, nbytes, offset + nbytes)


class BadHeaderError(ValueError):
    """Raised for bytes that are no header; its text is the reason."""


# --- what the caller asks for -> bytes ---------------------------------------------


def plan(
    shape: SupportsIndex | Sequence[SupportsIndex], dtype: DTypeLike | None, fortran: bool
) -> tuple[Layout, bytes]:
    """Check what was asked for and give the layout and the header bytes.

    Raises
    ------
    TypeError
        For a dtype that would not come back exactly as it is, or a shape of no integers.
    ValueError
        For a shape that no array can have.
    """
    kind = np.dtype(dtype)
    lengths = checked_shape(shape)
    if kind.subdtype is not None:  # numpy.zeros(3, ('i4', 2)) has shape (3, 2) as well
        lengths += kind.shape
        kind = kind.base
    if kind.isbuiltin == 1 and kind.kind in "biufc":
        return _plan_of_numbers(kind.str, lengths, fortran)
    return _plan(kind, lengths, fortran, _description(kind))


# A loop that makes arrays mostly makes the same.  Only where the string says it all:
# metadata and byte order make another dtype, for which isbuiltin is 0.
@lru_cache(maxsize=256)
def _plan_of_numbers(descr: str, shape: tuple[int, ...], fortran: bool) -> tuple[Layout, bytes]:
    return _plan(np.dtype(descr), shape, fortran, repr(descr))


def _plan(dtype: np.dtype[Any], shape: tuple[int, ...], fortran: bool, descr: str) -> tuple[Layout, bytes]:
    _check_extent(shape, dtype)
    # numpy.save calls whatever is both C- and F-contiguous C.
    fortran = fortran and 0 not in shape and sum(length > 1 for length in shape) > 1
    text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape!r}, }}"
    header = _framed(text, dtype)
    return _layout(dtype, shape, fortran, len(header)), header


def checked_shape(shape: SupportsIndex | Sequence[SupportsIndex]) -> tuple[int, ...]:
    """A shape as numpy's functions take it, as a tuple; TypeError or ValueError if it is none."""
    lengths = _tuple(shape)
    if lengths and min(lengths) < 0:
        raise ValueError(f"negative dimension in the shape {lengths}")
    return lengths


def _tuple(shape: SupportsIndex | Sequence[SupportsIndex]) -> tuple[int, ...]:
    if type(shape) is int:
        return (shape,)
    with suppress(TypeError):
        return (operator.index(shape),)  # type: ignore[arg-type]
    with suppress(TypeError):
        if isinstance(shape, np.ndarray) or (isinstance(shape, Sequence) and not isinstance(shape, str | bytes)):
            return tuple(map(operator.index, shape))
    raise TypeError(f"shape must be an int or a sequence of ints, not {shape!r}; pass data to copy as data=")


def _check_extent(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"{len(shape)} dimensions are too many: numpy supports at most {_MOST_DIMENSIONS}")
    # As numpy does, a zero among the lengths does not excuse the others.
    if math.prod(length or 1 for length in shape) * (dtype.itemsize or 1) > _LARGEST:
        raise ValueError(f"the shape {shape} of {dtype} is too large for any memory")


def _framed(text: str, dtype: np.dtype[Any]) -> bytes:
    try:
        body, version, prefix = text.encode("latin-1"), 1, 10
    except UnicodeEncodeError:
        body, version, prefix = text.encode("utf-8"), 3, 12
    length = -(prefix + len(body) + 1) % _ALIGNMENT + len(body) + 1
    if length > LONGEST_TEXT:
        raise TypeError(
            f"the dtype needs {length} bytes in the header, but numpy.load accepts at most {LONGEST_TEXT}: "
            f"use fewer or shorter field names ({len(dtype.names or ())} fields)"
        )
    return MAGIC + bytes((version, 0)) + length.to_bytes(prefix - 8, "little") + body.ljust(length - 1) + b"\n"


def _description(dtype: np.dtype[Any]) -> str:
    """The dtype as the header's text, which gives back just this dtype or raises TypeError here."""
    if dtype.hasobject:
        raise TypeError(
            f"{dtype!r} holds pointers, which are invalid in other processes; for strings give a length, as in 'U10'"
        )
    if dtype.names is None and dtype.kind in "SU" and not dtype.itemsize:
        raise TypeError(f"{dtype!r} has no length: give the length of the strings, as in 'U10'")
    try:
        descr = _described(dtype)
        again = _dtype(descr)
    except (ValueError, TypeError) as error:
        raise TypeError(f"{dtype!r} cannot be written in the .npy format: {error}") from error
    if _has_metadata(dtype):
        raise TypeError(f"{dtype!r} has metadata, which the .npy format cannot store: use a dtype without metadata")
    if not _identical(dtype, again):
        raise TypeError(
            f"{dtype!r} would be read back as {again!r}, because the .npy format cannot store it: "
            "use one of numpy's own dtypes (np.void instead of np.record)"
        )
    return repr(descr)


def _described(dtype: np.dtype[Any]) -> Any:
    """As dtype.descr, but structures keep their align flag, however deep."""
    if dtype.subdtype is not None:
        return (_described(dtype.base), dtype.shape)
    if dtype.names is None or dtype.fields is None:
        return dtype.str
    fields: list[tuple[Any, ...]] = []
    end = 0
    for name in dtype.names:
        kind, offset, *title = dtype.fields[name]
        if offset < end:
            raise ValueError(f"the field {name!r} overlaps the previous one or is out of order")
        if offset > end:
            fields.append(("", f"|V{offset - end}"))
        fields.append(((title[0], name) if title else name, _described(kind)))
        end = offset + kind.itemsize
    if dtype.itemsize > end:
        fields.append(("", f"|V{dtype.itemsize - end}"))
    if dtype.isalignedstruct:
        fields.append(_ALIGNED)
    return [_unfolded(field) for field in fields]


def _unfolded(field: tuple[Any, ...]) -> tuple[Any, ...]:
    # numpy writes a sub-array field as (name, base, shape) and reads only that.
    return (field[0], *field[1]) if isinstance(field[1], tuple) else field


def _has_metadata(dtype: np.dtype[Any]) -> bool:
    if dtype.metadata:
        return True
    parts = [dtype.base] if dtype.subdtype is not None else [field[0] for field in (dtype.fields or {}).values()]
    return any(map(_has_metadata, parts))


def _identical(a: np.dtype[Any], b: np.dtype[Any]) -> bool:
    """Equality that also sees what ``==`` passes over: np.record and the align flag."""
    if a != b or a.str != b.str or (a.kind == "V" and a.type is not b.type):
        return False
    if a.subdtype is not None:
        return a.shape == b.shape and _identical(a.base, b.base)
    if a.fields is None or b.fields is None:
        return True
    return a.isalignedstruct == b.isalignedstruct and all(
        _identical(a.fields[name][0], b.fields[name][0]) and a.fields[name][1:] == b.fields[name][1:]
        for name in a.names or ()
    )


# --- bytes -> layout ---------------------------------------------------------------


def header_size(start: bytes) -> int:
    """Length of the whole header in bytes, from its first 12.

    Raises
    ------
    BadHeaderError
        If `start` does not begin a header.
    """
    if start[:6] != MAGIC or len(start) < 12:
        raise BadHeaderError("it does not begin with the magic string of a .npy file")
    if start[6:8] == b"\1\0":
        prefix = 10
    elif start[6:8] in (b"\2\0", b"\3\0"):
        prefix = 12
    else:
        raise BadHeaderError(f"its format version is {start[6]}.{start[7]}; supported versions are 1.0, 2.0 and 3.0")
    length = int.from_bytes(start[8:prefix], "little")
    if length > LONGEST_TEXT:
        raise BadHeaderError(f"its header has {length} bytes, more than {LONGEST_TEXT}")
    return prefix + length


def parse(header: bytes) -> Layout:
    """Read a whole header; nothing in it is evaluated, and nothing is unpickled.

    Raises
    ------
    BadHeaderError
        If it is damaged or hostile, or describes what no shared array can be.
    """
    found = _parse(header)
    if found.dtype.names is None:
        return found
    # The names of a dtype's fields can be set, and would be so in every other array.
    return found._replace(dtype=copy.copy(found.dtype))


# Parsing costs more than the rest of an attach, and programs that attach thousands of arrays
# mostly read the same few headers.  256 of at most 10 kB limit the memory.
@lru_cache(maxsize=256)
def _parse(header: bytes) -> Layout:
    if len(header) < 12 or len(header) != header_size(header):
        raise BadHeaderError("its header is truncated")
    try:
        fields = _literal(header)
        if not isinstance(fields, dict) or fields.keys() != {"descr", "fortran_order", "shape"}:
            raise ValueError("the keys are not descr, fortran_order and shape")
        dtype, shape, fortran = _dtype(fields["descr"]), fields["shape"], fields["fortran_order"]
        if dtype.subdtype is not None:
            raise ValueError("a subarray dtype outside a structure")
        if type(shape) is not tuple or any(type(length) is not int for length in shape):
            raise ValueError(f"invalid shape {shape!r}")
        if type(fortran) is not bool:
            raise ValueError(f"invalid fortran_order {fortran!r}")
        _check_extent(shape, dtype)
    # Python's parser raises SyntaxError, MemoryError and RecursionError for invalid literals.
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, OverflowError) as error:
        raise BadHeaderError(f"its header is invalid: {error}") from error
    return _layout(dtype, shape, fortran, len(header))


def _literal(header: bytes) -> Any:
    prefix, encoding = (10, "latin-1") if header[6] == 1 else (12, "utf-8" if header[6] == 3 else "latin-1")
    text = header[prefix:].decode(encoding)
    if not _LITERAL.fullmatch(text):
        raise ValueError("not a plain dict of strings, numbers and tuples")
    return ast.literal_eval(text.strip())


def _dtype(descr: Any) -> np.dtype[Any]:
    if isinstance(descr, str):
        if descr.lstrip("<>|=")[:1] == "O":
            raise ValueError("it holds Python objects, which cannot be mapped")
        if not _SCALAR.fullmatch(descr):
            raise ValueError(f"invalid dtype {descr!r}")
        dtype = np.dtype(descr)
        # Before numpy 2.2 the size of a string overflows: "<U1073741824" has 0 bytes.
        if dtype.kind == "U" and dtype.itemsize != 4 * int(descr.partition("U")[2]):
            raise ValueError(f"invalid dtype {descr!r}")
        return dtype
    if isinstance(descr, tuple) and len(descr) == 2 and isinstance(descr[1], tuple):
        return np.dtype((_dtype(descr[0]), tuple(map(operator.index, descr[1]))))
    if isinstance(descr, list):
        return _structure(descr)
    raise ValueError(f"invalid dtype {descr!r}")


def _structure(descr: list[Any]) -> np.dtype[Any]:
    names: list[str] = []
    titles: list[str | None] = []
    formats: list[np.dtype[Any]] = []
    offsets: list[int] = []
    end = 0
    for field in descr:
        if not isinstance(field, tuple) or len(field) not in (2, 3):
            raise ValueError(f"invalid field {field!r}")
        kind = _dtype(field[1] if len(field) == 2 else (field[1], field[2]))
        if field[0] != "":  # a field without a name is padding
            title, name = field[0] if isinstance(field[0], tuple) and len(field[0]) == 2 else (None, field[0])
            if not isinstance(name, str) or not isinstance(title, str | None):
                raise ValueError(f"invalid field name {field[0]!r}")
            names.append(name)
            titles.append(title)
            formats.append(kind)
            offsets.append(end)
        end += kind.itemsize
    spec = {"names": names, "formats": formats, "offsets": offsets, "titles": titles, "itemsize": end}
    return np.dtype(spec, align=_ALIGNED in descr)  # type: ignore[call-overload, no-any-return]
