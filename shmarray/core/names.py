"""Valid names.  Pure: no system calls, no state.

======================  =============================================================
name                    meaning
======================  =============================================================
``x``, ``shm://x``      the POSIX shared memory object ``x`` (``/dev/shm/x`` on Linux);
                        leading slashes are dropped, as ``shm_open`` does
``file://PATH``         an ordinary file, absolute or relative to the working directory
======================  =============================================================

Nothing is added to a name, so that other programs find the array under exactly that name.
"""

import os
from functools import lru_cache
from typing import Literal, NamedTuple

from shmarray.errors import InvalidNameError

# POSIX leaves NAME_MAX to the file system; tmpfs and every common one have 255.
_LONGEST = 255

_RULE = "a name has 1 to 255 bytes, without '/' or NUL, and is not '.' or '..'; 'file://PATH' names a file"


class Name(NamedTuple):
    """A name that passed.

    Attributes
    ----------
    text : str
        What error messages call it: as the caller wrote it.
    kind : {'shm', 'file', 'anonymous'}
        How to reach it; an anonymous array is reached through its owner's descriptor.
    path : str
        The object's bare name for 'shm', a path for the others.
    """

    text: str
    kind: Literal["shm", "file", "anonymous"]
    path: str

    def absolute(self) -> "Name":
        """The same name, for a process whose working directory may be another."""
        return self._replace(path=os.path.abspath(self.path)) if self.kind == "file" else self


def parse(text: str) -> Name:
    """Split a name into its kind and its path, or say why it is none.

    Raises
    ------
    TypeError
        If `text` is not a str.
    InvalidNameError
        If no array can have this name.
    """
    if not isinstance(text, str):
        raise TypeError(f"an array's name must be a str, not {type(text).__name__}: {text!r}")
    return _parse(str(text))


# A loop mostly uses the same names.
@lru_cache(maxsize=256)
def _parse(text: str) -> Name:
    prefix, mark, rest = text.partition("://")
    if not mark:
        return Name(text, "shm", _shm(text, text))
    if prefix == "shm":
        return Name(text, "shm", _shm(rest, text))
    if prefix == "file":
        return Name(text, "file", _file(rest, text))
    raise InvalidNameError(f"unknown prefix '{prefix}://' in the name {text!r}: use shm:// or file://", text)


def _shm(path: str, text: str) -> str:
    path = path.lstrip("/")
    size = len(_encoded(path, text))
    if not path:
        reason = "is empty"
    elif "/" in path:
        reason = "contains a slash"
    elif path in (".", ".."):
        reason = "is a directory"
    elif size > _LONGEST:
        reason = f"has {size} bytes"
    else:
        return path
    raise InvalidNameError(f"the name {text!r} {reason}: {_RULE}", text)


def _file(path: str, text: str) -> str:
    _encoded(path, text)
    if not path:
        raise InvalidNameError(f"the name {text!r} has no path: write file:///absolute or file://relative", text)
    return path


def _encoded(path: str, text: str) -> bytes:
    if "\0" in path:
        raise InvalidNameError(f"the name {text!r} contains a NUL: {_RULE}", text)
    try:
        return os.fsencode(path)
    except UnicodeEncodeError as error:
        raise InvalidNameError(f"the name {text!r} cannot be a file name: {error.reason}", text) from error
