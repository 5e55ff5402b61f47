"""List the existing arrays."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from shmarray.core.names import Name
from shmarray.core.posix import files
from shmarray.core.segment import Permissions, UnfinishedError, read_layout


@dataclass(frozen=True, slots=True)
class ArrayInfo:
    """Information about an array, as returned by `list`.

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
        As passed to `create`, such as ``0o600``; the repr is octal.
    uid : int
        The array's owner.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    nbytes: int
    permissions: int
    uid: int


def list_arrays() -> list[ArrayInfo]:
    """All arrays in shared memory that this user may read, sorted by name.

    Returns
    -------
    list of ArrayInfo
        A snapshot.  Files that are not arrays, cannot be opened, or are deleted meanwhile are
        skipped.  Arrays in files (``file://``) are not listed.

    Raises
    ------
    OSError
        With ENOTSUP, on a system that cannot list its shared memory objects.
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
    permissions = Permissions(stat.S_IMODE(status.st_mode))
    return ArrayInfo(text, plan.dtype, plan.shape, plan.order, plan.nbytes, permissions, status.st_uid)
