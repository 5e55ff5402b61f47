"""What Ctrl-C must not interrupt: the start of a worker, on both sides.

In the caller, a KeyboardInterrupt in the middle of it would leave a process that nobody
knows, or half a message to it.  In the worker, it would write a traceback for what the
caller tells its user already.
"""

import operator
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shmarray.pool.stdlib import getsignal, set_signal

_INTERRUPT = (signal.SIGINT,)


class deferred:  # noqa: N801 - it is used as a function
    """Have Ctrl-C wait until the end of the with-block; in other threads than the main one it never comes.

    A class, and by what the signal module wraps: 2 us, not 12, in each `submit`.
    """

    __slots__ = ("_come", "handler")

    def __enter__(self) -> None:
        self._come: Any = None
        self.handler = None
        if threading.get_ident() == threading.main_thread().ident:
            handler = getsignal(signal.SIGINT)
            if callable(handler):
                self.handler = handler
                set_signal(signal.SIGINT, self)

    def __exit__(self, *_: object) -> None:
        handler = self.handler
        if handler is not None:
            set_signal(signal.SIGINT, handler)
            if self._come is not None:
                handler(*self._come)

    def __call__(self, *signalled: Any) -> None:
        """In the place of the handler."""
        self._come = signalled


@contextmanager
def blocked_in_children(context: Any) -> Iterator[None]:
    """Start processes that do not get SIGINT until they ask for it: they inherit what this thread blocks.

    The forkserver must not be started so: it serves others too.  For its children there is `silent`.
    """
    if context.get_start_method() == "forkserver":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def is_blocked() -> bool:
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def restore() -> None:
    """In a worker that was forked while they were `deferred`."""
    handler: Any = getsignal(signal.SIGINT)
    while isinstance(handler, deferred):
        handler = handler.handler
        set_signal(signal.SIGINT, handler)


def unblock() -> None:
    """In a worker that is ready for it."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPT)


class _Blocks:
    def __reduce__(self) -> Any:
        return signal.pthread_sigmask, (signal.SIG_BLOCK, _INTERRUPT)


class _SilentName(str):
    __slots__ = ()

    def __reduce__(self) -> Any:
        return operator.getitem, ((str(self), _Blocks()), 0)


@contextmanager
def silent(process: Any) -> Iterator[None]:
    """Start this process so that it blocks SIGINT by the first thing that it unpickles, which is its name.

    Before that a KeyboardInterrupt ends a child of the forkserver without a word.  After it
    come the imports, in which it would not.
    """
    name = process.name
    process.name = _SilentName(name)
    try:
        yield
    finally:
        process.name = name
