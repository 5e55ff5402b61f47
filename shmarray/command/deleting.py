"""``shmarray delete``."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import shmarray
from shmarray.command import files, processes, selecting, wording
from shmarray.command.files import ArrayFile
from shmarray.errors import ArrayNotFoundError, ShmArrayError

_DONE, _FAILED, _REFUSED = 0, 1, 2


class Target(NamedTuple):
    """An array that is meant, as it was before anything was deleted.

    Attributes
    ----------
    name : str
    file : ArrayFile or None
        None if it is not there.
    pids : list of int
        Who has it mapped.
    """

    name: str
    file: ArrayFile | None
    pids: list[int]

    def __str__(self) -> str:
        if self.file is None:
            return wording.safe(self.name)
        users = f", mapped by {wording.count(len(self.pids), 'process')}: {', '.join(map(str, self.pids))}"
        return f"{wording.safe(self.name)} ({wording.size(self.file.allocated)}{users if self.pids else ''})"


def run(arguments: Namespace) -> int:
    known = selecting.names()
    names, unmatched, wide = _selected(arguments.names, known)
    targets = _looked_up(names)
    for pattern in unmatched:
        _complain(f"no array matches {pattern!r}{selecting.hint(pattern, known)}")
    if wide and not (arguments.yes or arguments.dry_run):
        if sys.stdin is None or not sys.stdin.isatty():
            _complain(
                f"{wording.count(len(targets), 'array')} would be deleted and there is no terminal to ask, "
                "so none was: look with --dry-run, then say --yes"
            )
            return _REFUSED
        if not _confirmed(targets):
            print("nothing was deleted")
            return _FAILED
    gone = [target for target in targets if _deleted(target, known, dry_run=arguments.dry_run)]
    if gone and not arguments.dry_run:
        print(_freed(gone))
    return _FAILED if unmatched or len(gone) < len(targets) else _DONE


def _selected(asked: Sequence[str], known: Sequence[str]) -> tuple[list[str], list[str], bool]:
    """Names in the order they were asked for, patterns without a match, and whether one has several.

    Then nobody wrote down the names of what is to go.
    """
    names: dict[str, None] = {}
    unmatched, wide = [], False
    for text in asked:
        found = selecting.matching(text, known) if selecting.is_pattern(text) else [text]
        names.update(dict.fromkeys(found))
        wide |= len(found) > 1
        if not found:
            unmatched.append(text)
    return list(names), unmatched, wide


def _looked_up(names: Sequence[str]) -> list[Target]:
    there = {name: _file(name) for name in names}
    users = processes.census(file for file in there.values() if file is not None)
    return [Target(name, file, [user.pid for user in users.of(file)] if file else []) for name, file in there.items()]


def _file(name: str) -> ArrayFile | None:
    with suppress(ShmArrayError, OSError):  # delete will say it
        return files.look(files.path_of(name))
    return None


def _confirmed(targets: Sequence[Target]) -> bool:
    for target in targets:
        print(f"  {target}")
    try:
        answer = input(f"Delete {wording.count(len(targets), 'array')}? [y/N] ")
    except EOFError:
        print()
        return False
    return answer.strip().lower() in ("y", "yes")


def _deleted(target: Target, known: Sequence[str], *, dry_run: bool) -> bool:
    try:
        if dry_run:
            _try(target.name)
        else:
            shmarray.delete(target.name)
    except (ShmArrayError, OSError) as error:
        missing = isinstance(error, ArrayNotFoundError)
        _complain(wording.failure(error) + (selecting.hint(target.name, known) if missing else ""))
        return False
    print(f"{'would delete' if dry_run else 'deleted'} {target}")
    return True


def _try(name: str) -> None:
    with suppress(PermissionError):  # deleting needs no right to read
        shmarray.attach(name, "r")


def _freed(gone: Sequence[Target]) -> str:
    # Another name keeps the memory too.
    last = [(target.file.allocated, target.pids) for target in gone if target.file and target.file.links == 1]
    kept = sum(size for size, pids in last if pids)
    freed = sum(size for size, pids in last if not pids)
    said = f"{wording.count(len(gone), 'array')} deleted, {wording.size(freed)} freed"
    if kept:
        said += f"; {wording.size(kept)} more when the processes that have it mapped let go: they keep it until then"
    return said


def _complain(text: str) -> None:
    print(f"shmarray: {text}", file=sys.stderr)
