"""What a worker does with a task: unpack it, call, pack the result, drop the arguments, see whether they were retained.

All of it under ``try``: an error in unpickling or in mapping a block is the error of that
task, and the worker goes on.
"""

import gc
import os
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shmarray.core.posix import fault_count
from shmarray.errors import SharedMemoryFullError
from shmarray.pool._stdlib import encoding_error, is_reraising
from shmarray.pool.arrays import messages, pickling
from shmarray.pool.arrays.blocks import BlockMap, LeaseRef
from shmarray.pool.arrays.buffers import Octets
from shmarray.pool.arrays.calls import restored
from shmarray.pool.arrays.messages import INLINE, Message, Notes, Payload, Span
from shmarray.pool.arrays.pickling import PickledObject

_PAGE = os.sysconf("SC_PAGESIZE")


class Invoke(Protocol):
    """Calls functions of the user's; only meanwhile may Ctrl-C interrupt."""

    def __call__(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any: ...

    def stop(self) -> None:
        """Note that no such function runs, also when Ctrl-C came just before that was noted."""


class ExceptionEncoder:
    """How an error of a task, or of sending its result, is sent.

    Parameters
    ----------
    wraps_encoding_errors : bool
        Whether a result that does not pickle is a ``MaybeEncodingError``, as with
        `multiprocessing.Pool`, or the error of pickle itself, as with an executor.
    """

    def __init__(self, *, wraps_encoding_errors: bool) -> None:
        self._wraps = wraps_encoding_errors

    def unsendable(self, error: BaseException, result: object) -> BaseException:
        """The exception for a result that does not pickle."""
        if self._wraps:
            # The result's own repr may raise anything, also what is no Exception.
            with suppress(BaseException):
                return encoding_error(error, result)
        return error

    @staticmethod
    def text(error: BaseException) -> str:
        """The traceback as text; user code (``__str__``) runs here, and may raise anything."""
        try:
            return "".join(traceback.format_exception(error))
        except BaseException as another:  # noqa: BLE001 - user code
            frames = "".join(traceback.format_tb(error.__traceback__))
            name = type(another).__name__
            return f"Traceback (most recent call last):\n{frames}{type(error).__name__}: <str() of it raised {name}>\n"


class _Outcome:
    """What came of a task."""

    __slots__ = ("succeeded", "traceback", "value")

    def __init__(self, succeeded: bool, value: Any, traceback_text: str = "") -> None:
        self.succeeded = succeeded
        self.value = value
        self.traceback = traceback_text


class TaskRunner:
    """Carries out one task after the other, in a worker.

    Parameters
    ----------
    blocks : BlockMap or None
        None where there is no shared memory: everything goes through the pipe.
    encoder : ExceptionEncoder
    invoke : Invoke
    """

    def __init__(self, blocks: BlockMap | None, encoder: ExceptionEncoder, invoke: Invoke) -> None:
        self._blocks = blocks
        self._encoder = encoder
        self._invoke = invoke
        self._retained: dict[int, list[LeaseRef]] = {}

    def run(self, data: bytes) -> bytes:
        """Carry out a task, and answer; raises nothing, whatever the task does."""
        began = time.perf_counter()
        job, index, block, reserved, payload, *_ = messages.decode(data)
        blocks = self._blocks
        if blocks is not None and block:
            blocks.current = block
            blocks.set_word(block, os.getpid())
        opened: list[LeaseRef] = []
        faults = fault_count() if payload.spans and any(span[3] for span in payload.spans) else None
        pickled, text = self._pickled(self._outcome(payload, opened))
        payload, shortage = self._pack(pickled, block, reserved, opened)
        del pickled
        retained = self._clean_up(opened, faults) if opened else ()
        released = self._released() if self._retained else ()
        has_forked = blocks is not None and blocks.has_forked
        notes: tuple[Any, ...] = ()
        if retained or released or shortage or has_forked or text:
            notes = tuple(Notes(retained, released, shortage, has_forked, text))
        return messages.encode(Message(job, index, 0, 0, payload, notes, time.perf_counter() - began))

    # --- the call ---

    def _outcome(self, payload: Payload, opened: list[LeaseRef]) -> _Outcome:
        func = None
        try:
            func, args, kwargs = self._unpack(payload, opened)
            return _Outcome(True, self._invoke(func, args, kwargs))
        except BaseException as error:  # noqa: BLE001 - user code: whatever it raises is the caller's
            self._invoke.stop()
            return _Outcome(False, error, "" if is_reraising(func) else self._encoder.text(error))

    def _unpack(self, payload: Payload, opened: list[LeaseRef]) -> Any:
        return restored(pickling.loads_payload(payload, self._buffers(payload, opened) if payload.spans else []))

    def _buffers(self, payload: Payload, opened: list[LeaseRef]) -> list[Octets]:
        inline = np.array(np.frombuffer(payload.inline, np.uint8)) if payload.inline else np.empty(0, np.uint8)
        whole = {INLINE: inline}
        for block, private in {(span[0], span[3]) for span in payload.spans} - {(INLINE, False)}:
            size = max(offset + size for index, offset, size, _ in payload.spans if index == block)
            whole[block] = self._open(block, size, opened, private=private)
        return [whole[block][offset : offset + size] for block, offset, size, _ in payload.spans]

    def _open(self, index: int, size: int, opened: list[LeaseRef], *, private: bool) -> Octets:
        blocks = self._blocks
        assert blocks is not None  # noqa: S101 - the caller has no allocator either, then
        try:
            part = blocks.private(index, size) if private else blocks.ready(index, size)
        except OSError:
            copied = np.empty(size, np.uint8)  # no address space for a mapping, or no more of them
            blocks.read(index, 0, copied)
            return copied
        lease, reference = blocks.lease(index, part)
        opened.append(reference)
        return lease.octets()

    # --- the result ---

    def _pickled(self, outcome: _Outcome) -> tuple[PickledObject, str]:
        """The pickle of the outcome, and the traceback that goes beside it; empties `outcome`."""
        value, text = outcome.value, outcome.traceback
        outcome.value = None
        if not outcome.succeeded and isinstance(value, BaseException):
            BaseException.with_traceback(value, None)  # its frames hold the arguments
        try:
            return pickling.dumps((outcome.succeeded, value)), text
        except BaseException as error:  # noqa: BLE001 - user code: a result's __reduce__
            failure = self._encoder.unsendable(error, value)
            text = text or self._encoder.text(error)
        BaseException.with_traceback(failure, None)
        try:
            return pickling.dumps((False, failure)), text
        except BaseException as error:  # noqa: BLE001 - the error does not pickle either
            return pickling.dumps((False, RuntimeError(f"the result cannot be sent: {type(error).__name__}"))), text

    def _pack(self, pickled: PickledObject, block: int, reserved: int, opened: list[LeaseRef]) -> tuple[Payload, str]:
        """Put the result where the caller can have it; empties `pickled`."""
        buffers: list[Any] = pickled.for_block()
        if not buffers:
            return Payload(pickled.pickle), ""
        if buffers is pickled.buffers:
            spans = _in_argument_block(buffers, opened)
            if spans is not None:
                return Payload(pickled.pickle, spans), ""
        if self._blocks is None or not block:
            return pickled.inline(), ""
        try:
            return self._in_block(pickled, buffers, block, reserved), ""
        except SharedMemoryFullError as error:  # through the pipe it would take twice the memory
            return Payload(pickling.dumps((False, error.with_traceback(None))).pickle), str(error)
        except (OSError, MemoryError) as error:
            return pickled.inline(), str(error)

    def _in_block(self, pickled: PickledObject, buffers: list[NDArray[Any]], block: int, reserved: int) -> Payload:
        blocks = self._blocks
        assert blocks is not None  # noqa: S101
        # Each buffer has pages of its own, so that the caller can release them one by one.
        offsets, _ = blocks.fill(block, reserved, buffers, _PAGE)
        spans = tuple((block, offset, buffer.nbytes, False) for buffer, offset in zip(buffers, offsets, strict=True))
        return Payload(pickled.pickle if buffers is pickled.buffers else b"", spans)

    # --- afterwards ---

    def _clean_up(self, opened: list[LeaseRef], faults: int | None) -> tuple[int, ...]:
        """Make the mappings ready for other tasks, and say which blocks must not be used again."""
        blocks = self._blocks
        assert blocks is not None  # noqa: S101
        retained = []
        clean = faults is not None and faults == fault_count()
        for reference in opened:
            if _is_in_use(reference):
                retained.append(reference.index)
                self._retained.setdefault(reference.index, []).append(reference)
                blocks.forget(reference.index)
            elif reference.sentinels:
                blocks.forget(reference.index)  # private since the fork; the children are gone
            elif reference.is_private and not clean:
                _reset(blocks, reference.index)
        blocks.ended()
        return tuple(retained)

    def _released(self) -> tuple[int, ...]:
        released = [
            index
            for index, references in self._retained.items()
            if not any(reference.is_in_use() for reference in references)
        ]
        for index in released:
            del self._retained[index]
        return tuple(released)


def _in_argument_block(buffers: list[Any], opened: list[LeaseRef]) -> tuple[Span, ...] | None:
    """Where the result lies in the task's own block, if all of it does and nothing else is left of the arguments.

    Then it goes back in that block, uncopied.  Empties `buffers` to find out, and fills it again if not.
    """
    own = next((reference for reference in opened if not reference.is_private), None)
    lease = None if own is None else own()
    if own is None or lease is None or lease.part.private or not all(buffer.flags.forc for buffer in buffers):
        return None
    part = lease.part
    del lease
    places = [(buffer.__array_interface__["data"][0] - part.address, buffer.nbytes) for buffer in buffers]
    if not _fit(places, part.size):
        return None
    kinds: Any = [(buffer.shape, buffer.dtype, "F" if buffer.flags.fnc else "C") for buffer in buffers]
    buffers.clear()
    if not _is_in_use(own):
        return tuple((own.index, start, size, False) for start, size in places)
    # Retained, so it must be copied: from the mapping itself, which outlives the arrays.
    octets = part.octets()
    for (shape, dtype, order), (start, size) in zip(kinds, places, strict=True):
        buffers.append(np.ndarray(shape, dtype, octets[start : start + size], 0, None, order))
    return None


def _fit(places: list[tuple[int, int]], size: int) -> bool:
    end = 0
    for start, length in sorted(places):
        if start < end:  # before the block, or over another buffer: two arrays that share memory
            return False
        end = start + length
    return end <= size


def _is_in_use(reference: LeaseRef) -> bool:
    """Whether anything uses a block after its task."""
    # A cycle, such as `except E as e: err = e` makes, is young; a full collection takes too long
    # (benchmarks/constants.py).
    for generation in (0, 1):
        if reference() is None:
            break
        gc.collect(generation)
    return reference.is_in_use()


def _reset(blocks: BlockMap, index: int) -> None:
    """Let a private block show its content again, if anything was written to it."""
    part = blocks.private(index, 0)
    if not part.is_clean():
        try:
            part.discard_writes()
        except OSError:  # mlockall
            blocks.forget(index)
