"""The measurements."""

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

OURS = "shmarray"
OUR_EXECUTOR = "shmarray executor"


@dataclass
class Record:
    """The measurements of one peer at one piece of work.

    Attributes
    ----------
    group, workload, peer : str
    at : int
        Position on the axis of the group: bytes, tasks or workers; 0 if there is none.
    count : int
        The number of tasks in a call.
    first : list of float
        Seconds of the first call of each new pool, whose workers are already running.
    later : list of (float or None)
        Seconds of a call in each round; None for a round in which this peer did not take part.
    ratio : float or None
        How many times as fast we were: the median over the rounds of the peer's time divided by ours.
    cpu : float or None
        Seconds of processor time of a later call, in all processes together.
    before, peak : int or None
        Bytes of memory of all processes together: before any call, with a pool and its arguments;
        and the peak during later calls.
    note : str
        Why there are no figures, or only some.
    """

    group: str
    workload: str
    peer: str
    at: int = 0
    count: int = 1
    first: list[float] = field(default_factory=list)
    later: list[float | None] = field(default_factory=list)
    ratio: float | None = None
    cpu: float | None = None
    before: int | None = None
    peak: int | None = None
    note: str = ""

    @property
    def first_time(self) -> float | None:
        # Not the median: the host of a virtual machine may reclaim memory and return it at any time, so
        # the same call took 0.2, 1.0 and 1.4 seconds.
        return min(self.first, default=None)

    @property
    def time(self) -> float | None:
        """Return the seconds of a call in the steady state."""
        return _median([seconds for seconds in self.later if seconds is not None])

    def compare(self, own: "Record") -> None:
        """Set the ratio from the rounds in which both took part."""
        pairs = [(ours, theirs) for ours, theirs in zip(own.later, self.later, strict=False) if ours and theirs]
        self.ratio = _median([theirs / ours for ours, theirs in pairs])


@dataclass
class Results:
    """A complete run: the measurements, the machine and the versions."""

    machine: dict[str, Any]
    versions: dict[str, str]
    missing: dict[str, str]
    scale: str
    records: list[Record]

    def of(self, group: str) -> list[Record]:
        return [record for record in self.records if record.group == group]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Results":
        return cls(**{**data, "records": [Record(**record) for record in data["records"]]})


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None
