"""Tables: on the terminal during the run, and in Markdown from the file of results."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.records import OUR_EXECUTOR, OURS, Record, Results
from benchmarks.workloads import MB

_OWN = (OURS, OUR_EXECUTOR)


# --- on the terminal -----------------------------------------------------------------


def headline(results: Results) -> str:
    """Describe the machine and the versions."""
    lines = [_machine(results), ", ".join(f"{name} {version}" for name, version in results.versions.items())]
    lines += [f"{name} is not installed, so left out ({remedy})" for name, remedy in results.missing.items()]
    return "\n".join(lines)


def terminal(records: Sequence[Record]) -> str:
    """Format one workload, with a line for each peer."""
    head = f"\n{records[0].workload:40}{'first':>10}{'later':>10}{'CPU':>10}{'peak':>10}{'ratio':>8}"
    return "\n".join([head, *(f"  {record.peer:38}{_figures(record)}" for record in records)])


def _figures(record: Record) -> str:
    if record.first_time is None:
        return f"  {record.note}"
    columns = [seconds(record.first_time), seconds(record.time), seconds(record.cpu), _megabytes(record.peak)]
    ratio = "" if record.ratio is None or record.peer in _OWN else number(record.ratio)
    return "".join(f"{column:>10}" for column in columns) + f"{ratio:>8}  {record.note}".rstrip()


# --- figures -------------------------------------------------------------------------


def seconds(value: float | None) -> str:
    if value is None:
        return "-"
    if value >= 10:
        return f"{number(value)} s"
    return f"{number(1e3 * value)} ms" if value >= 1e-3 else f"{number(1e6 * value)} us"


def number(value: float) -> str:
    """Format two significant digits, and all digits before the decimal point."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _megabytes(value: int | None) -> str:
    return "" if value is None else f"{value / 1e6:.0f} MB"


# --- in Markdown ---------------------------------------------------------------------


def update(page: Path, blocks: dict[str, list[str]]) -> None:
    """Replace the lines between a page's markers ``<!-- begin: NAME ... -->`` and ``<!-- end: NAME -->``."""
    text = page.read_text(encoding="utf-8")
    for name, lines in blocks.items():
        found = re.compile(rf"(<!-- begin: {name}\b[^>]*-->\n).*?(<!-- end: {name} -->)", re.DOTALL)
        if not found.search(text):
            raise ValueError(f"{page} has no place for {name}")
        body = "\n".join([*lines, ""])
        text = found.sub(lambda match, body=body: match[1] + body + match[2], text)
    page.write_text(text, encoding="utf-8")


def readme(results: Results) -> dict[str, list[str]]:
    """Return the blocks of the README."""
    # Sparse matrices behave like frames, and arrays made in the call have an additional peer.
    maps = [record for record in results.of("maps") if not re.search("sparse|made in the call", record.workload)]
    executor = results.of("executor")
    peers = [record.peer for record in maps if record.peer not in _OWN and record.peer != "limit"]
    pools = ratios(maps, list(dict.fromkeys(peers)), "times as fast as")
    against = [f"{name} {_brief(record)}" for name, record in _against(executor, "concurrent.futures")]
    named = results.of("latencies") + [record for record in results.of("copies") if record.at in (MB, 64 * MB)]
    sentence = f"`ProcessPoolExecutor` against the stdlib's: {'; '.join(against)}."
    others = ["SharedArray", "shared_memory"]
    return {
        "compared": [
            f"{_machine(results)}, Python {_short(results, 'Python')}, numpy {_short(results, 'numpy')}, two workers;",
            f"medians of later calls{_scale(results)}. `make bench` measures yours; first calls and times are in",
            "[benchmarks/README.md](benchmarks/README.md), with where the time goes.",
            "",
            "![Peak memory](docs/pictures/memory.png)",
            "",
            *pools,
            "",
            sentence,
            "",
            *ratios(named, others, "times as fast as"),
        ]
    }


def benchmarks_page(results: Results) -> dict[str, list[str]]:
    """Return the blocks of benchmarks/README.md."""
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    huge = results.machine["huge pages"]
    absent = [f"Not installed, so left out: {', '.join(results.missing)}."] if results.missing else []
    return {
        "machine": [
            f"{_machine(results)}, huge pages for shared memory: {huge}{_scale(results)}. {versions}.",
            *absent,
        ],
        "limit": _limit(results),
        "maps": details(results.of("maps")),
        "executor": details(results.of("executor")),
        "sizes": growth(results.of("sizes"), "array, function"),
        "tasks": growth(results.of("tasks"), "tasks"),
        "workers": growth(results.of("workers"), "workers, work"),
        "latencies": named(results.of("latencies")),
        "copies": named(results.of("copies")),
    }


def _scale(results: Results) -> str:
    return "" if results.scale == "full" else f" (a {results.scale} run)"


def _limit(results: Results) -> list[str]:
    """Return a table of our times in multiples of the limit."""
    cells = [["", "times the limit, first call", "later calls"]]
    for group in ("maps", "executor"):
        for name, limit in _against(results.of(group), "limit"):
            own = next(record for record in results.of(group) if record.workload == name)
            if own.first_time and limit.first_time and limit.ratio:
                title = name if group == "maps" else f"executor, {name}"
                cells.append([title, number(own.first_time / limit.first_time), number(1 / limit.ratio)])
    return _rows(cells)


def ratios(records: Sequence[Record], peers: Sequence[str], corner: str) -> list[str]:
    """Return a table of ratios, with a row for each workload and a column for each peer."""
    cells = [[corner, *peers]]
    for name, group in _grouped(records).items():
        cells.append([name, *(_brief(record) if record else "" for record in _in_order(group, peers))])
    return _rows(cells)


def details(records: Sequence[Record]) -> list[str]:
    """Return a table of all measurements for each workload."""
    lines: list[str] = []
    for name, group in _grouped(records).items():
        cells = [["", "first call", "later calls", "processor time", "peak memory", "shmarray is faster by"]]
        for record in group:
            times = [seconds(value) for value in (record.first_time, record.time, record.cpu)]
            ratio = "" if record.peer in _OWN else _brief(record)
            cells.append([record.peer, *times, _megabytes(record.peak), ratio])
        notes = [f"{record.peer}: {record.note}" for record in group if record.note]
        lines += [f"**{name}**", "", *_rows(cells), "", *([f"({'; '.join(notes)}.)", ""] if notes else [])]
    return lines[:-1]


def growth(records: Sequence[Record], corner: str) -> list[str]:
    """Return a table of times of later calls, with a row for each position and a column for each peer."""
    peers = list(dict.fromkeys(record.peer for record in records))
    cells = [[corner, *peers]]
    for name, group in _grouped(records).items():
        cells.append([name, *(_time(record) if record else "" for record in _in_order(group, peers))])
    return _rows(cells)


def named(records: Sequence[Record]) -> list[str]:
    """Return a table with a row for each workload: the times, and how many times as fast we were."""
    peers = list(dict.fromkeys(record.peer for record in records))
    cells = [["", *peers, *(f"faster than {peer}" for peer in peers[1:])]]
    for name, group in _grouped(records).items():
        found = _in_order(group, peers)
        times = [_time(record) if record else "" for record in found]
        cells.append([name, *times, *(_brief(record) if record else "" for record in found[1:])])
    return _rows(cells)


def _grouped(records: Iterable[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.workload, []).append(record)
    return groups


def _in_order(group: Sequence[Record], peers: Sequence[str]) -> list[Record | None]:
    by_peer = {record.peer: record for record in group}
    return [by_peer.get(peer) for peer in peers]


def _against(records: Sequence[Record], peer: str) -> list[tuple[str, Record]]:
    return [(record.workload, record) for record in records if record.peer == peer]


def _rows(cells: Sequence[Sequence[str]]) -> list[str]:
    rows = [f"| {' | '.join(row)} |" for row in cells]
    return [rows[0], "|" + "---|" * len(cells[0]), *rows[1:]]


def _time(record: Record) -> str:
    return seconds(record.time or record.first_time) if record.first_time else _why_not(record.note)


def _brief(record: Record) -> str:
    return number(record.ratio) if record.ratio else _why_not(record.note)


def _why_not(note: str) -> str:
    """Return a word or two to put in place of a figure."""
    words = {
        "read-only": "refuses",
        "minutes": "minutes",
        "pip install": "not installed",
        "some ": "too slow",
        "more than": "too slow",
    }
    return next((word for sign, word in words.items() if sign in note), "fails" if note else "-")


def _machine(results: Results) -> str:
    here = results.machine
    memory = f"{here['memory'] / (1 << 30):.0f} GB"
    return f"{here['cores']} cores ({here['processor']}), {memory}, {here['system']}"


def _short(results: Results, name: str) -> str:
    """Return the first two numbers of a version."""
    return ".".join(results.versions[name].split(".")[:2])
