"""Arguments, help, and which command; errors in one line."""

import errno
import re
import sys
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Sequence
from typing import Any

import shmarray
from shmarray.command import deleting, demo, doctor, inspecting, listing, selecting, wording
from shmarray.errors import ShmArrayError

# The library raises its own exceptions for full memory and missing arrays, so these errors
# concern the output.
_OF_THE_OUTPUT = (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF)

_AGE = re.compile(r"([0-9]+(?:\.[0-9]+)?)(s|min|h|d)")
_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}  # seconds

_DESCRIPTION = """\
List, inspect and delete the numpy arrays that processes share on this machine, and
find out what in this system will cause problems for them.
"""

_EPILOG = """\
examples:
  shmarray list --sort size         list the arrays, largest first
  shmarray info weights             show its header, statistics and processes
  shmarray delete --unused          delete those that no process maps, after confirmation
  shmarray delete 'run-7-*'         delete all that match, after confirmation
  shmarray doctor                   check this system; run it in each container
  shmarray demo                     see it work, in a few seconds

An array's name is the one passed to shmarray.create(): x and shm://x are the shared memory
object x, /dev/shm/x on Linux; file://PATH is a .npy file.

exit codes:
  0    success
  1    something failed, or will bite; stderr or the report says what
  2    invalid arguments, or confirmation is needed but there is no terminal
  130  after Ctrl-C; 141 after the reader of a pipe has closed it, as in a shell
"""

_LIST = """\
List the arrays in shared memory that you may read.  Anything else there is ignored.
Sizes are those of the data, in multiples of 1024.  An age is the time since the array was
created.  'processes' is the number of processes that have it mapped; only root also sees
those of other users.  'shmarray info' lists them.
"""

_LIST_EPILOG = """\
examples:
  shmarray list                       all, sorted by name
  shmarray list 'run-*' --sort age    the oldest first: what an old run left behind
  shmarray list --json | jq -r '.arrays[] | select(.processes == []) | .name'
                                      those that no process has mapped

--json gives sizes in bytes, times in seconds since the epoch, dtypes as in .npy headers.
"""

_INFO = """\
Show an array's header, statistics of its data, and the processes that have it mapped
(mode r+: shared and writable, r: read-only, c: private copy-on-write).  The array is
attached read-only and read in chunks.  NaNs are counted, but excluded from min, max and
mean.  A missing array is an error (exit code 1), but the others are still shown.
--json prints an object for one name and a list of objects for several.
"""

_INFO_EPILOG = """\
examples:
  shmarray info weights
  shmarray info weights labels
  shmarray info file://big.npy        a file that numpy.save wrote
  shmarray info --json weights | jq .statistics
"""

_DELETE = """\
Delete arrays by name.  Quote patterns, so that the shell does not expand them.  Processes
that have an array mapped keep it; its memory is freed when the last of them releases it.

If a pattern matches more than one array, the command asks for confirmation.  If stdin is
not a terminal, it then deletes nothing and exits with code 2, unless you pass --yes.  It
never asks about full names, and never deletes anything that is not an array.  A missing
array is an error (exit code 1), but the others are still deleted.

--unused and --older-than restrict the selection; given together, both must apply.  Without
a name they select from all arrays that you may read.  An unused array is one that no
process has mapped now.  It may be kept for later use, and processes in another container
that shares /dev/shm are never seen.  An array that may be mapped by processes that you may
not inspect does not count as unused.
"""

_DELETE_EPILOG = """\
examples:
  shmarray delete weights
  shmarray delete --dry-run 'run-*'   show what would be deleted
  shmarray delete --yes 'run-*'       for scripts
  shmarray delete --yes --unused --older-than 12h
                                      a cron job that cleans up leftovers
  shmarray delete -- -x               a name that begins with a hyphen

patterns: * matches anything, ? one character, [ab] one of these.  A pattern that is also
the name of an array means that array.
"""

_DOCTOR = """\
Check everything in this system that shared arrays depend on, and try it out.  Each line
says 'ok', 'note' (works, but could be better) or 'will bite' (programs will fail or lose
arrays); '>' marks what to do about it.  The exit code is 1 if anything will bite.
"""

_DEMO = """\
Share an array between two processes, and time shmarray.Pool against multiprocessing.Pool.
This takes a few seconds and about 600 MB of memory, and leaves nothing behind.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments, without the program name; by default those of this process.

    Returns
    -------
    int
        The exit code.

    Raises
    ------
    SystemExit
        After --help and --version (0), and for invalid arguments (2).
    OSError
        If the output cannot be written; BrokenPipeError if its reader is gone.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if "run" not in arguments:
        parser.print_help(sys.stderr)
        return 2
    try:
        return int(arguments.run(arguments))
    except ShmArrayError as error:
        return _failed(selecting.failure(error))
    except OSError as error:
        if error.errno in _OF_THE_OUTPUT:
            raise
        return _failed(wording.failure(error))


def _failed(text: str) -> int:
    print(f"shmarray: {text}", file=sys.stderr)
    return 1


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="shmarray", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"shmarray {shmarray.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(name: str, run: Any, summary: str, description: str, epilog: str | None = None) -> ArgumentParser:
        one = commands.add_parser(
            name, help=summary, description=description, epilog=epilog, formatter_class=RawDescriptionHelpFormatter
        )
        one.set_defaults(run=run)
        return one

    one = command("list", listing.run, "list the arrays in shared memory", _LIST, _LIST_EPILOG)
    one.add_argument("pattern", nargs="*", metavar="PATTERN", help="list only matching names, such as 'run-*'")
    one.add_argument(
        "--sort", choices=["name", "size", "age"], default="name", help="size: largest first; age: oldest first"
    )
    _add_json(one)

    one = command("info", inspecting.run, "show header, statistics and users of arrays", _INFO, _INFO_EPILOG)
    one.add_argument("names", nargs="+", metavar="NAME")
    one.add_argument("--no-statistics", action="store_true", help="do not read the data")
    _add_json(one)

    one = command("delete", deleting.run, "delete arrays", _DELETE, _DELETE_EPILOG)
    one.add_argument("names", nargs="*", metavar="NAME", help="a name, or a pattern such as 'run-*'")
    one.add_argument("--unused", action="store_true", help="only arrays that no process has mapped")
    one.add_argument(
        "--older-than", type=_age, metavar="AGE", help="only arrays at least this old: 90s, 30min, 12h, 7d"
    )
    one.set_defaults(misused=one.error)
    one.add_argument("-y", "--yes", action="store_true", help="do not ask")
    one.add_argument("-n", "--dry-run", action="store_true", help="only show what would be deleted")

    one = command("doctor", doctor.run, "check this system for limits that will cause problems", _DOCTOR)
    _add_json(one)

    command("demo", demo.run, "see it work, in a few seconds", _DEMO)
    return parser


def _age(text: str) -> float:
    found = _AGE.fullmatch(text)
    if found is None:
        raise ArgumentTypeError(f"invalid age {text!r}: give a number and s, min, h or d, as in 12h")
    return float(found[1]) * _UNITS[found[2]]


def _add_json(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
