"""What a type checker reports about uses of the public names.

Each ``*_accepted.py`` here must pass ``mypy --strict``; each ``*_refused.py`` must have exactly
the errors that comments of the form ``# error: code`` at the ends of lines state.
"""

import json
import os
import re
import site
import subprocess
import sys
from pathlib import Path

import pytest

import shmarray

pytest.importorskip("mypy", reason="needs mypy (the extra check)")

HERE = Path(__file__).parent
FILES = sorted([*HERE.glob("*_accepted.py"), *HERE.glob("*_refused.py")])
EXPECTED = re.compile(r"# error: ([a-z-]+)$")


def reported(files, cache):
    """Return mypy's errors in the files: name, line and code."""
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={cache}", "--output=json"]
    run = subprocess.run(
        [*command, *map(str, files)],
        cwd=HERE.parent.parent,
        env=os.environ | _where_the_package_is(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode in (0, 1), run.stdout + run.stderr
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    errors = {(Path(line["file"]).name, line["line"], line["code"]) for line in lines if line["severity"] == "error"}
    return {error for error in errors if error[0] in {path.name for path in files}}


def _where_the_package_is():
    root = str(Path(shmarray.__file__).parent.parent)
    # mypy finds installed packages itself, and refuses to have their directory named.
    return {} if root in site.getsitepackages() else {"MYPYPATH": root}


def expected(path):
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if found := EXPECTED.search(line):
            yield path.name, number, found[1]


def test_mypy_says_what_the_files_say(tmp_path):
    """All files in one test, because nearly all of the time is spent on numpy's stubs."""
    assert reported(FILES, tmp_path) == {error for path in FILES for error in expected(path)}


def test_expected_errors_are_found():
    """If the pattern found nothing, every refused file would count as an accepted one."""
    for path in FILES:
        assert any(expected(path)) == path.name.endswith("_refused.py"), path
