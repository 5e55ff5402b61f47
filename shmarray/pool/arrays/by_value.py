"""Sending by value what no module holds: lambdas, local functions and classes, what a notebook or a prompt defines.

cloudpickle does that, if it is installed (the extra ``cloudpickle``).  It is imported when
plain pickle has failed, and not before.
"""

import os
import pickle
import sys
from collections import ChainMap
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from shmarray.errors import UnsendableError
from shmarray.pool._stdlib import registered

REMEDY = "put it into a module that workers can import, or install shmarray[cloudpickle], which sends it by value"


class OfMainError(pickle.PicklingError):
    """Something is defined in a __main__ that workers cannot import."""


def main_is_importable() -> bool:
    """Whether workers can import __main__: it is a module or a file, and no notebook, ``-c``, stdin or prompt."""
    main = sys.modules.get("__main__")
    if hasattr(sys, "ps1"):
        return False
    if getattr(main, "__spec__", None) is not None:
        return True
    path = getattr(main, "__file__", None)
    return path is not None and os.path.exists(path)


@lru_cache(maxsize=1)
def cloudpickle() -> Any:
    """The module; None if it is not installed."""
    try:
        import cloudpickle as module  # noqa: PLC0415 - only if plain pickle has failed
    except ImportError:
        return None
    return module


def main_goes_by_value() -> bool:
    """Whether what __main__ defines is sent by value: workers cannot import it, or have older versions of it."""
    return not main_is_importable() and cloudpickle() is not None


def may_help(error: BaseException) -> bool:
    """Whether plain pickle has failed in a way in which cloudpickle may not."""
    if isinstance(error, TypeError):
        return str(error).startswith("cannot pickle")
    return True


def explained(error: Exception) -> Exception:
    """The error with the remedies, if it is about a function or class that has no module."""
    if isinstance(error, pickle.PicklingError) or "pickle local object" in str(error):
        return UnsendableError(f"{error}: {REMEDY}")
    return error


def not_found(error: BaseException) -> BaseException:
    """In a worker: the error with the remedies, if a task needs what only the caller's __main__ has."""
    if isinstance(error, AttributeError) and "main__'" in str(error):
        return UnsendableError(f"{error}: {REMEDY}")
    return error


def pickler(array_pickler: type) -> Any:
    """A pickler that sends by value what has to be; None if cloudpickle is not installed."""
    return None if cloudpickle() is None else _pickler_class(array_pickler)()


@lru_cache(maxsize=1)
def _pickler_class(array_pickler: Any) -> Any:
    base: Any = cloudpickle().Pickler

    class ByValuePickler(array_pickler, base):  # type: ignore[misc]
        dispatch_table: ClassVar[Any] = ChainMap(registered, *base.dispatch_table.maps)

        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, np.ndarray):
                reduced = self.reduced_array(obj)
                if reduced is not NotImplemented:
                    return reduced
            return super().reducer_override(obj)

    return ByValuePickler
