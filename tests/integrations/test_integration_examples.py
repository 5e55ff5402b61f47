"""Every example for other libraries runs without output on stderr; each compares its answer with a serial one."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import processes

EXAMPLES = Path(processes.ROOT) / "examples" / "integrations"
NEEDS = {
    "asyncio_server.py": ("scipy", "sklearn"),
    "dask_blocks.py": ("dask", "sklearn"),
    "emcee_line.py": ("emcee", "sklearn"),
    "scikit_learn.py": ("joblib", "sklearn"),
    "scipy_fit.py": ("scipy", "sklearn"),
}


def test_the_requirements_of_each_example_are_known():
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted(NEEDS)


@pytest.mark.parametrize("name", NEEDS)
def test_example_runs_and_checks_its_answer(name):
    missing = [needed for needed in NEEDS[name] if importlib.util.find_spec(needed) is None]
    if missing:
        pytest.skip(f"{name} needs {', '.join(missing)}")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ | {"PYTHONPATH": processes.ROOT},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
