"""scoped: a shared array for the duration of a with block."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from numpy.typing import ArrayLike, DTypeLike, NDArray

from shmarray.core import OWNER_ALONE, Order, Removal, Shape, create_temporary
from shmarray.pool import name_reaper


@contextmanager
def scoped(
    shape: Shape | None = None,
    dtype: DTypeLike | None = None,
    *,
    data: ArrayLike | None = None,
    name: str | None = None,
    order: Order = "K",
    permissions: int = OWNER_ALONE,
) -> Iterator[NDArray[Any]]:
    """Create a shared array that is deleted at the end of the with block, even after an exception.

    Parameters
    ----------
    shape : int or sequence of int, optional
        Items along each axis; optional with `data`.
    dtype : dtype, optional
        ``float64`` by default, or the dtype of `data`.
    data : array_like, optional
        The data to copy, as for `create`.
    name : str, optional
        Name with which other programs can `attach` the array.  Without a name, the memory is
        anonymous: it is accessible only through `SharedHandle`, is not limited by the size of
        ``/dev/shm``, and is freed by the kernel however the process ends.
    order : {'K', 'C', 'F'}, optional
        As for `create`.
    permissions : int, optional
        As for `create`.

    Yields
    ------
    ndarray
        As returned by `create`.

    Raises
    ------
    ArrayExistsError, InvalidNameError, SharedMemoryFullError, ArrayPermissionError, TypeError, ValueError
        As `create` does, on entering the block; nothing is left behind.

    Notes
    -----
    After the block, no other process can attach the array: if a task was sent the array and
    has not started, it raises ArrayNotFoundError when it uses it.  If a task returns an
    anonymous array from its own block, the data is copied.  Arrays attached before, including
    the yielded one, stay valid until they are garbage-collected.  If the name was deleted
    inside the block, leaving it is not an error and deletes nothing, even if another array now
    has the name.  A forked child that leaves the block deletes nothing, because the array
    belongs to its parent.

    The name is deleted even if this process is killed: the first scope with a name starts a
    small helper process (9 MB, 10 ms), which waits for this one to end.  If that cannot be
    started, or shared memory is not in a directory, the name remains after ``kill -9``.

    An anonymous array uses one file descriptor until the end of the block.  Processes of the
    same user and PID namespace can attach it.  If /proc does not give access to this process's
    descriptors (it is not mounted, or this process has changed its user and is no longer
    dumpable), an array without a name gets a random name in shared memory.

    Examples
    --------
    >>> import shmarray
    >>> with shmarray.scoped((480, 640), "uint8", name="doc-frame") as frame:
    ...     shmarray.attach("doc-frame").shape
    (480, 640)
    """
    if isinstance(shape, str):
        raise TypeError(f"pass the name as a keyword: scoped(shape, name={shape!r})")
    owner = os.getpid()
    undo = _Undo()

    def end() -> None:
        # At exit, `end_at_exit` may also remove the names, which is harmless.
        with suppress(IndexError, ValueError):
            while os.getpid() == owner:
                step = undo[-1]
                step()
                undo.remove(step)  # only now, so that an interrupted step is repeated at exit

    def end_at_exit() -> None:
        # Only names: descriptors are closed with the process, and a daemon thread may still be using its own.
        if os.getpid() == owner:
            for step in undo.copy():
                if isinstance(step, Removal):
                    step()

    # For a block that is still open when the interpreter exits: in a daemon thread, in a
    # generator that is still referenced, or entered manually.
    atexit.register(end_at_exit)
    try:
        # Referenced until the end, so that no other file gets the inode that identifies it.
        array = create_temporary(undo, name, shape, dtype, data=data, order=order, permissions=permissions)
        yield array
    finally:
        end()
        atexit.unregister(end_at_exit)


class _Undo(list[Callable[[], object]]):
    """The steps that delete an array; the name reaper is told its names before they exist."""

    def append(self, step: Callable[[], object]) -> None:
        super().append(step)
        if isinstance(step, Removal):
            name_reaper.add(step)

    def remove(self, step: Callable[[], object]) -> None:
        if isinstance(step, Removal):
            name_reaper.discard(step)
        super().remove(step)
