"""Sections that Ctrl-C must not interrupt."""

import signal
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from shmarray.pool._stdlib import getsignal, set_signal

T = TypeVar("T")


class deferred:  # noqa: N801 - it is used as a function
    """Have Ctrl-C wait until the end of the with-block; in other threads than the main one it never comes.

    A class, and by what the signal module wraps, because every `submit` needs it.
    """

    __slots__ = ("_arrived", "handler")

    def __enter__(self) -> None:
        self._arrived: Any = None
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
            if self._arrived is not None:
                handler(*self._arrived)

    def __call__(self, *arguments: Any) -> None:
        """Replaces the handler."""
        self._arrived = arguments


def uninterrupted(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function that Ctrl-C must not interrupt."""
    with deferred():
        return function(*arguments)
