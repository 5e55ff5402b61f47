"""Objects and functions that raise where requested; importable under every start method."""

import numpy as np

from tests.faults import deaths

BIG = 20_000  # items of 8 bytes: enough to travel in a block


class OwnBaseError(BaseException):
    """Neither an Exception nor a class that the stdlib knows."""


class TwoArgumentsError(Exception):
    """Can be pickled, but not unpickled: its __init__ requires an argument that is not in args."""

    def __init__(self, first, second):
        super().__init__(first)
        self.second = second


class UnpicklableError(Exception):
    def __reduce__(self):
        raise TypeError("this error does not pickle")


class _NeverPickledError(UnpicklableError):
    """Raises another error when it is pickled."""

    def __reduce__(self):
        raise UnpicklableError


KINDS = {kind.__name__: kind for kind in (ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, OwnBaseError)}


class RaisesWhen:
    """Raises when it is pickled or unpickled; it is sent next to an array, whose block must not be lost."""

    def __init__(self, when, kind):
        self.when = when
        self.kind = kind

    def __reduce__(self):
        if self.when == "pickled":
            raise KINDS[self.kind]("told to")
        return raise_it, (self.kind,)


def raise_it(kind, *_):
    if kind == "a chain":
        try:
            raise KeyError(kind)
        except KeyError:
            raise ValueError("told to")  # noqa: B904 - the other error must be its context
    raise KINDS[kind]("told to")


def raise_two(_):
    raise TwoArgumentsError(1, 2)


def raise_unpicklable(_):
    raise UnpicklableError


def raise_what_never_pickles():
    raise _NeverPickledError


def give_what_raises(when, kind, like):
    return np.ones_like(like), RaisesWhen(when, kind)


def arm_and_raise(kind):
    """Initializer that raises."""
    deaths.arm()
    raise_it(kind)


def raising_generator(kind, count):
    yield from range(count)
    raise_it(kind)
