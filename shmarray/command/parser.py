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

# Of full memory and missing arrays the library tells by classes of its own, so these are
# about what was printed.
_OF_THE_OUTPUT = (errno.EPIPE, errno.ENOSPC, errno.EIO)

_AGE = re.compile(r"([0-9]+(?:\.[0-9]+)?)(s|min|h|d)")
_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}  # seconds

_DESCRIPTION = """\
See, inspect and delete the numpy arrays that processes share on this machine, and
find out what of this system stands in their way.
"""

_EPILOG = """\
examples:
  shmarray list --sort size         what is there, the largest first
  shmarray info weights             one array: header, statistics, who has it mapped
  shmarray delete --unused          those that no process has mapped, after a question
  shmarray delete 'run-7-*'         all that match, after a question
  shmarray doctor                   will this system cause trouble? run it in each container
  shmarray demo                     see it work, in seconds

An array's name is that given to shmarray.create(): x and shm://x are the shared memory
object x, /dev/shm/x on Linux; file://PATH is a .npy file.

exit codes:
  0  all is well
  1  something could not be done, or will bite; stderr or the report says what
  2  the arguments make no sense, or a question would be needed and nobody can be asked
  130 after Ctrl-C, 141 after the reader of a pipe went away, as the shell counts
"""

_LIST = """\
List the arrays in shared memory that you may read.  Whatever else lies there is passed
over.  Sizes are those of the data, in units of 1024.  An age is the time since the array
was made.  'processes' counts those that have it mapped, those of other users only for root;
'shmarray info' names them.
"""

_LIST_EPILOG = """\
examples:
  shmarray list                       all, by name
  shmarray list 'run-*' --sort age    the oldest first: what an old run left behind
  shmarray list --json | jq -r '.arrays[] | select(.processes == []) | .name'
                                      those that nobody has mapped

--json: bytes, seconds since the epoch, dtypes as in .npy headers.
"""

_INFO = """\
Show what an array's header says, what its numbers are like, and which processes have it
mapped (mode r+: shared and writable, r: read-only, c: private copy-on-write).  It is
attached read-only and read in chunks.  NaNs are counted and left out of min, max and mean.
One that is not there is an error (exit code 1), and the others are shown nevertheless.
--json gives an object for one name, a list of them for several.
"""

_INFO_EPILOG = """\
examples:
  shmarray info weights
  shmarray info weights labels
  shmarray info file://big.npy        a file that numpy.save wrote
  shmarray info --json weights | jq .statistics
"""

_DELETE = """\
Delete arrays by name.  Quote patterns, so that the shell leaves them alone.  Processes
that have an array mapped keep it; its memory is free when the last of them lets go.

A pattern that matches more than one array is asked about.  Where nobody can be asked
(stdin is no terminal), nothing is deleted then and the exit code is 2, unless you say
--yes.  Names in full are never asked about.  What is no array is never deleted.  A name
that is not there is an error (exit code 1), and the others are deleted nevertheless.

--unused and --older-than leave the others alone; both together, what is both.  Without a
name they mean all that you may read.  'Unused' is what no process has mapped now; it may be
kept for later, and processes of another container that shares /dev/shm are never seen.
What others may have mapped whom you may not look into is not counted as unused.
"""

_DELETE_EPILOG = """\
examples:
  shmarray delete weights
  shmarray delete --dry-run 'run-*'   what would go
  shmarray delete --yes 'run-*'       in scripts
  shmarray delete --yes --unused --older-than 12h
                                      what was left behind: a job for cron
  shmarray delete -- -x               a name that begins with a hyphen

patterns: * anything, ? one character, [ab] one of these.  A pattern that is itself the
name of an array is that array.
"""

_DOCTOR = """\
Look at all that shared arrays depend on in this system, and try them out.  Each line says
'ok', 'note' (works, but could be better) or 'will bite' (programs will fail or lose
arrays); '>' is what to do about it.  Exit code 1 if anything will bite.
"""

_DEMO = """\
Share an array between two processes, and time shmarray.Pool against multiprocessing.Pool.
Takes a few seconds and some 600 MB; leaves nothing behind.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments, without the program's name; those of this process by default.

    Returns
    -------
    int
        The exit code.

    Raises
    ------
    SystemExit
        After --help and --version (0), and for arguments that make no sense (2).
    OSError
        If the output cannot be written; BrokenPipeError if nobody reads it any more.
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

    one = command("list", listing.run, "the arrays in shared memory", _LIST, _LIST_EPILOG)
    one.add_argument("pattern", nargs="*", metavar="PATTERN", help="only those whose name matches, such as 'run-*'")
    one.add_argument("--sort", choices=["name", "size", "age"], default="name", help="the largest or oldest first")
    _add_json(one)

    one = command("info", inspecting.run, "arrays: header, statistics, who has them mapped", _INFO, _INFO_EPILOG)
    one.add_argument("names", nargs="+", metavar="NAME")
    one.add_argument("--no-statistics", action="store_true", help="do not read the data")
    _add_json(one)

    one = command("delete", deleting.run, "delete arrays", _DELETE, _DELETE_EPILOG)
    one.add_argument("names", nargs="*", metavar="NAME", help="a name, or a pattern such as 'run-*'")
    one.add_argument("--unused", action="store_true", help="only those that no process has mapped")
    one.add_argument("--older-than", type=_age, metavar="AGE", help="only those made so long ago: 90s, 30min, 12h, 7d")
    one.set_defaults(misused=one.error)
    one.add_argument("-y", "--yes", action="store_true", help="do not ask")
    one.add_argument("-n", "--dry-run", action="store_true", help="only say what would be deleted")

    one = command("doctor", doctor.run, "limits of this system that will cause trouble", _DOCTOR)
    _add_json(one)

    command("demo", demo.run, "see it work, in seconds", _DEMO)
    return parser


def _age(text: str) -> float:
    found = _AGE.fullmatch(text)
    if found is None:
        raise ArgumentTypeError(f"{text!r} is no age: give a number and s, min, h or d, as in 12h")
    return float(found[1]) * _UNITS[found[2]]


def _add_json(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for programs")
