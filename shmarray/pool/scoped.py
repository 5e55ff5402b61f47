"""scoped: a shared array for the length of a with-block."""

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
    """A shared array that is deleted at the end of the with-block, also on an exception.

    Parameters
    ----------
    shape : int or sequence of int, optional
        Items along each axis; may be left out with `data`.
    dtype : dtype, optional
        ``float64``, or that of `data`, by default.
    data : array_like, optional
        What to copy in, as for `create`.
    name : str, optional
        Under which other programs can `attach` it.  Without a name the memory is
        anonymous: reached by `SharedHandle` only, not bounded by the size of ``/dev/shm``,
        and freed by the kernel however the process ends.
    order : {'K', 'C', 'F'}, optional
        As for `create`.
    permissions : int, optional
        As for `create`.

    Yields
    ------
    ndarray
        As `create` gives it.

    Raises
    ------
    ArrayExistsError, InvalidNameError, SharedMemoryFullError, ArrayPermissionError, TypeError, ValueError
        As `create` does, on entering the block; nothing is left then.

    Notes
    -----
    After the block no further process can attach: a task that was sent the array and has
    not begun raises ArrayNotFoundError when it uses it.  What a task returns out of a block
    of its own, without a name, goes as data.  Arrays attached before, the yielded one too,
    stay valid until they are garbage.  If the name was deleted inside the block, and even if
    another array has it now, leaving is no error and touches nothing.  A forked child that
    leaves the block deletes nothing: the array is its parent's.

    A name is deleted even if this process is killed: the first scope with a name starts a
    small process of its own (9 MB, 10 ms), which waits for the end of this one.  Where none
    can be started, or shared memory is in no directory, ``kill -9`` leaves the name.

    An anonymous array takes one descriptor until the end of the block.  It can be reached
    from processes of the same user and pid namespace.  Where /proc does not lead to the
    descriptors of this process (it is not mounted, or this process has changed its user and
    is not dumpable since), an array without a name gets a random one in shared memory.

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
        # At exit the names may be removed by `end_at_exit` too, which does no harm.
        with suppress(IndexError, ValueError):
            while os.getpid() == owner:
                step = undo[-1]
                step()
                undo.remove(step)  # afterwards: interrupted before, it is done again at exit

    def end_at_exit() -> None:
        # Only names: descriptors end with the process, and a daemon thread may be using its own just now.
        if os.getpid() == owner:
            for step in undo.copy():
                if isinstance(step, Removal):
                    step()

    # For a block that is still open when the interpreter ends: one in a daemon thread, in a
    # generator that somebody keeps, or entered by hand.
    atexit.register(end_at_exit)
    try:
        # Kept here until the end, so that the inode by which it is known is no other file's.
        array = create_temporary(undo, name, shape, dtype, data=data, order=order, permissions=permissions)
        yield array
    finally:
        end()
        atexit.unregister(end_at_exit)


class _Undo(list[Callable[[], object]]):
    """What ends an array; the name reaper learns of its names before they exist."""

    def append(self, step: Callable[[], object]) -> None:
        super().append(step)
        if isinstance(step, Removal):
            name_reaper.add(step)

    def remove(self, step: Callable[[], object]) -> None:
        if isinstance(step, Removal):
            name_reaper.discard(step)
        super().remove(step)
