"""``shmarray info``."""

import json
import os
import stat
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import shmarray
from shmarray import core
from shmarray.command import files, processes, selecting, table, wording
from shmarray.command.files import ArrayFile
from shmarray.command.processes import User
from shmarray.command.statistics import Summary, summaries
from shmarray.command.table import Column
from shmarray.errors import ShmArrayError

_FIELDS = (Column("field"), Column("dtype"), Column("from byte", ">"))
_STATISTICS = (
    Column("field"),
    Column("min", ">"),
    Column("max", ">"),
    Column("mean", ">"),
    Column("NaN", ">"),
    Column("zeros", ">"),
)


class Header(NamedTuple):
    """What an array's header says, and the layout of its data."""

    version: tuple[int, int]
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: str
    offset: int
    nbytes: int


class Inspected(NamedTuple):
    name: str
    header: Header
    file: ArrayFile
    statistics: list[Summary]
    users: list[User] | None
    hidden: int


def run(arguments: Namespace) -> int:
    found = []
    for name in arguments.names:
        try:
            found.append(_inspected(name, statistics=not arguments.no_statistics))
        except (ShmArrayError, OSError) as error:
            if len(arguments.names) == 1:
                raise
            print(f"shmarray: {selecting.failure(error)}", file=sys.stderr)
    if arguments.json:
        documents = [_document(one) for one in found]
        print(json.dumps(documents if len(arguments.names) > 1 else documents[0], indent=2))
    else:
        print("\n\n".join("\n".join(_report(one)) for one in found), end="\n" if found else "")
    return 0 if len(found) == len(arguments.names) else 1


def _inspected(name: str, *, statistics: bool) -> Inspected:
    array = shmarray.attach(name, "r")
    file = files.look(files.path_of(name))
    if file.identity != _owner(array).identity:
        raise FileNotFoundError(None, "another array replaced it in the meantime: try again", name)
    found = summaries(array) if statistics else []
    seen = processes.census([file])
    return Inspected(name, _header(array), file, found, seen.of(file), seen.hidden)


def _owner(array: NDArray[Any]) -> core.Mapping:
    mapping = core.owner(array)
    assert mapping is not None, "attach returns arrays of this library"  # noqa: S101 - for the type checker
    return mapping


def _header(array: NDArray[Any]) -> Header:
    mapping = _owner(array)
    major, minor = mapping.octets()[6:8].tolist()
    order = "C" if array.flags.c_contiguous else "F"
    return Header((major, minor), array.dtype, array.shape, order, array.ctypes.data - mapping.address, array.nbytes)


# --- for people ----------------------------------------------------------------------


def _report(found: Inspected) -> Iterator[str]:
    yield wording.safe(found.name)
    for title, text in _facts(found.header, found.file):
        yield f"  {title:<12} {text}"
    if found.header.dtype.names:
        yield from _section("fields", _FIELDS, list(_fields(found.header.dtype, "", 0)))
    if found.statistics:
        yield from _section("statistics", *_statistics(found.statistics))
    yield ""
    yield from _processes(found)


def _facts(header: Header, file: ArrayFile) -> Iterator[tuple[str, str]]:
    now = time.time()
    yield "dtype", wording.dtype(header.dtype)
    yield "shape", f"{header.shape}, {'row' if header.order == 'C' else 'column'}-major ({header.order})"
    yield "size", wording.exact_size(header.nbytes)
    yield "file", wording.safe(file.path)
    yield "header", f".npy version {header.version[0]}.{header.version[1]}, data from byte {header.offset}"
    yield "owner", f"{wording.safe(file.owner)}, {stat.filemode(file.permissions)[1:]} ({file.permissions:04o})"
    if file.created is not None:
        yield "created", _moment(file.created, now)
    yield "modified", f"{_moment(file.modified, now)}, or later: the kernel does not notice every write"
    yield "inode", f"{file.inode} on device {os.major(file.device)}:{os.minor(file.device)}"


def _moment(seconds: float, now: float) -> str:
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(seconds))}, {wording.duration(now - seconds)} ago"


def _section(title: str, columns: tuple[Column, ...], rows: list[list[str]]) -> Iterator[str]:
    yield ""
    yield title
    yield from (f"  {line}" for line in table.lines(columns, rows, table.terminal_width() - 2))


def _fields(dtype: np.dtype[Any], path: str, start: int) -> Iterator[list[str]]:
    """Every field, including nested ones; `start` is the offset of the outer field."""
    for name in dtype.names or ():
        kind, offset = dtype.fields[name][:2]  # type: ignore[index]
        label = f"{path}{wording.safe(name)}"
        yield [label, wording.dtype(kind), str(start + offset)]
        yield from _fields(kind, f"{label}.", start + offset)


def _statistics(found: list[Summary]) -> tuple[tuple[Column, ...], list[list[str]]]:
    """Columns and rows; without the field column if there are no fields."""
    rows = [
        [
            ".".join(map(wording.safe, one.fields)),
            *(map(_cell, (one.least, one.greatest, one.mean, one.missing, one.zeros))),
        ]
        for one in found
    ]
    named = any(one.fields for one in found)
    return (_STATISTICS, rows) if named else (_STATISTICS[1:], [row[1:] for row in rows])


def _cell(value: Any) -> str:
    if isinstance(value, (float, np.floating)):
        return f"{value:.6g}"
    return "-" if value is None else str(value)


def _processes(found: Inspected) -> Iterator[str]:
    users = found.users
    if users is None:
        yield "cannot tell which processes have it mapped: /proc is not mounted"
        return
    yield f"mapped by {wording.count(len(users), 'process')}" if users else "mapped by no process"
    if users:
        width = table.terminal_width() - 2
        rows = [[str(user.pid), ", ".join(user.modes), wording.safe(user.command)] for user in users]
        columns = (Column("pid", ">"), Column("mode"), Column("command"))
        yield from (f"  {wording.shortened(line, width)}" for line in table.lines(columns, rows, width))
    if found.hidden and found.file.permissions & 0o077:
        yield wording.not_looked_at(found.hidden)


# --- for programs --------------------------------------------------------------------


def _document(found: Inspected) -> dict[str, Any]:
    header, file = found.header, found.file
    return {
        "name": found.name,
        "version": list(header.version),
        "dtype": wording.descr(header.dtype),
        "shape": list(header.shape),
        "order": header.order,
        "offset": header.offset,
        "nbytes": header.nbytes,
        "file": file.path,
        "owner": file.owner,
        "uid": file.uid,
        "permissions": f"{file.permissions:04o}",
        "created": file.created,
        "modified": file.modified,
        "device": file.device,
        "inode": file.inode,
        "statistics": [_summary(one) for one in found.statistics],
        "processes": None if found.users is None else [_user(one) for one in found.users],
        "processes_not_looked_at": found.hidden,
    }


def _user(one: User) -> dict[str, Any]:
    return {"pid": one.pid, "modes": list(one.modes), "command": one.command}


def _summary(one: Summary) -> dict[str, Any]:
    return {
        "fields": list(one.fields),
        "items": one.items,
        "min": wording.number(one.least),
        "max": wording.number(one.greatest),
        "mean": wording.number(one.mean),
        "nan": one.missing,
        "zeros": one.zeros,
    }
