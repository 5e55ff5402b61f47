"""The command line: ``shmarray list | info | delete | doctor | demo``.

From top to bottom; each module imports only those below it, and the library through the
facades `shmarray` and `shmarray.core`::

    program      run: the process around a command; pipes that close, Ctrl-C, exit codes
    parser       main: arguments, help, which command, errors in one line
    demo         an array between two processes, and two pools against each other
    doctor       the table of checks, and the report of what they found
    selftest     the library at work, for real and small
    interrupts   Ctrl-C while there are children
    judgements   figures -> ok, note or will bite, and the remedy; pure
    facts        the figures of this system
    deleting     delete
    inspecting   info
    listing      list
    statistics   least, greatest, mean, NaNs, zeros of an array, in chunks
    selecting    which names are meant: patterns, and what was nearly a name
    processes    who has an array mapped
    files        the file that an array is: owner, times, space
    table        rows in columns, as wide as the terminal
    wording      numbers and foreign text, for people
"""

from shmarray.command.parser import main
from shmarray.command.program import run

__all__ = ["main", "run"]
