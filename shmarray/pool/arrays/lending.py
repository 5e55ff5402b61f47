"""The caller's side of tasks: pack them into blocks, unpack the results, and release the blocks."""

import threading
import warnings
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shmarray.errors import SharedMemoryFullError
from shmarray.pool.arrays import argument_memory, messages, pickling
from shmarray.pool.arrays.allocator import BlockAllocator
from shmarray.pool.arrays.buffers import Octets
from shmarray.pool.arrays.free_list import Block, Use
from shmarray.pool.arrays.messages import INLINE, Message, Notes, Payload, Span
from shmarray.pool.arrays.pickling import Buffer, GivenArray, PickledObject, RepeatedArray

# Smaller results are copied out: using their block as an array's memory would take as long, and
# there may be very many of them (benchmarks/constants.py: _COPY_OUT).
_COPY_OUT = 128 << 10
_NOT_UNPICKLED = (
    "(raised while the exception of the task was unpickled, which is shown as the cause; its class needs a __reduce__ "
    "that gives the arguments of its constructor)"
)


class RetainedBlocks:
    """The memory that one worker may still use after its tasks are done."""

    def __init__(self) -> None:
        self.blocks: set[Block] = set()
        self.has_forked = False


class SharedBlock:
    """The block of an array that many tasks of one call have."""

    __slots__ = ("block", "in_use", "open")

    def __init__(self, block: Block) -> None:
        self.block = block
        self.in_use = 0
        self.open = True


class TaskBlocks:
    """The blocks that are used by one task.

    Attributes
    ----------
    arguments : list of Block
        Its own: one for the arrays that were copied, and one for each that was given away with it.
    result : Block or None
        Its own.
    shared : list of SharedBlock
        Those that other tasks use as well.
    """

    __slots__ = ("arguments", "result", "shared")

    def __init__(self) -> None:
        self.arguments: list[Block] = []
        self.result: Block | None = None
        self.shared: list[SharedBlock] = []

    def pop(self, index: int) -> Block:
        """The task's own block of that number, which is not the task's any more."""
        for position, block in enumerate(self.arguments):
            if block.index == index:
                return self.arguments.pop(position)
        result = self.result
        assert result is not None  # noqa: S101 - the worker was told of no others
        self.result = None
        return result

    def put(self, block: Block) -> None:
        """Undo `pop`."""
        if block.use is Use.ARGUMENT or self.result is not None:  # a result that was passed on is an argument
            self.arguments.append(block)
        else:
            self.result = block


class Lending:
    """Packs tasks and unpacks results, with blocks where they are useful and available.

    Parameters
    ----------
    allocator : BlockAllocator or None
        None where there is no shared memory: everything goes through the pipe.
    traceback_type : type
        The exception that becomes the cause of a task's exception, with the text of its traceback.

    Attributes
    ----------
    result_bytes : float
        Of the blocks of recent results; falls slowly.

    Notes
    -----
    Packing happens in the feeder's thread, or in the user's if no array is shared between tasks;
    unpacking in the collector's.
    """

    def __init__(self, allocator: BlockAllocator | None, traceback_type: type[Exception]) -> None:
        self.allocator = allocator
        self._traceback_type = traceback_type
        self.result_bytes = 0.0
        self._lock = threading.RLock()
        self._shared: dict[tuple[int, int], SharedBlock] = {}
        self._exhausted: deque[int] = deque()
        self._has_warned = False
        if allocator is not None:
            allocator.reclaim = self._give_back_exhausted

    # --- packing ---

    def open(self) -> None:
        """Let the user make arrays in this memory, from now on: what is made before a fork has to be copied."""
        if self.allocator is not None:
            argument_memory.offer(self.allocator)

    def prefer(self) -> None:
        """Have this thread make its arrays in this memory."""
        if self.allocator is not None:
            argument_memory.prefer(self.allocator)

    def pack(self, job: int, index: int, pickled: PickledObject, blocks: TaskBlocks, group: int) -> bytes:
        """A task as a message; its arrays are copied into a block, and another block is named for its result.

        Of arrays that lie in blocks already, and that nothing but `pickled` holds, the blocks become the task's.

        Raises
        ------
        SharedMemoryFullError
            No block of the task is in use then.
        """
        try:
            payload = self._payload(pickled, blocks, group) if pickled.needs_block else Payload(pickled.pickle)
            blocks.result = result = self._block_for_result()
        except BaseException:
            self.lost(blocks, ran=False)
            raise
        if result is None:
            return messages.encode(job, index, 0, 0, payload)
        return messages.encode(job, index, result.index, result.reserved, payload)

    def _payload(self, pickled: PickledObject, blocks: TaskBlocks, group: int) -> Payload:
        allocator = self.allocator
        found = allocator.claim(pickled.buffers) if allocator is not None and pickled.buffers else {}
        if allocator is None or not found:
            return self._copied(pickled, blocks, group)
        claimed = {id(place.reference): place.reference for place in found.values()}
        try:
            # Not the user's arrays any more, but the mapping, which outlives their lease.
            for position, place in found.items():
                pickled.buffers[position] = place.array()
            for key, reference in list(claimed.items()):
                block = allocator.take(reference)
                if block is not None:
                    blocks.arguments.append(block)
                    del claimed[key]
            for position, place in found.items():
                if id(place.reference) not in claimed:
                    pickled.buffers[position] = GivenArray(place.array(), place.span())
            return self._copied(pickled, blocks, group)
        finally:
            for reference in claimed.values():
                allocator.unclaim(reference)

    def _copied(self, pickled: PickledObject, blocks: TaskBlocks, group: int) -> Payload:
        buffers = pickled.for_block()
        if self.allocator is None:
            self._warn("this system has no anonymous shared memory")
            return pickled.inline()
        try:
            spans = self._in_blocks(self.allocator, buffers, blocks, group)
        except SharedMemoryFullError:
            raise  # the pipe would need twice the memory, and the kernel would kill a process
        except (OSError, MemoryError) as error:
            self._warn(str(error))
            payload = pickled.inline()
            self._give_back(blocks)
            return payload
        return Payload(pickled.pickle if buffers is pickled.buffers else b"", spans)

    def _in_blocks(
        self, allocator: BlockAllocator, buffers: Sequence[Buffer], blocks: TaskBlocks, group: int
    ) -> tuple[Span, ...]:
        own = [buffer for buffer in buffers if isinstance(buffer, np.ndarray)]
        if len(own) == len(buffers):
            return tuple(self._own_spans(allocator, own, blocks))
        own_spans = iter(self._own_spans(allocator, own, blocks) if own else ())

        def span(buffer: Buffer) -> Span:
            if isinstance(buffer, RepeatedArray):
                return self._shared_span(allocator, buffer, blocks, group)
            return buffer.span if isinstance(buffer, GivenArray) else next(own_spans)

        return tuple(map(span, buffers))

    def _own_spans(self, allocator: BlockAllocator, buffers: list[NDArray[Any]], blocks: TaskBlocks) -> list[Span]:
        block = allocator.allocate(Use.ARGUMENT)
        blocks.arguments.append(block)
        offsets = allocator.load(block, buffers)
        return [(block.index, offset, buffer.nbytes, False) for buffer, offset in zip(buffers, offsets, strict=True)]

    def _shared_span(self, allocator: BlockAllocator, buffer: RepeatedArray, blocks: TaskBlocks, group: int) -> Span:
        array = buffer.array
        key = group, id(array)  # the call holds the array, so no other gets its id
        shared = self._shared.get(key)
        if shared is None:
            block = allocator.allocate(Use.ARGUMENT)
            try:
                allocator.load(block, [array])
            except BaseException:
                allocator.give_back(block)
                raise
            shared = self._shared[key] = SharedBlock(block)
        with self._lock:
            shared.in_use += 1
        blocks.shared.append(shared)
        return shared.block.index, 0, array.nbytes, True

    def exhausted(self, group: int) -> None:
        """Note that no more tasks of this group come; a finalizer may call this, so it takes no lock."""
        if self._shared:
            self._exhausted.append(group)
            if self.allocator is not None:
                self.allocator.wake()

    def trim(self) -> float | None:
        """Give back what groups that are exhausted have left, and release memory; as `BlockAllocator.trim`."""
        self._give_back_exhausted()
        return None if self.allocator is None else self.allocator.trim()

    def _give_back_exhausted(self) -> None:
        while self._exhausted:
            with suppress(IndexError), self._lock:  # another thread was quicker
                group = self._exhausted.popleft()
                for key in [key for key in list(self._shared) if key[0] == group]:
                    shared = self._shared.pop(key)
                    shared.open = False
                    if not shared.in_use:
                        self._unused(shared.block)

    def _block_for_result(self) -> Block | None:
        if self.allocator is None:
            return None
        try:
            block = self.allocator.allocate(Use.RESULT)
        except OSError as error:
            self._warn(str(error))
            return None
        self.allocator.set_word(block.index, 0)
        return block

    def _warn(self, why: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            text = f"arrays are sent through a pipe, which is slower: {why}"
            # The warning may be an error, and what shows it may be the user's and raise anything: that would
            # end this thread, which is not the user's, although the call can succeed.
            with suppress(Exception):
                warnings.warn(text, RuntimeWarning, stacklevel=2)

    # --- unpacking ---

    def unpack(self, blocks: TaskBlocks, message: Message, retained: RetainedBlocks) -> tuple[bool, Any]:
        """The result of a task: ``(True, value)`` or ``(False, exception)``; its blocks are taken back."""
        payload = message.payload
        if not payload.spans and not message.notes:  # most small tasks: nothing but to give the blocks back
            self._give_back(blocks)
            self.result_bytes *= 0.75
            return _loads(payload, [])[1]
        notes = Notes(*message.notes)
        if notes.shortage and payload.spans:
            self._warn(notes.shortage)
        if notes.taken and blocks.result is not None and self.allocator is not None:
            self.allocator.has_memory(blocks.result, notes.taken)
        try:
            buffers = self._buffers(blocks, payload, notes.retained) if payload.spans else []
        except BaseException as error:  # noqa: BLE001 - MemoryError: this result's, not the pool's
            buffers, payload = [], _failure(error)
        self._take_back(blocks, notes, retained)
        nbytes = sum(buffer.nbytes for buffer in buffers)
        self.result_bytes = max(nbytes, 0.75 * self.result_bytes)
        has_arrived, outcome = _loads(payload, buffers)
        if not outcome[0] and not issubclass(type(outcome[1]), BaseException):
            # Its __reduce__ said so.  What is raised must be an exception, or raising it ends the thread.
            kind = type(outcome[1]).__name__
            outcome = False, TypeError(f"the exception that the task raised unpickles as no exception, but as {kind}")
        if notes.traceback and not outcome[0]:
            # Also of an exception that did not unpickle: the text says what the task raised, and where.
            _set_cause(outcome[1], self._traceback_type(f'\n"""\n{notes.traceback}"""'))
            if not has_arrived:
                with suppress(Exception):
                    BaseException.add_note(outcome[1], _NOT_UNPICKLED)
        return outcome

    def _buffers(self, blocks: TaskBlocks, payload: Payload, retained: Sequence[int]) -> list[Octets]:
        """Where the result's arrays lie from now on; a block that the user holds is no longer the task's."""
        blocks_used = {span[0] for span in payload.spans}
        if len(blocks_used) == 1:
            ranges = [span[1:3] for span in payload.spans]
            return self._from(blocks, payload, blocks_used.pop(), ranges, retained)
        found: dict[int, Octets] = {}
        for index in blocks_used:
            places = [place for place, span in enumerate(payload.spans) if span[0] == index]
            ranges = [payload.spans[place][1:3] for place in places]
            found.update(zip(places, self._from(blocks, payload, index, ranges, retained), strict=True))
        return [found[place] for place in range(len(payload.spans))]

    def _from(
        self,
        blocks: TaskBlocks,
        payload: Payload,
        index: int,
        ranges: Sequence[tuple[int, int]],
        retained: Sequence[int],
    ) -> list[Octets]:
        if index == INLINE:
            return self._inline(payload, ranges)
        return self._from_block(blocks, index, ranges, copies=index in retained)

    @staticmethod
    def _inline(payload: Payload, ranges: Sequence[tuple[int, int]]) -> list[Octets]:
        octets = np.frombuffer(payload.inline, np.uint8)
        return [octets[offset : offset + size].copy() for offset, size in ranges]

    def _from_block(
        self, blocks: TaskBlocks, index: int, ranges: Sequence[tuple[int, int]], *, copies: bool
    ) -> list[Octets]:
        allocator = self.allocator
        assert allocator is not None  # noqa: S101 - it named the block
        block = blocks.pop(index)
        end = max(offset + size for offset, size in ranges)
        allocator.has_memory(block, end)
        if end >= _COPY_OUT and not copies:  # what a worker retains is not the user's
            try:
                return allocator.deliver(block, ranges)
            except OSError:
                pass  # no address space for a mapping, or no more of them
        blocks.put(block)
        arrays = []
        for offset, size in ranges:
            arrays.append(np.empty(size, np.uint8))
            allocator.copy_out(block, offset, arrays[-1])
        return arrays

    def _take_back(self, blocks: TaskBlocks, notes: Notes, retained: RetainedBlocks) -> None:
        allocator = self.allocator
        if allocator is None:
            return
        retained.has_forked |= notes.has_forked
        with self._lock:
            for index in notes.retained:
                block = allocator.block(index)
                if block not in retained.blocks:
                    retained.blocks.add(block)
                    block.retain_count += 1
        if notes.shortage:
            self._discard_result(blocks)
        self._give_back(blocks)
        for index in notes.released:
            self._released(allocator.block(index), retained)

    def _discard_result(self, blocks: TaskBlocks) -> None:
        block = blocks.result
        if block is None or self.allocator is None:
            return
        if block.retain_count:  # its memory, however much it is, is released when it is given back
            block.has_holes = True
        else:
            self.allocator.discard(block)
            blocks.result = None

    def _give_back(self, blocks: TaskBlocks) -> None:
        for block in blocks.arguments:
            self._unused(block)
        blocks.arguments.clear()
        if blocks.result is not None:
            self._unused(blocks.result)
            blocks.result = None
        if blocks.shared:
            self._give_back_shared(blocks)

    def _give_back_shared(self, blocks: TaskBlocks) -> None:
        with self._lock:
            for shared in blocks.shared:
                shared.in_use -= 1
                if not shared.in_use and not shared.open:
                    self._unused(shared.block)
            blocks.shared.clear()

    def _unused(self, block: Block) -> None:
        """Give a block back, now or when no worker retains it any more."""
        if block.retain_count:  # checked without the lock first: no worker can begin to retain it now
            with self._lock:
                if block.retain_count:
                    block.release_pending = True
                    return
        if self.allocator is not None:
            self.allocator.give_back(block)

    def _released(self, block: Block, retained: RetainedBlocks) -> None:
        with self._lock:
            if block not in retained.blocks:
                return
            retained.blocks.remove(block)
            block.retain_count -= 1
            if not block.release_pending or block.retain_count:
                return
            block.release_pending = False
        self._unused(block)

    # --- loss ---

    def lost(self, blocks: TaskBlocks, *, ran: bool, forked: bool = False) -> None:
        """Release the blocks of a task that will not be answered.

        If its worker has forked, its children may use them for as long as they live.
        """
        if ran and forked:
            with self._lock:
                for block in (*blocks.arguments, blocks.result, *(shared.block for shared in blocks.shared)):
                    if block is not None:
                        block.retain_count += 1
        elif ran:
            self._discard_result(blocks)
        self._give_back(blocks)

    def has_begun(self, blocks: TaskBlocks) -> bool:
        """Whether a worker may have begun to run this task, which it notes before anything else.

        A killed process still takes a message that comes at that moment.
        """
        return self.allocator is None or blocks.result is None or self.allocator.word(blocks.result.index) != 0

    def worker_removed(self, retained: RetainedBlocks, running: Sequence[TaskBlocks]) -> bool:
        """Take back what a worker that has ended retained; returns whether it has forked."""
        allocator = self.allocator
        if allocator is None:
            return False
        forked = retained.has_forked or any(
            blocks.result and allocator.word(blocks.result.index) < 0 for blocks in running
        )
        if not forked:
            for block in list(retained.blocks):
                self._released(block, retained)
        return forked


# Not by attribute: the user's class may refuse that.
_set_cause: Any = vars(BaseException)["__cause__"].__set__


def _loads(payload: Payload, buffers: list[Octets]) -> tuple[bool, tuple[bool, Any]]:
    """Whether the outcome of a task could be unpickled; the outcome, or that error in its place."""
    try:
        return True, pickling.loads_payload(payload, buffers)
    except BaseException as error:  # noqa: BLE001 - user code: whatever unpickling it raises
        # The error holds this frame, and that of the caller's `get`: the block would not be free
        # before the garbage collector runs.
        buffers.clear()
        return False, (False, error)


def _failure(error: BaseException) -> Payload:
    kind = MemoryError if isinstance(error, MemoryError) else RuntimeError
    reason = str(error) or repr(error)  # numpy's have a text, but a repr that names no bytes
    return Payload(pickling.dumps((False, kind(f"the result cannot be received: {reason}"))).pickle)
