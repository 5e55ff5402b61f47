"""Replaces a shared array that is gone, when the stdlib's pools, queues and pipes deliver it.

They unpickle where no caller gets the error: multiprocessing.Pool's workers end and its caller
waits forever, the executor breaks, the thread that takes the results ends.  So the error is
raised when the array is used, in the task.
"""

from typing import Any, NoReturn

from numpy.lib.mixins import NDArrayOperatorsMixin


class MissingArray(NDArrayOperatorsMixin):
    """Placeholder for an array; any use of it raises the error.

    Parameters
    ----------
    error : Exception
    """

    __slots__ = ("_error",)

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __reduce__(self) -> tuple[Any, ...]:
        return MissingArray, (self._error,)

    def __repr__(self) -> str:
        return f"<MissingArray: {self._error}>"

    def _raise(self, *_: object, **__: object) -> NoReturn:
        raise self._error.with_traceback(None)

    # Not a subclass of ndarray, because C code would read its memory.
    __getattr__ = __array__ = __array_ufunc__ = __array_function__ = _raise
    __len__ = __iter__ = __contains__ = __getitem__ = __setitem__ = __delitem__ = _raise
    __bool__ = __int__ = __float__ = __complex__ = __index__ = _raise
