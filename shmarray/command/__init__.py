"""The command line: ``shmarray list | info | delete | doctor | demo``.

From top to bottom; each module imports only those below it, and the library through the
facades `shmarray` and `shmarray.core`::

    program      run: the process around a command; closed pipes, Ctrl-C, exit codes
    parser       main: arguments, help, choice of command, errors in one line
    demo         an array shared by two processes, and a comparison of two pools
    doctor       the table of checks, and the report of their findings
    selftest     small tests with the real library
    interrupts   Ctrl-C while there are child processes
    judgements   turn facts into ok, note or will bite, and a remedy; pure
    facts        the facts about this system
    deleting     delete
    inspecting   info
    listing      list
    statistics   minimum, maximum, mean, NaNs and zeros of an array, in chunks
    selecting    select arrays by name: patterns, suggestions for misspelled names
    processes    the processes that have an array mapped
    files        the file of an array: owner, times, space
    table        format tables to fit the terminal
    wording      format numbers and untrusted text for people
"""

from shmarray.command.parser import main
from shmarray.command.program import run

__all__ = ["main", "run"]
