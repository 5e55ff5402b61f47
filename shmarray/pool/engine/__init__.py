"""Processes that run tasks.  Tasks and results are bytes here; the arrays package interprets them.

From top to bottom; each module imports only those below it::

    scheduler    starts, closes, terminates and joins one pool
    collector    the thread that collects answers and notices deaths
    feeder       the thread that iterates over calls and sends their tasks
    state        the state that these share
    placement    chooses the worker for the next task, and limits how many it may have
    workers      starts, replaces and ends the processes, and gives them tasks
    worker_main  the main function of a worker process
    tasks        tasks in progress, and their descriptions in errors
    channel      messages over a pair of sockets
    waker        wakes a waiting thread
    exit_status  how a process ended
    signals      protection from Ctrl-C and the program's own signal handlers
    frontend     code that Pool and ProcessPoolExecutor share
"""
