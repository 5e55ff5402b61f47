"""Seconds from a worker's death to the error of its call, or the answer of the next: printed, not judged.

``python -m tests.faults.measure``, on a machine that does nothing else.
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
    """The worst of three."""
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
