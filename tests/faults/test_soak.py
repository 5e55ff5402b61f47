"""Long random use: all results are correct, nothing hangs, and the final state equals the initial state."""

import gc
import itertools
import os
import random
import time

import pytest

from tests.faults.soak import Day
from tests.pool.tasks import START_METHODS

SECONDS = float(os.environ.get("SHMARRAY_SOAK_SECONDS", "120"))


def spend(kind, methods, scope, moments):
    seed = int(os.environ.get("SHMARRAY_SEED", "0")) or random.randrange(1 << 30)
    print(f"SHMARRAY_SEED={seed}", flush=True)
    day = Day(kind, methods, seed, scope)
    steps = sum(day.step() is None for _ in moments)
    day.end()
    print(f"{steps} steps")
    del day
    while gc.collect():  # finalizers may leave more garbage for the next collection
        pass


def test_a_short_day_with_faults_leaves_nothing(kind, name):
    spend(kind, ["fork", "forkserver"], name, range(150))


@pytest.mark.soak
@pytest.mark.timeout(SECONDS + 120)
def test_a_long_day_with_faults_leaves_nothing(kind, name):
    end = time.monotonic() + SECONDS
    spend(kind, START_METHODS, name, itertools.takewhile(lambda _: time.monotonic() < end, itertools.count()))
