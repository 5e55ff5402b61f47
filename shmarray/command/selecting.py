"""Select arrays by name: patterns, and suggestions for misspelled names."""

from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from fnmatch import fnmatchcase

import shmarray
from shmarray.command import wording
from shmarray.errors import ArrayNotFoundError


def names() -> list[str]:
    """The names of all arrays in shared memory; empty if the system cannot list them."""
    with suppress(OSError):
        return [info.name for info in shmarray.list()]
    return []


def is_pattern(text: str) -> bool:
    return not text.startswith("file://") and any(char in text for char in "*?[")


def matching(pattern: str, known: Sequence[str]) -> list[str]:
    """The names that match a pattern.  A pattern that is also a name means that array alone."""
    bare = pattern.removeprefix("shm://").lstrip("/")
    return [bare] if bare in known else [name for name in known if fnmatchcase(name, bare)]


def failure(error: Exception) -> str:
    """An error in one line, with a suggestion for a misspelled name."""
    text = wording.failure(error)
    return text + hint(error.name, names()) if isinstance(error, ArrayNotFoundError) else text


def hint(missing: str, known: Sequence[str]) -> str:
    """The hint that follows 'there is no such array'."""
    near = get_close_matches(missing.removeprefix("shm://").lstrip("/"), known, n=3)
    if near:
        return f"; did you mean {' or '.join(map(repr, near))}?"
    return "; 'shmarray list' shows the existing arrays"
