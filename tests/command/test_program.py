"""The command as a process: help, exit codes, pipes and Ctrl-C."""

import os
import signal
import subprocess
import sys

import pytest

import shmarray
from shmarray.command import main
from tests.command.running import COMMAND, ENVIRONMENT, run
from tests.helpers import raw
from tests.helpers.processes import run_script, wait_until


def test_the_help_explains_the_commands():
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("list", "info", "delete", "doctor", "demo", "examples:", "exit codes:"):
        assert word in done.stdout


@pytest.mark.parametrize("command", [[], ["list"], ["info"], ["delete"], ["doctor"], ["demo"]], ids=str)
def test_help_fits_a_terminal(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 92


def test_version():
    assert run("--version").stdout == f"shmarray {shmarray.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["info"], ["list", "--sort", "colour"], ["delete"]])
def test_invalid_arguments_exit_with_2(arguments, capsys):
    try:
        status = main(arguments)
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.startswith("usage: shmarray")


def test_an_error_is_one_line(name):
    done = run("info", name)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1


def test_the_script_is_the_same_command():
    code = "import sys; from shmarray.command import run; sys.argv = ['shmarray', '--version']; sys.exit(run())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert done.stdout == f"shmarray {shmarray.__version__}\n"


# --- where the output goes -----------------------------------------------------------


def reader_gone(*arguments):
    """Run the command with a stdout that has no reader."""
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        return run(*arguments, stdout=theirs, stderr=subprocess.PIPE)
    finally:
        os.close(theirs)


@pytest.mark.parametrize(
    "arguments", [["list"], ["list", "--json"], ["--help"], ["list", "--help"], ["doctor"]], ids=" ".join
)
def test_a_closed_pipe_causes_no_traceback(arguments):
    done = reader_gone(*arguments)
    assert done.stderr == ""
    assert done.returncode in ((0, 141) if "--help" in arguments else (141,))  # argparse may ignore the error


def test_into_head(name):
    many = [(f"field{number}", "f4") for number in range(300)]  # more text than a pipe buffer holds
    with shmarray.scoped(3, many, name=name):
        done = subprocess.run(
            ["/bin/sh", "-c", f"{' '.join(COMMAND)} info --json {name} | head -n 1"],
            capture_output=True,
            text=True,
            check=True,
            env=ENVIRONMENT,
        )
    assert done.stdout.splitlines()[0] == "{"
    assert done.stderr == ""


def test_a_full_disk_is_reported_once():
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = run("list", stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (1, "shmarray: the output cannot be written: No space left on device\n")


@pytest.mark.parametrize("command", ["list", "info", "delete", "doctor", "list --json", "--version", "--help"])
def test_no_stdout_at_all(command, name):
    shmarray.create(name, 3)
    command = f"{command} {name}" if command in ("info", "delete") else command
    shell = ["/bin/sh", "-c", f"{' '.join(COMMAND)} {command} >&-"]
    done = subprocess.run(shell, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (1, "shmarray: the output cannot be written: Bad file descriptor\n")
    assert bool(raw.names(name)) == ("delete" not in command)


def test_an_error_needs_no_stdout(name):
    shell = ["/bin/sh", "-c", f"{' '.join(COMMAND)} info {name} >&-"]
    done = subprocess.run(shell, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "there is no shared array" in done.stderr


def test_a_terminal_that_supports_only_ascii(shm_name):
    name = shm_name("-日本")
    with shmarray.scoped(3, name=name):
        done = run("list", name, env={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "-\\u65e5\\u672c" in done.stdout


# --- doctor and demo, interrupted and not --------------------------------------------


def test_demo():
    done = run("demo")
    assert (done.returncode, done.stderr) == (0, "")
    assert "[ 8.  9. 10. 11.]" in done.stdout
    assert "times as fast" in done.stdout


def test_ctrl_c_is_delayed_whichever_thread_receives_the_signal():
    run_script("""
import signal, threading
from shmarray.command.interrupts import undisturbed
end = threading.Event()
thread = threading.Thread(target=end.wait)  # like numpy's threads, it blocks no signal
thread.start()
steps = []
try:
    with undisturbed():
        signal.pthread_kill(thread.ident, signal.SIGINT)
        end.set()
        thread.join()
        steps.append("inside")
    steps.append("after")
except KeyboardInterrupt:
    steps.append("interrupted")
assert steps == ["inside", "interrupted"], steps
""")


def test_ctrl_c_ends_it_quietly_with_130_and_leaves_nothing():
    process = subprocess.Popen(
        [*COMMAND, "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
    )
    with process:
        try:
            for line in process.stdout:
                if "A pool" in line:
                    break
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers receive it too
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, err) == (130, "")
    wait_until(lambda: not raw.names(f"demo-{process.pid}"))
