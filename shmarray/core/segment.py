"""Write a complete array to an empty file, and read the layout of a file with unknown content."""

import os
import stat
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from shmarray.core import copying, layout
from shmarray.core.layout import BadHeaderError, Layout
from shmarray.core.mapping import Mapping
from shmarray.core.names import Name
from shmarray.core.posix import files, pages, space
from shmarray.errors import ArrayFormatError

Shape = SupportsIndex | Sequence[SupportsIndex]
Order = Literal["K", "C", "F"]


class Permissions(int):
    """Permission bits, shown in help() and repr in octal, as in 0o600."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"0o{self:03o}"


OWNER_ALONE = Permissions(0o600)

# Where a complete file cannot be given a name, the name belongs to an incomplete file for a
# while.  Until it is complete, it starts with this mark, which no reader of .npy accepts.
_UNFINISHED = b"\x93shmarray: being made\n"


# --- what was asked for --------------------------------------------------------------


class ArraySpec(NamedTuple):
    """An array that can be created.

    Attributes
    ----------
    layout : Layout
    header : bytes
    source : ndarray or None
        The data to copy, in the layout's shape; None for zeros.
    permissions : int
        As for chmod.
    """

    layout: Layout
    header: bytes
    source: NDArray[Any] | None
    permissions: int


def planned(
    shape: Shape | None, dtype: DTypeLike | None, data: ArrayLike | None, order: Order, permissions: int
) -> ArraySpec:
    """Check all arguments before anything is created; raise TypeError or ValueError for invalid ones."""
    if order not in ("K", "C", "F"):
        raise ValueError(f"order must be 'K', 'C' or 'F', not {order!r}")
    if not isinstance(permissions, int):
        raise TypeError(f"permissions must be an int such as 0o600, as for chmod, not {permissions!r}")
    if not 0 <= permissions <= 0o777:
        raise ValueError(f"permissions must be between 0o000 and 0o777, as for chmod, not {permissions:#o}")
    if data is None:
        if shape is None:
            raise TypeError("either shape or data is required")
        return ArraySpec(*layout.plan(shape, dtype, order == "F"), None, permissions)
    source, kind = _source(data, None if dtype is None else np.dtype(dtype))
    if shape is not None:
        source = source.reshape(layout.checked_shape(shape))
    fortran = order == "F" or (order == "K" and _copy_is_fortran(source))
    return ArraySpec(*layout.plan(source.shape, kind, fortran), source, permissions)


def _source(data: ArrayLike, kind: np.dtype[Any] | None) -> tuple[NDArray[Any], np.dtype[Any]]:
    """`data` as an array, and the dtype that its copy gets."""
    if is_masked(type(data)):
        raise TypeError("masked arrays cannot be shared: pass data.filled(value), or share .data and .mask separately")
    if isinstance(data, np.ndarray) and (kind is None or not _depends_on_data(kind)):
        # Converted while it is copied, not before.  Subclasses (matrix, memmap) may convert differently.
        return np.asarray(data), data.dtype if kind is None else kind
    source = np.asarray(data, kind)
    return source, source.dtype


def is_masked(cls: type) -> bool:
    """Whether this is the class of masked arrays or a subclass."""
    # numpy imports numpy.ma lazily, which may fail in a process that has dropped its privileges.
    return "numpy.ma" in sys.modules and issubclass(cls, np.ma.MaskedArray)


def _depends_on_data(dtype: np.dtype[Any]) -> bool:
    """Whether numpy completes this dtype from the data: strings without a length, times without a unit."""
    return not dtype.itemsize or (dtype.kind in "mM" and np.datetime_data(dtype)[0] == "generic")


def _copy_is_fortran(source: NDArray[Any]) -> bool:
    """Whether numpy.copy(order="K") would be column-major: it keeps the order of the strides."""
    strides = [abs(stride) for length, stride in zip(source.shape, source.strides, strict=True) if length > 1]
    return all(a < b for a, b in pairwise(strides))


# --- making --------------------------------------------------------------------------


def filled(fd: int, name: Name, plan: ArraySpec) -> NDArray[Any]:
    """Turn an empty file that no other process can open yet into a complete array."""
    size, source = plan.layout.size, plan.source
    identity = _checked(fd, name, plan)
    try:
        pages.truncate(fd, size)
        mapping, array = _mapped(fd, name, plan, identity)
        if source is not None and plan.layout.nbytes and _same_bytes(source, array) and not _advised(name, size):
            copying.copy_into(copying.contiguous_bytes(source), fd, mapping, plan.layout.offset)
        else:
            _reserve(fd, name, mapping)
            if source is not None:
                np.copyto(array, source, casting="unsafe")
    except OSError as error:
        raise space.explained(error, name, fd, size) from error
    pages.write(fd, plan.header, 0)
    return array


def filled_in_place(fd: int, name: Name, plan: ArraySpec) -> NDArray[Any]:
    """As `filled`, for a file that others can already open: writes through the mapping, the header last.

    POSIX guarantees neither read nor write on a shared memory object, and macOS supports neither.
    """
    identity = _checked(fd, name, plan)
    with suppress(OSError):  # on macOS, where attach also waits for a file of zeros
        pages.write(fd, _UNFINISHED, 0)
    try:
        pages.truncate(fd, plan.layout.size)
        mapping, array = _mapped(fd, name, plan, identity)
        pages.reserve(fd, min(plan.layout.size, pages.PAGE))
        mapping.store(_UNFINISHED)
        pages.reserve(fd, plan.layout.size)
    except OSError as error:
        raise space.explained(error, name, fd, plan.layout.size) from error
    if plan.source is not None:
        np.copyto(array, plan.source, casting="unsafe")
    mapping.store(plan.header)
    return array


def _checked(fd: int, name: Name, plan: ArraySpec) -> files.Identity:
    """Set the file's permissions, and check whether there is space for it."""
    status = os.fstat(fd)
    if stat.S_IMODE(status.st_mode) != plan.permissions:
        files.change_mode(fd, plan.permissions)
    space.check(name, fd, plan.layout.size)
    return files.identity(status)


def _mapped(fd: int, name: Name, plan: ArraySpec, identity: files.Identity) -> tuple[Mapping, NDArray[Any]]:
    dtype, shape, order, offset, _, size = plan.layout
    mapping = Mapping(fd, size, "r+", name, identity)
    return mapping, mapping.array(shape, dtype, offset, None, order)


def _advised(name: Name, size: int) -> bool:
    """Whether to write through the mapping because the array then gets huge pages."""
    return size >= pages.HUGE_PAGE and pages.huge_pages_on_advice(anonymous=name.kind == "anonymous")


def _reserve(fd: int, name: Name, mapping: Mapping) -> None:
    if _advised(name, mapping.nbytes) and pages.populate(mapping.address, mapping.nbytes):
        return
    pages.reserve(fd, mapping.nbytes)


def _same_bytes(source: NDArray[Any], array: NDArray[Any]) -> bool:
    """Whether `source` can be copied to `array` byte by byte."""
    return source.dtype == array.dtype and (
        (source.flags.c_contiguous and array.flags.c_contiguous)
        or (source.flags.f_contiguous and array.flags.f_contiguous)
    )


# --- reading -------------------------------------------------------------------------


class UnfinishedError(Exception):
    """Raised for an array that is still being created, or whose creator died.

    Attributes
    ----------
    is_marked : bool
        Whether the file has the mark; if not, it is still empty, and may not be an array.
    """

    def __init__(self, message: str, *, is_marked: bool) -> None:
        super().__init__(message)
        self.is_marked = is_marked


def read_layout(fd: int, size: int, name: Name) -> Layout:
    """The layout of the array in an open file of `size` bytes.

    Raises
    ------
    ArrayFormatError
        If it is not an array, or is truncated.
    UnfinishedError
        If it is not complete yet.
    """
    start = files.read_start(fd, layout.USUAL_SIZE)
    try:
        found = layout.parse(start)
    except BadHeaderError as error:
        found = _read_long_layout(fd, start, name, error)
    if found.size > size:
        raise ArrayFormatError(
            f"{name.text!r} is not a complete array: its header requires {found.size} bytes, but the file has {size}",
            name.text,
        )
    return found


def may_be_array(fd: int) -> bool:
    """Whether an open file starts like an array, complete or not."""
    if files.is_special(os.fstat(fd)):  # a device's content is meaningless
        return False
    start = files.read_start(fd, len(_UNFINISHED))
    if not start:  # where unnamed files are supported, no creator leaves an empty file
        return not files.UNNAMED_FILES
    return start.startswith(layout.MAGIC) or _is_unfinished(start)


def _read_long_layout(fd: int, start: bytes, name: Name, error: BadHeaderError) -> Layout:
    if _is_unfinished(start):
        message = f"{name.text!r} is not complete: it is still being created, or its creator died; then delete it"
        raise UnfinishedError(message, is_marked=start.startswith(_UNFINISHED[: layout.WORD]))
    try:
        length = layout.header_size(start)
        if length == len(start):
            raise error
        return layout.parse(files.read_start(fd, length)[:length])
    except BadHeaderError as reason:
        raise ArrayFormatError(f"{name.text!r} is not an array: {reason}", name.text) from reason


def _is_unfinished(start: bytes) -> bool:
    # Only the first word, because the header replaces it last.  Before the mark is written, the
    # file is empty, or all zeros where files cannot be written; elsewhere zeros are other data.
    return (
        not start
        or start.startswith(_UNFINISHED[: layout.WORD])
        or (files.SHM_DIRECTORY is None and not start.strip(b"\0"))
    )
