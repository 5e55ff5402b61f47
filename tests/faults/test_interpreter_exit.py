"""The interpreter ends with pools and arrays in any state: status and stderr are the program's own, nothing remains."""

import os
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from tests.helpers import raw
from tests.helpers.processes import ROOT, WARNINGS, wait_until

# Seconds that a program may take on a busy machine.
BOUND = 20

PROGRAM = """
import atexit, gc, itertools, os, sys, threading
import shmarray
from tests.helpers import workers
from tests.pool import tasks

NAME = {name!r}
KEPT = []  # a global, which is destroyed with the module


def pool(**options):
    KEPT.append(tasks.make("Pool", {method!r}, **options))
    return KEPT[-1]


def executor():
    KEPT.append(tasks.make("Executor", {method!r}))
    return KEPT[-1]


def in_thread(work, daemon=True):
    begun = threading.Event()
    threading.Thread(target=work, args=(begun,), daemon=daemon).start()
    assert begun.wait(10)


def main():
{body}
{end}


if __name__ == "__main__":
    main()
"""

# What is left, and whether it is a pool that was not closed: that causes a ResourceWarning, which
# Python hides by default.
POOLS = {
    "never used": ("pool()", True),
    "idle": ("assert pool().apply(abs, (-1,)) == 1", True),
    "idle and local": ("p = tasks.make('Pool', 'fork'); p.apply(abs, (-1,))", True),
    "closed": ("p = pool(); p.apply(abs, (-1,)); p.close()", False),
    "closed, with tasks": ("p = pool(); p.map_async(tasks.ones, [100_000] * 50, chunksize=1); p.close()", False),
    "terminated": ("p = pool(); p.apply(abs, (-1,)); p.terminate()", False),
    "running": ("pool().map_async(workers.wait_for_ever, range(8), chunksize=1)", True),
    "running, somebody waits": (
        "r = pool().apply_async(workers.wait_for_ever)\nin_thread(lambda begun: (begun.set(), r.get()))",
        True,
    ),
    "unfinished imap": ("KEPT.append(pool().imap(tasks.ones, [100_000] * 100)); next(KEPT[-1])", True),
    "endless imap": ("KEPT.append(pool().imap(tasks.ones, itertools.repeat(100_000))); next(KEPT[-1])", True),
    "results": ("KEPT.append(pool().map(tasks.ones, [100_000] * 3))", True),
    "results, pool closed": ("p = pool(); KEPT.append(p.map(tasks.ones, [100_000] * 3)); p.close(); p.join()", False),
    "results in a cycle": ("c = {'r': pool().map(tasks.ones, [100_000] * 3)}; c['c'] = c; sys.kept = c", True),
    "a daemon thread uses it": (
        "p = pool()\ndef use(begun):\n    while p.map(tasks.ones, [100_000] * 3): begun.set()\nin_thread(use)",
        True,
    ),
    "a thread uses it": (
        "p = pool()\n"
        "def use(begun):\n"
        "    begun.set()\n"
        "    for _ in range(3): p.map(tasks.ones, [100_000] * 3)\n"
        "    p.terminate()\n"
        "in_thread(use, daemon=False)",
        False,
    ),
    "atexit uses it": ("p = pool(); atexit.register(lambda: p.apply(abs, (-1,)))", True),
    "atexit closes it": ("p = pool(); p.apply(abs, (-1,)); atexit.register(lambda: (p.close(), p.join()))", False),
    "atexit terminates it": ("p = pool(); p.apply(abs, (-1,)); atexit.register(p.terminate)", False),
    "atexit makes one": (
        "def late():\n"
        "    try:\n"
        "        with pool() as p: assert p.apply(abs, (-1,)) == 1\n"
        "    except RuntimeError as error: assert 'at interpreter shutdown' in str(error)  # no fork since 3.12\n"
        "atexit.register(late)",
        False,
    ),
    "a forked child ends": (
        "p = pool(); r = p.apply_async(tasks.slow_double, (21,))\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    sys.exit(7)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\n"
        "assert r.get(20) == 42  # its worker is still running\n"
        "p.terminate()",
        False,
    ),
    "a forked child with its own ends": (
        "p = pool(); p.apply(abs, (-1,))\n"
        "for leave in (sys.exit, os._exit):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        with tasks.make('Pool', 'fork') as own: assert own.apply(abs, (-2,)) == 2\n"
        "        p._state = 'TERMINATE'  # so that the child does not warn about its parent's pool\n"
        "        leave(7)\n"
        "    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\n"
        "assert p.apply(abs, (-3,)) == 3\n"
        "p.terminate()",
        False,
    ),
}
EXECUTORS = {
    "never used": "executor()",
    "idle": "assert executor().submit(abs, -1).result() == 1",
    "with tasks": "e = executor(); KEPT.append([e.submit(tasks.ones, 100_000) for _ in range(20)])",
    "shut down, with tasks": (
        "e = executor()\nKEPT.append([e.submit(tasks.ones, 100_000) for _ in range(20)])\ne.shutdown(wait=False)"
    ),
    "garbage, with tasks": "for _ in range(5): tasks.make('Executor', 'fork').submit(tasks.ones, 100_000)",
    "a daemon thread uses it": (
        "e = executor()\n"
        "def use(begun):\n"
        "    try:\n"
        "        while list(e.map(tasks.ones, [100_000] * 3)): begun.set()\n"
        "    except RuntimeError: pass  # as in the stdlib, no new futures after shutdown\n"
        "in_thread(use)"
    ),
    "atexit uses it": (
        "e = executor(); e.submit(abs, -1).result()\n"
        "def late():\n"
        "    try: e.submit(abs, -1)\n"
        "    except RuntimeError: pass\n"
        "    else: print('it took a call', file=sys.stderr)\n"
        "atexit.register(late)"
    ),
    "a forked child ends": (
        "e = executor(); r = e.submit(tasks.slow_double, 21)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    sys.exit(7)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\n"
        "assert r.result(20) == 42\n"
        "e.shutdown()"
    ),
}
ARRAYS = {
    "a scope": "KEPT.append(shmarray.scoped(1000)); KEPT.append(KEPT[0].__enter__())",
    "a scope with a name": "KEPT.append(shmarray.scoped(1000, name=NAME)); KEPT.append(KEPT[0].__enter__())",
    "a scope in a generator": (
        "def frames():\n"
        "    with shmarray.scoped(1000, name=NAME) as array: yield array\n"
        "KEPT.append(frames()); next(KEPT[0])"
    ),
    "a scope in a daemon thread": (
        "def use(begun):\n"
        "    with shmarray.scoped(1000, name=NAME):\n"
        "        begun.set()\n"
        "        workers.wait_for_ever()\n"
        "in_thread(use)"
    ),
    "arrays and handles": (
        "KEPT.append(shmarray.create(NAME, 10)); KEPT.append(shmarray.SharedHandle(KEPT[0][2:])); shmarray.delete(NAME)"
    ),
    "a lock": (
        "KEPT.append(shmarray.scoped(3, name=NAME)); a = KEPT[0].__enter__()\n"
        "KEPT.append(shmarray.lock(a)); KEPT[1].__enter__()"
    ),
    "a daemon thread makes them": (
        "def use(begun):\n"
        "    while True:\n"
        "        with shmarray.scoped(100_000) as a, shmarray.lock(a): begun.set()\n"
        "in_thread(use)"
    ),
    "atexit makes one": (
        "def late():\n"
        "    with shmarray.scoped(10) as a, shmarray.scoped(10, name=NAME): a[0] = 1\n"
        "atexit.register(late)"
    ),
    "a scope in a pool": (
        "KEPT.append(shmarray.scoped(9)); a = KEPT[0].__enter__()\nassert pool().apply(len, (a,)) == 9"
    ),
}
ENDS = {
    "the last line": ("", 0, ""),
    "sys.exit(3)": ("sys.exit(3)", 3, ""),
    "an exception": ("raise ValueError('the last word')", 1, "ValueError: the last word"),
}
# Cases that may depend on the start method or on the way the program ends.
EVERY_METHOD = (
    "never used",
    "idle",
    "running",
    "endless imap",
    "with tasks",
    "shut down, with tasks",
    "a daemon thread",
)
EVERY_END = ("running", "unfinished imap", "with tasks", "a scope with a name", "a daemon thread")


def cases():
    found = []
    for kind, bodies in (("Pool", POOLS), ("Executor", EXECUTORS), ("array", ARRAYS)):
        for what, case in bodies.items():
            body, unclosed = case if isinstance(case, tuple) else (case, "pool()" in case)
            methods = (
                ("fork", "spawn", "forkserver") if kind != "array" and what.startswith(EVERY_METHOD) else ("fork",)
            )
            ends = ENDS if what.startswith(EVERY_END) else ("the last line",)
            ways = [(method, "the last line") for method in methods] + [("fork", end) for end in ends if end in ENDS][
                1:
            ]
            for method, end in ways:
                found.append(pytest.param(body, unclosed, method, end, id=f"{kind} {what}-{method}-{end}"))
    return found


def indented(text):
    return "\n".join(f"    {line}" for line in text.splitlines())


@pytest.mark.parametrize(("body", "unclosed", "method", "end"), cases())
def test_it_ends_as_the_program_says(body, unclosed, method, end, tmp_path, name):
    last, status, complaint = ENDS[end]
    script = tmp_path / "program.py"
    script.write_text(PROGRAM.format(name=name, method=method, body=indented(body), end=indented(last)))
    warnings = WARNINGS + (("-W", "ignore:unclosed running multiprocessing pool") if unclosed else ())
    start = time.monotonic()
    program = subprocess.Popen(
        [sys.executable, *warnings, str(script)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": ROOT},
        start_new_session=True,
    )
    try:
        _, stderr = program.communicate(timeout=BOUND)
        took = time.monotonic() - start
        wait_until(lambda: not exists(program.pid), BOUND)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(program.pid, 9)
        program.communicate()
    assert stderr.splitlines()[-1:] == ([complaint] if complaint else []), stderr
    assert stderr.count("Traceback") == (1 if complaint else 0), stderr
    assert program.returncode == status
    assert not raw.names(name)
    assert took < BOUND


def exists(group):
    """Return whether any process of that group exists."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


# --- programs that a new interpreter cannot import -----------------------------------------


GUARDLESS = """
import multiprocessing, shmarray
{define}
pool = shmarray.Pool(2, context=multiprocessing.get_context({method!r}))
try:
    print(pool.map({function}, [-1, 2]))
finally:
    pool.terminate()
"""
DEFINE = "def double(x): return x * 2"


def run_main(how, code, tmp_path):
    """Run a program as a file, from stdin, with -c, or typed in."""
    script = tmp_path / "program.py"
    script.write_text(code)
    arguments = {"file": [str(script)], "stdin": ["-"], "-c": ["-c", code], "typed": ["-i", "-q"]}[how]
    lines = "\n\n".join(code.splitlines()).replace("\n\n    ", "\n    ").replace("\n\nfinally", "\nfinally")
    return subprocess.run(
        [sys.executable, *arguments],
        input={"stdin": code, "typed": lines + "\n\n"}.get(how, ""),
        capture_output=True,
        text=True,
        timeout=BOUND,
        env=os.environ | {"PYTHONPATH": ROOT},
        check=False,
    )


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("how", ["-c", "typed"])
def test_functions_of_modules_work_in_a_program_without_a_file(how, method, tmp_path):
    done = run_main(how, GUARDLESS.format(define="", method=method, function="abs"), tmp_path)
    assert "[1, 2]" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("how", ["file", "stdin", "-c", "typed"])
def test_fork_runs_functions_of_any_main(how, tmp_path):
    done = run_main(how, GUARDLESS.format(define=DEFINE, method="fork", function="double"), tmp_path)
    assert "[-2, 4]" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_missing_main_guard_is_a_clear_error_and_not_a_loop(method, tmp_path):
    """multiprocessing.Pool would start workers for ever, and the call would never return."""
    done = run_main("file", GUARDLESS.format(define=DEFINE, method=method, function="double"), tmp_path)
    assert 'under `if __name__ == "__main__":`' in done.stderr


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("how", ["stdin", "-c", "typed"])
def test_functions_of_a_main_that_workers_cannot_import_go_by_value(how, method, tmp_path):
    done = run_main(how, GUARDLESS.format(define=DEFINE, method=method, function="double"), tmp_path)
    assert "[-2, 4]" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr
