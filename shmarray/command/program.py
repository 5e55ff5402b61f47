"""The process around a command: closed pipes, Ctrl-C, terminals with a small character set, exit codes."""

import os
import signal
import sys
from contextlib import suppress

from shmarray.command.parser import main


def run() -> int:
    """The command ``shmarray``: use the arguments of this process and return its exit code."""
    # A child inherits an ignored SIGCHLD, as from a daemon, and then cannot see how its own children ended.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if sys.stdout is None:  # closed; this one fails as that would, when it is written to
        sys.stdout = open(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # None if it was closed, or a stand-in
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        status = _status()
        # Here, because at exit an error could neither be reported nor change the exit code.
        sys.stdout.flush()
    except KeyboardInterrupt:
        _silence()
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # As if SIGPIPE had ended this process.  The signal itself stays ignored, because of the pools' sockets.
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
    """Discard what is left in the buffer; otherwise the interpreter would report an error at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
