"""What wakes the managing thread of an executor."""

import os
import threading


class Wakeup:
    """As the stdlib's, but calls that come before the thread has looked wake it once.

    The stdlib writes to a pipe for each, and asks the pipe again after each that it has
    read: a third of the time of a tiny call, and a deadlock when the pipe is full (gh-105829).

    Nothing may stay in the pipe that is not told of here: the thread would see no worker die.
    """

    def __init__(self) -> None:
        self._closed = True  # for __del__, if there is no descriptor left
        self._is_told = False
        self._pid = os.getpid()
        # Finalizers call `wakeup`, in any thread.
        self._lock = threading.RLock()
        reader, self._writer = os.pipe()
        self._reader = _End(reader)
        self._closed = False

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._writer)
                os.close(self._reader.fileno())

    def wakeup(self) -> None:
        """What is to be seen is there by now: the thread looks at it after it has cleared this."""
        if self._is_told or os.getpid() != self._pid:  # a forked child has its parent's pipe, and drops its executor
            return
        with self._lock:
            if not self._is_told and not self._closed:
                self._is_told = True
                os.write(self._writer, b"x")

    def clear(self) -> None:
        if self._is_told:
            with self._lock:
                if not self._closed:
                    os.read(self._reader.fileno(), 64)
                self._is_told = False

    def __del__(self) -> None:
        self.close()


class _End:
    """A descriptor, as `multiprocessing.connection.wait` takes it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd
