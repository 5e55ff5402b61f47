"""Calls as they travel: a few numbers and bytes in the place of functions that have names.

To name a function takes pickle 0.75 us, a quarter of what packing a small task takes.  So the
wrappers that the stdlib puts around chunks go as a number, and a function that all tasks of a
map have in common is pickled once.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Any

from shmarray.pool import parcel
from shmarray.pool.stdlib import mapstar, process_chunk, starmapstar

_WRAPPERS = (None, mapstar, starmapstar, process_chunk)
_NONE, _MAP, _STARMAP, _CHUNK = range(len(_WRAPPERS))

Short = tuple[int, bool, Any, tuple[Any, ...]]
"""Which wrapper; whether the function is pickled; it; and its arguments, as the wrapper has them."""


class Functions:
    """Pickles the function of many tasks once.

    Only what is exactly a function, which pickle writes by its name whatever is registered
    for its type; all other callables may have changed since the last task.
    """

    def __init__(self) -> None:
        self._last: Any = None
        self._pickled = b""

    def pickled(self, func: Any) -> bytes | None:
        """Its pickle; None if it is to be pickled with each task."""
        if type(func) is not FunctionType:
            return None
        if func is not self._last:
            self._pickled = parcel.take_apart(func).pickle
            self._last = func
        return self._pickled


def shortened(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], functions: Functions | None = None
) -> tuple[Short, Any]:
    """A call as it is to be pickled, and the user's function in it; raises what pickling that raises."""
    wrapper, inner = _unwrapped(func, args) if not kwargs else (_NONE, ())
    if wrapper:
        func, *rest = inner
    else:
        rest = [args, kwargs]
    pickled = functions.pickled(func) if functions is not None else None
    if pickled is None:
        return (wrapper, False, func, tuple(rest)), func
    return (wrapper, True, pickled, tuple(rest)), func


def _unwrapped(func: Callable[..., Any], args: tuple[Any, ...]) -> tuple[int, tuple[Any, ...]]:
    """What a wrapper of the stdlib's calls, and with what; as the stdlib makes it, not as somebody else may call it."""
    if func is mapstar or func is starmapstar:
        if len(args) == 1 and type(args[0]) is tuple and args[0]:
            return (_MAP if func is mapstar else _STARMAP), args[0]
    elif func is process_chunk and args:
        return _CHUNK, args
    return _NONE, ()


def restored(short: Short) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """The call again; raises what unpickling its function raises."""
    wrapper, is_pickled, func, rest = short
    if is_pickled:
        func = parcel.put_together(func, ())
    if wrapper == _NONE:
        return func, rest[0], rest[1]
    wrapped: Any = _WRAPPERS[wrapper]
    return wrapped, (func, *rest) if wrapper == _CHUNK else ((func, *rest),), {}
