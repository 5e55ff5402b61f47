"""Code that Pool and ProcessPoolExecutor share: the default size, checks of arguments, a guard around callbacks."""

import math
import multiprocessing
import operator
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from numbers import Real
from typing import Any

# Linux has no more process IDs, whatever its limits.
_MOST_WORKERS = 1 << 22

# Not by attribute: the class of the error may have a property of that name, which raises.
_traceback_of: Any = vars(BaseException)["__traceback__"].__get__


def guarded(function: Callable[..., object], *arguments: Any) -> bool:
    """Call what runs the user's callbacks; whatever they raise is reported, and does not end the thread."""
    try:
        function(*arguments)
    except BaseException as error:  # noqa: BLE001 - a callback of the user's
        with suppress(BaseException):  # the hook may be the user's too, and so is what printing the error calls
            threading.excepthook(threading.ExceptHookArgs((type(error), error, _traceback_of(error), None)))
        return False
    return True


def default_workers() -> int:
    """How many workers a pool has unless it is told: as many as this process may use processors."""
    return getattr(os, "process_cpu_count", os.cpu_count)() or 1


def checked_context(context: Any) -> Any:
    """A multiprocessing context, which may be given by the name of its start method.

    Raises
    ------
    TypeError, ValueError
        If it is neither.
    AssertionError
        As the stdlib does, in a daemonic process, such as a worker of a Pool.
    """
    if context is None or isinstance(context, str):
        context = multiprocessing.get_context(context)
    if not hasattr(context, "get_start_method"):
        raise TypeError(
            f"the context must be a start method or what multiprocessing.get_context gives, not {context!r}"
        )
    if multiprocessing.current_process().daemon:
        raise AssertionError(
            "daemonic processes are not allowed to have children, and the workers of a Pool are daemonic: "
            "use a ProcessPoolExecutor if its tasks are to make pools"
        )
    return context


def checked_size(name: str, value: Any) -> int:
    """A number of things, at least 1, as an int; at most `sys.maxsize`, because itertools takes no more.

    Raises
    ------
    TypeError, ValueError
    """
    try:
        size = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, not {value!r}") from None
    if size < 1:
        raise ValueError(f"{name} must be greater than 0, not {size}")
    return min(size, sys.maxsize)


def checked_buffersize(value: Any) -> int | None:
    """As `checked_size`, or None; the errors begin as those of the standard library."""
    if value is None:
        return None
    try:
        return checked_size("buffersize", value)
    except TypeError:
        raise TypeError(f"buffersize must be an integer or None, not {value!r}") from None
    except ValueError:
        raise ValueError(f"buffersize must be None or > 0, not {value!r}") from None


def checked_workers(name: str, value: Any) -> int:
    """A number of workers that is possible on some system; raises as `checked_size` does."""
    workers = checked_size(name, value)
    if workers > _MOST_WORKERS:
        raise ValueError(f"{name} must be at most {_MOST_WORKERS}, not {value}: no system has more processes")
    return workers


def checked_timeout(task_timeout: Any) -> float | None:
    """A number of seconds; TypeError or ValueError if it is none that a task can take."""
    if task_timeout is None:
        return None
    if not isinstance(task_timeout, Real) or isinstance(task_timeout, bool):
        raise TypeError(f"task_timeout must be a number of seconds or None, not {task_timeout!r}")
    try:
        seconds = float(task_timeout)
    except OverflowError:
        seconds = math.inf if operator.gt(task_timeout, 0) else -math.inf
    if not seconds > 0:
        raise ValueError(f"task_timeout must be greater than 0 seconds, not {task_timeout}")
    return seconds
