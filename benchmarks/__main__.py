"""The command: takes measurements, prints them as it goes, and writes the results.

python -m benchmarks                 everything
python -m benchmarks --quick         a little of everything
python -m benchmarks --write         also update the numbers and pictures in the documents
python -m benchmarks --from FILE --write      only that, from the results.json of an earlier run
"""

import argparse
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks import measure, named, peers, plots, processes, report
from benchmarks.records import Record, Results
from benchmarks.workloads import FULL, QUICK, SMALLEST, Scale, table

ROOT = Path(__file__).parent.parent
SCALES = {scale.name: scale for scale in (FULL, QUICK, SMALLEST)}


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if options.source:
        results = Results.from_json(json.loads(options.source.read_text(encoding="utf-8")))
    else:
        results = _measure(options)
    options.folder.mkdir(parents=True, exist_ok=True)
    _write(results, options.folder, options.folder)
    if options.write:
        _write(results, ROOT / "benchmarks", ROOT / "docs" / "pictures")
        report.update(ROOT / "README.md", report.readme(results))
        report.update(ROOT / "benchmarks" / "README.md", report.benchmarks_page(results))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", choices=SCALES, default="full", help="how much to measure")
    parser.add_argument("--quick", action="store_const", const="quick", dest="scale", help="a little: --scale quick")
    parser.add_argument("--rounds", type=int, help="number of rounds in which all peers take turns")
    parser.add_argument("--only", default="", metavar="TEXT", help="only groups and workloads with this in their name")
    parser.add_argument("--peers", nargs="+", metavar="PEER", help="only these peers, shmarray and the limit")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "benchmarks", help="where to write the results")
    parser.add_argument("--from", type=Path, dest="source", metavar="FILE", help="results of an earlier run")
    parser.add_argument("--write", action="store_true", help="update README.md, benchmarks/README.md and docs/pictures")
    return parser


def _measure(options: argparse.Namespace) -> Results:
    scale = SCALES[options.scale]
    if options.rounds:
        scale = replace(scale, rounds=options.rounds)
    results = Results(processes.machine(), peers.versions(), peers.missing(), scale.name, [])
    print(report.headline(results), flush=True)
    try:
        for records in _all(scale, options, results.missing):
            print(report.terminal(records), flush=True)
            results.records += records
    except KeyboardInterrupt:
        print("\ninterrupted: writing the results so far")
        options.write = False  # never update the documents with incomplete results
    return results


def _all(scale: Scale, options: argparse.Namespace, missing: dict[str, str]) -> Iterator[list[Record]]:
    for name, run in named.GROUPS.items():
        if options.only in name:
            yield from run(scale, missing)
    unwanted = {peer: "not asked for" for peer in peers.PEERS if options.peers and peer not in options.peers}
    for own in (*peers.OWN, "limit"):
        unwanted.pop(own, None)
    with measure.Stage(unwanted | missing) as stage:
        for work in table(scale):
            if options.only in f"{work.group} {work.name}":
                yield measure.run(work, stage, scale)


def _write(results: Results, folder: Path, pictures: Path) -> None:
    path = folder / "results.json"
    path.write_text(json.dumps(results.as_json(), indent=1) + "\n", encoding="utf-8")
    print(f"\n{path}")
    if importlib.util.find_spec("matplotlib") is None:
        print("no pictures: matplotlib is not installed (pip install matplotlib)")
        return
    for picture in plots.draw(results, pictures):
        print(picture)


if __name__ == "__main__":
    main()
