"""Objects that a fork must not share: notify them before and after a fork, and in the child."""

import multiprocessing
import os
import select
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Protocol, Self

from shmarray.pool._stdlib import disown, free_in_child, is_owned
from shmarray.pool.threads import WeakObjects

# Held during a fork, so that no memory is leased to the user and no descriptor is created that the
# preparations would miss.  Finalizers must neither take it nor wait for a thread that does.
lock = threading.RLock()


def holds_lock() -> bool:
    """Whether this thread holds the lock."""
    return is_owned(lock)


class Forkable(Protocol):
    """An object that is notified of forks of this process."""

    def before_fork(self) -> None: ...
    def after_fork_in_child(self) -> None: ...


def is_child() -> bool:
    """Whether this process was started by multiprocessing."""
    return multiprocessing.parent_process() is not None


class ForkSentinel:
    """Tells whether the child of a fork, or one of its descendants, is still running.

    They inherit the writing end of a pipe, and keep it until they end or call exec.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()

    def close_writer(self) -> None:
        os.close(self._writer)

    def is_alive(self) -> bool:
        """Whether a process may still see the memory as it was at the fork."""
        poll = select.poll()
        poll.register(self._reader, 0)  # a hang-up is always reported
        return not poll.poll(0)

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            os.close(self._reader)


class PrivateDescriptors:
    """Descriptors for this process only: a forked child closes its copies."""

    def __init__(self) -> None:
        self._fds: set[int] = set()
        register(self)

    def add(self, fd: int) -> int:
        self._fds.add(fd)
        return fd

    def close(self, fd: int) -> None:
        try:
            self._fds.remove(fd)
        except KeyError:
            return
        os.close(fd)

    def close_all(self) -> None:
        for fd in list(self._fds):
            self.close(fd)

    def before_fork(self) -> None:
        pass

    def after_fork_in_child(self) -> None:
        self.close_all()

    def __del__(self) -> None:
        self.close_all()


class DescriptorsForChild(PrivateDescriptors):
    """Descriptors for the child that this thread is about to start; children that other threads fork close them.

    A context manager that closes them in this process.
    """

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with lock:  # a fork between the removal of one from the set and its end would give it to the child
            self.close_all()

    def after_fork_in_child(self) -> None:
        if threading.get_ident() == self._thread:
            self._fds.clear()
        else:
            self.close_all()


_registered: WeakObjects[Forkable] = WeakObjects()
_workers: WeakObjects[Any] = WeakObjects()
_sentinel: ForkSentinel | None = None


def register(forkable: Forkable) -> None:
    with lock:
        _registered.add(forkable)


def add_workers(processes: Iterable[Any]) -> None:
    """Remember workers of this process, which a forked child must neither end at its exit nor wait for."""
    for process in processes:
        _workers.add(process)


def sentinel() -> ForkSentinel | None:
    """The sentinel of the fork that is being prepared; None if there is no descriptor left for one."""
    global _sentinel  # noqa: PLW0603 - one fork at a time, under the lock
    if _sentinel is None:
        with suppress(OSError):
            _sentinel = ForkSentinel()
    return _sentinel


def _before() -> None:
    for forkable in _registered.alive():
        forkable.before_fork()


def _after_in_parent() -> None:
    global _sentinel
    present, _sentinel = _sentinel, None
    if present is not None:
        present.close_writer()


def _after_in_child() -> None:
    global _sentinel  # noqa: PLW0603
    _sentinel = None  # the writing end stays open: the parent looks at that
    disown(_workers.alive())
    for forkable in _registered.alive():
        forkable.after_fork_in_child()
    # Taken before the fork; only the parent releases it.
    free_in_child(lock)


os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
# By themselves, and so around those above: a signal handler may raise in any function that is written in
# Python, and a lock that was not released would hang the pool.
os.register_at_fork(before=lock.acquire, after_in_parent=lock.release)
