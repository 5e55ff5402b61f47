"""The calls of a Pool that are not complete."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from shmarray.pool import _stdlib
from shmarray.pool._stdlib import PoolCache
from shmarray.pool.engine.frontend import guarded


class CallCache(PoolCache):  # type: ignore[misc]
    """Refuses calls by other threads after the end of the pool, which only fails calls that exist by then."""

    is_over: Callable[[], bool] = bool

    def __init__(self) -> None:
        super().__init__()
        self._newest = threading.local()

    def forget_half_made(self) -> None:
        """Remove the call that this thread could not complete, because `join` would wait for it."""
        job = getattr(self._newest, "job", None)
        if _stdlib.is_half_made(self.get(job)):
            with suppress(KeyError):
                del self[job]

    def __setitem__(self, job: int, call: Any) -> None:
        # The collecting thread sets results, and both threads fail calls: a map that fails while its last
        # result is set would be complete with None in the places of the others.  Each call has a lock of
        # its own, because callbacks run under it, and may wait for other calls.
        call.completion = threading.RLock()
        self._newest.job = job
        super().__setitem__(job, call)
        if self.is_over():  # checked after the insertion, to avoid a race
            with suppress(KeyError):
                del self[job]
            raise ValueError("Pool not running")


class PoolCalls:
    """The stdlib's dictionary of pending calls, as the engine sees it."""

    can_be_cancelled = False

    def __init__(self, cache: dict[int, Any]) -> None:
        self._cache = cache
        # Whether pending calls fail when the pool is terminated.  Not during interpreter exit,
        # where waiting daemon threads would print tracebacks.
        self.fail_when_terminated = False

    def __contains__(self, job: object) -> bool:
        return job in self._cache

    def __len__(self) -> int:
        return len(self._cache)

    def begin(self, job: int) -> bool:
        return job in self._cache

    def set_result(self, job: int, index: int, outcome: tuple[bool, Any]) -> None:
        call = self._cache.get(job)
        if call is not None:
            with call.completion:
                if job in self._cache and not guarded(_stdlib.set_result, call, index, outcome):
                    self._give_up(job, call)

    def not_sent(self, job: int, index: int, error: BaseException) -> None:
        self.set_result(job, index, (False, error))

    def fail(self, job: int, index: int | None, error: BaseException) -> None:
        call = self._cache.get(job)
        if call is not None:
            with call.completion:
                self._fail(job, call, index, error)

    def _fail(self, job: int, call: Any, index: int | None, error: BaseException) -> None:
        while _stdlib.is_half_made(call) and job in self._cache:
            time.sleep(0)  # until its thread has made all of it, and would make a success of it, or has forgotten it
        if job in self._cache and not guarded(_stdlib.fail_call, self._cache, job, index, error):
            self._give_up(job, call)

    def fail_all(self, error: BaseException) -> None:
        for job in list(self._cache.keys()):
            self.fail(job, None, error)

    def terminated(self) -> None:
        if not self.fail_when_terminated:
            return
        error = RuntimeError("the pool was terminated before this call finished")
        for job, call in list(self._cache.items()):
            _stdlib.drop_callbacks(call)
            self._fail(job, call, None, error)  # without its lock, which a callback that never returns may hold

    def _give_up(self, job: int, call: Any) -> None:
        """A callback has raised."""
        with suppress(KeyError):
            del self._cache[job]
        _stdlib.release_waiters(call)
