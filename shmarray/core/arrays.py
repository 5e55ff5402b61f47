"""Named arrays: the order of the steps, and what is undone when one of them fails."""

import errno
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from shmarray.core import layout, names, segment
from shmarray.core.layout import Layout
from shmarray.core.mapping import Mode, is_live, mapped
from shmarray.core.names import Name
from shmarray.core.posix import files
from shmarray.core.posix.errors import DELETING, MAKING, READING, WRITING, explained
from shmarray.core.segment import Blueprint, Order, Shape, UnfinishedError, may_be_array, read_layout
from shmarray.errors import ArrayExistsError, ArrayFormatError, ArrayNotFoundError, ShmArrayError

# How long attach waits for a maker that cannot make it under no name: a reservation of some GB takes that long.
_PATIENCE = 5.0  # seconds
_POLL = 0.002  # seconds
_FLAGS = {"r+": os.O_RDWR, "r": os.O_RDONLY, "c": os.O_RDONLY}
# Below this, asking whether the name is free costs more than making the array for nothing.
_WORTH_A_LOOK = 1 << 20


@dataclass(frozen=True, slots=True)
class ArrayInfo:
    """What `list` says of an array.

    Attributes
    ----------
    name : str
        As `attach` and `delete` take it.
    dtype : numpy.dtype
    shape : tuple of int
    order : {'C', 'F'}
    nbytes : int
        Bytes of the data.
    permissions : int
        As given to `create`, such as ``0o600``.
    uid : int
        The user it belongs to.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    nbytes: int
    permissions: int
    uid: int


# --- create --------------------------------------------------------------------------


def create(
    name: str,
    shape: Shape | None = None,
    dtype: DTypeLike | None = None,
    *,
    data: ArrayLike | None = None,
    order: Order = "K",
    permissions: int = 0o600,
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
    The name appears when the array is complete: who attaches it never sees half of it,
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
    plan = segment.planned(shape, dtype, data, order, permissions)
    return publish(names.parse(name).absolute(), plan)


def publish(name: Name, plan: Blueprint, undo: list[Callable[[], object]] | None = None) -> NDArray[Any]:
    """Make an array and give it its name; `undo` gets, before that, what takes the name away again."""
    # A hint that saves the copy; the link decides.
    if plan.layout.size > _WORTH_A_LOOK and files.taken(name):
        raise explained(FileExistsError(errno.EEXIST, ""), name)
    try:
        fd = files.open_unnamed(name, plan.permissions)
        if fd is None:
            return _publish_in_place(name, plan, undo)
        try:
            if undo is not None:
                undo.append(Removal.of(fd, name))
            array = segment.filled(fd, name, plan)
            files.link(fd, name)
        finally:
            os.close(fd)
    except ShmArrayError:
        raise
    except OSError as error:
        raise _not_created(error, name) from error
    return array


def _publish_in_place(name: Name, plan: Blueprint, undo: list[Callable[[], object]] | None) -> NDArray[Any]:
    """The portable way: the name first, then what it names."""
    fd = files.open_exclusive(name, plan.permissions)
    try:
        # A Ctrl-C of the time of that call comes at the beginning of the next function.
        if undo is not None:
            undo.append(Removal.of(fd, name))
        return segment.filled_in_place(fd, name, plan)
    except BaseException:
        Removal.of(fd, name)()
        raise
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class Removal:
    """What removes the name of a file, unless it is gone or another's.

    Attributes
    ----------
    name : Name
    identity : Identity
        By which the file is known.
    """

    name: Name
    identity: files.Identity

    @classmethod
    def of(cls, fd: int, name: Name) -> "Removal":
        return cls(name, files.identity(os.fstat(fd)))

    @property
    def path(self) -> str | None:
        """Where any program finds the file; None where shared memory is in no directory."""
        return files.path_of(self.name)

    def __call__(self) -> None:
        if files.is_name_of(self.name, self.identity):
            with suppress(FileNotFoundError):
                files.unlink(self.name)


def _not_created(error: OSError, name: Name) -> OSError:
    if error.errno == errno.ENOENT:
        where = os.path.dirname(name.path) if name.kind == "file" else "/dev/shm"
        return ArrayNotFoundError(f"{name.text!r} cannot be made: there is no directory {where!r}", name.text)
    return explained(error, name, MAKING)


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
        raise ValueError(f"mode is 'r+', 'r' or 'c', as for numpy.load(mmap_mode=), not {mode!r}")
    target = names.parse(name).absolute()
    deadline = None
    while True:
        try:
            return _attached(target, mode)
        except UnfinishedError as error:
            deadline = deadline or time.monotonic() + _PATIENCE
            if time.monotonic() > deadline:
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


# --- require, delete, list -----------------------------------------------------------


def require(
    name: str, shape: Shape, dtype: DTypeLike | None = None, *, order: Literal["C", "F"] = "C", permissions: int = 0o600
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
        raise ValueError(f"order is 'C' or 'F', not {order!r}")
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
            f"{name!r} is there with shape {found[0]}, dtype {found[1]} and order {found[2]}, not shape "
            f"{wanted.shape}, dtype {wanted.dtype} and order {wanted.order}: delete it, or require what it is",
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
        if not _deletable(target):
            raise ArrayFormatError(f"{name!r} is not an array, so it is not deleted here: remove the file itself", name)
        files.unlink(target)
    except ShmArrayError:
        raise
    except OSError as error:
        raise explained(error, target, DELETING) from error


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


def list_arrays() -> list[ArrayInfo]:
    """All arrays in shared memory that this user may read, sorted by name.

    Returns
    -------
    list of ArrayInfo
        A snapshot.  Whatever is no array is passed over, and so is what cannot be opened
        or goes away meanwhile.  Arrays in files (``file://``) are not listed.

    Raises
    ------
    OSError
        With ENOTSUP, on a system that has no list of its shared memory objects.
    """
    found = (_info(name) for name in sorted(files.file_names()))
    return [info for info in found if info is not None]


# In help, and where pickle looks for it: the name that it has for its users.
list_arrays.__module__, list_arrays.__name__, list_arrays.__qualname__ = "shmarray.core", "list", "list"


def _info(text: str) -> ArrayInfo | None:
    name = Name(text, "shm", text)
    try:
        fd = files.open_existing(name, os.O_RDONLY)
        try:
            status = os.fstat(fd)
            plan = read_layout(fd, status.st_size, name)
        finally:
            os.close(fd)
    except (OSError, UnfinishedError):
        return None
    permissions = stat.S_IMODE(status.st_mode)
    return ArrayInfo(text, plan.dtype, plan.shape, plan.order, plan.nbytes, permissions, status.st_uid)
