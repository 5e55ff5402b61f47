"""How a worker process starts, gets its tasks, and ends."""

import fcntl
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from shmarray.core.posix import SparseFile
from shmarray.pool import interrupts, link
from shmarray.pool.boxes import Boxes
from shmarray.pool.link import Message, Receiver
from shmarray.pool.parcel import Contents
from shmarray.pool.stdlib import DupFd, PoolManners
from shmarray.pool.worker import Worker


class Descriptor:
    """A descriptor on its way to a process that is being started, by whatever start method."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def copy_of(cls, fd: int, until: ExitStack) -> "Descriptor":
        """One for the process alone; the caller's copy is closed when it has it."""
        copy = os.dup(fd)
        until.callback(os.close, copy)
        return cls(copy)

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (DupFd(self.fd),)


def _received(duplicate: Any) -> Descriptor:
    fd = duplicate.detach()
    os.set_inheritable(fd, False)
    return Descriptor(fd)


class Start:
    """What every worker needs to begin with.

    Attributes
    ----------
    life : Descriptor
        Reading end of a pipe that only the caller has the other end of.
    boxes : Boxes or None
        The caller's; the worker gets descriptors of its own for their files.
    until : ExitStack
        Closes the caller's copies of those, when the worker has them.
    private : tuple
        What a child that a task forks must close, so that it is not taken for the worker.
    is_interruptible : bool
        Whether Ctrl-C reaches the caller.
    """

    def __init__(self, life: Descriptor, boxes: Boxes | None, until: ExitStack, private: tuple[Any, ...] = ()) -> None:
        self._life = life
        self._files = [Descriptor.copy_of(file.fd, until) for file in boxes.files] if boxes else []
        self.private = private
        self.is_interruptible = not interrupts.is_blocked()

    def begin(self) -> Boxes | None:
        """In the worker: what it has of the boxes from now on, until the caller ends."""
        die_with_caller(self._life.fd)
        return Boxes([SparseFile(file.fd) for file in self._files]) if self._files else None


def _begin(worker: Worker, start: Start, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> None:
    interrupts.restore()
    worker.install_interrupt()
    if start.is_interruptible:
        interrupts.unblock()
    if initializer is not None:
        worker.interruptible(initializer, initargs, {})


def die_with_caller(fd: int) -> None:
    """Have the kernel end this process when the caller ends, also in the middle of a task.

    Without a thread: os.fork() in a task would warn of it.  PR_SET_PDEATHSIG will not do,
    it tells of the end of the thread that made this process.
    """
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
        if select.select([fd], [], [], 0)[0]:  # it ended before we asked
            os._exit(1)
    else:
        threading.Thread(target=_watch, args=(fd,), daemon=True).start()


def _watch(fd: int) -> None:
    select.select([fd], [], [])
    os._exit(1)


def serve(
    channel: Descriptor,
    start: Start,
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
    most: int | None,
) -> None:
    """Work for a Pool: the main function of its workers.

    Ends when the caller closes its end of the channel, or after `most` tasks.
    """
    worker = Worker(start.begin(), PoolManners)
    with socket.socket(fileno=channel.fd) as sock:
        try:
            _begin(worker, start, initializer, initargs)
        except BaseException as error:
            _send(sock, _ready(1, traceback.format_exc()))
            if isinstance(error, KeyboardInterrupt):
                sys.exit(1)  # without a word: so does the caller, who says it
            raise
        _send(sock, _ready(0, ""))
        _work(sock, worker, most)


def _ready(trouble: int, text: str) -> bytes:
    return link.encode(Message(link.READY, trouble, 0, 0, Contents(text.encode(errors="backslashreplace"))))


def _work(sock: socket.socket, worker: Worker, most: int | None) -> None:
    receiver = Receiver(sock)
    owner = os.getpid()
    done = 0
    while most is None or done < most:
        data = _next(receiver)
        if not data:
            return
        answer = worker.perform(data)
        if os.getpid() != owner:
            os._exit(0)  # a child that the task forked, and that came back from it
        if not _send(sock, answer):
            return
        del data, answer  # not while waiting for the next task
        done += 1


def _next(receiver: Receiver) -> bytes | None:
    try:
        return receiver.wait()
    except OSError:  # the caller is gone
        return None


def _send(sock: socket.socket, message: bytes) -> bool:
    try:
        link.send(sock, message)
    except OSError:  # the caller is gone
        return False
    return True


# --- the stdlib's executor -----------------------------------------------------------

_executor_worker: Worker | None = None
_private: list[Any] = []


def _close_private() -> None:
    for connection in _private:
        connection.close()
    _private.clear()


os.register_at_fork(after_in_child=_close_private)


def prepare(start: Start, manners: Any, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> None:
    """Make this process a worker of an executor: the initializer of its workers."""
    global _executor_worker  # noqa: PLW0603 - one worker in a process
    _executor_worker = Worker(start.begin(), manners)
    _private.extend(start.private)
    try:
        _begin(_executor_worker, start, initializer, initargs)
    except KeyboardInterrupt:
        os._exit(1)  # the stdlib would write a traceback


def executor_worker() -> Worker:
    if _executor_worker is None:
        sys.exit("this is no worker of a ProcessPoolExecutor")
    return _executor_worker
