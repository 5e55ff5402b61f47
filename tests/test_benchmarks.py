"""The benchmarks run at the smallest scale, with the peers that are always installed; their timings are not checked."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import shmarray
from benchmarks import __main__ as command
from benchmarks import constants, measure, named, peers, processes, report
from benchmarks.host import Host, PeerError
from benchmarks.records import Record, Results
from benchmarks.workloads import BY_HAND, SMALLEST, Workload, double, table

ROOT = Path(__file__).parent.parent
ALWAYS_THERE = {"shmarray", "shmarray executor", "multiprocessing", "concurrent.futures", "limit", BY_HAND}


@pytest.fixture(scope="module")
def records():
    """Records of the smallest run."""
    found = [record for run in named.GROUPS.values() for group in run(SMALLEST, peers.missing()) for record in group]
    with measure.Stage({peer: "pip install it" for peer in peers.PEERS if peer not in ALWAYS_THERE}) as stage:
        for work in table(SMALLEST):
            found += measure.run(work, stage, SMALLEST)
    return found


@pytest.fixture(scope="module")
def results(records):
    return Results(processes.machine(), peers.versions(), peers.missing(), SMALLEST.name, records)


def test_every_installed_peer_has_timings_or_a_reason(records):
    without = [record for record in records if not (record.first and any(record.later))]
    assert [record for record in without if not record.note] == []
    silent = [record for record in without if record.peer in ALWAYS_THERE]
    assert {record.note for record in silent if "needs" not in record.note} <= {
        "pickles the array for each task: minutes"
    }


def test_every_group_is_measured(records):
    groups = {"latencies", "copies", "maps", "executor", "sizes", "tasks", "workers"}
    assert {record.group for record in records if record.time} == groups


def test_memory_is_that_of_all_processes_together(records):
    watched = [record for record in records if record.peak]
    assert watched
    assert all(5e6 < record.peak < 5e9 and record.before for record in watched)


def test_results_come_back_from_their_file(results):
    assert Results.from_json(json.loads(json.dumps(results.as_json()))) == results


def test_the_documents_have_a_place_for_every_table(results, tmp_path):
    for page, blocks in (
        ("README.md", report.readme(results)),
        ("benchmarks/README.md", report.benchmarks_page(results)),
    ):
        copy = tmp_path / Path(page).name
        shutil.copy(ROOT / page, copy)
        report.update(copy, blocks)
        text = copy.read_text(encoding="utf-8")
        assert all("\n".join(lines) in text for lines in blocks.values())
        report.update(copy, blocks)
        assert copy.read_text(encoding="utf-8") == text


def test_the_terminal_shows_every_peer(results):
    group = results.of("executor")
    text = report.terminal(group)
    assert all(record.peer in text for record in group)


@pytest.mark.skipif(not importlib.util.find_spec("matplotlib"), reason="the pictures need matplotlib")
def test_pictures_are_drawn(results, tmp_path):
    source = tmp_path / "before.json"
    source.write_text(json.dumps(results.as_json()), encoding="utf-8")
    # In a separate process, because matplotlib keeps its font files open.
    arguments = ["-m", "benchmarks", "--from", str(source), "--folder", str(tmp_path)]
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True, timeout=60)
    assert {path.name for path in tmp_path.glob("*.png")} == {"time.png", "memory.png", "growth.png"}


def test_ratios_compare_runs_of_the_same_round():
    ours, theirs = (
        Record("g", "w", peer, later=later) for peer, later in (("a", [1.0, 2.0, 4.0]), ("b", [2.0, None, 4.0]))
    )
    theirs.compare(ours)
    assert theirs.ratio == 1.5


def wrong(x):
    """Return a different result in each process, so the workers' results differ from the caller's."""
    return float(id(wrong) + processes.os.getpid())


def test_a_peer_that_fails_is_recorded_and_others_continue():
    work = Workload("maps", "wrong", wrong, table(SMALLEST)[0].make, ["multiprocessing"])
    fine = Workload("maps", "fine", double, work.make, ["shmarray", "multiprocessing"])
    with measure.Stage({}) as stage:
        assert [record.note for record in measure.run(work, stage, SMALLEST)] == ["ValueError: the results are wrong"]
        assert all(record.time for record in measure.run(fine, stage, SMALLEST))


def test_a_host_process_that_dies_is_an_error_of_its_peer():
    host = Host("multiprocessing")
    try:
        processes.kill_tree(host.pid)
        with pytest.raises(PeerError, match="died"):
            host.load(table(SMALLEST)[0])
    finally:
        host.close()


@pytest.mark.parametrize("constant", constants.constants(), ids=lambda constant: constant.name)
def test_constants_exist_and_their_comments_name_the_benchmark(constant):
    before = [getattr(place, name) for place, name in constant.places]
    with constants.set_to(constant.places, "other"):
        assert {getattr(place, name) for place, name in constant.places} == {"other"}
    assert [getattr(place, name) for place, name in constant.places] == before
    sources = [path.read_text(encoding="utf-8") for path in Path(shmarray.__file__).parent.rglob("*.py")]
    assert any(f"benchmarks/constants.py: {constant.name}" in source for source in sources)


def test_constants_are_measured(capsys):
    small = constants.constants()[0]
    first = constants.Constant(small.name, small.question, small.places, small.columns, small.rows[:1])
    constants.show(first, 1)
    assert first.rows[0].name in capsys.readouterr().out


def test_the_command_writes_what_it_measured(tmp_path, capsys):
    command.main(["--scale", "smallest", "--only", "latencies", "--folder", str(tmp_path)])
    written = Results.from_json(json.loads((tmp_path / "results.json").read_text(encoding="utf-8")))
    assert {record.group for record in written.records} == {"latencies"}
    assert "attach" in capsys.readouterr().out
