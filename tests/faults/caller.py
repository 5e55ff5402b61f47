"""A program that uses every feature of shmarray, reports what it has created, and then dies as requested.

``python -m tests.faults.caller method way names...`` writes a line of JSON to stdout, and then waits for a line on
stdin.
"""

import json
import os
import signal
import sys
import tempfile

import numpy as np

import shmarray
from tests.faults import deaths
from tests.helpers.processes import wait_until
from tests.helpers.raw import mapped_inodes
from tests.pool.tasks import allocator_of, make


def main(method, way, scoped, kept):
    shmarray.create(kept, 10)
    with shmarray.scoped(1000, name=scoped), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        pool, executor = make("Pool", method, 3), make("Executor", method, 3)
        held = pool.apply(deaths.double, (np.ones(200_000),)), executor.submit(np.ones, 200_000).result()
        waiting = "idle" if way == "raise" else "busy"  # at exit, an executor waits for its running calls
        for name, task in (("deaf", deaths.sleep_deaf), ("in_c", deaths.sleep_in_c)):
            pool.apply_async(task, (f"{place}/pool-{name}",))
            if waiting == "busy":
                executor.submit(task, f"{place}/executor-{name}")
        wait_until(lambda: len([n for n in os.listdir(place) if "." not in n]) == (4 if waiting == "busy" else 2), 60)
        say(
            pids=[process.pid for process in (*pool._pool, *executor._processes.values())],
            inodes=[os.fstat(file.fd).st_ino for door in (pool, executor) for file in allocator_of(door).files],
            named=[name for name in os.listdir("/dev/shm") if inode(name) in mapped_inodes()],
        )
        sys.stdin.readline()
        die(way)
        del held


def inode(name):
    try:
        return os.stat(f"/dev/shm/{name}").st_ino
    except FileNotFoundError:
        return None  # it belonged to another program, and has just been deleted


def say(**what):
    print(json.dumps(what), flush=True)


def die(way):
    if way == "os._exit":
        os._exit(3)
    if way == "raise":
        raise ZeroDivisionError("uncaught")
    signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
