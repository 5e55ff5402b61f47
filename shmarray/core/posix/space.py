"""How much memory is still available, and the error if it is not enough.

A reservation that does not fit fails with ENOSPC only if the file system is full.  Beyond
the limit of a memory cgroup (Docker's --memory, a Slurm job) or the machine's own memory,
the kernel sends SIGKILL, so these limits must be checked first.
"""

import errno
import os
import resource
import sys
from collections.abc import Iterator
from functools import lru_cache

from shmarray.core.names import Name
from shmarray.core.posix import files, pages
from shmarray.errors import SharedMemoryFullError

# A check is slow compared with a small reservation, so this much may be reserved between two
# checks; less near the limit, because other processes also reserve memory.
_BETWEEN_LOOKS = 8 << 20
_PROCESSES = 8
# The part of it that is left.
_unlooked = 0

_REMEDY = (
    "raise the size of shared memory (docker run --shm-size=..., mount -o remount,size=... /dev/shm), delete arrays "
    "(shmarray.list()), or use a file:// name"
)


def check(name: Name, fd: int, size: int, spare: int = 0) -> None:
    """Raise SharedMemoryFullError unless `size` more bytes are available with `spare` left over.

    This checks, but does not reserve: if another process takes the memory in between, the
    reservation itself fails.
    """
    # No lock, with or without a GIL: a signal handler or finalizer that creates an array may run
    # here, and a fork would leave the lock held in the child.
    global _unlooked  # noqa: PLW0603 - a miscount by racing threads only shifts the next check
    if size <= _unlooked:
        _unlooked -= size
        return
    free = pages.free_bytes(fd)
    if free is not None and size > free:
        raise _full(name, fd, size)
    if name.kind == "file":
        return  # page cache, which is written back and never causes a kill
    _unlooked = 0
    left = _PROCESSES * _BETWEEN_LOOKS
    for where, there in limits():
        available = max(0, there - spare)
        if size > available:
            why = f"limited by {where}; use fewer or smaller arrays, or raise that limit"
            raise _error(name, size, available, why)
        left = min(left, available - size)
    _unlooked = left // _PROCESSES


def explained(error: OSError, name: Name, fd: int, size: int) -> OSError:
    """The error for a failed reservation of `size` bytes; other errors unchanged."""
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if error.errno == errno.EFBIG and most != resource.RLIM_INFINITY:
        return _error(name, size, most, "limited by the maximum file size; raise that limit (ulimit -f)")
    return _full(name, fd, size) if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else error


def _full(name: Name, fd: int, size: int) -> SharedMemoryFullError:
    free = pages.free_bytes(fd) or 0
    if name.kind == "file":
        return _error(name, size, free, "the file system is full or a quota has been reached")
    return _error(name, size, free, _REMEDY)


def _error(name: Name, size: int, free: int, why: str) -> SharedMemoryFullError:
    return SharedMemoryFullError(
        f"no space for {name.text!r}: it needs {size} bytes ({_human(size)}), "
        f"{free} bytes ({_human(free)}) are free: {why}",
        name.text,
        size,
        free,
    )


def _human(size: float) -> str:
    units = iter(("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"))
    unit = next(units)
    while size >= 1024:
        size /= 1024
        unit = next(units)
    return f"{size:.1f} {unit}"


def limits() -> Iterator[tuple[str, int]]:
    """The limits on this process's memory other than file systems, and the bytes still available under each."""
    machine = _table("/proc/meminfo")
    swap = 1024 * machine.get("SwapFree", 0)
    if "MemAvailable" in machine:
        yield "the machine's memory", 1024 * machine["MemAvailable"] + swap
    for directory, limit, usage in _own_cgroups(os.getpid()):
        most, used = _number(f"{directory}/{limit}"), _number(f"{directory}/{usage}")
        if most is not None and used is not None:
            available = most - used + _reclaimable(directory) + min(swap, _swap_headroom(directory))
            yield f"the memory limit of the control group {directory}", max(0, available)


def _reclaimable(directory: str) -> int:
    # Page cache counts as used, but is reclaimed under pressure.  Shared memory also counts as
    # cache, but is on the anonymous lists.  Version 1 uses the prefix "total_" for the subtree.
    counters = _table(f"{directory}/memory.stat")
    return sum(
        counters.get(f"total_{key}", counters.get(key, 0))
        for key in ("inactive_file", "active_file", "slab_reclaimable")
    )


def _swap_headroom(directory: str) -> int:
    most, used = _number(f"{directory}/memory.swap.max"), _number(f"{directory}/memory.swap.current")
    if used is None:
        return 0  # version 1, or no swap accounting: assume none
    return most - used if most is not None else sys.maxsize


@lru_cache(maxsize=4)
def _own_cgroups(pid: int) -> tuple[tuple[str, str, str], ...]:
    found = []
    try:
        groups = [line.split(":", 2) for line in files.text("/proc/self/cgroup").splitlines()]
    except OSError:
        return ()
    for _, controllers, path in groups:
        if not controllers:
            root, names = "/sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root, names = "/sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        # Every parent group is a limit too.  In a container the path may be the host's, with only
        # the root present, so missing files are skipped.
        parts = path.strip("/").split("/") if path.strip("/") else []
        for depth in range(len(parts), -1, -1):
            directory = "/".join([root, *parts[:depth]])
            if os.path.exists(f"{directory}/{names[0]}"):
                found.append((directory, *names))
    return tuple(found)


def _number(path: str) -> int | None:
    try:
        text = files.text(path).strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None  # memory.max may be "max"


def _table(path: str) -> dict[str, int]:
    """Parse lines of a name and a number, as in /proc/meminfo and memory.stat."""
    try:
        fields = [line.split() for line in files.text(path).splitlines()]
    except OSError:
        return {}
    return {line[0].rstrip(":"): int(line[1]) for line in fields if len(line) > 1 and line[1].isdecimal()}
