"""Child processes that are always reaped, and scripts in a new interpreter."""

import os
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from multiprocessing import Pipe

# All warnings are errors in scripts, except the one that any pool causes with the start method fork.
WARNINGS = ("-W", "error", "-W", "ignore:This process:DeprecationWarning")

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# Long enough for every child, but shorter than the time limit of a test.
LIFETIME = 60  # seconds


class Child:
    """A forked child that runs ``function(channel, *args)``; the end of the with-block kills and reaps it."""

    def __init__(self, function, *args):
        self.channel, other = Pipe()
        with warnings.catch_warnings():
            # pytest-xdist has a thread of its own; a forked child does not use it.
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            self.pid = os.fork()
        if not self.pid:
            self.channel.close()
            _run(other, function, args)
        other.close()
        self.status = None
        self.outcome = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()
        self.channel.close()

    def receive(self, timeout=30.0):
        """Return the child's next message."""
        assert self.channel.poll(timeout), "the child sent nothing"
        return self.channel.recv()

    def tell(self, message=None):
        self.channel.send(message)

    def peek(self):
        """Receive the result if it has arrived, and keep it; raise what the function raised."""
        self.outcome = self.receive(0)
        if self.outcome[0] == "raised":
            _raise(self.outcome[1])

    def result(self, timeout=30.0):
        """Return what the function returned; raise what it raised."""
        kind, value = self.outcome or self.receive(timeout)
        self.wait()
        if kind == "raised":
            _raise(value)
        return value

    def kill(self):
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def wait(self):
        if self.status is None:
            _, self.status = os.waitpid(self.pid, 0)
        return self.status


def _raise(error):
    if not isinstance(error, Exception):  # a KeyboardInterrupt raised here would end the whole run
        raise RuntimeError(f"the child ended with {error!r}") from error
    raise error


def _run(channel, function, args):
    signal.alarm(LIFETIME)
    try:
        try:
            outcome = ("returned", function(channel, *args))
        except BaseException as error:  # noqa: BLE001 - the parent raises it, whatever it is
            outcome = ("raised", error)
        channel.send(outcome)
    finally:
        os._exit(0)


def in_child(function, *args):
    """Call a function in a forked child; return what it returned, or raise what it raised."""
    with Child(lambda _: function(*args)) as child:
        return child.result()


def run_script(code, *args, timeout=60, status=0, stderr="", prefix=()):
    """Run code in a new interpreter, check its exit status and stderr, and return its stdout."""
    done = subprocess.run(
        [*prefix, sys.executable, "-X", "faulthandler", *WARNINGS, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": ROOT},
        check=False,
    )
    assert done.stderr == stderr
    assert done.returncode == status, done.stdout
    return done.stdout


def wait_until(condition, seconds=20.0):
    """Wait until the condition is true; raise AssertionError after the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.001)


def children(pid="self"):
    """Return the process ids of a process's children, including zombies."""
    found = set()
    for thread in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                found.update(map(int, file.read().split()))
        except (FileNotFoundError, ProcessLookupError):
            continue  # the thread has ended
    return found


def runs(pid):
    """Return whether a process exists and is not a zombie."""
    with suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    return False
