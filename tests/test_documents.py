"""The README and the documentation: every code block is run, and every public name is explained.

A ``python`` block is a complete program: it is run as a file, must print nothing to stderr, and must print what the
comments behind its prints say (up to ``: ``, or anything if the comment begins with ``e.g.``).  Blocks that are not
run are in another language, or have a comment with the reason on the line above::

    <!-- needs: torch -->               is run if torch can be imported
    <!-- not run: it takes an hour -->  is never run
"""

import contextlib
import fcntl
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import shmarray
from tests.helpers import processes, programs, raw

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(?:<!-- (needs|not run): (.*?) -->\n)?```(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
# Dask prints this on a busy machine if a worker takes long to end.
DASK_IS_SLOW = re.compile(r".*distributed\.nanny - WARNING - Worker process still alive after .* seconds, killing\n")
PRINTED = re.compile(r"^\s*print\(.*\)\s+# (.*)$", re.MULTILINE)
# Blocks in these languages are not run here; tests/command runs those for the shell.
OTHER_LANGUAGES = {"console", "sh", "text", "yaml", "toml"}


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    code: str
    marker: str | None
    reason: str

    @property
    def is_run(self) -> bool:
        if self.marker == "needs":
            return all(importlib.util.find_spec(module) for module in self.reason.split(", "))
        return self.language == "python" and self.marker is None

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, 1 + text.count("\n", 0, found.start(3)), found[3], found[4], found[1], found[2])
        for found in FENCE.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


@contextlib.contextmanager
def names_to_oneself():
    """Hold a lock, because the names in the blocks are not unique: only one run at a time on this machine."""
    directory = os.open(raw.SHM, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def run(blocks: list[Block], directory: Path) -> list[str]:
    """Run blocks in one interpreter; return what is wrong with them."""
    scripts = {block: directory / f"block_{block.line}" / "program.py" for block in blocks}
    for block, script in scripts.items():
        script.parent.mkdir()
        script.write_text(block.code, encoding="utf-8")
    with names_to_oneself():
        before = set(os.listdir(raw.SHM))
        subprocess.run(
            [sys.executable, "-X", "faulthandler", programs.__file__, *map(str, scripts.values())],
            timeout=100,
            env=os.environ | {"PYTHONPATH": processes.ROOT, "TQDM_DISABLE": "1"},  # progress bars go to stderr
            check=True,
        )
        left = {
            name for name in set(os.listdir(raw.SHM)) - before if any(f'"{name}"' in block.code for block in blocks)
        }
        for name in left:
            os.unlink(f"{raw.SHM}/{name}")
    wrong = [f"left in shared memory: {left}"] if left else []
    return wrong + [complaint for block, script in scripts.items() if (complaint := wrong_with(block, script))]


def wrong_with(block: Block, script: Path) -> str:
    status, out, err = (Path(f"{script}.{ending}").read_text(encoding="utf-8") for ending in ("status", "out", "err"))
    lines = [line.rstrip() for line in out.splitlines() if line.strip()]
    err = DASK_IS_SLOW.sub("", err)
    said = PRINTED.findall(block.code)
    if status != "0" or err:
        return f"{block.place} ended with {status}:\n{err}"
    if len(said) != len(lines) or not all(map(agree, said, lines)):
        return f"{block.place} prints {lines}, but says {said}"
    return ""


def agree(said: str, line: str) -> bool:
    return said.rstrip() == line or said.startswith((f"{line}: ", "e.g. "))


PAGES_THAT_RUN = [page for page in PAGES if any(block.is_run for block in blocks_of(page))]


@pytest.mark.parametrize("page", PAGES_THAT_RUN, ids=lambda page: page.name)
def test_blocks_run_and_print_what_they_say(page: Path, tmp_path: Path) -> None:
    wrong = run([block for block in blocks_of(page) if block.is_run], tmp_path)
    assert not wrong, "\n".join(wrong)


def test_every_block_is_run_or_says_why_not() -> None:
    dodging = [
        block.place
        for block in BLOCKS
        if not (block.language in OTHER_LANGUAGES or block.language.startswith("{"))
        and not (block.language == "python" and (block.marker is None or block.reason))
    ]
    assert dodging == []


def test_every_fence_is_recognized() -> None:
    for page in PAGES:
        assert len(re.findall("^ *```", page.read_text(encoding="utf-8"), re.MULTILINE)) == 2 * len(blocks_of(page))


def test_every_block_in_braces_is_a_known_directive() -> None:
    directives = {block.language.split()[0] for block in BLOCKS if block.language.startswith("{")}
    assert directives <= {"{eval-rst}", "{toctree}", "{include}"}


def test_the_readme_is_short_and_runs() -> None:
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= 250
    assert sum(block.is_run for block in blocks_of(PAGES[0])) >= 3


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_public_name_has_its_reference_entry() -> None:
    entries = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert {name for name in shmarray.__all__ if not re.search(rf"\bshmarray\.{name}\b", entries)} == set()


def test_examples_in_docstrings_run() -> None:
    with names_to_oneself():
        assert processes.run_script(DOCTESTS) == ""


DOCTESTS = """
import doctest, sys, shmarray
finder = doctest.DocTestFinder(recurse=False)
runner = doctest.DocTestRunner()
for name in shmarray.__all__:
    for test in finder.find(getattr(shmarray, name), name, module=False, globs={}):
        runner.run(test)
sys.exit(runner.failures)
"""
