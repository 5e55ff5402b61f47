"""``shmarray delete``."""

import os
import sys
import time
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


class Target(NamedTuple):
    """A selected array, as it was before anything was deleted.

    Attributes
    ----------
    name : str
    file : ArrayFile or None
        None if it does not exist.
    pids : list of int
        The processes that have it mapped.
    is_unused : bool
        Whether no process has it mapped, as far as can be determined.
    """

    name: str
    file: ArrayFile | None
    pids: list[int]
    is_unused: bool

    def __str__(self) -> str:
        if self.file is None:
            return wording.safe(self.name)
        users = f", mapped by {wording.count(len(self.pids), 'process')}: {', '.join(map(str, self.pids))}"
        return f"{wording.safe(self.name)} ({wording.size(self.file.allocated)}{users if self.pids else ''})"


def run(arguments: Namespace) -> int:
    if not arguments.names and not arguments.unused and arguments.older_than is None:
        arguments.misused("specify what to delete: a NAME, a pattern, --unused or --older-than AGE")
    if arguments.unused and not processes.can_be_seen():
        _complain("cannot tell which arrays are unused: /proc is not mounted")
        return _FAILED
    # Some systems cannot list arrays: full names work there, but patterns match nothing.
    known = selecting.names() if arguments.names else [info.name for info in shmarray.list()]
    names, unmatched, wide = _selected(arguments.names, known) if arguments.names else (known, [], True)
    targets = [target for target in _looked_up(names) if _is_meant(target, arguments)]
    for pattern in unmatched:
        _complain(f"no array matches {pattern!r}{selecting.hint(pattern, known)}")
    if not targets:
        if not unmatched:
            print("nothing to delete")
        return _FAILED if unmatched else _DONE
    if wide and not (arguments.yes or arguments.dry_run):
        refusal = _asked_about(targets)
        if refusal is not None:
            return refusal
    gone = [target for target in targets if _deleted(target, known, dry_run=arguments.dry_run)]
    if gone and not arguments.dry_run:
        print(_freed(gone))
    return _FAILED if unmatched or len(gone) < len(targets) else _DONE


def _selected(asked: Sequence[str], known: Sequence[str]) -> tuple[list[str], list[str], bool]:
    """Names in the order requested, patterns without a match, and whether any pattern has several matches.

    In that case the user has not written out the names of the arrays to delete.
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
    return [_target(name, file, users) for name, file in there.items()]


def _target(name: str, file: ArrayFile | None, users: Census) -> Target:
    if file is None:
        return Target(name, None, [], is_unused=False)
    pids = [user.pid for user in users.of(file) or ()]
    return Target(name, file, pids, is_unused=not pids and not _may_be_hidden(file, users))


def _may_be_hidden(file: ArrayFile, users: Census) -> bool:
    """Whether it may be mapped by a process that this user cannot inspect, or cannot even see (hidepid)."""
    mine = os.geteuid()
    return mine != 0 and (file.uid != mine or bool(file.permissions & 0o077) or mine in users.hidden_uids)


def _is_meant(target: Target, arguments: Namespace) -> bool:
    """Whether an array passes --unused and --older-than; print why not if it was named in full."""
    why = ""
    if target.file is None:  # deleting it will report that it does not exist
        return True
    if arguments.unused and not target.is_unused:
        why = "it is in use" if target.pids else "other users may have it mapped, and only root can tell"
    elif arguments.older_than is not None and time.time() - target.file.since < arguments.older_than:
        why = f"it is {wording.duration(time.time() - target.file.since)} old"
    if why and target.name in arguments.names:
        print(f"kept {target}: {why}")
    return not why


def _file(name: str) -> ArrayFile | None:
    with suppress(ShmArrayError, OSError):  # delete will report it
        return files.look(files.path_of(name))
    return None


def _asked_about(targets: Sequence[Target]) -> int | None:
    """Ask for confirmation; None if the answer is yes, otherwise the exit code."""
    if sys.stdin is None or not sys.stdin.isatty():
        _complain(
            f"nothing was deleted: {wording.count(len(targets), 'array')} would be deleted, and there is no terminal "
            "to ask for confirmation; check with --dry-run, then pass --yes"
        )
        return _REFUSED
    if _confirmed(targets):
        return None
    print("nothing was deleted")
    return _FAILED


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
            _delete(target)
    except (ShmArrayError, OSError) as error:
        missing = isinstance(error, ArrayNotFoundError)
        _complain(wording.failure(error) + (selecting.hint(target.name, known) if missing else ""))
        return False
    print(f"{'would delete' if dry_run else 'deleted'} {target}")
    return True


def _delete(target: Target) -> None:
    now = _file(target.name)
    if now is not None and (target.file is None or now.identity != target.file.identity):
        raise OSError(None, "another array replaced it in the meantime: try again", target.name)
    shmarray.delete(target.name)


def _try(name: str) -> None:
    with suppress(PermissionError):  # deleting does not require read permission
        shmarray.attach(name, "r")


def _freed(gone: Sequence[Target]) -> str:
    # A second name also keeps the memory.
    last = [(target.file.allocated, target.pids) for target in gone if target.file and target.file.links == 1]
    kept = sum(size for size, pids in last if pids)
    freed = sum(size for size, pids in last if not pids)
    said = f"{wording.count(len(gone), 'array')} deleted, {wording.size(freed)} freed"
    if kept:
        said += f"; another {wording.size(kept)} will be freed when the processes that have it mapped release it"
    return said


def _complain(text: str) -> None:
    print(f"shmarray: {text}", file=sys.stderr)
