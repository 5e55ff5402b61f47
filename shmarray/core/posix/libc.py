"""libc functions that Python does not provide, and constants from its headers."""

import ctypes
import errno
import mmap as stdlib_mmap
import os
import sys
from collections.abc import Callable
from itertools import starmap
from typing import Any

# From the systems' headers, as what Python does not export has to be.
_MSYNC = {"linux": (1, 2, 4), "darwin": (1, 2, 16), "freebsd": (1, 2, 0), "netbsd": (1, 2, 4), "openbsd": (1, 4, 2)}
MS_ASYNC, MS_INVALIDATE, MS_SYNC = _MSYNC.get(sys.platform.rstrip("0123456789"), _MSYNC["linux"])
PROT_READ, PROT_WRITE = 1, 2
MAP_SHARED, MAP_PRIVATE, MAP_FIXED = 1, 2, 0x10
MAP_FAILED = ctypes.c_void_p(-1).value
# Only Linux has MADV_REMOVE; elsewhere these numbers mean other things, and that of
# MADV_DONTNEED does not discard.  No system knows -1: it is EINVAL, a refusal as any other.
LINUX = hasattr(stdlib_mmap, "MADV_REMOVE")
MADV_DONTNEED, MADV_REMOVE, MADV_HUGEPAGE, MADV_POPULATE_READ, MADV_POPULATE_WRITE = (
    (4, 9, 14, 22, 23) if LINUX else (-1,) * 5
)
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE = 1, 2
AT_FDCWD, AT_EMPTY_PATH = -100, 0x1000
STATX_BTIME = 0x800
PR_GET_DUMPABLE = 3

# How a kernel without a call, a seccomp filter, AppArmor, SELinux or a file system says that
# it does not do a thing; then another way is taken, and what that says is the user's error.
REFUSALS = frozenset(
    {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENODEV, errno.ENXIO}
)

_library = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *kinds: Any) -> Any:
    """A function of libc; on a system without it, one that says ENOSYS."""
    function = getattr(_library, name, None)
    if function is None:
        return _missing
    function.argtypes = kinds
    return function


def _missing(*_: object) -> int:
    ctypes.set_errno(errno.ENOSYS)
    return -1


_RANGE = (ctypes.c_void_p, ctypes.c_size_t)

# Not the mmap module: before 3.13 its objects hold a duplicate of the descriptor for as
# long as they live, and 20,000 arrays are not to need 20,000 descriptors.
mmap = _call("mmap", *_RANGE, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
mmap.restype = ctypes.c_void_p
# Called as it is, at times when this module may be empty already.
munmap: Callable[[int, int], int] = _call("munmap", *_RANGE)
madvise = _call("madvise", *_RANGE, ctypes.c_int)
msync = _call("msync", *_RANGE, ctypes.c_int)
mlock = _call("mlock", *_RANGE)
munlock = _call("munlock", *_RANGE)
fallocate = _call("fallocate", ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
linkat = _call("linkat", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
prctl = _call("prctl", ctypes.c_int)
# In Python from 3.15 on.
statx = _call("statx", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)


def at_once(call: Callable[..., int], *args: Any) -> int:
    """Call a function of C so that no signal's exception comes before its result is stored.

    Python looks for signals when a call has returned: a Ctrl-C that came during the system
    call is raised then, and a descriptor or a mapping would be lost.  It does not look when
    it unpacks, whatever code of C that runs.
    """
    (result,) = starmap(call, (args,))
    return result


def succeeded(result: int) -> None:
    """Raise what a call left in errno, if it gave anything but 0."""
    if result:
        raise last_error()


def last_error() -> OSError:
    return error_of(ctypes.get_errno())


def error_of(code: int) -> OSError:
    return OSError(code, os.strerror(code))
