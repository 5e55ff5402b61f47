"""Objects that threads share without a lock, safe with and without the GIL.

Single operations on a deque, list, set or dictionary are atomic in both builds of Python, and so
is ``list()`` of a dictionary, of its views, or of a set.  ``tuple()`` of them and loops over them
are not: without the GIL, another thread may change them in between.
"""

import threading
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")


class Fence:
    """Between what a thread writes and what it reads then, where another thread does the opposite.

    If two threads each write, pass the fence, and read what the other has written, at
    least one sees the other's.  Without it neither may, on a machine with several cores: the
    GIL orders them, and where there is none, a lock that both take.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finalizer may pass while its thread does

    def __call__(self) -> None:
        with self._lock:
            pass


class WeakObjects(Generic[T]):
    """Objects that are in it until they are garbage.

    Not a WeakSet: a loop over one raises an error if meanwhile another thread adds to it, or
    one of its objects ends.
    """

    def __init__(self) -> None:
        self._objects: WeakValueDictionary[int, T] = WeakValueDictionary()

    def add(self, item: T) -> None:
        self._objects[id(item)] = item

    def alive(self) -> list[T]:
        return [item for reference in self._objects.valuerefs() if (item := reference()) is not None]
