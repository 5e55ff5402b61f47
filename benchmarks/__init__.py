"""Benchmarks that compare shmarray with its peers: same work, same machine, same run, in interleaved rounds.

    make bench              or: python -m benchmarks [--quick] [--only TEXT] [--write]

The modules from top to bottom; each imports only those below it::

    __main__    the command: measure, print, write
    constants   measurements behind the library's constants; a separate program
    report      tables on the terminal and in Markdown
    plots       the pictures
    named       named arrays, in this process: attach, create, copy in
    measure     rounds, pairs and ratios of maps, with each peer in its own process
    host        that process, and its handle
    workloads   the work
    peers       an adapter for each peer
    limit       the minimum cost: plain processes and copies in memory that was used before
    processes   resource usage of a tree of processes; description of the machine
    records     the measurements
"""
