"""The pictures: time over array size, memory, and how time grows with tasks and workers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.records import OUR_EXECUTOR, OURS, Record, Results

# Each peer has the same colour in all pictures.
_COLOURS = {
    OURS: "#c1121f",
    OUR_EXECUTOR: "#e5707a",
    "multiprocessing": "#1d3557",
    "concurrent.futures": "#5c86b8",
    "joblib": "#2a9d8f",
    "torch": "#e07a1f",
    "Ray": "#7b4fa6",
    "mpire": "#8d6e53",
    "dask": "#d9a404",
    "limit": "#888888",
}
_SIZE_NAMES = ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "kB"))


def draw(results: Results, folder: Path) -> list[Path]:
    """Write the pictures for which there are results; requires matplotlib."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "x"})
    drawn = []
    for name, picture, group in (("time", _time, "sizes"), ("memory", _memory, "maps"), ("growth", _growth, "tasks")):
        if any(record.peak is not None or picture is not _memory for record in results.of(group)):
            figure = picture(results)
            drawn.append(folder / f"{name}.png")
            figure.savefig(drawn[-1], dpi=110, bbox_inches="tight", metadata={"Software": None})
    return drawn


def _time(results: Results) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.4))
    axes = figure.subplots()
    records = results.of("sizes")
    _lines(axes, records, lambda record, seconds: 1e3 * seconds / record.count)
    ticks = sorted({record.at for record in records})
    axes.set_xticks(ticks, [_bytes(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("size of each array")
    axes.set_ylabel("milliseconds for each array")
    axes.set_title("x * 2 in a map over arrays, two workers: there and back", loc="left")
    return figure


def _growth(results: Results) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    tasks, workers = figure.subplots(1, 2)
    _lines(tasks, results.of("tasks"), lambda record, seconds: 1e6 * seconds / record.count, legend=False)
    tasks.set_xlabel("tiny tasks in a map, one by one")
    tasks.set_ylabel("microseconds for each task")
    records = results.of("workers")
    _lines(workers, records, lambda record, seconds: 1e3 * seconds)
    ticks = sorted({record.at for record in records})
    workers.set_xticks(ticks, list(map(str, ticks)))
    workers.minorticks_off()
    workers.set_xlabel(f"workers, on {results.machine['cores']} cores; large arrays, x * 2")
    workers.set_ylabel("milliseconds")
    return figure


def _lines(axes: Any, records: Sequence[Record], value: Any, *, legend: bool = True) -> None:
    for peer in dict.fromkeys(record.peer for record in records):
        mine = [record for record in records if record.peer == peer and record.first_time]
        points = [(record.at, value(record, record.time or record.first_time)) for record in mine]
        if points:
            style = {"linewidth": 2.6, "zorder": 3} if peer == OURS else {"linewidth": 1.4}
            style |= {"linestyle": ":"} if peer == "limit" else {"marker": "o", "markersize": 3.5}
            axes.loglog(*zip(*points, strict=True), color=_COLOURS[peer], label=peer, **style)
    axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)
    if legend:
        # In the order of the ends of the lines.
        ends = {line.get_label(): line.get_ydata()[-1] for line in axes.get_lines()}
        handles = sorted(axes.get_lines(), key=lambda line: -ends[line.get_label()])
        axes.legend(handles=handles, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _memory(results: Results) -> Any:
    from matplotlib.figure import Figure

    records = [record for record in results.of("maps") if record.peak is not None]
    names = list(dict.fromkeys(record.workload for record in records))
    figure = Figure(figsize=(9.5, 1.0 + 1.9 * -(-len(names) // 2)), layout="constrained")
    grid = figure.subplots(-(-len(names) // 2), 2, squeeze=False)
    for axes, name in zip(grid.flat, names, strict=False):
        _bars(axes, [record for record in records if record.workload == name])
        axes.set_title(name.replace("`", ""), loc="left", fontsize=9)
    for axes in list(grid.flat)[len(names) :]:
        axes.set_visible(False)
    figure.supxlabel(
        "MB of memory, all processes together; dark: before the call, the caller's arrays among it", fontsize=9
    )
    return figure


def _bars(axes: Any, records: Sequence[Record]) -> None:
    for row, record in enumerate(records):
        before, peak = record.before / 1e6, record.peak / 1e6
        axes.barh(row, peak, color=_COLOURS[record.peer], alpha=0.45)
        axes.barh(row, min(before, peak), color=_COLOURS[record.peer])
        axes.text(peak, row, f" {peak:.0f}", va="center", fontsize=8)
    axes.set_yticks(range(len(records)), [record.peer for record in records])
    axes.invert_yaxis()
    axes.margins(x=0.12)


def _bytes(nbytes: int) -> str:
    return next(f"{nbytes / unit:.0f} {name}" for unit, name in _SIZE_NAMES if nbytes >= unit)
