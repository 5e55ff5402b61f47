"""Prints the seconds from a worker's death to the error of its call, or to the next answer, without judging them.

Run ``python -m tests.faults.measure`` on an otherwise idle machine.
"""

import time
from contextlib import suppress

import shmarray
from tests.faults import test_worker_deaths as matrix
from tests.pool.tasks import START_METHODS


def main():
    print(f"{'stage':20}" + "".join(f"{kind + ' ' + method:>22}" for kind in KINDS for method in START_METHODS))
    for stage in matrix.STAGES:
        figures = [seconds(kind, method, stage) for kind in KINDS for method in START_METHODS]
        print(f"{stage.__name__:20}" + "".join(f"{figure:22.3f}" for figure in figures))


KINDS = ("Pool", "Executor")


def seconds(kind, method, stage):
    """Return the worst of three measurements."""
    return max(_once(kind, method, stage) for _ in range(3))


def _once(kind, method, stage):
    door = matrix.Door(kind, method, has_memory=not getattr(stage, "needs_no_memory", False))
    door.man()
    try:
        _, get = stage(door, "SIGKILL")
        died = time.monotonic()
        with suppress(shmarray.WorkerDiedError):
            get(matrix.LIMIT) if get else door.call(matrix.deaths.pid)
        return time.monotonic() - died
    finally:
        door.close()


if __name__ == "__main__":
    main()
