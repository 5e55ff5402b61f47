"""How a process ended, and what tells of it."""

import os
import signal
import time
from typing import Any


def watch(process: Any) -> int:
    """A descriptor that becomes readable when the process dies.

    Not its sentinel, if it can be had: children that a task forked hold the other end of
    that, and hide the death of their parent.
    """
    try:
        return os.pidfd_open(process.pid)
    except (AttributeError, OSError):
        return int(process.sentinel)


def exit_code(process: Any) -> int | None:
    # Whoever calls waitpid first (multiprocessing.active_children does, in any thread) gets
    # the status, and stores it a moment later; the others get ECHILD.
    for _ in range(50):
        code: int | None = process.exitcode
        if code is not None:
            return code
        time.sleep(0.001)
    return None


def how_it_ended(code: int | None) -> str:
    if code is None:
        return "ended, with a status that somebody else has taken,"
    if code >= 0:
        return f"exited with status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
