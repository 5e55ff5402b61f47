"""Errors at every stage of a call; importable under every start method."""

import numpy as np


class OwnError(BaseException):
    """An exception that is no Exception."""


class UnpicklableError(Exception):
    def __reduce__(self):
        raise TypeError("this exception does not pickle")


class UnloadableError(Exception):
    """Pickles, and cannot be made again: its pickle calls it without arguments."""

    def __init__(self, needed):
        super().__init__()
        self.needed = needed


# Each is made anew: one that is kept keeps, by its traceback, the arguments of the task that raised it.
ERRORS = {
    "ValueError": lambda: ValueError("said so"),
    "KeyboardInterrupt": lambda: KeyboardInterrupt("said so"),
    "SystemExit": lambda: SystemExit("said so"),
    "GeneratorExit": lambda: GeneratorExit("said so"),
    "OwnError": lambda: OwnError("said so"),
    "EPIPE": lambda: BrokenPipeError(32, "said so"),
    "MemoryError": lambda: MemoryError("said so"),
}


def fail(name, *_):
    error = ERRORS[name]()
    raise error


class FailsToPickle:
    """An argument or result that does not pickle, after an array that does."""

    def __init__(self, name):
        self.name = name

    def __reduce__(self):
        fail(self.name)


class FailsToUnpickle:
    def __init__(self, name):
        self.name = name

    def __reduce__(self):
        return fail, (self.name, np.zeros(20_000))


def take(*_):
    return "taken"


def give(cls, name, array):
    return array + 1, cls(name)


def raise_unpicklable(array):
    raise UnpicklableError(array)


def raise_unloadable(array):
    raise UnloadableError(array)
