"""Runs the command in its own process, and processes that hold arrays for it to find."""

import os
import pty
import subprocess
import sys
from contextlib import contextmanager, suppress

import shmarray
from tests.helpers.processes import ROOT, Child

COMMAND = [sys.executable, "-W", "error", "-m", "shmarray"]
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "COLUMNS"} | {"PYTHONPATH": ROOT}


def run(*arguments, prefix=(), env=(), **options):
    """Run the command to its end; its stdin is not a terminal."""
    return subprocess.run(
        [*prefix, *COMMAND, *arguments],
        capture_output="stdout" not in options,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
        env=ENVIRONMENT | dict(env),
        **options,
    )


# Ctrl-C reaches a session through the first terminal that its leader opens.
_TAKE_TERMINAL = "import os, sys; os.close(os.open(os.ttyname(0), os.O_RDWR)); os.execv(sys.argv[1], sys.argv[1:])"


@contextmanager
def on_a_terminal(*arguments):
    """Start the command on a terminal; return the process and the other end of the terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _TAKE_TERMINAL, *COMMAND, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=ENVIRONMENT,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield process, ours
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read_until(fd, text):
    """Return what the terminal shows up to and including a text, or everything if the text never appears."""
    seen = b""
    while text.encode() not in seen:
        try:
            more = os.read(fd, 4096)
        except OSError:  # EIO: the process has ended
            break
        if not more:
            break
        seen += more
    return seen.decode()


def press(key, process, terminal):
    """Press a key until the process ends: Python may notice a Ctrl-C just before a read only with the next key."""
    while process.poll() is None:
        os.write(terminal, key)
        with suppress(subprocess.TimeoutExpired):
            process.wait(1)
    return process.returncode


@contextmanager
def held(name, *modes):
    """A context with another process that has an array mapped."""
    with Child(_hold, name, modes) as child:
        assert child.receive() == "mapped"
        yield child
        child.tell()
        child.result()


def _hold(channel, name, modes):
    arrays = [shmarray.attach(name, mode) for mode in modes]
    channel.send("mapped")
    channel.recv()
    del arrays
