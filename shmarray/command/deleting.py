"""``shmarray delete``."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import shmarray
from shmarray.command import files, processes, selecting, wording
from shmarray.command.files import ArrayFile
from shmarray.command.processes import Census
from shmarray.errors import ArrayNotFoundError, ShmArrayError

_DONE, _FAILED, _REFUSED = 0, 1, 2


class Selection(NamedTuple):
    """The arrays that are meant.

    Attributes
    ----------
    names : list of str
        Without repetition, in the order they were asked for.
    unmatched : list of str
        Patterns that no array matches.
    wide : bool
        Whether a pattern stands for more than one array: nobody wrote down their names.
    """

    names: list[str]
    unmatched: list[str]
    wide: bool


def run(arguments: Namespace) -> int:
    known = selecting.names()
    selection = _selected(arguments.names, known)
    for pattern in selection.unmatched:
        _complain(f"no array matches {pattern!r}{selecting.hint(pattern, known)}")
    if selection.wide and not (arguments.yes or arguments.dry_run):
        if sys.stdin is None or not sys.stdin.isatty():
            _complain(
                f"{wording.count(len(selection.names), 'array')} would be deleted and there is no terminal to ask, "
                "so none was: look with --dry-run, then say --yes"
            )
            return _REFUSED
        if not _confirmed(selection.names):
            print("nothing was deleted")
            return _FAILED
    done = _deleted(selection.names, known, dry_run=arguments.dry_run)
    return _FAILED if selection.unmatched or not done else _DONE


def _selected(asked: Sequence[str], known: Sequence[str]) -> Selection:
    names: dict[str, None] = {}
    unmatched, wide = [], False
    for text in asked:
        found = selecting.matching(text, known) if selecting.is_pattern(text) else [text]
        names.update(dict.fromkeys(found))
        wide |= len(found) > 1
        if not found:
            unmatched.append(text)
    return Selection(list(names), unmatched, wide)


def _confirmed(names: Sequence[str]) -> bool:
    for name in names:
        print(f"  {wording.safe(name)}")
    try:
        answer = input(f"Delete {'these ' if len(names) > 1 else ''}{wording.count(len(names), 'array')}? [y/N] ")
    except EOFError:
        print()
        return False
    return answer.strip().lower() in ("y", "yes")


def _deleted(names: Sequence[str], known: Sequence[str], *, dry_run: bool) -> bool:
    """Delete one after the other, say what became of each, and whether all went well."""
    before = {name: file for name in names if (file := _file(name)) is not None}
    users = processes.census(before.values())  # who keeps the memory: afterwards inodes have no names
    gone = []
    for name in names:
        try:
            _attachable(name) if dry_run else shmarray.delete(name)
        except (ShmArrayError, OSError) as error:
            _complain(_explained(error, name, known))
        else:
            gone.append(before.get(name))
            print(f"{'would delete' if dry_run else 'deleted'} {wording.safe(name)}{_weight(before.get(name), users)}")
    if gone and not dry_run:
        print(_freed([file for file in gone if file is not None], len(gone), users))
    return len(gone) == len(names)


def _file(name: str) -> ArrayFile | None:
    with suppress(ShmArrayError, OSError):  # delete says it
        return files.look(files.path_of(name))
    return None


def _attachable(name: str) -> None:
    with suppress(PermissionError):  # deleting asks for no right to read
        shmarray.attach(name, "r")


def _explained(error: Exception, name: str, known: Sequence[str]) -> str:
    text = wording.failure(error)
    return text + selecting.hint(name, known) if isinstance(error, ArrayNotFoundError) else text


def _weight(file: ArrayFile | None, users: Census) -> str:
    if file is None:
        return ""
    pids = [str(user.pid) for user in users.of(file)]
    kept = f", mapped by {wording.count(len(pids), 'process')}: {', '.join(pids)}" if pids else ""
    return f" ({wording.size(file.allocated)}{kept})"


def _freed(gone: Sequence[ArrayFile], count: int, users: Census) -> str:
    last = [file for file in gone if file.links == 1]  # another name keeps the memory too
    kept = sum(file.allocated for file in last if users.of(file))
    freed = sum(file.allocated for file in last) - kept
    said = f"{wording.count(count, 'array')} deleted, {wording.size(freed)} freed"
    if kept:
        said += f"; {wording.size(kept)} more when the processes that have it mapped let go: they keep it until then"
    return said


def _complain(text: str) -> None:
    print(f"shmarray: {text}", file=sys.stderr)
