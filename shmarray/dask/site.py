"""A worker's part in sharing arrays: fetch them to its host, pass them on, release them.

The processes of a host coordinate with the lock of the array's register.  Its holder checks
whether another process already has the array, and attaches it; otherwise it fetches the array
from a worker on another host, or asks the client to send it.  The others wait.
"""

import asyncio
import os
import random
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from shmarray.core import Undo
from shmarray.dask import hooks
from shmarray.dask.copies import COPIES, Copy, Description, attached, new_memory, open_register, sweep, undo_all, update
from shmarray.errors import ArrayNotFoundError

T = TypeVar("T")

# At a time between hosts: large enough for the network, small enough to be handed on while the rest arrives.
PART = 16 << 20
# Seconds between two looks whether another process of this host is done.
_PAUSE = 0.005
# Seconds without progress after which the client is asked again.
_PATIENCE = 1.0
# Seconds that a worker may take for one part before it is taken for dead, and that it waits for the part itself.
_LONGEST, _WAIT = 60.0, 10.0
# Seconds between two looks whether copies are still wanted, without any.
_IDLE = 0.5

CLIENT = "client"


class Arriving:
    """A copy that is being filled, from its beginning to its end."""

    def __init__(self, about: Description, octets: NDArray[np.uint8], undo: Undo) -> None:
        self.about = about
        self.octets = octets
        self.undo = undo
        self.filled = 0
        self.has_failed = False
        self._changed = asyncio.Event()

    @property
    def is_complete(self) -> bool:
        return self.filled >= self.about.nbytes

    async def write(self, start: int, part: Any) -> None:
        """Put a part where it belongs, unless that is not the next one."""
        octets = np.frombuffer(part, np.uint8)
        if start == self.filled:
            await asyncio.to_thread(np.copyto, self.octets[start : start + octets.size], octets)
        if start == self.filled:  # nobody else was faster
            self.filled += octets.size
            self._tell()

    def fail(self) -> None:
        self.has_failed = True
        self._tell()

    async def reaches(self, stop: int, timeout: float) -> bool:
        """Wait until there is so much of it; False if there is not in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self.filled < stop and not self.has_failed:
                    await self._changed.wait()
        return self.filled >= stop

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class Site:
    """One worker's part in it.  Its methods run in the worker's event loop.

    Parameters
    ----------
    worker : distributed.Worker
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._arriving: dict[str, Arriving] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_told = asyncio.Event()
        hooks.add_handlers(worker, {"shmarray_has": self.has, "shmarray_read": self.read})
        self._count_shared_memory = hooks.discount_shared_memory(worker)
        sweep()
        self._watch = asyncio.create_task(self.watch())
        SITES[worker] = self

    def close(self) -> None:
        SITES.pop(self._worker, None)
        self._count_shared_memory()
        self._watch.cancel()
        for task in tuple(self._tasks):
            task.cancel()
        for about in COPIES.of(self):
            COPIES.release(about.key, self)

    def wait_for(self, about: Description) -> Copy:
        """As `attach`, for the thread of a task."""
        if threading.get_ident() == self._thread:
            raise RuntimeError(
                "the array is not on this host yet, and the worker's event loop cannot wait for it: "
                "use handle.array in an ordinary function, not in a coroutine"
            )
        try:
            return asyncio.run_coroutine_threadsafe(self.attach(about), self._loop).result()
        except BaseException as error:
            _drop_frames(error)
            raise

    async def begin(self, about: Description, source: str | None) -> None:
        """Begin to attach; returns when it is done, or when parts can be had from here."""
        task = self._start(self.attach(about, source))
        while not task.done() and about.key not in self._arriving:
            await asyncio.wait([task], timeout=_PAUSE)

    async def attach(self, about: Description, source: str | None = None) -> Copy:
        """Give this host's copy.

        Parameters
        ----------
        about : Description
        source : str, optional
            Address of a worker to fetch it from, or "client".

        Raises
        ------
        SharedMemoryFullError
            If there is no memory for it.
        ArrayNotFoundError
            If the client has released it.
        """
        while True:
            copy = COPIES.get(about.key, self)
            if copy is not None:
                return copy
            register = open_register(about.key)
            if register is not None:
                break
            await asyncio.sleep(_PAUSE)
        with register:
            # Another worker of this process may have been faster.
            copy = COPIES.get(about.key, self)
            try:
                if copy is None:
                    copy = attached(register, about.nbytes) or await self._fetched(about, source)
                    COPIES.add(about, copy, self)
            finally:
                update(register, copy)
        return copy

    # --- fetching ---

    async def _fetched(self, about: Description, source: str | None) -> Copy:
        arriving = Arriving(about, *await asyncio.to_thread(new_memory, about.nbytes))
        self._arriving[about.key] = arriving
        try:
            await self._fill(arriving, source)
            return Copy.of(arriving.octets, arriving.undo)
        except BaseException:
            undo_all(arriving.undo)
            raise
        finally:
            del self._arriving[about.key]
            arriving.fail()  # for those who wait for more than there is

    async def _fill(self, arriving: Arriving, source: str | None) -> None:
        key = arriving.about.key
        while not arriving.is_complete:
            for address in [source] if source else await self._holders(key):
                if address != CLIENT:
                    await self._pull(arriving, address)
                if arriving.is_complete:
                    return
            if source is None and key in await hooks.unwanted_keys(self._worker, [key]):
                raise ArrayNotFoundError(
                    f"the shared array {key!r} is gone: its client has closed it or has ended", key
                )
            source = None
            # Nobody has all of it: the client sends it.
            self._worker.log_event(arriving.about.topic, {"key": key, "worker": self._worker.address})
            while not arriving.is_complete and await arriving.reaches(arriving.filled + 1, _PATIENCE):
                pass

    async def _holders(self, key: str) -> list[str]:
        answers = await hooks.ask_all(self._worker, "shmarray_has", key=key)
        holders = [address for address, has_it in answers.items() if has_it]
        random.shuffle(holders)  # hosts that come at once do not all ask the same one
        return holders

    async def _pull(self, arriving: Arriving, address: str) -> None:
        """Fetch parts from a worker for as long as it has them."""
        about = arriving.about
        while not arriving.is_complete:
            start = arriving.filled
            stop = min(start + PART, about.nbytes)
            try:
                async with asyncio.timeout(_LONGEST):
                    part = await hooks.ask(
                        self._worker, address, "shmarray_read", key=about.key, start=start, stop=stop
                    )
            except OSError:  # dead, or as good as that
                return
            if part is None:
                return
            await arriving.write(start, part)

    # --- what others ask ---

    def has(self, key: str) -> dict[str, Any]:
        return hooks.answer(COPIES.get(key) is not None)

    async def read(self, key: str, start: int, stop: int) -> dict[str, Any]:
        """A part of an array; None if it is not here, nor soon will be; empty if it may take longer."""
        octets = await self._octets(key, stop)
        return hooks.answer(None if octets is None else octets[start:stop])

    async def _octets(self, key: str, stop: int) -> NDArray[np.uint8] | None:
        # The worker that was told to fetch from here may be faster than this one, which was told to attach.
        for _ in range(200):
            copy, arriving = COPIES.get(key), self._arriving.get(key)
            if copy is not None:
                return copy.octets
            if arriving is not None:
                if await arriving.reaches(stop, _WAIT):
                    return arriving.octets
                return None if arriving.has_failed else arriving.octets[:0]
            await asyncio.sleep(_PAUSE)
        return None

    async def store(self, key: str, start: int, part: Any) -> int | None:
        """Take a part that the client sends; the place of the next one, None if no more is wanted."""
        arriving = self._arriving.get(key)
        if arriving is None:
            return None
        await arriving.write(start, part)
        return None if arriving.is_complete or arriving.has_failed else arriving.filled

    # --- letting go ---

    def tell(self, key: str) -> None:
        """A key may not be wanted any more."""
        if COPIES.get(key) is not None:
            self._is_told.set()

    async def watch(self) -> None:
        """Release the copies that are no longer needed."""
        while True:
            held = COPIES.of(self)
            with suppress(TimeoutError):
                async with asyncio.timeout(min((about.interval for about in held), default=_IDLE)):
                    await self._is_told.wait()
            self._is_told.clear()
            with suppress(OSError):  # the scheduler is gone, and soon so will be this worker
                await self._let_go()
            await asyncio.to_thread(COPIES.tidy)

    async def _let_go(self) -> None:
        keys = [about.key for about in COPIES.of(self)]
        if keys:
            for key in await hooks.unwanted_keys(self._worker, keys):
                await asyncio.to_thread(COPIES.release, key, self)

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # who needs the array tries again, and gets the error


def _drop_frames(error: BaseException) -> None:
    """Clear the frames of an error: Dask keeps errors, which would keep memory that was not filled."""
    chain: list[BaseException | None] = [error]
    for each in chain:
        if each is not None:
            each.__traceback__ = None
            chain += [each.__cause__, each.__context__]


SITES: "WeakKeyDictionary[Any, Site]" = WeakKeyDictionary()


def _forget_after_fork() -> None:
    # Their event loops run in the parent.
    SITES.clear()


os.register_at_fork(after_in_child=_forget_after_fork)
