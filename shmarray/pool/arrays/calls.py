"""Calls in pickled form: a number for the stdlib's wrappers, and a function pickled once for many tasks.

Pickling a function by name would take a large part of the time to pack a small task
(benchmarks/constants.py: calls).
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from shmarray.pool._stdlib import mapstar, process_chunk, starmapstar
from shmarray.pool.arrays import pickling

_WRAPPERS = (None, mapstar, starmapstar, process_chunk)
_NONE, _MAP, _STARMAP, _CHUNK = range(len(_WRAPPERS))

CompactCall = tuple[int, bool, Any, tuple[Any, ...]]
"""Which wrapper; whether the function is pickled; the function; its arguments, as the wrapper has them."""


@dataclass(slots=True)
class Call:
    """A call that is ready to be pickled.

    Attributes
    ----------
    compact : CompactCall
    func : callable
        The user's function, without the wrapper.
    items : int
        How many items of an iterable a chunk has; 0 if this is no chunk.
    """

    compact: CompactCall
    func: Any
    items: int


class FunctionCache:
    """Keeps the pickle of the last function.

    Only of what is exactly a function and goes by its name: all other callables, and what
    functions that go by value refer to, may have changed since the last task.
    """

    def __init__(self) -> None:
        self._last: Any = None
        self._pickled: bytes | None = None

    def pickled(self, func: Any) -> bytes | None:
        """Its pickle; None if it must be pickled with each task."""
        if type(func) is not FunctionType:
            return None
        if func is not self._last:
            self._pickled = pickling.dumps_by_name(func)
            self._last = func
        return self._pickled


def compact(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], cache: FunctionCache | None = None
) -> Call:
    """A call in the form in which it is pickled."""
    wrapper, inner = _unwrapped(func, args) if not kwargs else (_NONE, ())
    items = 0
    if wrapper:
        func, *rest = inner
        items = len(rest[0]) if rest and type(rest[0]) in (tuple, list) else 0
    else:
        rest = [args, kwargs]
    pickled = cache.pickled(func) if cache is not None else None
    if pickled is None:
        return Call((wrapper, False, func, tuple(rest)), func, items)
    return Call((wrapper, True, pickled, tuple(rest)), func, items)


def users_function(func: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """The function of a call, without the stdlib's wrapper."""
    wrapper, inner = _unwrapped(func, args)
    return inner[0] if wrapper else func


def _unwrapped(func: Callable[..., Any], args: tuple[Any, ...]) -> tuple[int, tuple[Any, ...]]:
    """The stdlib's wrapper and what it calls; only as the stdlib itself makes it."""
    if func is mapstar or func is starmapstar:
        if len(args) == 1 and type(args[0]) is tuple and args[0]:
            return (_MAP if func is mapstar else _STARMAP), args[0]
    elif func is process_chunk and args:
        return _CHUNK, args
    return _NONE, ()


class FunctionLoader:
    """Unpickles functions; the last one is not unpickled again as long as its module has it."""

    def __init__(self) -> None:
        self._pickled = b""
        self._last: Any = None

    def load(self, pickled: bytes) -> Any:
        """The function; raises what unpickling it raises."""
        if pickled == self._pickled and _is_current(self._last):
            return self._last
        func = pickling.loads(pickled)
        if type(func) is FunctionType and pickling.dumps_by_name(func) == pickled:  # so it is found by its own name
            self._pickled, self._last = pickled, func
        return func


def _is_current(func: FunctionType) -> bool:
    module = sys.modules.get(func.__module__)
    return module is not None and module.__dict__.get(func.__qualname__) is func


def restored(
    compact_call: CompactCall, loader: FunctionLoader
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """The call again; raises what unpickling its function raises."""
    wrapper, is_pickled, func, rest = compact_call
    if is_pickled:
        func = loader.load(func)
    if wrapper == _NONE:
        return func, rest[0], rest[1]
    wrapped: Any = _WRAPPERS[wrapper]
    return wrapped, (func, *rest) if wrapper == _CHUNK else ((func, *rest),), {}
