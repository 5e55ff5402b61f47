"""The library's error for a failed system call."""

import errno
import os
from collections.abc import Callable

from shmarray.core.names import Name
from shmarray.errors import (
    ArrayExistsError,
    ArrayFormatError,
    ArrayNotFoundError,
    ArrayPermissionError,
    InvalidNameError,
    SharedMemoryFullError,
)

_EXPLANATIONS: dict[int, tuple[Callable[[str, str], OSError], str]] = {
    errno.ENOENT: (ArrayNotFoundError, "there is no shared array {!r}"),
    errno.EEXIST: (
        ArrayExistsError,
        "the name {!r} is taken: attach, require or delete it (if the file is not an array, remove it)",
    ),
    errno.ENAMETOOLONG: (InvalidNameError, "the name {!r} is too long for this system"),
    errno.ELOOP: (ArrayFormatError, "{!r} is a symbolic link, not an array"),
    errno.EISDIR: (ArrayFormatError, "{!r} is a directory, not an array"),
    errno.ESPIPE: (ArrayFormatError, "{!r} is a pipe, not an array"),
    errno.ENXIO: (ArrayFormatError, "{!r} is a socket or a device, not an array"),
    errno.ENODEV: (ArrayFormatError, "{!r} cannot be mapped, so it is not an array"),
    errno.ENOSPC: (SharedMemoryFullError, "no space for {!r}: the file system has no room for another file"),
}


_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)

# The messages for a denied permission, by what was attempted.
WRITING = "you may not write to {!r}: attach it with mode='r' to read it, or ask its owner for permission"
READING = "you may not read {!r}: its owner has not permitted it (with create's permissions=, or chmod)"
MAKING = "you may not create {!r} here: the directory or the file system does not permit new files"
DELETING = "you may not delete {!r}: it belongs to another user, or its file system is read-only"


def explained(error: OSError, name: Name, denied: str = READING) -> OSError:
    """The library's error for a system call that failed for `name`."""
    code = error.errno or 0
    if name.kind == "anonymous":
        return _explained_anonymous(error, name)
    if code == errno.ENOENT and name.kind == "file" and os.path.islink(name.path):
        return ArrayFormatError(f"{name.text!r} is a dangling symbolic link", name.text)
    if code in _EXPLANATIONS:
        kind, text = _EXPLANATIONS[code]
        return kind(text.format(name.text), name.text)
    if code in _DENIED:
        return ArrayPermissionError(denied.format(name.text), name.text, code)
    # The same class (PermissionError, ...), with the name that the caller knows.
    return OSError(code, error.strerror, name.text)


def _explained_anonymous(error: OSError, name: Name) -> OSError:
    """Why another process's descriptor cannot be opened; its number may meanwhile belong to another file."""
    code = error.errno or 0
    if code in _DENIED:
        why = (
            "only processes of the same user can open it, and not after the process that created it has changed its "
            "user or become non-dumpable (PR_SET_DUMPABLE): create it after that, or give it a name"
        )
        return ArrayPermissionError(f"the {name.text} cannot be reached: {why}", name.text, code)
    if code not in _EXPLANATIONS:
        return OSError(code, error.strerror, name.text)
    gone = (
        "the with block that created it has ended, or its process has; stay in the block until the receivers have the "
        "array, and send a copy, numpy.array(x), of anything that must outlive the block"
    )
    return unreachable(name, gone if os.path.isdir("/proc/self/fd") else "/proc is not mounted")


def unreachable(name: Name, why: str) -> ArrayNotFoundError:
    what = f"the {name.text}" if name.kind == "anonymous" else f"the shared array {name.text!r}"
    return ArrayNotFoundError(f"{what} cannot be reached: {why}", name.text)
