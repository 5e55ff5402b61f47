"""The process around a command: pipes that close, Ctrl-C, terminals of little alphabet, exit codes."""

import os
import signal
import sys
from contextlib import suppress

from shmarray.command.parser import main


def run() -> int:
    """The command ``shmarray``: the arguments of this process, and its exit code."""
    # A parent that ignores it, a daemon, hands that down: then nobody learns how a child ended.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # None if it was closed, or a stand-in
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        status = _status()
        # Here, not at exit: there an error could be neither told nor be an exit code.
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        _silence()
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # As if SIGPIPE had ended us.  Not by letting it: the sockets of pools must not.
        _silence()
        return 128 + signal.SIGPIPE
    except OSError as error:
        _silence()
        print(f"shmarray: the output cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    return status


def _status() -> int:
    try:
        return main()
    except SystemExit as end:  # argparse, after --help and after errors
        return end.code if isinstance(end.code, int) else 0


def _silence() -> None:
    """What is still in the buffer goes nowhere, or the interpreter would complain at exit."""
    if sys.stdout is not None:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
