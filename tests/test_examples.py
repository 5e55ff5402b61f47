"""Every example runs in a new interpreter, without output on stderr, and leaves nothing in shared memory.

Each compares its answer with the serial one, and exits with a status other than 0 if they differ.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import processes, raw

EXAMPLES = Path(__file__).parent.parent / "examples"
# Two programs that wait for each other.
PAIRS = {"scan_producer.py": "scan_consumer.py"}
ALONE = sorted(set(EXAMPLES.glob("*.py")) - {EXAMPLES / name for pair in PAIRS.items() for name in pair})
# Large, and often missing where the other dependencies are installed.
NEEDS = {"group_by.py": "pandas"}


# Saves some seconds of the same work.
ARGUMENTS = {"sharpen_photo.py": ["--quick"]}


def start(path, *arguments):
    needed = NEEDS.get(path.name)
    if needed and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{path.name} needs {needed}")
    return subprocess.Popen(
        [sys.executable, str(path), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": processes.ROOT},
    )


def check(program):
    with program:
        out, err = program.communicate(timeout=100)
    assert (program.returncode, err) == (0, "")
    assert out


@pytest.mark.parametrize("path", ALONE, ids=lambda path: path.name)
def test_example_runs_and_checks_its_answer(path):
    check(start(path, *ARGUMENTS.get(path.name, ())))


@pytest.mark.parametrize("order", [1, -1], ids=["producer first", "consumer first"])
@pytest.mark.parametrize("pair", PAIRS.items(), ids=" ".join)
def test_unrelated_programs_work_together_in_any_order(pair, order, name):
    programs = [start(EXAMPLES / path, name) for path in pair[::order]]
    for program in programs:
        check(program)

    assert not raw.names(name)


def test_there_are_examples():
    assert len(ALONE) >= 3
