"""Resource usage of a tree of processes, and a description of the machine; both from /proc."""

import os
import platform
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

_TICK = os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/<pid>/stat from the state on; the command before them may contain spaces."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()


def _parents() -> Iterator[tuple[int, int]]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError, IndexError):  # the process has just ended
                yield int(name), int(_stat(int(name))[1])


def tree(root: int) -> list[int]:
    """Return a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for pid, parent in _parents():
        children.setdefault(parent, []).append(pid)
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def processor_time(root: int) -> float:
    """Return the seconds that a tree has used, including children that have ended and been reaped."""
    ticks = 0
    for pid in tree(root):
        with suppress(OSError, IndexError):
            ticks += sum(map(int, _stat(pid)[11:15]))
    return ticks / _TICK


def kill_tree(root: int) -> None:
    """Kill a process that this one started, and all its descendants."""
    for pid in tree(root):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


# --- memory --------------------------------------------------------------------------


def _fields(path: str) -> dict[str, int]:
    """Return the sizes in bytes, by name, from a file of lines such as ``Pss: 123 kB``."""
    with open(path, encoding="utf-8") as file:
        lines = [line.split() for line in file]
    return {line[0].rstrip(":"): int(line[1]) << 10 for line in lines if line[-1] == "kB"}


class Memory:
    """The memory of a tree of processes from now on.

    It is the sum of the proportional set sizes: a page that three processes map counts as a third
    in each.  Shared memory that no process maps is in none of them, so the growth of the machine's
    shared memory since the beginning is added, except the part that the tree maps.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._unmapped = 0
        proportional, mapped = self._mapped()
        self._unmapped = _shared_memory() - mapped
        self.peak = proportional

    def look(self) -> None:
        proportional, mapped = self._mapped()
        self.peak = max(self.peak, proportional + max(0, _shared_memory() - mapped - self._unmapped))

    def _mapped(self) -> tuple[int, int]:
        proportional = mapped = 0
        for pid in tree(self._root):
            with suppress(OSError, IndexError):
                fields = _fields(f"/proc/{pid}/smaps_rollup")
                proportional += fields.get("Pss", 0)
                mapped += fields.get("Pss_Shmem", 0)
        return proportional, mapped


def watch(root: int, has_ended: Callable[[float], bool], patience: float) -> Memory:
    """Watch a tree's memory until something has ended, or until the patience (in seconds) is exhausted."""
    deadline = time.monotonic() + patience
    memory = Memory(root)
    while not has_ended(0.005) and time.monotonic() < deadline:
        memory.look()
    return memory


def _shared_memory() -> int:
    return _fields("/proc/meminfo")["Shmem"]


def available_memory() -> int:
    return _fields("/proc/meminfo")["MemAvailable"]


# --- the machine ---------------------------------------------------------------------


def machine() -> dict[str, Any]:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "huge pages": _chosen("/sys/kernel/mm/transparent_hugepage/shmem_enabled"),
    }


def _chosen(path: str) -> str:
    with suppress(OSError), open(path, encoding="utf-8") as file:
        return file.read().partition("[")[2].partition("]")[0]
    return "unknown"
