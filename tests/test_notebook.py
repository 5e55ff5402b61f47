"""The example notebook, executed by a real Jupyter kernel; its cells compare their answers with serial ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import processes

pytest.importorskip("nbclient", reason="needs nbclient (the extra test)")
pytest.importorskip("ipykernel", reason="needs ipykernel (the extra test)")
pytest.importorskip("cloudpickle", reason="needs cloudpickle to send functions of cells")

EXAMPLE = Path(processes.ROOT) / "examples" / "notebook.ipynb"
# A kernel has threads, and since Python 3.12 a fork then warns.
SETTING = """
import multiprocessing, warnings
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
multiprocessing.set_start_method({!r})
import shmarray
"""


@pytest.fixture
def execute(tmp_path):
    def execute(*codes):
        """Run cells in a new kernel; return what they printed to both streams, and the error that ended them."""
        done = subprocess.run(
            [sys.executable, "-m", "tests.helpers.notebooks"],
            input=json.dumps(codes),
            capture_output=True,
            text=True,
            timeout=110,
            cwd=processes.ROOT,
            # Ignore the user's kernels and settings.
            env=os.environ
            | {name: str(tmp_path) for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")}
            | {"PYTHONPATH": processes.ROOT, "JUPYTER_RUNTIME_DIR": str(tmp_path), "JUPYTER_PLATFORM_DIRS": "1"},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return execute


def codes_of_the_example():
    notebook = json.loads(EXAMPLE.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_example_runs_and_checks_its_answers(execute, start_method):
    result = execute(SETTING.format(start_method), *codes_of_the_example())
    assert (result["error"], result["stderr"]) == ("", "")
    assert result["stdout"].count("label ") == 4


def test_the_example_is_stored_without_outputs():
    cells = json.loads(EXAMPLE.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


def test_globals_of_an_initializer_are_seen_by_the_functions_of_later_cells(execute, start_method):
    result = execute(
        SETTING.format(start_method) + "state = None",
        "def init(value):\n    global state\n    state = value",
        "pools = [shmarray.Pool(1, init, (3,)), shmarray.ProcessPoolExecutor(1, None, init, (4,))]",
        "def read(x):\n    return state + x",
        "print([list(pool.map(read, [1, 2])) for pool in pools], state)",
        "pools[0].close(); pools[0].join(); pools[1].shutdown()",
    )
    assert result == {"stdout": "[[4, 5], [5, 6]] None\n", "stderr": "", "error": ""}


def test_an_error_in_a_task_names_the_function_of_the_cell(execute):
    result = execute(
        SETTING.format("spawn"),
        "def fail(x):\n    return 1 / x",
        "with shmarray.Pool(1) as pool:\n    pool.map(fail, [0])",
    )
    assert "ZeroDivisionError" in result["error"]
    assert "in fail" in result["error"]
