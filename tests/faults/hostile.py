"""User objects that raise on every kind of access; importable under every start method."""

import os
import signal

from tests.faults.errors import KINDS


def _raising(name):
    def method(self, *_, **__):
        raise KINDS[type(self).kind](f"{name} of a hostile object")

    return method


LOOKS = ("__repr__", "__str__", "__hash__", "__eq__", "__len__", "__bool__", "__format__", "__dir__", "__iter__")
PROPERTIES = ("__module__", "__qualname__", "__name__", "__doc__", "__wrapped__", "__self__", "__func__")


def _made(name, kind, base=object, **members):
    """Make a class in this module, so that its instances can be pickled by name and state."""
    looks = {look: _raising(look) for look in LOOKS}
    made = type(name, (base,), {**looks, "kind": kind, "__slots__": (), **members})
    made.__module__ = __name__
    globals()[name] = made
    return made


def _ends(self, *_):
    os.kill(os.getpid(), signal.SIGKILL)


def _answers(self, *_):
    return 7


THINGS, KILLERS, ANSWERERS = {}, {}, {}
for _kind in KINDS:
    THINGS[_kind] = _made(f"Thing{_kind}", _kind)
    # Set on the instance: pickle needs the class attributes.
    _properties = {name: property(_raising(name)) for name in PROPERTIES if name not in {"__module__", "__qualname__"}}
    KILLERS[_kind] = _made(f"Killer{_kind}", _kind, __call__=_ends, **_properties)
    ANSWERERS[_kind] = _made(f"Answerer{_kind}", _kind, __call__=_answers, **_properties)


class _Nameless:
    """A callable whose name and module raise."""

    def __init__(self, kind):
        self.kind = kind

    def __getattribute__(self, name):
        if name in {"__module__", "__qualname__", "__name__"}:
            raise KINDS[object.__getattribute__(self, "kind")](f"{name} of a hostile object")
        return object.__getattribute__(self, name)

    def __reduce__(self):
        return _Nameless, (object.__getattribute__(self, "kind"),)

    def __call__(self, *_):
        os.kill(os.getpid(), signal.SIGKILL)


def nameless(kind):
    return _Nameless(kind)


class OddlyNamed:
    """Its name is not a string, and raises when it is formatted."""

    def __init__(self, kind):
        self.__qualname__ = THINGS[kind]()

    def __call__(self, *_):
        os.kill(os.getpid(), signal.SIGKILL)


class HostileError(Exception):
    """Raises when its text, traceback, cause or notes are read or set."""

    def __init__(self, kind):
        super().__init__(kind)

    def _raise(self, *_):
        raise KINDS[self.args[0]]("of a hostile error")

    __str__ = __repr__ = __hash__ = __eq__ = with_traceback = add_note = __setattr__ = _raise
    __cause__ = __context__ = __traceback__ = __notes__ = __suppress_context__ = property(_raise, _raise)


class HostileBaseError(BaseException):
    __str__ = __repr__ = HostileError._raise
    __cause__ = __context__ = __traceback__ = property(HostileError._raise, HostileError._raise)


class StatefulError(Exception):
    """Its state cannot be restored: ``__setstate__`` raises."""

    def __setstate__(self, state):
        raise KINDS[self.args[0]]("of its state")


def raise_hostile(kind):
    raise HostileError(kind)


def raise_hostile_base(kind):
    raise HostileBaseError(kind)


def raise_stateful(kind):
    error = StatefulError(kind, "what the task says")
    error.detail = "x"
    raise error


def give(thing):
    return thing


def give_new(kind):
    return THINGS[kind]()


class HostileIterable:
    """Raises at one step of the iteration."""

    def __init__(self, step, kind):
        self.step = step
        self.kind = kind

    def _at(self, step):
        if step == self.step:
            raise KINDS[self.kind](f"told to in {step}")

    def __len__(self):
        self._at("len")
        return 2

    def __length_hint__(self):
        self._at("hint")
        return 3

    def __iter__(self):
        self._at("iter")
        return HostileIterator(self)


class HostileIterator:
    def __init__(self, iterable):
        self.iterable = iterable
        self.number = 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.number == 2:
            self.iterable._at("next")
            raise StopIteration
        self.number += 1
        return self.number
