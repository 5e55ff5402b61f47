"""Detect, cause and describe the end of a process."""

import os
import select
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from shmarray.core.posix import open_process, signal_process

# Seconds between two looks at a process that has no pidfd.
LOOK = 0.05


class ProcessEnd:
    """Tells of the end of one process, and signals that process and no other.

    Parameters
    ----------
    process : multiprocessing.Process
        One that was started.

    Attributes
    ----------
    fd : int
        A descriptor that becomes readable when the process ends: a pidfd where there are such.
    may_be_hidden : bool
        Whether the end may not be seen there, so that one has to ask now and then: children
        that a task forked hold the other end of a sentinel.
    """

    def __init__(self, process: Any) -> None:
        self._process = process
        self._pidfd = open_process(process.pid)
        self.may_be_hidden = self._pidfd is None
        self.fd = int(process.sentinel) if self._pidfd is None else self._pidfd

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens if the process has ended, whatever process has its pid by now."""
        if self._pidfd is not None and signal_process(self._pidfd, number):
            return
        # The pid is valid until the process is waited for, possibly by code other than multiprocessing.
        if not ended([self], 0):
            with suppress(OSError):
                os.kill(self._process.pid, number)

    def has_ended(self) -> bool:
        """Ask the system, whatever the descriptor says."""
        return self._process.exitcode is not None

    def close(self) -> None:
        if self._pidfd is not None and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def ended(ends: Iterable[ProcessEnd], timeout: float) -> set[ProcessEnd]:
    """Those of these processes that have ended; waits for the first of them, for so many seconds."""
    by_fd = {end.fd: end for end in ends}
    hidden = [end for end in by_fd.values() if end.may_be_hidden]
    poll = select.poll()
    for fd in by_fd:
        poll.register(fd, select.POLLIN)
    deadline = time.monotonic() + timeout
    while True:
        left = max(0.0, deadline - time.monotonic())
        seen = poll.poll(1000 * (min(left, LOOK) if hidden else left))
        done = {by_fd[fd] for fd, _ in seen} | {end for end in hidden if end.has_ended()}
        if done or not left:
            return done


def wait_for_all(ends: Iterable[ProcessEnd], timeout: float) -> set[ProcessEnd]:
    """Wait until all of these processes have ended, for so many seconds; returns those that have not."""
    left = set(ends)
    deadline = time.monotonic() + timeout
    while left:
        done = ended(left, deadline - time.monotonic())
        if not done:
            break
        left -= done
    return left


def exit_code(process: Any) -> int | None:
    """The exit code of a process that has ended; None if it was collected elsewhere."""
    # Whichever thread calls waitpid first (multiprocessing.active_children does it in any) gets
    # the status, and stores it a moment later; the others get ECHILD.
    for _ in range(50):
        code: int | None = process.exitcode
        if code is not None:
            return code
        time.sleep(0.001)
    return None


def description(code: int | None) -> str:
    """How a process ended, as part of a sentence."""
    if code is None:
        return "ended with an unknown exit status"
    if code >= 0:
        return f"exited with status {code}"
    if code == -signal.SIGKILL:
        return "was killed by SIGKILL (the kernel does this when memory runs out)"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
