"""Rounds in which all peers take turns; comparisons are always between two turns of the same round."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from benchmarks import processes
from benchmarks.host import Host, PeerError
from benchmarks.peers import PEERS
from benchmarks.records import Record
from benchmarks.workloads import Scale, Workload

# If a call takes more seconds than this, a turn times one call instead of two.
_LONG = 0.3
# If a call takes more seconds than this, it is preceded by one untimed call instead of two.
_TOO_LONG = 1.5


class Stage:
    """The hosts of the peers, which are started on demand.

    Parameters
    ----------
    absent : dict of str to str
        The peers that do not take part, with the reasons.
    """

    def __init__(self, absent: dict[str, str]) -> None:
        self.absent = absent
        # The latest seconds per task, by group and peer.
        self.pace: dict[tuple[str, str], float] = {}
        self._hosts: dict[str, Host] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name in tuple(self._hosts):
            self.close(name)

    def host(self, name: str) -> Host:
        if name not in self._hosts:
            self._hosts[name] = Host(name)
        return self._hosts[name]

    def close(self, name: str) -> None:
        self._hosts.pop(name).close()


@dataclass
class _Entrant:
    """A peer in one contest."""

    host: Host
    record: Record
    spent: float = 0.0
    cpu: list[float] = field(default_factory=list)


class Contest:
    """All peers at one workload.

    Parameters
    ----------
    work : Workload
    stage : Stage
    scale : Scale
    """

    def __init__(self, work: Workload, stage: Stage, scale: Scale) -> None:
        self._work = work
        self._stage = stage
        self._scale = scale
        self.records = [Record(work.group, work.name, peer, work.at, work.count) for peer in work.peers]
        self._entrants: dict[str, _Entrant] = {}
        for record in self.records:
            record.note = work.left_out.get(record.peer) or stage.absent.get(record.peer) or self._too_slow(record)
            if not record.note:
                self._entrants[record.peer] = _Entrant(stage.host(record.peer), record)

    def _too_slow(self, record: Record) -> str:
        """Return a note if runs with fewer tasks have shown that this one would take too long."""
        seconds = record.count * self._stage.pace.get((record.group, record.peer), 0)
        is_so = record.group == "tasks" and seconds > self._scale.budget
        return f"some {seconds:.0f} s, as fewer tasks show" if is_so else ""

    def run(self) -> list[Record]:
        self._first_calls()
        for number in range(self._scale.rounds):
            self._round(number)
        if self._work.watched:
            self._each(self._memory)
        self._each(self._finish)
        own = self.records[0]
        for record in self.records:
            record.compare(own)
        for entrant in self._entrants.values():
            record = entrant.record
            record.cpu = sum(entrant.cpu) / len(entrant.cpu) if entrant.cpu else None
            self._stage.pace[record.group, record.peer] = (record.time or record.first_time or 0) / record.count
        return self.records

    def _first_calls(self) -> None:
        for number in range(1 if self._work.at else self._scale.firsts):
            for name in self._in_turn(number):
                self._guarded(lambda entrant, number=number: self._first_call(entrant, number), self._entrants[name])

    def _first_call(self, entrant: _Entrant, number: int) -> None:
        if number and (PEERS[entrant.record.peer].starts_slowly or self._is_spent(entrant)):
            return
        entrant.host.load(self._work)
        if self._work.watched and not number:
            entrant.record.before = entrant.host.memory()
        seconds, _ = entrant.host.call()
        entrant.record.first.append(seconds)
        entrant.spent += seconds

    def _round(self, number: int) -> None:
        """Give each peer one turn."""
        for entrant in self._entrants.values():
            entrant.record.later.append(None)
        for name in self._in_turn(number):
            entrant = self._entrants[name]
            if not self._is_spent(entrant):
                self._guarded(self._turn, entrant)

    def _in_turn(self, number: int) -> list[str]:
        """Return the peers in order; the first one changes, so that none always profits from the same predecessor."""
        names = list(self._entrants)
        start = number % len(names) if names else 0
        return names[start:] + names[:start]

    def _turn(self, entrant: _Entrant) -> None:
        """Make some calls; the first ones are not timed.

        An idle pool of ours frees its memory after a second, which is about as long as the turns of
        the others take.  It has the memory again after one call, and has it mapped again after two.
        All peers make the same calls, except slow ones.
        """
        before, _ = entrant.host.call()
        if before <= _TOO_LONG:
            entrant.spent += entrant.host.call()[0]
        calls = 1 if before > _LONG else 2
        seconds, cpu = entrant.host.call(calls)
        entrant.record.later[-1] = seconds
        entrant.cpu.append(cpu)
        entrant.spent += before + calls * seconds

    def _is_spent(self, entrant: _Entrant) -> bool:
        """Return whether a slow peer has used its time; it has at least one turn if that can end soon.

        Ours and the limit have more time, because every ratio needs them.
        """
        patience = 3 if entrant.record.peer in (self._work.own, "limit") else 1
        if not any(entrant.record.later):
            patience *= 2
        if self._work.at:  # one of several sizes or counts
            patience /= 3
        return entrant.spent > patience * self._scale.budget

    def _memory(self, entrant: _Entrant) -> None:
        if entrant.record.peer != "limit":
            entrant.record.peak = entrant.host.watch()

    def _finish(self, entrant: _Entrant) -> None:
        entrant.host.unload()
        name = entrant.record.peer
        if self._work.watched and self._scale.anew and not PEERS[name].starts_slowly:
            self._stage.close(name)

    def _each(self, step: Callable[[_Entrant], Any]) -> None:
        for entrant in tuple(self._entrants.values()):
            self._guarded(step, entrant)

    def _guarded(self, step: Callable[[_Entrant], Any], entrant: _Entrant) -> None:
        """Run a step; a peer that fails is removed, and the error becomes its result."""
        try:
            step(entrant)
        except PeerError as error:
            name = entrant.record.peer
            entrant.record.note = str(error)
            del self._entrants[name]
            try:
                entrant.host.unload()
            except PeerError:  # it is dead, or was killed because it took too long
                self._stage.close(name)


def run(work: Workload, stage: Stage, scale: Scale) -> list[Record]:
    """Run one workload; if that is not possible here, the records have a note instead of times."""
    lacking = work.absent
    needed = 2 * len(work.peers) * work.nbytes  # every peer has its own items and results, all the time
    if not lacking and needed < processes.available_memory():
        return Contest(work, stage, scale).run()
    why = f"needs {', '.join(lacking)}" if lacking else f"needs {needed >> 30} GB of memory"
    return [Record(work.group, work.name, peer, work.at, work.count, note=why) for peer in work.peers]
