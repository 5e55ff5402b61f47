"""Named arrays: create, attach, require, delete."""

# In help() a signature then has the names of the types, not what they stand for.
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

# How long attach waits for a maker that cannot make it under no name: a reservation of some GB takes that long.
_PATIENCE = 5.0  # seconds
# And for one whose file is empty, where such makers are an exception: mostly it is somebody else's.
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
    """Make a new named array in shared memory, zeroed or a copy of `data`.

    Parameters
    ----------
    name : str
        1 to 255 bytes without a slash (leading ones are dropped); the array is the shared
        memory object of just that name (``/dev/shm/<name>`` on Linux).  ``shm://x`` is
        ``x``; ``file://PATH`` makes an ordinary .npy file and maps that.
    shape : int or sequence of int, optional
        Items along each axis.  May be left out with `data`; if it is given too, it must
        have as many items, and `data` is reshaped.
    dtype : dtype, optional
        ``float64``, or that of `data`, by default.  Any that the .npy format gives back
        exactly; not Python objects.
    data : array_like, optional
        What to copy in: any array, strided or not, or nested sequences; converted to
        `dtype` as by ``data.astype(dtype)``.
    order : {'K', 'C', 'F'}, optional
        Row-major or column-major.  'K', as in `numpy.copy`: that of `data` as nearly as
        it can be had, otherwise 'C'.
    permissions : int, optional
        Who may open it, as for `chmod`, exactly: the umask does not matter.

    Returns
    -------
    ndarray
        The memory itself: plain `numpy.ndarray`, writable, shared with everybody who
        attaches the name.  It stays valid, with all its views, for as long as there is a
        reference, also after `delete`.

    Raises
    ------
    ArrayExistsError
        If the name is taken, by whatever it is.
    ArrayNotFoundError
        If there is no such directory (``file://``), or no ``/dev/shm``.
    InvalidNameError, TypeError, ValueError
        If no array can have this name, dtype or shape.  Nothing was touched.
    SharedMemoryFullError
        If the space cannot be had; it is reserved here, so that no later write dies of a
        bus error.  Nothing is left behind, and nothing of others is changed.
    ArrayPermissionError
        If the system does not let this user.

    Notes
    -----
    The name appears when the array is complete: no process that attaches it sees half of it,
    and a process killed inside `create` leaves nothing (Linux; elsewhere the name is
    there before its content, and `attach` waits for that).  The array outlives this
    process, until `delete`; see `scoped` for one that does not.  Safe to call from many
    threads and processes: of several with one name, one succeeds.

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
    """Open a named array: the same memory that its creator has.

    Parameters
    ----------
    name : str
        As given to `create`; ``file://PATH`` opens what `numpy.save` wrote.
    mode : {'r+', 'r', 'c'}, optional
        As for ``numpy.load(mmap_mode=)``: shared and writable; read-only; private, where
        a write is seen here only and costs a copy of the page it falls on.

    Returns
    -------
    ndarray
        A view of the memory, not a copy; plain `numpy.ndarray`.  It stays valid for as
        long as there is a reference to it or to a view of it, and takes no descriptor.

    Raises
    ------
    ArrayNotFoundError
        If there is no array of that name.
    ArrayFormatError
        If what is there is not a complete array.  Nothing in it was evaluated.
    ArrayPermissionError
        If this user may not open it this way; ``mode="r"`` asks for less.
    InvalidNameError, TypeError, ValueError
        If no array can have this name, or there is no such mode.
    OSError
        With ENOMEM, if the process has no room for the mapping: `vm.max_map_count` bounds
        how many arrays one process can have attached (65530 by default), not `ulimit -n`.

    Notes
    -----
    Safe from many threads and processes.  A forked child has its parent's arrays.  Should
    another program truncate the file, touching what was cut off is a bus error, which no
    ``except`` sees: the process ends by SIGBUS, and ``python -X faulthandler`` says where.
    A pool says so of its worker.  Attaching such a file is an ArrayFormatError.
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
    """Attach an array if it is there, create it if it is not.

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
        As `attach` in mode ``'r+'`` gives it.  Zeroed if this call created it.

    Raises
    ------
    ArrayExistsError
        If there is an array of that name with another shape, dtype or order; the order
        is 'C' unless 'F' is asked for.
    ArrayFormatError, InvalidNameError, TypeError, ValueError, SharedMemoryFullError, ArrayPermissionError
        As `create` and `attach` do.

    Notes
    -----
    Many processes may race: one creates, the others get the same memory.
    """
    if order not in ("C", "F"):
        raise ValueError(f"order must be 'C' or 'F', not {order!r}")
    wanted, _ = layout.plan(shape, dtype, order == "F")
    while True:  # until nobody deletes it between a failed create and the attach
        with suppress(ArrayNotFoundError):
            return _agreeing(attach(name), wanted, name)
        with suppress(ArrayExistsError):
            return create(name, shape, dtype, order=order, permissions=permissions)


def _agreeing(array: NDArray[Any], wanted: Layout, name: str) -> NDArray[Any]:
    found = array.shape, array.dtype, "C" if array.flags.c_contiguous else "F"
    if found != (wanted.shape, wanted.dtype, wanted.order):
        raise ArrayExistsError(
            f"{name!r} exists with shape {found[0]}, dtype {found[1]} and order {found[2]}, not shape "
            f"{wanted.shape}, dtype {wanted.dtype} and order {wanted.order}: delete it, or change the call",
            name,
        )
    return array


def delete(name: str) -> None:
    """Remove an array's name.

    Arrays attached already, here or elsewhere, stay valid; the memory is freed when the
    last of them is garbage.

    Parameters
    ----------
    name : str
        As given to `create`.

    Raises
    ------
    ArrayNotFoundError
        If there is no array of that name.
    ArrayFormatError
        If what is there is no array, not even an unfinished one: it is left alone.
    ArrayPermissionError
        If the system does not let this user.
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
    """Whether it is an array; of an empty file, what becomes of it, as for `attach`."""
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
        return True  # saves opening it: mostly it is the creator who deletes
    try:
        fd = files.open_existing(name, os.O_RDONLY)
    except PermissionError:
        # An array of permissions 0o000, say: whether it may go is the directory's to decide.
        path = files.path_of(name)
        return path is None or not files.is_special(os.stat(path))
    try:
        return may_be_array(fd)
    finally:
        os.close(fd)
