"""Find out which pages of a private mapping were written to."""

import mmap
import resource
from functools import lru_cache

import numpy as np

from shmarray.core.posix.pages import PAGE

# Bits of an entry of /proc/self/pagemap.
_PRESENT, _SWAPPED, _OF_FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))
_TRIED = 4


def fault_count() -> int | None:
    """How many page faults this process has had; None if the system does not count them.

    Where it has not risen, no page that was clean has been written to.
    """
    return _faults() if _counts_first_writes() else None


def _faults() -> int:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt + usage.ru_majflt


@lru_cache(maxsize=1)
def _counts_first_writes() -> bool:
    """Whether the first write to a page that was only read is counted; sandboxes say 0 to all that."""
    with mmap.mmap(-1, _TRIED * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
        places = range(0, _TRIED * PAGE, PAGE)
        for place in places:
            pages[place]
        before = _faults()
        for place in places:
            pages[place] = 1
        return _faults() - before >= _TRIED


def is_clean(address: int, size: int) -> bool:
    """Whether no page of a private mapping of a file was written to; False if one cannot know."""
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            pagemap.seek(8 * (address // PAGE))
            data = pagemap.read(8 * (size // PAGE))
    except OSError:
        return False
    entries = np.frombuffer(data, np.uint64)
    written = (entries & (_PRESENT | _SWAPPED)).astype(bool) & ~(entries & _OF_FILE).astype(bool)
    return len(entries) == size // PAGE and not written.any()
