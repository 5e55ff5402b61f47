"""Every python block of the README runs as a program of its own, and prints what its comments say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
PRINTED = re.compile(r"^\s*print\(.*\)\s+# ([^:\n]*)", re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_block_runs_and_prints_what_it_says(block: str, tmp_path: Path) -> None:
    script = tmp_path / "block.py"  # spawn imports it again, so it must be a file
    script.write_text(block, encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == PRINTED.findall(block)


def test_there_are_blocks_and_they_print() -> None:
    assert len(BLOCKS) >= 2
    assert all(PRINTED.search(block) for block in BLOCKS)


def test_length() -> None:
    assert len(README.splitlines()) <= 250
