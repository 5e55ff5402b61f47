"""The guide for MPI runs, under mpiexec with several ranks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import processes

GUIDE = Path(processes.ROOT) / "docs" / "mpi.md"
RANKS = 4


def _why_not():
    if shutil.which("mpiexec") is None:
        return "needs mpiexec"
    probe = [sys.executable, "-c", "from mpi4py import MPI"]
    found = subprocess.run(probe, capture_output=True, text=True, check=False)
    return "" if found.returncode == 0 else f"needs mpi4py: {found.stderr.splitlines()[-1]}"


_reason = _why_not()


@pytest.mark.skipif(bool(_reason), reason=_reason)
def test_the_guide_runs_with_several_ranks(tmp_path):
    code = GUIDE.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 22
    program = tmp_path / "program.py"
    program.write_text(code, encoding="utf-8")
    # Open MPI must be told that it may run as root, and may start more ranks than there are cores.
    allowed = {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
    }
    done = subprocess.run(
        [shutil.which("mpiexec"), "-n", str(RANKS), sys.executable, str(program)],
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ | allowed | {"PYTHONPATH": processes.ROOT},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[    0. 10000. 20000.]"
