"""Processes: detect their end, send them signals, and end together with another process."""

import fcntl
import os
import select
import signal


def open_process(pid: int) -> int | None:
    """A descriptor that becomes readable when a process ends (a pidfd); None if the system has none.

    The caller closes it.  `pid` must be a child that has not been waited for.
    """
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # also EMFILE: the other way needs no descriptor
        return None


def signal_process(pidfd: int, number: int) -> bool:
    """Send a signal to the process of a pidfd, or nothing if it has ended; False if the system cannot."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return True
    except (AttributeError, OSError):
        return False
    return True


def kill_at_hangup(fd: int) -> bool:
    """Have the kernel send SIGKILL to this process when the last writer of a pipe closes it.

    False if the system cannot; then a thread has to wait for it.  A writer that is gone
    already is not noticed.

    Notes
    -----
    Only Linux chooses the signal.  PR_SET_PDEATHSIG will not do: it tells of the end of
    the thread that made this process.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    except (AttributeError, OSError):
        return False
    return True


def can_kill_at_hangup(fd: int) -> bool:
    """Whether `kill_at_hangup` would work for this end of a pipe, which is changed by that but sends nothing."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
    except (AttributeError, OSError):
        return False
    return True


def has_hung_up(fd: int, timeout: float | None) -> bool:
    """Wait until the last writer of a pipe to which nothing is written has closed it, for so many seconds."""
    poll = select.poll()
    poll.register(fd, 0)  # a hang-up is reported whatever is asked for
    return bool(poll.poll(None if timeout is None else 1000 * timeout))
