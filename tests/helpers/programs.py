"""Runs each program in a forked child of one interpreter that has already imported the slow modules.

``python programs.py a.py b.py ...`` writes ``a.py.out``, ``a.py.err`` and ``a.py.status`` beside each program.
The child behaves like ``python a.py``: `__main__` is the file (spawned workers import it again), and the
child ends as an interpreter does.
"""

import os
import runpy
import signal
import sys

import numpy  # noqa: F401 - importing numpy takes longer than most programs

import shmarray  # noqa: F401

LONGEST = 60  # seconds


def main(paths: list[str]) -> None:
    for path in paths:
        child = os.fork()
        if not child:
            _become(path)
            return
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with open(f"{path}.status", "w", encoding="ascii") as file:
            file.write(str(status))


def _become(path: str) -> None:
    signal.alarm(LONGEST)
    for descriptor, ending in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{path}.{ending}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
    os.chdir(os.path.dirname(path))
    sys.argv = [path]
    sys.path[0] = os.path.dirname(path)
    runpy.run_path(path, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
