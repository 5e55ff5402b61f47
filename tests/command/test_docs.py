"""The page about the command line shows what the commands really print."""

import os
import re
import subprocess
import sys
from itertools import zip_longest

from tests.command.running import ENVIRONMENT
from tests.core.test_space import UNSHARE, needs_mount
from tests.helpers.processes import ROOT

with open(os.path.join(ROOT, "docs", "command-line.md"), encoding="utf-8") as page:
    BLOCKS = re.findall(r"^```console\n(.*?)^```", page.read(), re.DOTALL | re.MULTILINE)

# A separate shared memory that contains only the page's arrays.
SHELL = (
    'mount -t tmpfs -o size=$1 tmpfs /dev/shm; shmarray() { "$PYTHON" -m shmarray "$@"; }; '
    'python3() { "$PYTHON" "$@"; }; '
)


def said(text):
    """Return the lines without what differs between runs and machines: numbers, the owner and column widths."""
    text = re.sub(r"\b\d[\d.,:-]*( ?(B|KiB|MiB|GiB|s|min)\b)?", "#", text.replace("root", "OWNER"))
    text = re.sub(r"^  created .*\n", "", text, flags=re.MULTILINE)  # missing in tmpfs of old kernels
    return re.sub(r" +", " ", text).splitlines()


def printed(script, size):
    done = subprocess.run(
        [UNSHARE, "-m", "/bin/sh", "-c", SHELL + script, "sh", size],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=ENVIRONMENT | {"PYTHON": sys.executable},
    )
    assert done.stderr == ""
    return done.stdout


def commands(block):
    return "\n".join(line[2:] for line in block.splitlines() if line.startswith("$ "))


def outputs(block):
    return "".join(line for line in block.splitlines(keepends=True) if not line.startswith("$ "))


@needs_mount
def test_the_commands_print_what_the_page_shows():
    """The commands run in order, because later ones use the results of earlier ones."""
    blocks = [block for block in BLOCKS if "doctor" not in block]
    shown = said("".join(map(outputs, blocks)))
    found = said(printed("\n".join(map(commands, blocks)), "1000m").replace(_me(), "OWNER"))
    for one, other in zip_longest(found, shown):
        assert one == other


def _me():
    return subprocess.run(["/usr/bin/id", "-un"], capture_output=True, text=True, check=True).stdout.strip()


@needs_mount
def test_the_doctor_says_what_the_page_shows():
    (block,) = (block for block in BLOCKS if "doctor" in block)
    shown, found = said(outputs(block)), said(printed(commands(block), "64m"))
    assert found[:5] == shown[:5]
