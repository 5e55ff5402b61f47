"""Sections that signal handlers must not interrupt."""

import signal
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from shmarray.pool._stdlib import getsignal, set_signal

T = TypeVar("T")

_SIGNALS = tuple(sorted(signal.valid_signals()))


class deferred:  # noqa: N801 - it is used as a function
    """Have signals, such as Ctrl-C, wait until the end of the with block.

    Signal handlers run in the main thread only, so in other threads this does nothing.  Only
    handlers that are written in Python wait: they may raise, or call the library again.  A class,
    and by the functions that the signal module wraps, because every `submit` needs it.
    """

    __slots__ = ("_arrived", "_handlers")

    def __init__(self) -> None:
        self._handlers: dict[int, Any] = {}
        self._arrived: list[tuple[Any, ...]] = []

    def __enter__(self) -> None:
        if threading.get_ident() == threading.main_thread().ident:
            for number in _SIGNALS:
                handler = getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    set_signal(number, self)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            set_signal(number, handler)
        if self._arrived:
            self._deliver()

    def __call__(self, *arguments: Any) -> None:
        """Replaces the handlers."""
        self._arrived.append(arguments)

    def _deliver(self) -> None:
        arguments = self._arrived.pop(0)
        try:
            self._handlers[arguments[0]](*arguments)
        finally:  # all of them, whatever one raises
            if self._arrived:
                self._deliver()


def uninterrupted(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function that signal handlers must not interrupt."""
    with deferred():
        return function(*arguments)
