"""Random use of pools for a long time: calls, kills, errors, kept references, forks and collections."""

import gc
import os
import random
import signal
from contextlib import suppress

import numpy as np

import shmarray
from tests.faults import deaths, errors
from tests.helpers.processes import runs
from tests.pool import tasks
from tests.pool.tasks import call, make

LIMIT = 60
WORKERS = 2


class Day:
    """Pools of one kind with several start methods, and random actions on them.

    A call may fail only with a `WorkerDiedError`, and only if a worker was killed since the pool last
    completed many calls, or since the executor was created.
    """

    def __init__(self, kind, methods, seed, scope):
        self.kind = kind
        self.rng = random.Random(seed)
        self.pools = {method: make(kind, method, WORKERS, initializer=deaths.arm) for method in methods}
        self.scope = scope
        self.kept = []
        self.may_fail = set()
        self.actions = [
            *[self.call_one] * 6,
            *[self.call_many] * 3,
            self.kill_one,
            self.die_in_a_task,
            self.raise_in_a_task,
            self.mistreat_pickle,
            self.fork_here,
            self.fork_in_a_task,
            self.share_on_purpose,
            self.forget,
            self.collect,
            self.start_anew,
        ]

    def step(self):
        method = self.rng.choice(list(self.pools))
        action = self.rng.choice(self.actions)
        try:
            action(method)
        except shmarray.WorkerDiedError:
            assert method in self.may_fail, (method, action.__name__)
            if self.kind == "Executor":  # it is broken, as the stdlib's would be
                self._replace(method)
        for got, expected in self.kept:
            assert (got == expected).all()

    def end(self):
        self.kept.clear()
        for method in tuple(self.pools):
            self._end(method)

    # --- actions ---

    def call_one(self, method):
        array = self._array()
        double = self.rng.random() < 0.5
        expected = array * 2 if double else array + 1
        got = call(self.pools[method], tasks.double if double else tasks.add_one_in_place, array)
        assert (got == expected).all()
        self._keep(got, expected)

    def call_many(self, method):
        arrays = [self._array() for _ in range(self.rng.randrange(1, 12))]
        expected = [array * 2 for array in arrays]
        pool = self.pools[method]
        if self.kind == "Pool":
            got = pool.map_async(tasks.double, arrays, chunksize=self.rng.choice((1, 3))).get(LIMIT)
        else:
            got = list(pool.map(tasks.double, arrays, timeout=LIMIT))
        for one, other in zip(got, expected, strict=True):
            assert (one == other).all()
        self._keep(got[-1], expected[-1])
        # An executor may still have an unnoticed dead worker: the others may have done all these calls.
        if self.kind == "Pool":
            self.may_fail.discard(method)

    def kill_one(self, method):
        pool = self.pools[method]
        processes = pool._pool if self.kind == "Pool" else list((pool._processes or {}).values())
        victims = [process.pid for process in processes if process.is_alive()]
        if victims:
            self.may_fail.add(method)
            with suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(self.rng.choice(victims), signal.SIGKILL)

    def die_in_a_task(self, method):
        self.may_fail.add(method)
        way = self.rng.choice(list(deaths.WAYS))
        task = self.rng.choice((deaths.die_running, deaths.give_what_dies))
        call(self.pools[method], task, way, self._array())
        raise AssertionError("the worker did not die")

    def raise_in_a_task(self, method):
        kind = self.rng.choice(list(errors.KINDS))
        try:
            call(self.pools[method], errors.raise_it, kind, self._array())
        except errors.KINDS[kind] as error:
            assert str(error) == "told to"  # noqa: PT017 - the error is any of five kinds
        else:
            raise AssertionError("the task did not raise")

    def mistreat_pickle(self, method):
        task, *args = self.rng.choice(
            (
                (deaths.take, self._array(), errors.RaisesWhen("pickled", "ValueError")),
                (deaths.take, self._array(), errors.RaisesWhen("unpickled", "ValueError")),
                (errors.give_what_raises, "pickled", "ValueError", self._array()),
                (errors.give_what_raises, "unpickled", "ValueError", self._array()),
                (errors.raise_two, 0),
                (errors.raise_unpicklable, 0),
            )
        )
        try:
            call(self.pools[method], task, *args)
        except shmarray.WorkerDiedError:
            raise
        except Exception:  # noqa: BLE001 - other tests check the type
            return
        raise AssertionError("the task did not raise")

    def fork_here(self, _):
        """Check that a child sees the kept arrays unchanged."""
        child = os.fork()
        if not child:
            os._exit(0 if all((got == expected).all() for got, expected in self.kept) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    def fork_in_a_task(self, method):
        array = self._array()
        assert call(self.pools[method], tasks.fork_child, array) == array[0]

    def share_on_purpose(self, method):
        name = self.scope if self.rng.random() < 0.5 else None
        with shmarray.scoped(1000, name=name) as array:
            call(self.pools[method], tasks.write_first, array[100:])
            assert array[100] == 99

    def forget(self, _):
        self.rng.shuffle(self.kept)
        del self.kept[len(self.kept) // 2 :]

    def collect(self, _):
        gc.collect()

    def start_anew(self, method):
        if self.rng.random() < 0.3:
            self._replace(method)

    # --- helpers ---

    def _array(self):
        return np.full(self.rng.choice((3, 5_000, 20_000, 150_000)), self.rng.random())

    def _keep(self, got, expected):
        if self.rng.random() < 0.3:
            self.kept.append((got, expected))
            del self.kept[:-12]

    def _replace(self, method):
        self._end(method)
        self.pools[method] = make(self.kind, method, WORKERS, initializer=deaths.arm)
        self.may_fail.discard(method)

    def _end(self, method):
        pool = self.pools.pop(method)
        pids = [process.pid for process in (pool._pool if self.kind == "Pool" else (pool._processes or {}).values())]
        if self.kind == "Executor":
            pool.shutdown()
        else:
            self.rng.choice((pool.close, pool.terminate))()
            pool.join()
        assert not any(map(runs, pids))
