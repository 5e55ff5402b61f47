"""A program that uses pools all the time, and reports its state after each KeyboardInterrupt.

``python -m tests.faults.interrupted kind method rounds`` writes a line "ready" for each round, and a line of JSON
after it; it does not catch the last KeyboardInterrupt.
"""

import gc
import json
import os
import random
import signal
import sys
import threading
import time

import numpy as np

from tests.faults import deaths
from tests.helpers.processes import children
from tests.pool.tasks import make


def use(kind, method):
    """Make calls of every kind until interrupted, or until the pool is to be replaced."""
    arrays = [np.ones(random.choice((10, 20_000))) for _ in range(8)]
    with make(kind, method) as pool:
        while True:
            if kind == "Pool":
                random.choice(
                    (lambda: pool.map(deaths.double, arrays), lambda: list(pool.imap(deaths.double, arrays)))
                )()
                pool.apply_async(deaths.nap).get()
            else:
                list(pool.map(deaths.double, arrays))
                [future.result() for future in [pool.submit(deaths.nap) for _ in range(4)]]
            if random.random() < 0.05:
                break


def state():
    """Return what must be as before when the pools have ended; multiprocessing keeps two children."""
    return {
        "children": len(children()),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "descriptors": len(os.listdir("/proc/self/fd")),
    }


def wait_for_state(wanted):
    """Wait: a pool that was interrupted just outside its with-block ends only as garbage."""
    deadline = time.monotonic() + 10
    while state() != wanted and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)


def main(kind, method, rounds):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore SIGINT in background jobs
    with make(kind, method) as pool:  # starts the helpers that multiprocessing keeps
        pool.submit(deaths.pid).result() if kind == "Executor" else pool.apply(deaths.pid)
    if kind == "Pool":
        pool.join()
    before = state()
    print(json.dumps(before), flush=True)
    for _ in range(int(rounds) - 1):
        try:
            print("ready", flush=True)
            while True:
                use(kind, method)
        except KeyboardInterrupt:
            pass
        wait_for_state(before)
        print(json.dumps(state()), flush=True)
    print("ready", flush=True)
    while True:
        use(kind, method)


if __name__ == "__main__":
    main(*sys.argv[1:])
