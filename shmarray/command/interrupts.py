"""Ctrl-C while there are children, to whom the terminal sends it too."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let Ctrl-C wait for the second that this takes.

    The children block it, as this thread does, and print no traceback; and
    multiprocessing.Pool, interrupted while it fills its pipe, may never end.
    """
    resource_tracker.ensure_running()  # which lets the signal through whenever it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    # The signal may reach another thread, such as one of numpy's, and Python then calls the handler in this one.
    handler = signal.getsignal(signal.SIGINT)
    come: list[tuple[Any, ...]] = []
    if callable(handler):
        signal.signal(signal.SIGINT, lambda *signalled: come.append(signalled))
    try:
        yield
    finally:
        if callable(handler):
            signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if callable(handler) and come:
            handler(*come[0])
