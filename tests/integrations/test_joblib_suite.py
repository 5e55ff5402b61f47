"""joblib's own tests of its backends pass with ours in place of its default."""

import os
import subprocess
import sys

import pytest

from tests.helpers import processes
from tests.pool.test_stdlib_suites import end_session

pytest.importorskip("joblib", reason="needs joblib")
from tests.integrations import joblib_suite

RUN_LIMIT = 110  # seconds, less than pytest's timeout
TESTS = ["joblib.test.test_parallel", "joblib.test.test_config"]


@pytest.mark.parametrize("part", [0, 1])
def test_joblibs_own_tests_pass_with_our_backend(tmp_path, part):
    command = [sys.executable, "-m", "pytest", "-p", "tests.integrations.joblib_suite", "-p", "no:cacheprovider"]
    options = ["-q", "-c", os.devnull, "--rootdir", str(tmp_path), "--timeout", "60", f"--part={part}"]
    # The tests expect as many BLAS threads as there are processors.
    env = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    env["PYTHONPATH"] = processes.ROOT
    with (tmp_path / "output").open("w+b") as output:
        channels = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
        with subprocess.Popen(
            [*command, *options, "--pyargs", *TESTS], cwd=tmp_path, env=env, start_new_session=True, **channels
        ) as run:
            try:
                status = run.wait(RUN_LIMIT)
            except subprocess.TimeoutExpired:
                run.kill()
                status = "too long"
        left_behind = end_session(run.pid)
        output.seek(0)
        text = output.read().decode(errors="replace")
    assert status == 0, text
    assert not left_behind


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, id=name.partition("[")[0], marks=pytest.mark.skip(reason=f"joblib's {name}: {reason}"))
        for name, reason in joblib_suite.NOT_RUN.items()
    ],
)
def test_left_out(name):
    """Do nothing: this only makes pytest's summary list each of them with its reason."""
