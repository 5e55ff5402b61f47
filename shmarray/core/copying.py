"""Copy an array's bytes into a new segment, as fast as the kernel allows.

New pages cost more than the copy.  Writing to the file is faster than reserving, mapping and
copying.  For a large array, two threads are faster still: one writes from the beginning, and the
other maps and copies from the end, because two writers would wait for each other at the inode's
lock.
"""

import errno
import os
from collections import deque
from threading import Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shmarray.core.mapping import Mapping
from shmarray.core.posix import pages

# Below this, two threads are slower than one
# (benchmarks/constants.py: _TWO_THREADS).
_TWO_THREADS = 32 << 20
# Small enough that both end at the same time, a multiple of a huge page
# (benchmarks/constants.py: _CHUNK).
_CHUNK = 4 << 20


def contiguous_bytes(source: NDArray[Any]) -> NDArray[np.uint8]:
    """A contiguous array's memory in its own order, as bytes; not a copy."""
    return source.ravel(order="K").view(np.uint8)


def copy_into(source: NDArray[np.uint8], fd: int, target: Mapping, offset: int) -> None:
    """Fill a file without pages, mapped whole at `target`, from `offset` to its end.

    Parameters
    ----------
    source : ndarray of uint8
        ``target.nbytes - offset`` bytes.
    fd : int
        The file; it has its pages afterwards.
    target : Mapping
    offset : int
        Where `source` goes, in bytes, below a page's size.

    Raises
    ------
    OSError
        With ENOSPC if the space ran out; some of it is filled then.
    """
    if target.nbytes < _TWO_THREADS:
        pages.write(fd, source.data, offset)
        return
    _ParallelCopy(source, fd, target, offset).run()


class _ParallelCopy:
    """Two threads that take chunks from both ends until they meet."""

    def __init__(self, source: NDArray[np.uint8], fd: int, target: Mapping, offset: int) -> None:
        self.source = source
        self.fd = fd
        self.target = target
        self.octets = target.octets()
        self.offset = offset
        self.starts = deque(range(0, target.nbytes, _CHUNK))
        # Not the exception: its traceback would hold this, and so the pages, in a cycle.
        self.failure = 0

    def run(self) -> None:
        helper = Thread(target=self._write, name="shmarray-copy", daemon=True)
        try:
            helper.start()
        except RuntimeError:  # no thread to be had: RLIMIT_NPROC, or the interpreter is ending
            self._copy()
            return
        try:
            self._copy()
        finally:
            self.starts.clear()  # what the other does after a failure here is wasted
            helper.join()
        if self.failure:
            raise OSError(self.failure, os.strerror(self.failure))

    def _write(self) -> None:
        try:
            while self.starts:
                begin, end = self._range(self.starts.popleft())
                self._write_range(begin, end)
        except IndexError:
            pass  # the other thread took the last one
        except OSError as error:
            self.failure = error.errno or errno.EIO
            self.starts.clear()

    def _copy(self) -> None:
        while self.starts:
            try:
                start = self.starts.pop()
            except IndexError:
                return
            begin, end = self._range(start)
            address = self.target.address + start
            if pages.populate(address, end - start):
                np.copyto(self.octets[begin:end], self.source[begin - self.offset : end - self.offset])
            else:
                self._write_range(begin, end)

    def _range(self, start: int) -> tuple[int, int]:
        return max(start, self.offset), min(start + _CHUNK, self.target.nbytes)

    def _write_range(self, begin: int, end: int) -> None:
        pages.write(self.fd, self.source[begin - self.offset : end - self.offset].data, begin)
