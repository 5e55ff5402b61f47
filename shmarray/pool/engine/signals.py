"""Signals: sections that Ctrl-C must not interrupt, and a worker's signal handlers.

In the caller, a KeyboardInterrupt while a worker is being started would leave an untracked
process, or a partial message to it.  In a worker, Ctrl-C interrupts only the user's functions,
because the caller already reports it for everything else.  A forked worker must not run the
program's handlers, nor write to the descriptor that notifies an event loop of signals.
"""

import operator
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from typing import Any

from shmarray.pool._stdlib import getsignal

_INTERRUPT = (signal.SIGINT,)
_CHILD = (signal.SIGCHLD,)


# --- in the caller, while a worker starts --------------------------------------------


@contextmanager
def blocked_in_children(start_method: str) -> Iterator[None]:
    """Start processes with the program's handled signals blocked until they unblock them.

    They inherit what this thread blocks.  A new interpreter has no handlers of the program's,
    so only SIGINT counts there.  The forkserver must not be started so: it serves others too.
    For its children there is `blocked_from_the_first`.
    """
    if start_method == "forkserver":
        yield
        return
    blocked = {signal.SIGINT, *(_handled() if start_method == "fork" else ())}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def blocked_from_the_first(process: Any) -> Iterator[None]:
    """Start this process so that it blocks SIGINT when it unpickles its name, the first object it receives.

    Before that a KeyboardInterrupt ends a child of the forkserver silently.  After it come the
    imports, in which it would write a traceback.
    """
    name = process.name
    process.name = _NameThatBlocks(name)
    try:
        yield
    finally:
        process.name = name


class _NameThatBlocks(str):
    __slots__ = ()

    def __reduce__(self) -> Any:
        return operator.getitem, ((str(self), _Blocking()), 0)


class _Blocking:
    def __reduce__(self) -> Any:
        return signal.pthread_sigmask, (signal.SIG_BLOCK, _INTERRUPT)


def start_forkserver() -> None:
    """Start the forkserver, if necessary, so that it notices the ends of its children.

    It inherits what this thread blocks, and with SIGCHLD blocked it reports no exit status.
    """
    if not _is_blocked(signal.SIGCHLD):
        return  # multiprocessing starts it as well
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _CHILD)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, _CHILD)
        if _has_ended_children():  # a signal that arrived meanwhile is lost, and the program may wait for it
            os.kill(os.getpid(), signal.SIGCHLD)


def _has_ended_children() -> bool:
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except AttributeError:  # macOS, before Python 3.13: perhaps
        return True
    except ChildProcessError:  # it has no children
        return False


def is_interrupt_blocked() -> bool:
    return _is_blocked(signal.SIGINT)


def _is_blocked(number: int) -> bool:
    return number in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def _handled() -> Iterator[int]:
    return (number for number in signal.valid_signals() if callable(getsignal(number)))


# --- in the worker -------------------------------------------------------------------


def begin_with_defaults() -> None:
    """Reset the handlers of the program that forked this worker; ignored signals stay ignored.

    Except SIGCHLD: ignored, it would take the exit status of a task's own children away.
    """
    with suppress(ValueError):  # not the main thread
        signal.set_wakeup_fd(-1)
        for number in tuple(_handled()):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if getsignal(signal.SIGCHLD) == signal.SIG_IGN:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def unblock(*, interrupt: bool) -> None:
    """Unblock the signals that were blocked while this worker started."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked if interrupt else blocked - {signal.SIGINT})


class InterruptibleCalls:
    """Calls the user's functions; Ctrl-C raises KeyboardInterrupt only during these calls."""

    def __init__(self) -> None:
        self._active = False

    def install(self) -> None:
        """Install the SIGINT handler, unless the program ignores SIGINT."""
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            with suppress(ValueError):  # not the main thread
                signal.signal(signal.SIGINT, self._handle)

    def __call__(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self._active = True
        try:
            return func(*args, **kwargs)
        finally:
            self._active = False

    def stop(self) -> None:
        self._active = False

    def _handle(self, number: int, frame: Any) -> None:
        if self._active:
            signal.default_int_handler(number, frame)
