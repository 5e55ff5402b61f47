"""Shared arrays without a name: there is nothing to leak, and nothing in /dev/shm."""

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from numpy.typing import ArrayLike, DTypeLike, NDArray

from shmarray.core import posix
from shmarray.core.arrays import create, delete_if_same
from shmarray.core.names import Name
from shmarray.core.segment import Order, Shape, filled, planned
from shmarray.errors import ArrayExistsError


def create_anonymous(
    shape: Shape | None = None,
    dtype: DTypeLike | None = None,
    *,
    data: ArrayLike | None = None,
    order: Order = "K",
    permissions: int = 0o600,
) -> tuple[NDArray[Any], Callable[[], None]]:
    """Make a shared array without a name.

    Parameters
    ----------
    shape, dtype, data, order, permissions
        As for `create`.

    Returns
    -------
    array : ndarray
    forget : callable
        Ends its being reachable from other processes; those that have it keep it.

    Notes
    -----
    Other processes open it through this one's descriptor in /proc.  Where that cannot be
    (no memfd_create, no /proc), it gets a random name, which a killed process leaves.
    """
    plan = planned(shape, dtype, data, order, permissions)
    fd = posix.open_anonymous()
    if fd is None:
        return _randomly_named(shape, dtype, data=data, order=order, permissions=permissions)
    name = Name("anonymous array", "anonymous", f"/proc/{os.getpid()}/fd/{fd}")
    try:
        return filled(fd, name, plan), partial(os.close, fd)
    except BaseException:
        os.close(fd)
        raise


def _randomly_named(*args: Any, **options: Any) -> tuple[NDArray[Any], Callable[[], None]]:
    while True:
        # macOS allows 30 characters.
        with suppress(ArrayExistsError):
            array = create(f"shmarray-{os.getpid()}-{secrets.token_hex(5)}", *args, **options)
            return array, partial(delete_if_same, array)
