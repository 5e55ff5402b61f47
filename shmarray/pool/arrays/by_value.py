"""Send by value what pickle sends by name or not at all: lambdas, local functions and classes, notebooks.

Plain pickle is tried first.  cloudpickle (the extra ``cloudpickle``) pickles objects that it
refuses, and those defined in a ``__main__`` that workers cannot import.  That pickle contains no
arrays: they are in a separate list, which the outer pickler handles like arguments.

A function of ``__main__`` that is sent by value gets the worker's own ``__main__`` as its globals.
The globals that it uses are sent with their values at pickling time; those that the worker's own
code has set (``global`` in an initializer) keep their values.
"""

import importlib
import io
import pickle
import sys
import weakref
from collections import ChainMap
from collections.abc import Callable
from functools import cache
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import numpy as np

from shmarray.errors import UnsendableError
from shmarray.pool import main_module
from shmarray.pool._stdlib import registered

REMEDY = "move it to a module that workers can import, or install cloudpickle to send it by value"
_SIMPLE = frozenset((type(None), bool, int, float, complex, str, bytes, np.ndarray))
_MISSING = object()
# Bytes from which searching a pickle takes longer than looking at the main module.
_LONG = 2 << 10


# --- when it is needed ---------------------------------------------------------------


def names_missing_main(pickled: bytes) -> bool:
    """Whether a pickle may name what is in a ``__main__`` that other processes cannot import."""
    if len(pickled) < _LONG:
        return b"__main__" in pickled and not main_module.is_importable()
    return not main_module.is_importable() and b"__main__" in pickled


def is_available() -> bool:
    """Whether there is a cloudpickle."""
    try:
        _cloudpickle()
    except ImportError:
        return False
    return True


def refused(error: BaseException) -> BaseException:
    """The error for what pickle refuses, where there is no cloudpickle."""
    if isinstance(error, TypeError):  # no function and no class: a lock, a socket
        return error
    return UnsendableError(f"{error}: {REMEDY}")


def not_found(name: str) -> BaseException:
    """The error for what is defined in a ``__main__`` that workers cannot import, where there is no cloudpickle."""
    return UnsendableError(f"cannot send {name}, because workers cannot import it: {REMEDY}")


def _cloudpickle() -> Any:
    try:
        return importlib.import_module("cloudpickle")
    except ImportError:
        # Up to 1.5, joblib brings its own; only where it is imported already, as its import takes long.
        if "joblib" not in sys.modules:
            raise
        return importlib.import_module("joblib.externals.cloudpickle")


# --- sending -------------------------------------------------------------------------


class ByValue:
    """Anything; arrives as what it holds.

    Parameters
    ----------
    content : object
    reduction : callable, optional
        `sending`, `returning`, or None for all of cloudpickle's ways.
    """

    def __init__(self, content: object, reduction: Any = None) -> None:
        self._content = content
        self._reduction = reduction

    def __reduce__(self) -> Any:
        pickler = Pickler(self._reduction)
        pickled, places = pickler.pickled(self._content)
        return load, (pickled, [pickler.beside[place] for place in places])


def dumps(content: object) -> bytes:
    """A pickle by value, arrays and all.

    Raises
    ------
    ImportError
        If there is no cloudpickle.
    """
    pickled: bytes = _cloudpickle().dumps(content)
    return pickled


def load(pickled: bytes, beside: list[Any]) -> Any:
    """What was pickled, with the arrays that stand beside it."""
    return pickle.loads(pickled, buffers=beside)  # noqa: S301 - from our own process's child or parent


class Pickled(NamedTuple):
    """A pickle, and the places of its arrays in what stands beside it."""

    pickled: bytes
    places: list[int]


def Pickler(reduction: Any = None) -> Any:  # noqa: N802 - its base class is known only when it is needed
    """A pickler that pickles one thing after the other, each by itself, with what stands beside them in one list.

    Parameters
    ----------
    reduction : callable, optional
        `sending`, `returning`, or None for all of cloudpickle's ways: then also what is found
        in an importable ``__main__`` goes by value.

    Raises
    ------
    ImportError
        If there is no cloudpickle.
    """
    return _pickler_type(_cloudpickle().Pickler)(reduction)


@cache
def _pickler_type(base: Any) -> Any:
    # What is registered with ForkingPickler counts, besides.
    dispatch_table = ChainMap(*base.dispatch_table.maps, registered)
    return type("Pickler", (_Beside, base), {"dispatch_table": dispatch_table})


class _Beside:
    """What `Pickler` has beyond cloudpickle's class, which is its other base."""

    globals_ref: dict[int, dict[str, Any]]

    def __init__(self, reduction: Any) -> None:
        beside: list[Any] = []
        places: list[int] = []
        known: dict[int, int] = {}
        marked: dict[int, tuple[pickle.PickleBuffer, Any]] = {}

        # A closure and not a method: the pickler keeps it, and a cycle would keep this one.
        def out_of_band(buffer: pickle.PickleBuffer) -> bool:
            thing = marked[id(buffer)][1] if id(buffer) in marked else buffer
            place = known.setdefault(id(thing), len(beside))
            if place == len(beside):
                beside.append(thing)
            places.append(place)
            return False

        self._file = io.BytesIO()
        super().__init__(self._file, 5, out_of_band)  # type: ignore[call-arg]
        self.beside = beside
        self._places = places
        self._marked = marked
        self._reduction = reduction
        self._main_is_importable = reduction is not None and main_module.is_importable()
        if reduction is sending:
            # cloudpickle keeps here the globals that functions will have at the other end.
            self.globals_ref[id(_globals_of_main())] = _GlobalsOfMain()

    def pickled(self, thing: object) -> Pickled:
        this: Any = self
        this.clear_memo()
        self._file.seek(0)
        self._file.truncate()
        self._places.clear()
        this.dump(thing)
        return Pickled(self._file.getvalue(), self._places.copy())

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, np.ndarray) and _goes_beside(obj):
            # Pickle takes whatever is given for a buffer, as long as that is said to be writable.
            marker = pickle.PickleBuffer(bytearray())
            self._marked[id(marker)] = marker, obj
            return _itself, (marker,)
        if self._main_is_importable and _is_in_main(obj):
            return NotImplemented  # by its name, as plain pickle would send it
        reduced = super().reducer_override(obj)  # type: ignore[misc]
        if self._reduction is None or reduced is NotImplemented or len(reduced) != 6:
            return reduced
        make, arguments, state, items, pairs, set_state = reduced
        setter, more = self._reduction(obj)
        return (make, arguments, (set_state, state, more), items, pairs, setter) if setter else reduced


def _goes_beside(array: np.ndarray[Any, Any]) -> bool:
    # Objects may need cloudpickle, and so may a class that is not numpy's.
    return not array.dtype.hasobject and type(array).__module__.partition(".")[0] == "numpy"


def _is_in_main(obj: Any) -> bool:
    if not isinstance(obj, FunctionType | type) or obj.__module__ != "__main__":
        return False
    found: Any = sys.modules["__main__"]
    for name in obj.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is obj


def _itself(obj: Any) -> Any:
    return obj


# --- what a worker begins with -------------------------------------------------------


def for_start(content: tuple[Any, ...]) -> Any:
    """An initializer and its arguments, as multiprocessing's pickler is to send them to a new interpreter.

    Called while that pickler works, or locks and queues could not be among them.

    Raises
    ------
    UnsendableError
        If a function takes cloudpickle, and there is none.
    """
    refusal = _refusal_at_start(content)
    if refusal is None:
        return content
    if is_available():
        return _AtStart(content, sending)
    if isinstance(refusal, UnsendableError):
        raise refusal
    return content


class _AtStart(ByValue):
    def __reduce__(self) -> Any:
        make, (pickled, beside) = super().__reduce__()
        # multiprocessing's pickle has a protocol without buffers.
        return make, (pickled, [bytearray(thing) if type(thing) is pickle.PickleBuffer else thing for thing in beside])


def _refusal_at_start(thing: Any) -> BaseException | None:
    """Why something may have to go by value; it is not pickled as a whole to find out, which can be done only once."""
    if type(thing) is tuple:
        return next((why for why in map(_refusal_at_start, thing) if why is not None), None)
    if type(thing) in _SIMPLE:
        return None
    if not isinstance(thing, FunctionType | type):
        return TypeError("unknown")
    try:
        pickled = pickle.dumps(thing)
    except (AttributeError, pickle.PicklingError) as error:
        return refused(error)
    return not_found(thing.__qualname__) if names_missing_main(pickled) else None


# --- functions and classes of __main__, at the other end -----------------------------

_State = tuple[Callable[..., object], Any, Any]
"""cloudpickle's function that sets a state, the state, and what ours needs besides."""

_sent: weakref.WeakSet[type] = weakref.WeakSet()


def sending(obj: Any) -> tuple[Any, Any]:
    """How the state of a function or class is set in a worker."""
    if isinstance(obj, type):
        _sent.add(obj)
    elif isinstance(obj, FunctionType) and obj.__globals__ is _globals_of_main():
        return _set_function, sorted(_names(obj.__code__) & obj.__globals__.keys())
    return None, None


def returning(obj: Any) -> tuple[Any, Any]:
    """How it is set in the process that sent the task."""
    return (_set_returned_class, None) if isinstance(obj, type) else (None, None)


def _names(code: CodeType) -> set[str]:
    """What code may use of its globals."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names


class _GlobalsOfMain(dict[str, Any]):
    def __reduce__(self) -> Any:
        return _globals_of_main, ()


def _globals_of_main() -> dict[str, Any]:
    """The globals that functions of this process's ``__main__`` have."""
    space = vars(sys.modules["__main__"])
    if space["__name__"] == "__mp_main__":
        # Imported by multiprocessing from a file, it is a copy of what its functions have.
        for thing in tuple(space.values()):
            if type(thing) is FunctionType and thing.__globals__.get("__name__") == "__mp_main__":
                return thing.__globals__
    return space


def _set_function(function: FunctionType, state: _State) -> None:
    set_state, values, names = state
    with _main.receiving(names):
        set_state(function, values)


def _set_returned_class(cls: type, state: _State) -> None:
    """Leave a class that came from here as it is now; its methods have the globals of this process."""
    if cls not in _sent:
        state[0](cls, state[1])


class _Main:
    """What tasks have brought into the ``__main__`` of this process."""

    def __init__(self) -> None:
        self._received: dict[str, Any] = {}
        self._arrays: dict[str, Any] = {}

    def begin(self) -> None:
        """Take what is there now for what the caller has there: what is set from now on is the worker's own."""
        self._received = dict(_globals_of_main())
        self._arrays = {}

    def receiving(self, names: list[str]) -> "_Receiving":
        return _Receiving(self, names)

    def settle(self, name: str, before: Any) -> None:
        """Decide between a global that was received and what was there before."""
        space = _globals_of_main()
        now = space.get(name, _MISSING)
        if now is before:
            return
        if before is not _MISSING and before is not self._received.get(name, _MISSING):
            space[name] = before  # the worker's own
            return
        if isinstance(now, np.ndarray):
            self._arrays.setdefault(name, before)
        self._received[name] = now

    def end_task(self) -> None:
        """Release the arrays that a task brought; otherwise their memory would be in use until the next task."""
        if not self._arrays:
            return
        space = _globals_of_main()
        for name, before in self._arrays.items():
            received = self._received.pop(name, _MISSING)
            if space.get(name, _MISSING) is not received:
                continue  # the task has set it: it is the worker's own
            if before is _MISSING:
                del space[name]
            else:
                space[name] = self._received[name] = before
        self._arrays.clear()


class _Receiving:
    """While a function of ``__main__`` gets its state."""

    def __init__(self, main: _Main, names: list[str]) -> None:
        self._main = main
        self._before = [(name, _globals_of_main().get(name, _MISSING)) for name in names]

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        for name, before in self._before:
            self._main.settle(name, before)


_main = _Main()
begin_worker = _main.begin
end_task = _main.end_task
