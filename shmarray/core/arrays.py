"""Named arrays: create, attach, require, delete."""

# So that help() shows the names of types in signatures, not their expansions.
from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Any, Literal, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from shmarray.core import layout, names
from shmarray.core.layout import Layout
from shmarray.core.mapping import Mode, is_live, mapped
from shmarray.core.names import Name
from shmarray.core.posix import files
from shmarray.core.posix.errors import DELETING, READING, WRITING, explained
from shmarray.core.publishing import publish
from shmarray.core.segment import OWNER_ALONE, Order, Shape, UnfinishedError, may_be_array, planned, read_layout
from shmarray.errors import ArrayExistsError, ArrayFormatError, ArrayNotFoundError, ShmArrayError

# How long attach waits for an array that is still being created under its name; reserving some GB takes this long.
_PATIENCE = 5.0  # seconds
# The same for an empty file, on systems where arrays are normally complete before they get their names.
_PATIENCE_IF_EMPTY = 0.5  # seconds
_POLL = 0.002  # seconds
_FLAGS = {"r+": os.O_RDWR, "r": os.O_RDONLY, "c": os.O_RDONLY}
_S = TypeVar("_S", bound=np.generic)
_DTypeOf = type[_S] | np.dtype[_S]


# --- create --------------------------------------------------------------------------


@overload
def create(
    name: str,
    shape: Shape,
    dtype: None = None,
    *,
    data: None = None,
    order: Order = "K",
    permissions: int = OWNER_ALONE,
) -> NDArray[np.float64]: ...
@overload
def create(
    name: str,
    shape: Shape | None,
    dtype: _DTypeOf[_S],
    *,
    data: ArrayLike | None = None,
    order: Order = "K",
    permissions: int = OWNER_ALONE,
) -> NDArray[_S]: ...
@overload
def create(
    name: str,
    shape: Shape | None = None,
    *,
    dtype: _DTypeOf[_S],
    data: ArrayLike | None = None,
    order: Order = "K",
    permissions: int = OWNER_ALONE,
) -> NDArray[_S]: ...
@overload
def create(
    name: str,
    shape: Shape | None = None,
    dtype: None = None,
    *,
    data: NDArray[_S],
    order: Order = "K",
    permissions: int = OWNER_ALONE,
) -> NDArray[_S]: ...
@overload
def create(
    name: str,
    shape: Shape,
    dtype: DTypeLike | None = None,
    *,
    data: ArrayLike | None = None,
    order: Order = "K",
    permissions: int = OWNER_ALONE,
) -> NDArray[Any]: ...
@overload
def create(
    name: str,
    shape: Shape | None = None,
    dtype: DTypeLike | None = None,
    *,
    data: ArrayLike,
    order: Order = "K",
    permissions: int = OWNER_ALONE,
) -> NDArray[Any]: ...
def create(
    name: str,
    shape: Shape | None = None,
    dtype: DTypeLike | None = None,
    *,
    data: ArrayLike | None = None,
    order: Order = "K",
    permissions: int = OWNER_ALONE,
) -> NDArray[Any]:
    """Create a named array in shared memory, filled with zeros or a copy of `data`.

    Parameters
    ----------
    name : str
        1 to 255 bytes without a slash (leading slashes are dropped).  The array is the shared
        memory object of exactly this name (``/dev/shm/<name>`` on Linux).  ``shm://x`` is
        the same as ``x``; ``file://PATH`` creates an ordinary .npy file and maps it.
    shape : int or sequence of int, optional
        Items along each axis.  Optional with `data`; if both are given, `data` is reshaped
        and must have the same number of items.
    dtype : dtype, optional
        ``float64`` by default, or the dtype of `data`.  Any dtype that the .npy format
        stores exactly; not Python objects.
    data : array_like, optional
        The data to copy: any array, contiguous or not, or nested sequences; converted to
        `dtype` as by ``data.astype(dtype)``.
    order : {'K', 'C', 'F'}, optional
        Row-major or column-major.  'K' matches the order of `data` as closely as possible,
        as in `numpy.copy`; without `data` it means 'C'.
    permissions : int, optional
        Who may open the array, as for `chmod`.  The umask does not apply.

    Returns
    -------
    ndarray
        The memory itself: a plain, writable `numpy.ndarray`, shared with every process that
        attaches the name.  It and its views stay valid as long as they are referenced, even
        after `delete`.

    Raises
    ------
    ArrayExistsError
        If the name is taken, by an array or anything else.
    ArrayNotFoundError
        If there is no such directory (``file://``), or no ``/dev/shm``.
    InvalidNameError, TypeError, ValueError
        If no array can have this name, dtype or shape.  Nothing was changed.
    SharedMemoryFullError
        If there is not enough space.  The space is reserved here, so that later writes do
        not fail with a bus error.  Nothing is left behind, and other arrays are unchanged.
    ArrayPermissionError
        If this user may not create the array.

    Notes
    -----
    The name appears when the array is complete: no process attaches a partial array, and a
    process that is killed inside `create` leaves nothing behind.  This holds on Linux;
    elsewhere the name appears first, and `attach` waits for the content.  The array outlives
    this process, until `delete`; `scoped` creates temporary arrays.  Safe to call from many
    threads and processes: if several use the same name, one succeeds.

    Examples
    --------
    >>> import shmarray
    >>> a = shmarray.create("doc-squares", data=[0, 1, 4, 9])
    >>> b = shmarray.attach("doc-squares")  # in any process
    >>> b[0] = 100
    >>> a
    array([100,   1,   4,   9])
    >>> shmarray.delete("doc-squares")
    """
    plan = planned(shape, dtype, data, order, permissions)
    return publish(names.parse(name).absolute(), plan)


# --- attach --------------------------------------------------------------------------


def attach(name: str, mode: Mode = "r+") -> NDArray[Any]:
    """Open a named array, which uses the same memory as its creator's.

    Parameters
    ----------
    name : str
        As passed to `create`; ``file://PATH`` also opens files that `numpy.save` wrote.
    mode : {'r+', 'r', 'c'}, optional
        As for ``numpy.load(mmap_mode=)``: 'r+' is shared and writable, 'r' is read-only, and
        'c' is private: writes are visible only here, and each copies the page it changes.

    Returns
    -------
    ndarray
        A view of the memory, not a copy; a plain `numpy.ndarray`.  It stays valid as long as
        it or a view of it is referenced, and uses no file descriptor.

    Raises
    ------
    ArrayNotFoundError
        If there is no array of that name.
    ArrayFormatError
        If the name does not refer to a complete array.  Nothing in it was evaluated.
    ArrayPermissionError
        If this user may not open it in this mode; ``mode="r"`` needs fewer permissions.
    InvalidNameError, TypeError, ValueError
        If no array can have this name, or the mode is invalid.
    OSError
        With ENOMEM, if the process cannot map more memory.  The limit on the number of
        attached arrays is `vm.max_map_count` (65530 by default), not `ulimit -n`.

    Notes
    -----
    Safe to call from many threads and processes.  A forked child has its parent's arrays.  If
    another program truncates the file, accessing the missing part is a bus error, which
    ``except`` cannot catch: SIGBUS ends the process, and ``python -X faulthandler`` shows
    where.  If that happens in a worker, its pool reports it.  Attaching a truncated file
    raises ArrayFormatError.
    """
    if mode not in _FLAGS:
        raise ValueError(f"mode must be 'r+', 'r' or 'c', as for numpy.load(mmap_mode=), not {mode!r}")
    target = names.parse(name).absolute()
    start = None
    while True:
        try:
            return _attached(target, mode)
        except UnfinishedError as error:
            start = start or time.monotonic()
            patience = _PATIENCE if error.is_marked or not files.UNNAMED_FILES else _PATIENCE_IF_EMPTY
            if time.monotonic() > start + patience:
                raise ArrayFormatError(str(error), name) from None
        time.sleep(_POLL)


def _attached(name: Name, mode: Mode) -> NDArray[Any]:
    try:
        fd = files.open_existing(name, _FLAGS[mode])
        try:
            status = os.fstat(fd)
            found = read_layout(fd, status.st_size, name)
            mapping = mapped(fd, found.size, mode, name, files.identity(status))
        finally:
            os.close(fd)
    except ShmArrayError:
        raise
    except OSError as error:
        raise explained(error, name, WRITING if mode == "r+" else READING) from error
    return mapping.array(found.shape, found.dtype, found.offset, None, found.order)


# --- require, delete -----------------------------------------------------------------


@overload
def require(
    name: str, shape: Shape, dtype: None = None, *, order: Literal["C", "F"] = "C", permissions: int = OWNER_ALONE
) -> NDArray[np.float64]: ...
@overload
def require(
    name: str, shape: Shape, dtype: _DTypeOf[_S], *, order: Literal["C", "F"] = "C", permissions: int = OWNER_ALONE
) -> NDArray[_S]: ...
@overload
def require(
    name: str, shape: Shape, dtype: DTypeLike, *, order: Literal["C", "F"] = "C", permissions: int = OWNER_ALONE
) -> NDArray[Any]: ...
def require(
    name: str,
    shape: Shape,
    dtype: DTypeLike | None = None,
    *,
    order: Literal["C", "F"] = "C",
    permissions: int = OWNER_ALONE,
) -> NDArray[Any]:
    """Attach an array if it exists, and create it otherwise.

    Parameters
    ----------
    name : str
        As for `create`.
    shape : int or sequence of int
        Items along each axis.
    dtype : dtype, optional
        ``float64`` by default.
    order : {'C', 'F'}, optional
        Row-major or column-major.
    permissions : int, optional
        As for `create`; they matter only if this call creates it.

    Returns
    -------
    ndarray
        As returned by `attach` in mode ``'r+'``.  Filled with zeros if this call created it.

    Raises
    ------
    ArrayExistsError
        If there is an array of that name with a different shape, dtype or order.
    ArrayFormatError, InvalidNameError, TypeError, ValueError, SharedMemoryFullError, ArrayPermissionError
        As `create` and `attach` do.

    Notes
    -----
    If many processes call this at once, one creates the array and the others attach it.
    """
    if order not in ("C", "F"):
        raise ValueError(f"order must be 'C' or 'F', not {order!r}")
    wanted, _ = layout.plan(shape, dtype, order == "F")
    while True:  # again if it is deleted between a failed create and the attach
        with suppress(ArrayNotFoundError):
            return _agreeing(attach(name), wanted, name)
        with suppress(ArrayExistsError):
            return create(name, shape, dtype, order=order, permissions=permissions)


def _agreeing(array: NDArray[Any], wanted: Layout, name: str) -> NDArray[Any]:
    found = array.shape, array.dtype, "C" if array.flags.c_contiguous else "F"
    if found != (wanted.shape, wanted.dtype, wanted.order):
        raise ArrayExistsError(
            f"{name!r} exists with shape {found[0]}, dtype {found[1]} and order {found[2]}, not shape "
            f"{wanted.shape}, dtype {wanted.dtype} and order {wanted.order}: delete it, or require what is there",
            name,
        )
    return array


def delete(name: str) -> None:
    """Remove an array's name.

    Arrays that are already attached, here or elsewhere, stay valid; the memory is freed when
    the last of them is garbage-collected.

    Parameters
    ----------
    name : str
        As passed to `create`.

    Raises
    ------
    ArrayNotFoundError
        If there is no array of that name.
    ArrayFormatError
        If the name refers to something other than an array, complete or not; it is not deleted.
    ArrayPermissionError
        If this user may not delete it.
    """
    target = names.parse(name)
    try:
        if not _deletable_soon(target):
            raise ArrayFormatError(f"{name!r} is not an array, so it was not deleted: remove the file itself", name)
        files.unlink(target)
    except ShmArrayError:
        raise
    except OSError as error:
        raise explained(error, target, DELETING) from error


def _deletable_soon(name: Name) -> bool:
    """Whether it is an array; wait for an empty file to become one, as `attach` does."""
    start = time.monotonic()
    while not _deletable(name):
        path = files.path_of(name)
        if path is None or os.stat(path).st_size or time.monotonic() > start + _PATIENCE_IF_EMPTY:
            return False
        time.sleep(_POLL)
    return True


def _deletable(name: Name) -> bool:
    found = files.identity_of(name)
    if found is not None and is_live(found):
        return True  # avoids opening it, since the creator usually deletes it
    try:
        fd = files.open_existing(name, os.O_RDONLY)
    except PermissionError:
        # Such as an array with permissions 0o000; deleting it needs permission for the directory only.
        path = files.path_of(name)
        return path is None or not files.is_special(os.stat(path))
    try:
        return may_be_array(fd)
    finally:
        os.close(fd)
