"""How shmarray compares with its peers: same work, same machine, same run, in interleaved rounds.

    make bench              or: python -m benchmarks [--quick] [--only TEXT] [--write]

From top to bottom; each module imports only those below it::

    __main__    the command: measure, print, write
    constants   what justifies the constants of the library; a program of its own
    report      tables on the terminal and in Markdown
    plots       the pictures
    named       named arrays, in this process: attach, create, copy in
    measure     rounds, pairs, ratios: maps, each peer in a process of its own
    host        that process, and its handle
    workloads   what is done
    peers       who does it: one adapter each
    limit       what no peer can beat: bare processes and copies in warm memory
    processes   what a tree of processes uses; what machine this is
    records     what was measured
"""
