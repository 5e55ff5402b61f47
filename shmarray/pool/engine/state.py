"""The state that the two threads of a scheduler share."""

from copy import copy
from queue import SimpleQueue
from typing import Any, Protocol

from shmarray.errors import ShmArrayError
from shmarray.pool._stdlib import CLOSE, RUN, TERMINATE
from shmarray.pool.arrays import Lending
from shmarray.pool.engine.placement import Placement
from shmarray.pool.engine.waker import Waker
from shmarray.pool.engine.workers import ProcessRegistry, WorkerSet


class Calls(Protocol):
    """The pending calls of a pool, by number.  None of these methods raises.

    Attributes
    ----------
    can_be_cancelled : bool
        Whether a call is asked by `begin`, once a worker can take it, if it still is to run.
    """

    can_be_cancelled: bool

    def __contains__(self, job: object) -> bool: ...
    def __len__(self) -> int: ...
    def begin(self, job: int) -> bool: ...

    def set_result(self, job: int, index: int, outcome: tuple[bool, Any]) -> None:
        """A task was answered."""

    def not_sent(self, job: int, index: int, error: BaseException) -> None:
        """A task could not be packed."""

    def fail(self, job: int, index: int, error: BaseException) -> None:
        """A task was lost: its call fails at once."""

    def fail_all(self, error: BaseException) -> None:
        """All calls fail at once."""

    def terminated(self) -> None:
        """The pool has ended; nothing may wait for a remaining call."""


class PoolState:
    """The state of one pool.

    Parameters
    ----------
    workers : WorkerSet
        Not started yet.
    lending : Lending
    calls : Calls
    registry : ProcessRegistry
    ahead : int
        How many tasks each worker may have in any case.
    replaces_workers : bool
        Whether a dead worker is replaced, or ends the whole pool.

    Attributes
    ----------
    phase : str
        RUN, CLOSE or TERMINATE, and never back.
    is_terminated : bool
        Whether the phase is TERMINATE; an attribute, because it is read for each task.
    failure : BaseException or None
        Why the pool can be used no more.
    tasks : SimpleQueue
        Pairs for the feeder: an iterable of tasks, and what to call with their number, or
        None.  None ends it.
    waker : Waker
        Wakes the collector.
    """

    def __init__(
        self,
        workers: WorkerSet,
        lending: Lending,
        calls: Calls,
        registry: ProcessRegistry,
        *,
        ahead: int,
        replaces_workers: bool,
    ) -> None:
        self._is_closed = False
        self.is_terminated = False
        self.failure: BaseException | None = None
        self.workers = workers
        self.lending = lending
        self.calls = calls
        self.registry = registry
        self.replaces_workers = replaces_workers
        self.placement = Placement(workers, ahead)
        self.tasks: SimpleQueue[Any] = SimpleQueue()
        self.waker = Waker()

    @property
    def phase(self) -> Any:
        # Two flags that are set, but never cleared, so that threads cannot undo each other's changes.
        return TERMINATE if self.is_terminated else CLOSE if self._is_closed else RUN

    @phase.setter
    def phase(self, phase: Any) -> None:
        if phase == TERMINATE:
            self.is_terminated = True
        elif phase == CLOSE:
            self._is_closed = True

    def terminate(self) -> None:
        """Make both threads end."""
        self.phase = TERMINATE
        self.tasks.put(None)
        self.waker.wake()

    def fail_all(self, error: BaseException) -> None:
        """Fail all current calls; others may follow."""
        self.calls.fail_all(error)
        self.waker.wake()

    def fail_for_good(self, error: BaseException) -> None:
        """End the pool because of an error; all calls fail with it, and later ones too."""
        # A copy, because the raised error refers to frames that may refer to the pool, which would
        # then live forever, since finalizers refer to this object.
        self.failure = copy(error) if isinstance(error, ShmArrayError) else RuntimeError(repr(error))
        self.terminate()
        self.calls.fail_all(error)
