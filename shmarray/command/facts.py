"""The facts about this system that `judgements` takes.  Each function examines one thing and judges nothing."""

import errno
import fcntl
import mmap
import multiprocessing
import os
import pwd
import re
import resource
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from glob import glob
from typing import NamedTuple

import numpy as np

import shmarray
from shmarray.command.files import SHARED_MEMORY
from shmarray.core.posix import (
    SparseFile,
    can_kill_at_hangup,
    fault_count,
    keeps_boundaries,
    memory_limits,
    message_socketpair,
    open_process,
)

_MOUNTS = "/proc/self/mountinfo"
_CAP_IPC_LOCK = 1 << 14
# Of two files with the same name, the first counts; of two settings, the one in the file that sorts last.
_SETTINGS = ("/etc/systemd", "/run/systemd", "/usr/local/lib/systemd", "/usr/lib/systemd")


class Space(NamedTuple):
    """The space of a file system, in bytes and files.

    `kind` is None if it is unknown; `total` is 0 if there is no limit; `files_free` is None
    if files are not counted.
    """

    kind: str | None
    total: int
    free: int
    files_free: int | None


class Login(NamedTuple):
    """What systemd-logind does to this user's arrays; `remove_ipc` is None if systemd is not running."""

    remove_ipc: bool | None
    uid: int
    lingers: bool


def shared_memory() -> Space | None:
    """None if there is no such directory."""
    try:
        status = os.statvfs(SHARED_MEMORY)
    except FileNotFoundError:
        return None
    kind = (mounted(SHARED_MEMORY)[0] or mounted(os.path.dirname(SHARED_MEMORY))[0] or mounted("/")[0]) or None
    files = status.f_favail if status.f_files else None
    return Space(kind, status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize, files)


def semaphores() -> OSError | None:
    """The error from creating a semaphore, which multiprocessing's locks and queues need; None if it works."""
    try:
        multiprocessing.Lock()
    except OSError as error:
        return error
    return None


def mounted(place: str) -> tuple[str, str]:
    """Type and options of the file system mounted at a path; two empty strings if there is none."""
    found = "", ""
    for line in (_read(_MOUNTS) or "").splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[4] == place:  # the last one is on top
            found = after.split()[0], after.split()[2]
    return found


def memory() -> list[tuple[str, int]]:
    """The limits on the memory that arrays can use, and the bytes left under each."""
    return list(memory_limits())


def huge_pages() -> tuple[str | None, str]:
    """The setting for anonymous memory (None if the kernel has none), and the mount options of /dev/shm."""
    chosen = re.search(r"\[(\w+)\]", _read("/sys/kernel/mm/transparent_hugepage/shmem_enabled") or "")
    return chosen and chosen[1], mounted(SHARED_MEMORY)[1]


def locked_memory() -> tuple[int | None, bool]:
    """Bytes that may be locked (None for no limit), and whether this user is exempt from the limit."""
    granted = re.search(r"^CapEff:\s*(\w+)", _read("/proc/self/status") or "", re.MULTILINE)
    return _soft(resource.RLIMIT_MEMLOCK), bool(granted and int(granted[1], 16) & _CAP_IPC_LOCK)


def open_files() -> tuple[int | None, int]:
    """The limit, and a pool's default number of workers."""
    return _soft(resource.RLIMIT_NOFILE), getattr(os, "process_cpu_count", os.cpu_count)() or 1


def _soft(limit: int) -> int | None:
    soft = resource.getrlimit(limit)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def mappings() -> int | None:
    text = _read("/proc/sys/vm/max_map_count")
    return int(text) if text else None


def login() -> Login:
    uid = os.geteuid()
    # As sd_booted(3) does: images may contain other systemd directories without running it.
    if not os.path.isdir("/run/systemd/system"):
        return Login(None, uid, lingers=False)
    with suppress(KeyError):  # a user without a name cannot have logged in
        return Login(_remove_ipc(), uid, os.path.exists(f"/var/lib/systemd/linger/{pwd.getpwuid(uid).pw_name}"))
    return Login(None, uid, lingers=False)


def _remove_ipc() -> bool:
    value = True  # systemd's default
    for path in _logind_files():
        for line in (_read(path) or "").splitlines():
            key, _, text = line.partition("=")
            if key.strip() == "RemoveIPC":
                value = text.strip().lower() in ("1", "yes", "y", "true", "t", "on")
    return value


def _logind_files() -> Iterator[str]:
    yield from [path for place in _SETTINGS if os.path.exists(path := f"{place}/logind.conf")][:1]
    additions: dict[str, str] = {}
    for place in _SETTINGS:
        for path in glob(f"{place}/logind.conf.d/*.conf"):
            additions.setdefault(os.path.basename(path), path)
    yield from (additions[name] for name in sorted(additions))


def start_method() -> str:
    # The first one is the default; get_start_method would fix it for this process.
    return multiprocessing.get_all_start_methods()[0]


def proc() -> tuple[bool, bool, str]:
    """Whether /proc is mounted, whether this user's other processes can inspect this one, and the mount options."""
    try:
        # If a process cannot be inspected, the kernel makes root the owner of its files.
        own = os.stat("/proc/self/fd").st_uid == os.geteuid()
    except FileNotFoundError:
        return False, False, ""
    return True, own, mounted("/proc")[1]


def memory_without_name() -> OSError | None:
    """The error from memfd_create; None if it works."""
    try:
        os.close(os.memfd_create("shmarray-doctor", os.MFD_CLOEXEC))
    except AttributeError:
        return OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    except OSError as error:
        return error
    return None


def name_when_complete() -> OSError | None:
    """The error from giving a file its name once it is complete; None if it works."""
    name = f"{SHARED_MEMORY}/shmarray-doctor-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        fd = os.open(SHARED_MEMORY, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.link(f"/proc/self/fd/{fd}", name, src_dir_fd=fd, follow_symlinks=True)
            os.unlink(name)
        finally:
            os.close(fd)
    except OSError as error:
        return error
    return None


def reserving() -> OSError | None:
    """The error from posix_fallocate; None if it works."""
    return _refusal(lambda file: os.posix_fallocate(file.fd, 0, mmap.PAGESIZE))


def giving_back() -> OSError | None:
    """The error from freeing memory in the middle of a file; None if it works."""

    def give_back(file: SparseFile) -> None:
        file.reserve(0, mmap.PAGESIZE)
        file.free(0, mmap.PAGESIZE)

    return _refusal(give_back)


def packets() -> bool:
    """Whether pools can use sockets that preserve message boundaries."""
    pair = message_socketpair(1)
    try:
        return keeps_boundaries(pair[0])
    finally:
        for end in pair:
            end.close()


def ends_of_processes() -> bool:
    """Whether the system has file descriptors for processes."""
    fd = open_process(os.getpid())
    if fd is not None:
        os.close(fd)
    return fd is not None


def killing_with_caller() -> bool:
    """Whether the kernel can end a worker when its caller dies."""
    reader, writer = os.pipe()
    try:
        return can_kill_at_hangup(reader)
    finally:
        os.close(reader)
        os.close(writer)


def fault_counters() -> bool:
    """Whether the kernel counts the first writes to pages."""
    return fault_count() is not None


def locking() -> OSError | None:
    """The error from flock on shared memory; None if it works."""
    return _refusal(lambda file: fcntl.flock(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB))


def _refusal(attempt: Callable[[SparseFile], None]) -> OSError | None:
    file = SparseFile.create()
    if file is None:
        return OSError(errno.ENOTSUP, "no anonymous memory")
    try:
        attempt(file)
    except AttributeError:  # Python lacks the function on this platform
        return OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    except OSError as error:
        return error
    finally:
        file.close()
    return None


def versions() -> dict[str, str]:
    return {
        "shmarray": shmarray.__version__,
        "python": sys.version.split()[0],
        "numpy": np.__version__,
        "kernel": f"{os.uname().sysname} {os.uname().release}",
    }


def _read(path: str) -> str | None:
    """The content of a system file; None if it does not exist or cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None
