"""Calls in pickled form: a number for the stdlib's wrappers, and a function pickled once for many tasks.

Pickling a function by name would take a large part of the time to pack a small task
(benchmarks/constants.py: calls).
"""

import io
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType, ModuleType
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
    """Unpickles functions; of the last pickle it remembers the names, and looks them up without unpickling."""

    def __init__(self) -> None:
        self._pickled = b""
        self._names: tuple[str, str] | None = None

    def load(self, pickled: bytes) -> Any:
        """The function; raises what unpickling it raises."""
        if pickled != self._pickled:
            unpickler = _FindsNames(io.BytesIO(pickled))
            func = unpickler.load()
            self._pickled, self._names = pickled, unpickler.names_of(func)
            return func
        if self._names is not None:
            module, name = self._names
            space = sys.modules.get(module)
            if type(space) is ModuleType and name in space.__dict__:
                return space.__dict__[name]
        return pickling.loads(pickled)


class _FindsNames(pickle.Unpickler):
    """Notes the globals that a pickle names."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._found: list[tuple[str, str, Any]] = []

    def find_class(self, module_name: str, global_name: str) -> Any:
        found = super().find_class(module_name, global_name)
        self._found.append((module_name, global_name, found))
        return found

    def names_of(self, func: Any) -> tuple[str, str] | None:
        """The module and the name of a function that is all there is in the pickle."""
        if len(self._found) != 1 or self._found[0][2] is not func or "." in self._found[0][1]:
            return None
        return self._found[0][:2]


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
