"""Tasks in progress, and their descriptions in errors."""

from functools import partial
from types import FunctionType
from typing import Any

from shmarray.errors import TaskTimeoutError, WorkerDiedError
from shmarray.pool.arrays import TaskBlocks


class InFlightTask:
    """A task that a worker has, or is about to have.

    Attributes
    ----------
    job, index : int
        Which task of which call.
    func : callable
        The user's function; it is not called, only named, and told from others.
    kind : int
        As `kind_of` gives for this function.
    items : range or None
        Which items of an iterable the task has; None if it is no part of a map.
    group : int
        The tasks of one group share the arrays that many of them have.
    blocks : TaskBlocks
    data : bytes
        The message, to send it again.
    is_long : bool
        Whether its message is sent while the worker reads it; such a one is not taken back.
    is_being_sent : bool
        Whether it is not all sent, so that nobody has run it.
    """

    __slots__ = ("blocks", "data", "func", "group", "index", "is_being_sent", "is_long", "items", "job", "kind")

    def __init__(self, job: int, index: int, func: Any, items: range | None, group: int) -> None:
        self.job = job
        self.index = index
        self.func = func
        self.kind = kind_of(func)
        self.items = items
        self.group = group
        self.blocks = TaskBlocks()
        self.data = b""
        self.is_long = False
        self.is_being_sent = False

    @property
    def key(self) -> tuple[int, int]:
        return self.job, self.index

    def description(self) -> str:
        """What it runs, as part of a sentence."""
        name = function_name(self.func)
        if self.items is None:
            return name
        first, last = self.items[0], self.items[-1]
        which = f"item {first}" if first == last else f"items {first} to {last}"
        return f"{which} of the map over {name}"


def kind_of(func: Any) -> int:
    """A number that tells a function from others, regardless of its data; all partials, for instance, have the same."""
    # An id, because hashing may run user code.  Used again for another function, it only mixes their times.
    return id(func.__code__ if type(func) is FunctionType else type(func))


def function_name(func: Any) -> str:
    """A function's name for errors; its attributes are user code and may raise."""
    if type(func) is partial:
        return f"a partial of {function_name(func.func)}"
    try:
        name, module = f"{func.__qualname__}()", getattr(func, "__module__", None)
    except BaseException:  # noqa: BLE001 - user code: a property of a callable object
        return f"a {type(func).__name__} object"
    return f"{module}.{name}" if type(module) is str and module != "builtins" else name


def died(task: InFlightTask, how: str, pid: int | None, code: int | None) -> WorkerDiedError:
    """The error of the task that a worker was running when it died."""
    what = task.description()
    return WorkerDiedError(f"worker {pid} {how} while it ran {what}", pid, code, what, task.items)


def timed_out(task: InFlightTask, timeout: float, pid: int | None) -> TaskTimeoutError:
    """The error of a task that exceeded its time limit."""
    what = task.description()
    message = f"{what} took longer than the limit of {timeout:g} s; worker {pid} was killed"
    return TaskTimeoutError(message, pid, timeout, what, task.items)
