"""Processes that carry out tasks.  A task and its result are bytes here; what is in them is the business of arrays.

From top to bottom; each module imports only those below it::

    scheduler    one pool: started, closed, terminated, joined
    collector    the thread that collects answers and notices deaths
    feeder       the thread that iterates over calls and sends their tasks
    state        what these share
    placement    which worker gets the next task, and how many it may have
    workers      the processes: started, given tasks, replaced, ended
    worker_main  what a worker process does
    tasks        a task on its way, and what errors say about it
    channel      messages over a pair of sockets
    waker        what interrupts a thread that waits
    exit_status  how a process ended
    signals      what Ctrl-C and the program's own handlers must not disturb
    frontend     what both front halves need
"""
