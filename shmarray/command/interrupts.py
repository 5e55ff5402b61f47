"""Ctrl-C while there are child processes, which also receive it from the terminal."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any


@contextmanager
def undisturbed() -> Iterator[None]:
    """Delay Ctrl-C until the block ends, which takes about a second.

    The children block the signal, as this thread does, and print no traceback; and
    multiprocessing.Pool may hang if it is interrupted while it fills its pipe.
    """
    resource_tracker.ensure_running()  # it unblocks the signal whenever it starts
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
