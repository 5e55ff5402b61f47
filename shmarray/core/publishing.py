"""Give an array its name when it is complete, and undo everything if a step fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from shmarray.core import segment
from shmarray.core.names import Name
from shmarray.core.posix import files
from shmarray.core.posix.errors import MAKING, explained
from shmarray.core.segment import ArraySpec
from shmarray.errors import ArrayNotFoundError, ShmArrayError

# Below this, checking whether the name is free costs more than creating the array in vain.
_WORTH_A_LOOK = 1 << 20


def publish(name: Name, plan: ArraySpec, undo: list[Callable[[], object]] | None = None) -> NDArray[Any]:
    """Create an array and give it its name; before that, `undo` gets the step that removes the name."""
    # A hint that avoids the copy; the link decides.
    if plan.layout.size > _WORTH_A_LOOK and files.taken(name):
        raise explained(FileExistsError(errno.EEXIST, ""), name)
    try:
        array = _publish_complete(name, plan, undo)
        return _publish_in_place(name, plan, undo) if array is None else array
    except ShmArrayError:
        raise
    except OSError as error:
        raise _not_created(error, name) from error


def _publish_complete(name: Name, plan: ArraySpec, undo: list[Callable[[], object]] | None) -> NDArray[Any] | None:
    """Name a complete file; None if the system cannot."""
    fd = files.open_unnamed(name, plan.permissions)
    if fd is None:
        return None
    try:
        if undo is not None:
            undo.append(Removal.of(fd, name))
        array = segment.filled(fd, name, plan)
        if files.link(fd, name):
            return array
        if undo is not None:  # this file ends here, and another one of that name may get its inode
            undo.pop()
        return None
    finally:
        os.close(fd)


def _publish_in_place(name: Name, plan: ArraySpec, undo: list[Callable[[], object]] | None) -> NDArray[Any]:
    """The portable way: create the name first, then the content."""
    fd = files.open_exclusive(name, plan.permissions)
    try:
        # A Ctrl-C during that call is raised at the start of the next function.
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
    def of(cls, fd: int, name: Name) -> Removal:
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
