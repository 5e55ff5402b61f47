"""What the stdlib's pools, queues and pipes deliver in place of a shared array that cannot be reached any more.

They unpickle where no caller gets the error: multiprocessing.Pool's workers end and its caller
waits for ever, the executor breaks, the thread that takes the results ends.  So the error
comes when the array is used, which is in the task.
"""

from typing import Any, NoReturn

from numpy.lib.mixins import NDArrayOperatorsMixin


class MissingArray(NDArrayOperatorsMixin):
    """Stands for an array; whatever is done with it raises why that is not there.

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

    # Not an ndarray of any kind: code in C would read whatever memory that had.
    __getattr__ = __array__ = __array_ufunc__ = __array_function__ = _raise
    __len__ = __iter__ = __contains__ = __getitem__ = __setitem__ = __delitem__ = _raise
    __bool__ = __int__ = __float__ = __complex__ = __index__ = _raise
