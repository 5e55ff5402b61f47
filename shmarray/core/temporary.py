"""Temporary shared arrays, whose cleanup is registered before they become accessible."""

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from numpy.typing import ArrayLike, DTypeLike, NDArray

from shmarray.core import names
from shmarray.core.names import Name
from shmarray.core.posix import files
from shmarray.core.publishing import publish
from shmarray.core.segment import OWNER_ALONE, ArraySpec, Order, Shape, filled, planned
from shmarray.errors import ArrayExistsError

Undo = list[Callable[[], object]]


def create_temporary(
    undo: Undo,
    name: str | None,
    shape: Shape | None = None,
    dtype: DTypeLike | None = None,
    *,
    data: ArrayLike | None = None,
    order: Order = "K",
    permissions: int = OWNER_ALONE,
) -> NDArray[Any]:
    """Make a shared array, with a name or without.

    Parameters
    ----------
    undo : list of callable
        Gets what makes the array unreachable; those that have it keep it.  Before there is
        anything to undo, so that an interrupt at any moment leaves it to the holder of the list.
        Each may be called more than once.
    name : str or None
    shape, dtype, data, order, permissions
        As for `create`.

    Notes
    -----
    Without a name, other processes open it through this one's descriptor in /proc.  Where
    that cannot be (no memfd_create, no /proc, a process that has dropped its privileges), it
    gets a random name, which a killed process leaves.
    """
    plan = planned(shape, dtype, data, order, permissions)
    if name is not None:
        return publish(names.parse(name).absolute(), plan, undo)
    fd = files.open_anonymous() if files.is_open_to_others() else None
    if fd is None:
        return _randomly_named(undo, plan)
    undo.append(partial(files.close_if, fd, os.fstat(fd)))
    text = f"anonymous array {plan.layout.shape} {plan.layout.dtype.name} of process {os.getpid()}"
    return filled(fd, Name(text, "anonymous", files.descriptor_path(fd)), plan)


def _randomly_named(undo: Undo, plan: ArraySpec) -> NDArray[Any]:
    while True:
        # macOS allows 30 characters.
        name = f"shmarray-{os.getpid()}-{os.urandom(5).hex()}"
        with suppress(ArrayExistsError):
            return publish(Name(name, "shm", name), plan, undo)
