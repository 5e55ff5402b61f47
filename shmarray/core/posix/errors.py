"""The library's error for what a system call said."""

import errno
import os
from collections.abc import Callable

from shmarray.core.names import Name
from shmarray.errors import (
    ArrayExistsError,
    ArrayFormatError,
    ArrayNotFoundError,
    InvalidNameError,
    SharedMemoryFullError,
)

_EXPLANATIONS: dict[int, tuple[Callable[[str, str], OSError], str]] = {
    errno.ENOENT: (ArrayNotFoundError, "there is no shared array {!r}"),
    errno.EEXIST: (
        ArrayExistsError,
        "the name {!r} is taken: attach, require or delete it (a file that is no array: remove it)",
    ),
    errno.ENAMETOOLONG: (InvalidNameError, "the name {!r} is too long for this system"),
    errno.ELOOP: (ArrayFormatError, "{!r} is a symbolic link, not an array"),
    errno.EISDIR: (ArrayFormatError, "{!r} is a directory, not an array"),
    errno.ESPIPE: (ArrayFormatError, "{!r} is a pipe, not an array"),
    errno.ENXIO: (ArrayFormatError, "{!r} is a socket or a device, not an array"),
    errno.ENODEV: (ArrayFormatError, "{!r} cannot be mapped, so it is no array"),
    errno.ENOSPC: (SharedMemoryFullError, "no space for {!r}: the file system has no room for another file"),
}


def explained(error: OSError, name: Name) -> OSError:
    """The library's error for what a system call said about `name`."""
    code = error.errno or 0
    if name.kind == "anonymous":
        return _explained_anonymous(error, name)
    if code == errno.ENOENT and name.kind == "file" and os.path.islink(name.path):
        return ArrayFormatError(f"{name.text!r} is a symbolic link to nothing", name.text)
    if code in _EXPLANATIONS:
        kind, text = _EXPLANATIONS[code]
        return kind(text.format(name.text), name.text)
    # The same class (PermissionError, ...), about the name that the caller knows.
    return OSError(code, error.strerror, name.text)


def _explained_anonymous(error: OSError, name: Name) -> OSError:
    """Why another process's descriptor cannot be opened; its number may be another file's by now."""
    code = error.errno or 0
    if code in (errno.EACCES, errno.EPERM):
        why = (
            "anonymous memory can be opened by processes of the same user only, and not if its owner is "
            "not dumpable (PR_SET_DUMPABLE); give it a name"
        )
        return OSError(code, why, name.text)
    if code not in _EXPLANATIONS:
        return OSError(code, error.strerror, name.text)
    gone = "the process that made it has left its scope, or ended"
    return unreachable(name, gone if os.path.isdir("/proc/self/fd") else "/proc is not mounted here")


def unreachable(name: Name, why: str) -> ArrayNotFoundError:
    return ArrayNotFoundError(f"the shared array {name.text!r} cannot be reached: {why}", name.text)
