"""The file that an array is: owner, times, space."""

import os
import pwd
import stat
from dataclasses import dataclass

from shmarray.core import birth, parse_name

SHARED_MEMORY = "/dev/shm"


@dataclass(frozen=True, slots=True)
class ArrayFile:
    """What the file system says of an array.

    Attributes
    ----------
    path : str
    device, inode : int
        Both together are one file, whatever its names.
    links : int
        How many names it has.
    uid : int
    permissions : int
        As for chmod.
    allocated : int
        Bytes that it takes up.
    created : float or None
        Seconds since the epoch; None if the file system does not keep it.
    modified : float
        Seconds since the epoch.  Of writes through a mapping the kernel notices the first
        to a page, not the others.
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
        """The user's name, or number if there is no such user here, as in containers."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return str(self.uid)

    @property
    def since(self) -> float:
        """Since when it has been there, as nearly as can be known; seconds since the epoch."""
        return self.modified if self.created is None else self.created


def path_of(name: str) -> str:
    """The path of an array's file, by its name; InvalidNameError if no array can have it."""
    parsed = parse_name(name).absolute()
    return parsed.path if parsed.kind == "file" else f"{SHARED_MEMORY}/{parsed.path}"


def look(path: str) -> ArrayFile:
    """Look at a file without opening it; OSError if it is not there."""
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
