"""``shmarray list``."""

import json
import os
import time
from argparse import Namespace
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import shmarray
from shmarray.command import files, processes, selecting, table, wording
from shmarray.command.files import SHARED_MEMORY, ArrayFile
from shmarray.command.processes import User
from shmarray.command.table import Column

_COLUMNS = (
    Column("name"),
    Column("dtype", worth=4),
    Column("shape"),
    Column("size", ">"),
    Column("age", ">", worth=3),
    Column("owner", worth=1),
    Column("processes", ">", worth=2),
)


@dataclass(frozen=True, slots=True)
class Listed:
    """One array: what the library and the file system know about it, and the processes that have it mapped."""

    info: shmarray.ArrayInfo
    file: ArrayFile
    users: list[User] | None


# What takes up most space comes first: the largest or the oldest.
_ORDERS = {
    "name": lambda one: one.info.name,
    "size": lambda one: -one.info.nbytes,
    "age": lambda one: one.file.since,
}


def run(arguments: Namespace) -> int:
    found, hidden = listed(arguments.pattern)
    found.sort(key=_ORDERS[arguments.sort])
    if arguments.json:
        print(json.dumps(_document(found, hidden), indent=2))
    else:
        print("\n".join(_report(found, hidden, arguments.pattern)))
    return 0


def listed(patterns: list[str]) -> tuple[list[Listed], int]:
    """The arrays that match any of the patterns, sorted by name, and how many processes could not be inspected."""
    found = []
    for info in shmarray.list():
        if not patterns or any(selecting.matching(pattern, [info.name]) for pattern in patterns):
            with suppress(OSError):  # deleted meanwhile
                found.append((info, files.look(f"{SHARED_MEMORY}/{info.name}")))
    seen = processes.census(file for _, file in found)
    return [Listed(info, file, seen.of(file)) for info, file in found], seen.hidden


def rows(found: list[Listed], width: int) -> list[str]:
    now = time.time()
    return table.lines(_COLUMNS, [_row(one, now) for one in found], width)


def _row(one: Listed, now: float) -> list[str]:
    return [
        wording.safe(one.info.name),
        wording.dtype(one.info.dtype),
        str(one.info.shape),
        wording.size(one.info.nbytes),
        wording.duration(now - one.file.since),
        wording.safe(one.file.owner),
        "?" if one.users is None else str(len(one.users)),
    ]


def _report(found: list[Listed], hidden: int, patterns: list[str]) -> list[str]:
    if found:
        said = [*rows(found, table.terminal_width()), "", _sum(found)]
        if hidden and any(one.file.permissions & 0o077 for one in found):
            said.append(wording.not_looked_at(hidden))
        return said
    which = "match" if patterns else "you may read"
    return [f"There are no arrays that {which} in {SHARED_MEMORY}. {_space(0)}"]


def _sum(found: list[Listed]) -> str:
    return f"{wording.count(len(found), 'array')}, {_space(allocated(found))}"


def _space(arrays: int) -> str:
    total, free = _shared_memory()
    in_arrays = f"{wording.size(arrays)}. " if arrays else ""
    if not total:
        return f"{in_arrays}{SHARED_MEMORY} has no limit of its own."
    return (
        f"{in_arrays}{SHARED_MEMORY}: {wording.size(total - free)} used in total, {wording.size(free)} free "
        f"of {wording.size(total)}."
    )


def allocated(found: list[Listed]) -> int:
    """Total size of the arrays in bytes; an array with two names counts once."""
    return sum({one.file.identity: one.file.allocated for one in found}.values())


def _shared_memory() -> tuple[int, int]:
    status = os.statvfs(SHARED_MEMORY)
    return status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize


def _document(found: list[Listed], hidden: int) -> dict[str, Any]:
    total, free = _shared_memory()
    return {
        "arrays": [_entry(one) for one in found],
        "processes_not_looked_at": hidden,
        "shared_memory": {
            "path": SHARED_MEMORY,
            "total": total,
            "used": total - free,
            "free": free,
            "arrays": allocated(found),
        },
    }


def _entry(one: Listed) -> dict[str, Any]:
    return {
        "name": one.info.name,
        "dtype": wording.descr(one.info.dtype),
        "shape": list(one.info.shape),
        "order": one.info.order,
        "nbytes": one.info.nbytes,
        "owner": one.file.owner,
        "uid": one.file.uid,
        "permissions": f"{one.file.permissions:04o}",
        "created": one.file.created,
        "modified": one.file.modified,
        "processes": None if one.users is None else [user.pid for user in one.users],
    }
