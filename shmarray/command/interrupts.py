"""Ctrl-C while there are children, to whom the terminal sends it too."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let Ctrl-C wait for the second that this takes.

    The children inherit it and print no traceback; and multiprocessing.Pool, interrupted
    while it fills its pipe, may never end.
    """
    resource_tracker.ensure_running()  # which lets the signal through whenever it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
