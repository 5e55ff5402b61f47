"""Prepare workers for shared arrays, with a plugin that the scheduler sends to all of them, or a preload."""

from typing import Any

from distributed import NannyPlugin, WorkerPlugin

from shmarray.dask import hooks
from shmarray.dask.copies import Description
from shmarray.dask.site import SITES, Site


class ClusterPlugin(WorkerPlugin):  # type: ignore[misc]
    """Gives a worker its `Site`, for as long as it lives."""

    name = "shmarray"
    # A second one would close what the first has.
    idempotent = True

    async def setup(self, worker: Any) -> None:
        if worker not in SITES:
            Site(worker)
        self._worker = worker

    def teardown(self, worker: Any) -> None:
        site = SITES.get(worker)
        if site is not None:
            site.close()

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        site = SITES.get(self._worker)
        if site is not None and finish in ("released", "forgotten"):
            site.tell(key)


class NannyPart(NannyPlugin):  # type: ignore[misc]
    """Keeps a worker from being restarted for memory that it shares."""

    name = "shmarray-nanny"
    idempotent = True

    def setup(self, nanny: Any) -> None:
        hooks.raise_limit_by_shared_memory(nanny)


async def dask_setup(worker: Any) -> None:
    """What ``dask worker --preload shmarray.dask`` calls: as `install`, for one worker, before its first task."""
    await ClusterPlugin().setup(worker)


async def dask_teardown(worker: Any) -> None:
    """What ``dask worker --preload shmarray.dask`` calls when the worker ends."""
    ClusterPlugin().teardown(worker)


# --- what the client calls in workers, by Client.run ---------------------------------


async def begin(about: Description, sources: dict[str, str | None], dask_worker: Any) -> None:
    """Have this worker bring an array to its host, from the source that it is given."""
    await SITES[dask_worker].begin(about, sources[dask_worker.address])


async def store(key: str, start: int, part: Any, dask_worker: Any) -> int | None:
    """Give a part to a worker that has asked for it."""
    return await SITES[dask_worker].store(key, start, part)
