"""The command as a process of its own, and processes that hold arrays for it to find."""

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
    """Run it to its end; stdin is no terminal."""
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


# The first terminal that the leader of a session opens is the one whose Ctrl-C reaches it.
_TAKE_TERMINAL = "import os, sys; os.close(os.open(os.ttyname(0), os.O_RDWR)); os.execv(sys.argv[1], sys.argv[1:])"


@contextmanager
def on_a_terminal(*arguments):
    """Start it with a terminal; gives the process and the terminal's other end."""
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
    """What the terminal shows up to a text; all of it if it never comes."""
    seen = b""
    while text.encode() not in seen:
        try:
            more = os.read(fd, 4096)
        except OSError:  # EIO: the process is gone
            break
        if not more:
            break
        seen += more
    return seen.decode()


def press(key, process, terminal):
    """Press a key until the process ends; a Ctrl-C between Python's prompt and its read is seen with the next key."""
    while process.poll() is None:
        os.write(terminal, key)
        with suppress(subprocess.TimeoutExpired):
            process.wait(1)
    return process.returncode


@contextmanager
def held(name, *modes):
    """Another process that has an array mapped."""
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
