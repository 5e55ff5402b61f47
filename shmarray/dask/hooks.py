"""The undocumented parts of `distributed` that this package uses.

Tested with versions from `OLDEST` to `NEWEST`.  The rest of this package only uses documented
parts: plugins, `Client.run`, `submit`, `scatter`, `gather`, event topics.
"""

from collections.abc import Callable, Collection
from typing import Any

import distributed
from distributed.protocol import to_serialize

OLDEST, NEWEST = "2024.8.0", "2026.8.0"


def add_handlers(worker: Any, handlers: dict[str, Callable[..., Any]]) -> None:
    """Let other workers and the scheduler call these functions of a worker, by name.

    Raises
    ------
    RuntimeError
        If this version of distributed has no such thing.
    """
    if not isinstance(getattr(worker, "handlers", None), dict) or not callable(getattr(worker, "rpc", None)):
        raise RuntimeError(
            f"shmarray.dask cannot work with distributed {distributed.__version__}: "
            f"it was tested with {OLDEST} to {NEWEST}"
        )
    worker.handlers.update(handlers)


async def ask(worker: Any, address: str, operation: str, **arguments: Any) -> Any:
    """Call a function of another worker; OSError if it cannot be reached."""
    answer = await getattr(worker.rpc(address), operation)(**arguments)
    return answer["answer"]


async def ask_all(worker: Any, operation: str, **arguments: Any) -> dict[str, Any]:
    """Call a function of all workers; those that cannot be reached are left out."""
    message = {"op": operation, **arguments}
    answers = await worker.scheduler.broadcast(msg=message, on_error="ignore")
    return {address: answer["answer"] for address, answer in answers.items() if "answer" in answer}


def answer(value: Any) -> dict[str, Any]:
    """What such a function returns; an array goes without a pickle."""
    return {"status": "OK", "answer": to_serialize(value)}


def discount_shared_memory(worker: Any) -> Callable[[], None]:
    """Let a worker's memory monitor not count shared memory, which several workers map and all would count.

    What it returns has it counted again.
    """
    monitor = worker.monitor
    count = monitor.get_process_memory
    monitor.get_process_memory = lambda: max(0, count() - _resident_shared_memory("self"))

    def undo() -> None:
        monitor.get_process_memory = count

    return undo


def raise_limit_by_shared_memory(nanny: Any) -> None:
    """The same for a nanny, which counts for itself and restarts a worker that is over its limit."""
    check = nanny.periodic_callbacks.get("memory_monitor")
    if check is None:  # there is no limit
        return
    look = check.callback

    def look_without_shared_memory() -> None:
        manager, process = nanny.memory_manager, nanny.process
        limit = manager.memory_limit
        pid = None if process is None else process.pid
        manager.memory_limit = limit + (0 if pid is None else _resident_shared_memory(pid))
        try:
            look()
        finally:
            manager.memory_limit = limit

    check.callback = look_without_shared_memory


def _resident_shared_memory(pid: int | str) -> int:
    """Bytes; 0 where the system does not say."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as status:
            return next((int(line.split()[1]) << 10 for line in status if line.startswith("RssShmem:")), 0)
    except OSError:
        return 0


# None: nobody knows it any more.  Released: nobody wants it, but results of tasks that had it
# are there; were one of them lost, it would be wanted again.
_UNWANTED = (None, "released")


async def unwanted_keys(worker: Any, keys: Collection[str]) -> list[str]:
    """Those keys that no client holds and no task waits for.

    Not by the workers that have them: no worker has what is being computed again.
    """
    states = await worker.scheduler.get_task_status(keys=list(keys))
    return [key for key, state in states.items() if state in _UNWANTED]


def is_wanted(client: Any, key: str) -> bool:
    """Whether the scheduler knows already that the client has submitted a key."""
    states = client.sync(client.scheduler.get_task_status, keys=[key])
    return states[key] not in _UNWANTED
