"""A separate process for each peer, so that the threads, memory and settings of others do not affect it.

The handle sends commands and receives answers; the host itself measures the times.
"""

import copy
import multiprocessing
import os
import time
import warnings
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from typing import Any, Self

import numpy as np

from benchmarks import processes
from benchmarks.peers import PEERS, Peer
from benchmarks.workloads import Workload, fingerprint, identity, look

# Seconds after which a peer is considered hung.
PATIENCE = 120.0
_FEW = 64


class PeerError(Exception):
    """A peer failed; the message is its own."""


class Host:
    """The handle of a host.

    Parameters
    ----------
    name : str
        The name of the peer.
    """

    def __init__(self, name: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._near, far = context.Pipe()
        self._process = context.Process(target=serve, args=(name, far), name=f"benchmark of {name}")
        self._process.start()
        far.close()

    def load(self, work: Workload) -> None:
        """Make a new pool for this work and start its workers, without calling it yet."""
        self._ask("load", work)

    def call(self, calls: int = 1) -> tuple[float, float]:
        """Make the calls; return the mean seconds per call, and the mean processor time."""
        return self._ask("call", calls)

    def memory(self) -> int:
        """Return the current memory in bytes."""
        return processes.Memory(self.pid).peak

    def watch(self) -> int:
        """Return the peak memory in bytes during two calls."""
        self._tell("call", 2)
        memory = processes.watch(self.pid, self._near.poll, PATIENCE)
        self._answer(0)
        return memory.peak

    def unload(self) -> None:
        self._ask("unload")

    def close(self) -> None:
        """End the host."""
        with suppress(PeerError):
            self._tell()
        self._process.join(20)
        if self._process.is_alive():
            self._kill()
        self._near.close()
        self._process.close()

    def _ask(self, *command: Any) -> Any:
        self._tell(*command)
        return self._answer(PATIENCE)

    def _tell(self, *command: Any) -> None:
        try:
            self._near.send(command)
        except ConnectionError:
            raise PeerError("its process died") from None

    def _answer(self, patience: float) -> Any:
        if not self._near.poll(patience):
            self._kill()
            raise PeerError(f"more than {PATIENCE:.0f} s")
        try:
            answer, complaint = self._near.recv()
        except (EOFError, ConnectionError):
            raise PeerError("its process died") from None
        if complaint:
            raise PeerError(complaint)
        return answer

    def _kill(self) -> None:
        processes.kill_tree(self.pid)
        self._process.join()

    @property
    def pid(self) -> int:
        return self._process.pid


def serve(name: str, commands: Connection) -> None:
    """Run the host: execute commands until the other end is closed."""
    warnings.simplefilter("ignore")
    # Signals to the group, from Ctrl-C or from a peer, must not reach both: the caller ends the host.
    os.setsid()
    # A spawned process would also spawn by default; use the system's default.
    multiprocessing.set_start_method(None, force=True)
    with _Stand(name) as stand, commands, suppress(EOFError, ConnectionError):
        while command := commands.recv():
            commands.send(_outcome(getattr(stand, command[0]), command[1:]))


def _outcome(method: Any, arguments: tuple[Any, ...]) -> tuple[Any, str]:
    try:
        return method(*arguments), ""
    except Exception as error:  # noqa: BLE001 - any error of a peer is its result
        return None, f"{type(error).__name__}: {' '.join(str(error).split())[-120:]}"


class _Stand:
    """A peer and the work that it is given."""

    def __init__(self, name: str) -> None:
        self._kind = PEERS[name]
        self._stack = ExitStack()
        self._peer: Peer | None = None
        self._work: Workload | None = None
        self._items: list[Any] = []
        self._array: Any = None
        self._is_checked = False

    def load(self, work: Workload) -> None:
        if work != self._work:
            self._work, self._items = work, work.make()
            self._array = work.array() if work.array else None
            self._is_checked = False
        if not (self._kind.starts_slowly and self._peer and self._peer.workers == work.workers):
            self._stack.close()
            self._peer = self._stack.enter_context(self._kind(work.workers))
        # Start the workers, and let them import what every task needs.
        if work.array is None:
            self._peer.map(identity, range(_FEW), 1)
        else:
            self._peer.spread(look, np.ones(_FEW), range(_FEW))
        self._peer.prepare(work.function, self._items)

    def unload(self) -> None:
        self._work, self._items, self._array = None, [], None
        if not self._kind.starts_slowly:
            self.close()

    def close(self) -> None:
        self._peer = None
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, calls: int) -> tuple[float, float]:
        used = processes.processor_time(os.getpid())
        times = []
        for _ in range(calls):
            start = time.perf_counter()
            results = self._run()
            times.append(time.perf_counter() - start)
            if not self._is_checked:
                self._check(results)
            del results  # not timed: the next call finds the memory as in a program that has released the results
        return sum(times) / calls, (processes.processor_time(os.getpid()) - used) / calls

    def _run(self) -> list[Any]:
        work = self._work
        if work.produce is not None:
            return self._peer.stream(work.function, work.produce, self._items)
        if work.array is None:
            return self._peer.map(work.function, self._items, work.chunksize)
        return self._peer.spread(work.function, self._array, self._items)

    def _check(self, results: list[Any]) -> None:
        """Check that the results are correct."""
        expected = [self._work.function(*self._arguments(copy.deepcopy(self._items[k]))) for k in (0, -1)]
        found = [results[k] for k in (0, -1)]
        if len(results) != len(self._items) or list(map(fingerprint, found)) != list(map(fingerprint, expected)):
            raise ValueError("the results are wrong")
        self._is_checked = True

    def _arguments(self, item: Any) -> list[Any]:
        if self._work.produce is not None:
            return [self._work.produce(item, np.empty)]
        return [item] if self._array is None else [self._array, item]
