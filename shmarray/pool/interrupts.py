"""What Ctrl-C must not interrupt: the start of a worker, on both sides.

In the caller, a KeyboardInterrupt in the middle of it would leave a process that nobody
knows, or half a message to it.  In the worker, it would write a traceback for what the
caller tells its user already.
"""

import operator
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_INTERRUPT = (signal.SIGINT,)


class _Deferring:
    """Stands in for a handler of SIGINT, and remembers what came."""

    def __init__(self, handler: Callable[..., object]) -> None:
        self.handler = handler
        self.come: list[tuple[Any, ...]] = []

    def __call__(self, *signalled: Any) -> None:
        self.come.append(signalled)


@contextmanager
def deferred() -> Iterator[None]:
    """Have Ctrl-C wait until the end of the block; in other threads than the main one it never comes."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.get_ident() != threading.main_thread().ident:
        yield
        return
    deferring = _Deferring(handler)
    try:
        signal.signal(signal.SIGINT, deferring)
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if deferring.come:
            handler(*deferring.come[0])


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
    handler: Any = signal.getsignal(signal.SIGINT)
    while isinstance(handler, _Deferring):
        handler = handler.handler
        signal.signal(signal.SIGINT, handler)


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
