"""The file of an array: owner, times, space."""

import os
import pwd
import stat
from dataclasses import dataclass

from shmarray.core import birth, parse_name

SHARED_MEMORY = "/dev/shm"


@dataclass(frozen=True, slots=True)
class ArrayFile:
    """What the file system knows about an array.

    Attributes
    ----------
    path : str
    device, inode : int
        Together they identify the file, whatever its names.
    links : int
        The number of its names.
    uid : int
    permissions : int
        As for chmod.
    allocated : int
        Bytes that it takes up.
    created : float or None
        Seconds since the epoch; None if the file system does not record it.
    modified : float
        Seconds since the epoch.  The kernel notices only the first write to a page
        through a mapping.
    """

    path: str
    device: int
    inode: int
    links: int
    uid: int
    permissions: int
    allocated: int
    created: float | None
    modified: float

    @property
    def identity(self) -> tuple[int, int]:
        return self.device, self.inode

    @property
    def owner(self) -> str:
        """The user's name, or its number if the user is unknown here, as in containers."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return str(self.uid)

    @property
    def since(self) -> float:
        """When it was created, as far as known; seconds since the epoch."""
        return self.modified if self.created is None else self.created


def path_of(name: str) -> str:
    """The path of an array's file; InvalidNameError if no array can have the name."""
    parsed = parse_name(name).absolute()
    return parsed.path if parsed.kind == "file" else f"{SHARED_MEMORY}/{parsed.path}"


def look(path: str) -> ArrayFile:
    """Inspect a file without opening it; OSError if it does not exist."""
    status = os.stat(path)
    born = birth(path)
    return ArrayFile(
        path,
        status.st_dev,
        status.st_ino,
        status.st_nlink,
        status.st_uid,
        stat.S_IMODE(status.st_mode),
        512 * status.st_blocks,
        None if born is None else born / 1e9,
        status.st_mtime,
    )
