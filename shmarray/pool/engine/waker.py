"""Wake a thread that waits in a selector."""

import os
import threading
from contextlib import suppress

from shmarray.pool import forks


class Waker:
    """A pipe to oneself; finalizers may use it, in any thread."""

    def __init__(self) -> None:
        self._reader = self._writer = -1  # for __del__, if there is no descriptor left
        self._lock = threading.RLock()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        forks.register(self)

    def fileno(self) -> int:
        return self._reader

    def wake(self) -> None:
        with self._lock, suppress(OSError):  # it is full, or the program has closed all descriptors
            if self._writer >= 0:
                os.write(self._writer, b"x")

    def clear(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._reader, 4096)

    def close(self) -> None:
        with self._lock:
            reader, writer = self._reader, self._writer
            # First: a child that another thread forks meanwhile would close what has these numbers by then.
            self._writer = -1
            if writer >= 0:
                os.close(reader)
                os.close(writer)

    def before_fork(self) -> None:
        pass

    def after_fork_in_child(self) -> None:
        """It is the parent's, some thread of which may have had the lock."""
        self._lock = threading.RLock()
        self.close()

    def __del__(self) -> None:
        self.close()
