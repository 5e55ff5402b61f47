"""The main function of a worker process: start, run tasks, end."""

import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.reduction import DupFd
from typing import Any, NamedTuple

from shmarray.core.posix import SparseFile, has_hung_up, kill_at_hangup
from shmarray.pool.arrays import BlockMap, ExceptionEncoder, TaskRunner, begin_worker, for_start, messages
from shmarray.pool.engine import signals
from shmarray.pool.engine.channel import Channel, socket_of
from shmarray.pool.forks import DescriptorsForChild


class Descriptor:
    """A descriptor for a process that is being started, with any start method."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def copy_of(cls, fd: int, descriptors: DescriptorsForChild) -> "Descriptor":
        """A descriptor for the process alone; the caller closes its copy once the process has it."""
        return cls(descriptors.add(os.dup(fd)))

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (DupFd(self.fd),)


def _received(duplicate: Any) -> Descriptor:
    fd = duplicate.detach()
    os.set_inheritable(fd, False)
    return Descriptor(fd)


class WorkerSpec(NamedTuple):
    """The options that all workers of a pool share.

    Attributes
    ----------
    initializer, initargs
        As given to the pool.
    max_tasks : int or None
        After so many tasks a worker ends.
    encoder : ExceptionEncoder
    """

    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]
    max_tasks: int | None
    encoder: ExceptionEncoder

    def __reduce__(self) -> Any:
        start = for_start((self.initializer, self.initargs))
        return _spec, (start, self.max_tasks, self.encoder)


def _spec(start: tuple[Any, tuple[Any, ...]], max_tasks: int | None, encoder: ExceptionEncoder) -> WorkerSpec:
    initializer, initargs = start
    return WorkerSpec(initializer, initargs, max_tasks, encoder)


class Inheritance(NamedTuple):
    """The descriptors that one worker gets from its caller.

    Attributes
    ----------
    channel : Descriptor
        Its end of the channel.
    life : Descriptor
        Reading end of a pipe that only the caller has the other end of.
    files : list of Descriptor
        Of the blocks; empty where there is no shared memory.
    is_interruptible : bool
        Whether Ctrl-C reaches the caller.
    """

    channel: Descriptor
    life: Descriptor
    files: list[Descriptor]
    is_interruptible: bool

    @classmethod
    def of(cls, far: Channel, life: int, blocks: BlockMap | None, descriptors: DescriptorsForChild) -> "Inheritance":
        files = [Descriptor.copy_of(file.fd, descriptors) for file in blocks.files] if blocks else []
        channel = Descriptor.copy_of(far.fileno(), descriptors)
        return cls(channel, Descriptor(life), files, not signals.is_interrupt_blocked())

    def blocks(self) -> BlockMap | None:
        return BlockMap([SparseFile(file.fd) for file in self.files]) if self.files else None


def worker_main(inheritance: Inheritance, spec: WorkerSpec) -> None:
    """The main function of a worker.

    Ends when the caller closes its end of the channel, or after `spec.max_tasks` tasks.
    """
    signals.begin_with_defaults()
    die_with_caller(inheritance.life.fd)
    begin_worker()
    calls = signals.InterruptibleCalls()
    runner = TaskRunner(inheritance.blocks(), spec.encoder, calls)
    channel = Channel(socket_of(inheritance.channel.fd))
    try:
        _initialize(inheritance, spec, calls)
    except BaseException as error:  # noqa: BLE001 - user code; the caller says it, so this process does not
        _send(channel, messages.ready(spec.encoder.text(error)))
        channel.close()
        sys.exit(1)
    if _send(channel, messages.ready()):
        _work(channel, runner, spec.max_tasks)
    with suppress(OSError):  # a task has closed it
        channel.close()


def _initialize(inheritance: Inheritance, spec: WorkerSpec, calls: signals.InterruptibleCalls) -> None:
    calls.install()
    signals.unblock(interrupt=inheritance.is_interruptible)
    if spec.initializer is not None:
        calls(spec.initializer, spec.initargs, {})


def die_with_caller(fd: int) -> None:
    """End this process when the caller ends, even during a task.

    By the kernel where it can, without a thread: os.fork() in a task would warn of it.
    """
    if not kill_at_hangup(fd):
        threading.Thread(target=_watch, args=(fd,), name="shmarray-caller", daemon=True).start()
    elif has_hung_up(fd, 0):  # the caller ended earlier
        os._exit(1)


def _watch(fd: int) -> None:
    if has_hung_up(fd, None):
        os._exit(1)


def _work(channel: Channel, runner: TaskRunner, most: int | None) -> None:
    owner = os.getpid()
    done = 0
    while most is None or done < most:
        data = _receive(channel)
        if not data:
            return
        answer = runner.run(data)
        if os.getpid() != owner:
            os._exit(0)  # a child that the task forked, and that returned from the task
        if not _send(channel, answer):
            return
        del data, answer  # not while waiting for the next task
        done += 1


def _receive(channel: Channel) -> bytes:
    try:
        return channel.receive()
    except OSError:  # the caller is gone
        return b""


def _send(channel: Channel, message: bytes) -> bool:
    try:
        channel.send(message)
    except OSError:  # the caller is gone
        return False
    return True
