"""The processes that have an array mapped, found by the inodes in /proc/*/maps."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from shmarray.command.files import ArrayFile

Identity = tuple[int, int]


@dataclass(frozen=True, slots=True)
class User:
    """A process that has an array mapped.

    Attributes
    ----------
    pid : int
    modes : tuple of str
        As `attach` takes them: 'r+', 'r', 'c'.
    """

    pid: int
    modes: tuple[str, ...]

    @property
    def command(self) -> str:
        """Its command line; empty if it has ended."""
        line = _read(self.pid, "cmdline") or b""
        text = line.rstrip(b"\0").replace(b"\0", b" ") or (_read(self.pid, "comm") or b"").rstrip(b"\n")
        return os.fsdecode(text)


@dataclass(slots=True)
class Census:
    """Which processes have which arrays mapped, as far as this process can see.

    Attributes
    ----------
    users : dict of (int, int) to list of User
        By device and inode.
    hidden : int
        How many processes could not be inspected: those of other users, or that have changed their user.
    hidden_uids : set of int
        The users of those processes.
    """

    users: dict[Identity, list[User]] = field(default_factory=lambda: defaultdict(list))
    hidden: int = 0
    hidden_uids: set[int] = field(default_factory=set)

    def of(self, file: ArrayFile) -> list[User] | None:
        """The processes that have a file mapped; None if the system does not show processes."""
        return self.users.get(file.identity, []) if can_be_seen() else None


def census(files: Iterable[ArrayFile]) -> Census:
    """Inspect all processes except this one, which maps arrays only to read them."""
    by_inode = {file.inode: file for file in files}
    found = Census()
    for pid in _others() if by_inode else ():
        try:
            maps = _read(pid, "maps")
        except PermissionError:
            found.hidden += 1
            found.hidden_uids |= _uids(pid)
            continue
        modes = defaultdict(set)
        for inode, mode in _mapped(maps or b"", by_inode):
            modes[by_inode[inode].identity].add(mode)
        for identity, seen in modes.items():
            found.users[identity].append(User(pid, tuple(sorted(seen, reverse=True))))
    return found


def can_be_seen() -> bool:
    """Whether the system shows its processes."""
    return os.path.exists(f"/proc/{os.getpid()}/maps")


def _uids(pid: int) -> set[int]:
    """A process's users; not the owner of /proc/PID, which is root for a process that is not dumpable."""
    for line in (_read(pid, "status") or b"").splitlines():
        key, *numbers = line.split()
        if key == b"Uid:":
            return set(map(int, numbers))
    return set()


def _others() -> Iterator[int]:
    own = os.getpid()
    try:
        entries = os.listdir("/proc")
    except FileNotFoundError:
        return
    yield from sorted(int(entry) for entry in entries if entry.isdecimal() and int(entry) != own)


def _mapped(maps: bytes, wanted: dict[int, ArrayFile]) -> Iterator[tuple[int, str]]:
    for line in maps.splitlines():
        _, permissions, _, device, text, *path = line.split(None, 5)
        inode = int(text)
        # On a subvolume or overlay, the device in maps differs from stat's; then the path decides.
        if inode in wanted and (_device(device) == wanted[inode].device or path == [os.fsencode(wanted[inode].path)]):
            yield inode, "c" if permissions.endswith(b"p") else "r+" if b"w" in permissions else "r"


def _device(text: bytes) -> int:
    major, _, minor = text.partition(b":")
    return os.makedev(int(major, 16), int(minor, 16))


def _read(pid: int, what: str) -> bytes | None:
    """The content of a file in /proc/PID; None if the process has ended."""
    try:
        with open(f"/proc/{pid}/{what}", "rb") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
