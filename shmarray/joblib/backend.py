"""The interface that joblib requires of a backend, implemented with a Pool."""

import multiprocessing
import threading
import warnings
from collections.abc import Callable
from copy import copy
from functools import partial
from pickle import PicklingError
from typing import Any

import joblib.parallel
from joblib.parallel import AutoBatchingMixin, FallbackToBackend, ParallelBackendBase, SequentialBackend

from shmarray.joblib.calls import Calls
from shmarray.joblib.workers import CACHE, WorkerOptions, Workers
from shmarray.pool._stdlib import MaybeEncodingError, with_traceback
from shmarray.pool.arrays.by_value import ByValue


class ShmarrayBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """A joblib backend that sends arrays through shared memory, as `shmarray.Pool` does.

    Parameters
    ----------
    nesting_level, inner_max_num_threads
        As joblib sets them.
    idle_worker_timeout : float
        Number of seconds after which idle workers end.
    initializer : callable, optional
        Called in each worker when it starts, with `initargs`.
    initargs : tuple

    Notes
    -----
    Its name in `joblib.parallel_config` is "shmarray"; these parameters can be passed there too.

    Each call gets its own writable copies of the arrays in its arguments, as they are when it is
    sent, even if joblib sends several calls together.  The arrays in results are not pickled.
    Arrays from `create`, `attach` or `scoped`, and memory maps, are the same memory.  joblib's own
    memory mapping is not used: `max_nbytes`, `mmap_mode` and `temp_folder` have no effect.

    Lambdas and functions defined in __main__ can be sent, and scripts do not need ``if __name__ ==
    "__main__"``.  Nested calls inside a task run in threads, and calls nested deeper run
    sequentially.  If a worker dies, the call raises `WorkerDiedError`.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        *,
        idle_worker_timeout: float = 300.0,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self._options: dict[str, Any] = {
            "idle_worker_timeout": idle_worker_timeout,
            "initializer": initializer,
            "initargs": initargs,
        }
        self._patience = idle_worker_timeout
        self._options_of_call: WorkerOptions | None = None
        self._workers: Workers | None = None
        self._call = threading.Lock()  # held from configure to terminate

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """The number of workers of a call with this `n_jobs`."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None or joblib.parallel.mp is None:
            return 1
        where = self._where_processes_cannot_be()
        if where:
            if n_jobs != 1:
                warnings.warn(
                    f"shmarray-backed parallel loops cannot be nested {where}, setting n_jobs=1", stacklevel=3
                )
            return 1
        return n_jobs if n_jobs > 0 else max(joblib.cpu_count() + 1 + n_jobs, 1)

    def _where_processes_cannot_be(self) -> str:
        if multiprocessing.current_process().daemon:
            return "in a pool worker"
        if not (self.in_main_thread() or self.nesting_level == 0):
            return "below threads"
        return ""

    def configure(self, n_jobs: int = 1, parallel: Any = None, **options: Any) -> int:
        """Get the workers for a call of Parallel; their number.

        `options` may have what the constructor takes; what else is there is about joblib's memory-mapping.
        """
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        if not self._call.acquire(blocking=False):
            # One backend serves all calls inside a parallel_config, and cannot tell whose end it is told of.
            raise FallbackToBackend(self._another())
        chosen = self._options | {name: value for name, value in options.items() if name in self._options}
        self.parallel = parallel
        self._patience = chosen.pop("idle_worker_timeout")
        self._options_of_call = WorkerOptions(n_jobs, self._prepare_worker_env(n_jobs=n_jobs), **chosen)
        try:
            self._workers = CACHE.take(self._options_of_call)
        except BaseException:
            self._call.release()
            raise
        return n_jobs

    def _another(self) -> "ShmarrayBackend":
        return type(self)(self.nesting_level, self.inner_max_num_threads, **self._options)

    def submit(self, func: Any, callback: Callable[[Any], object] | None = None) -> Any:
        """Send a batch of calls; joblib passes the argument of `callback` to `retrieve_result_callback`."""
        workers = self._workers
        batch: Any = _Batch(func)
        try:
            if workers is not None:
                return workers.pool.apply_async(batch, callback=callback, error_callback=callback)
        except ValueError:
            if self._workers is workers:
                raise
        return None  # aborted by another thread: nobody waits for this batch

    apply_async = submit  # its name before joblib 1.5

    def retrieve_result_callback(self, out: Any) -> Any:
        if isinstance(out, MaybeEncodingError):  # what joblib's own backend raises then
            raise PicklingError(str(out)) from out
        if isinstance(out, BaseException):  # a result is a list
            raise out
        return out

    def abort_everything(self, ensure_ready: bool = True) -> None:  # noqa: FBT002 - joblib's
        """End the workers, even if they are busy."""
        workers, self._workers = self._workers, None
        if workers is not None:
            workers.pool.terminate()
        if ensure_ready and self._options_of_call is not None:
            self._workers = CACHE.take(self._options_of_call)

    def terminate(self) -> None:
        """End the call; its workers wait for the next one."""
        workers, self._workers = self._workers, None
        if workers is not None:
            CACHE.put(workers, self._patience)
        self.reset_batch_stats()
        if self._call.locked():
            self._call.release()


class _Batch:
    """A batch of calls that joblib sends to a worker; errors name the first of its functions."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch
        function = batch.items[0][0]
        named = function if hasattr(function, "__qualname__") else type(function)
        self.__module__, self.__qualname__ = named.__module__, named.__qualname__

    def __reduce__(self) -> Any:
        empty = copy(self._batch)
        empty.items = []
        return partial, (_perform, ByValue(empty), Calls(self._batch.items))


def _perform(batch: Any, calls: Any) -> ByValue:
    batch.items = calls
    try:
        return ByValue(batch())
    except BaseException as error:  # noqa: BLE001 - user code: whatever it raises is the caller's
        return ByValue(with_traceback(error))
