"""Control groups and mounts for single tests, where the tests are allowed to create them."""

import os
import shutil
import subprocess
from contextlib import contextmanager

import pytest

from tests.helpers.processes import wait_until

UNSHARE = shutil.which("unshare")


def mounted(commands):
    """Return the prefix that runs a command in its own mount namespace, after these shell commands."""
    return (UNSHARE, "-m", "sh", "-c", f'{commands} && exec "$@"', "sh")


def _may_mount():
    if UNSHARE is None or os.geteuid() != 0:
        return False
    probe = [*mounted("mount -t tmpfs -o size=1m tmpfs /dev/shm"), "true"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


needs_mount = pytest.mark.skipif(not _may_mount(), reason="needs unshare(1) and permission to mount a tmpfs")


def _own_group():
    """Return the directory of this process's memory control group, and the names of its memory and swap limits."""
    with open("/proc/self/cgroup", encoding="ascii") as lines:
        groups = [line.rstrip("\n").split(":", 2) for line in lines]
    for _, controllers, path in groups:
        if "memory" in controllers.split(","):
            return f"/sys/fs/cgroup/memory{path}", "memory.limit_in_bytes"
    return f"/sys/fs/cgroup{groups[-1][2]}", "memory.max"


@contextmanager
def memory_group(limit):
    """Create a control group with a memory limit in bytes; yield the prefix that runs a command in it."""
    parent, file = _own_group()
    group = f"{parent}/shmarray-test-{os.getpid()}"
    try:
        os.mkdir(group)
    except OSError as error:
        pytest.skip(f"cannot create a control group here: {error}")
    try:
        try:
            with open(f"{group}/{file}", "w", encoding="ascii") as setting:
                setting.write(str(limit))
            with open(f"{group}/cgroup.procs", "rb+"):
                pass
        except OSError as error:
            pytest.skip(f"cannot limit memory with a control group here: {error}")
        yield ("sh", "-c", f'echo 0 > {group}/cgroup.procs && exec "$@"', "sh")
    finally:
        wait_until(lambda: _removed(group))


def _removed(group):
    try:
        os.rmdir(group)
    except OSError:  # the last process has not quite ended
        return False
    return True
