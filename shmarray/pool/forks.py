"""What a fork must not share: who is told before and after one, and how long the child lives."""

import os
import select
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Protocol
from weakref import WeakSet

from shmarray.pool.stdlib import disown

# Held from before a fork until after it, so that nothing is lent to the user, and no
# descriptor made, that the preparations do not know of.  Finalizers take no lock.
lock = threading.RLock()


class Forkable(Protocol):
    """What wants to be told."""

    def before_fork(self) -> None: ...
    def after_fork_in_child(self) -> None: ...


class Witness:
    """Tells whether the child of a fork, or a descendant of it, is still there.

    They inherit the writing end of a pipe, and keep it until they end or call exec.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()

    def close_writer(self) -> None:
        os.close(self._writer)

    def is_alive(self) -> bool:
        """Whether anybody may still see what was there at the fork."""
        poll = select.poll()
        poll.register(self._reader, 0)  # 0: the end of the other side is always told
        return not poll.poll(0)

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            os.close(self._reader)


class Descriptors:
    """Descriptors that are this process's own: a forked child closes its copies."""

    def __init__(self) -> None:
        self._fds: set[int] = set()
        register(self)

    def pipe(self) -> tuple[int, int]:
        """Make a pipe; the writing end is kept here."""
        reader, writer = os.pipe()
        self._fds.add(writer)
        return reader, writer

    def close(self, fd: int) -> None:
        if fd in self._fds:
            self._fds.remove(fd)
            os.close(fd)

    def close_all(self) -> None:
        for fd in tuple(self._fds):
            self.close(fd)

    def before_fork(self) -> None:
        pass

    def after_fork_in_child(self) -> None:
        self.close_all()

    def __del__(self) -> None:
        self.close_all()


_registered: WeakSet[Forkable] = WeakSet()
_workers: WeakSet[Any] = WeakSet()
_witness: Witness | None = None


def register(forkable: Forkable) -> None:
    with lock:
        _registered.add(forkable)


def own(processes: Iterable[Any]) -> None:
    """These workers are this process's: a forked child that ends does not end them, nor wait for them."""
    _workers.update(processes)


def witness() -> Witness | None:
    """The witness of the fork that is being prepared; None if there is no descriptor left for one."""
    global _witness  # noqa: PLW0603 - one fork at a time, under the lock
    if _witness is None:
        with suppress(OSError):
            _witness = Witness()
    return _witness


def _before() -> None:
    lock.acquire()
    for forkable in tuple(_registered):
        forkable.before_fork()


def _after_in_parent() -> None:
    global _witness
    present, _witness = _witness, None
    if present is not None:
        present.close_writer()
    lock.release()


def _after_in_child() -> None:
    global _witness  # noqa: PLW0603
    _witness = None  # the writing end stays open: that is what the parent looks at
    disown(_workers)
    for forkable in tuple(_registered):
        forkable.after_fork_in_child()
    lock.release()


os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
