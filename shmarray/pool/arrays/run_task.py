"""The worker's side of a task: unpack it, call, pack the result, drop the arguments, check if any were retained.

All of this is inside ``try``: an error in unpickling or in mapping a block fails only that task,
and the worker continues.
"""

import errno
import gc
import os
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import numpy as np

from shmarray.core.posix import fault_count
from shmarray.errors import SharedMemoryFullError
from shmarray.pool._stdlib import encoding_error, is_reraising
from shmarray.pool.arrays import by_value, messages, pickling
from shmarray.pool.arrays.blocks import BlockMap, LeaseRef
from shmarray.pool.arrays.buffers import Octets
from shmarray.pool.arrays.calls import FunctionLoader, restored
from shmarray.pool.arrays.leased_arrays import Place, places
from shmarray.pool.arrays.messages import INLINE, Notes, Payload, Span
from shmarray.pool.arrays.pickling import PickledObject
from shmarray.pool.arrays.result_memory import ResultMemory

_NOT_IN_MAIN = (
    '(a worker has what the main module defines outside of `if __name__ == "__main__":` and, if it is forked, '
    "before the pool is made; with cloudpickle a function that is defined later is sent too, unless a global that it "
    "uses cannot be pickled, such as a lock or an open file)"
)
_PAGE = os.sysconf("SC_PAGESIZE")
# Not by attribute: the class of the error may have a property of that name, which raises.
_traceback_of: Any = vars(BaseException)["__traceback__"].__get__


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
            # Since Python 3.15, to read the lines of a main module that was imported may warn.
            with warnings.catch_warnings(action="ignore"):
                return "".join(traceback.format_exception(error))
        except BaseException as another:  # noqa: BLE001 - user code
            frames = ""
            with suppress(BaseException):  # without descriptors, traceback cannot import what it needs
                frames = "".join(traceback.format_tb(_traceback_of(error)))
            name = type(another).__name__
            return f"Traceback (most recent call last):\n{frames}{type(error).__name__}: <str() of it raised {name}>\n"


class _Outcome:
    """The outcome of a task."""

    __slots__ = ("succeeded", "traceback", "value")

    def __init__(self, succeeded: bool, value: Any, traceback_text: str = "") -> None:
        self.succeeded = succeeded
        self.value = value
        self.traceback = traceback_text


class TaskRunner:
    """Runs tasks one after the other, in a worker.

    Parameters
    ----------
    blocks : BlockMap or None
        None where there is no shared memory: everything goes through the pipe.
    encoder : ExceptionEncoder
    invoke : Invoke
    """

    def __init__(self, blocks: BlockMap | None, encoder: ExceptionEncoder, invoke: Invoke) -> None:
        self._blocks = blocks
        if blocks is not None:
            blocks.control_words()  # mapped now: an initializer may limit the address space
        self._memory = None if blocks is None else ResultMemory(blocks)
        self._encoder = encoder
        self._invoke = invoke
        self._retained: dict[int, list[LeaseRef]] = {}
        self._functions = FunctionLoader()

    def run(self, data: bytes) -> bytes:
        """Run a task and answer; never raises, whatever the task does."""
        began = time.perf_counter()
        task = messages.decode(data)
        block, payload = task.block, task.payload
        blocks, memory = self._blocks, self._memory
        if blocks is not None and memory is not None:
            if block:
                blocks.current = block
                blocks.set_word(block, os.getpid())
            memory.open(block, task.reserved)
        opened: list[LeaseRef] = []
        faults = fault_count() if payload.spans and any(span[3] for span in payload.spans) else None
        outcome = self._outcome(payload, opened)
        if memory is not None:
            memory.close()
            opened += memory.parts
        pickled, text = self._pickled(outcome)
        by_value.end_task()
        payload, shortage = self._pack(pickled, opened)
        del pickled
        taken = memory.reserved if memory is not None and memory.reserved > task.reserved else 0
        retained = self._clean_up(opened, faults) if opened else ()
        released = self._released() if self._retained else ()
        has_forked = blocks is not None and blocks.has_forked
        notes: tuple[Any, ...] = ()
        if retained or released or shortage or has_forked or text or taken:
            notes = tuple(Notes(retained, released, shortage, has_forked, text, taken))
        return messages.encode(task.job, task.index, 0, 0, payload, notes, time.perf_counter() - began)

    # --- the call ---

    def _outcome(self, payload: Payload, opened: list[LeaseRef]) -> _Outcome:
        func = None
        try:
            try:
                func, args, kwargs = self._unpack(payload, opened)
            except AttributeError as error:
                if "'__main__'" in str(error) or "'__mp_main__'" in str(error):
                    error.add_note(_NOT_IN_MAIN)
                raise
            return _Outcome(True, self._invoke(func, args, kwargs))
        except BaseException as error:  # noqa: BLE001 - user code: whatever it raises is the caller's
            self._invoke.stop()
            return _Outcome(False, error, "" if is_reraising(func) else self._encoder.text(error))

    def _unpack(self, payload: Payload, opened: list[LeaseRef]) -> Any:
        call = pickling.loads_payload(payload, self._buffers(payload, opened) if payload.spans else [])
        return restored(call, self._functions)

    def _buffers(self, payload: Payload, opened: list[LeaseRef]) -> list[Octets]:
        ends: dict[tuple[int, bool], int] = {}
        for block, offset, size, private in payload.spans:
            ends[block, private] = max(ends.get((block, private), 0), offset + size)
        whole = {}
        for (block, private), end in ends.items():
            if block == INLINE:
                whole[block] = np.array(np.frombuffer(payload.inline, np.uint8))
            else:
                whole[block] = self._open(block, end, opened, private=private)
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
            return pickling.dumps_result((outcome.succeeded, value)), text
        except BaseException as error:  # noqa: BLE001 - user code: a result's __reduce__
            failure = self._encoder.unsendable(error, value)
            text = text or self._encoder.text(error)
        BaseException.with_traceback(failure, None)
        try:
            return pickling.dumps_result((False, failure)), text
        except BaseException as error:  # noqa: BLE001 - the error does not pickle either
            return pickling.dumps((False, RuntimeError(f"the result cannot be sent: {_summary(error)}"))), text

    def _pack(self, pickled: PickledObject, opened: list[LeaseRef]) -> tuple[Payload, str]:
        """Put the result into memory that the caller can read; empties `pickled`."""
        if not pickled.needs_block:
            return Payload(pickled.pickle), ""
        buffers: list[Any] = pickled.for_block()
        pickle = pickled.pickle if buffers is pickled.buffers else b""
        try:
            spans = self._spans(buffers, pickled, opened)
        except (OSError, MemoryError) as error:
            # Through the pipe it would take twice the memory.
            if isinstance(error, SharedMemoryFullError) or not pickled.buffers:
                return Payload(pickling.dumps((False, error.with_traceback(None))).pickle), str(error)
            return pickled.inline(), str(error)
        return (pickled.inline() if spans is None else Payload(pickle, spans)), ""

    def _spans(self, buffers: list[Any], pickled: PickledObject, opened: list[LeaseRef]) -> tuple[Span, ...] | None:
        """Where the result's buffers lie, those copied that are not in blocks yet; None if there is no block."""
        found = places(buffers, [reference for reference in opened if not reference.is_private]) if opened else {}
        others = [position for position in range(len(buffers)) if position not in found]
        spans: dict[int, Span] = {}
        if others:
            if self._memory is None or not self._memory.index:
                return None
            copies = self._memory.append([buffers[position] for position in others])
            spans.update(zip(others, copies, strict=True))
        if found:
            buffers.clear()
            pickled.buffers.clear()
            try:
                spans.update(self._uncopied(found))
            except (OSError, MemoryError):
                if not others:  # all can go inline
                    pickled.buffers.extend(found[position].array() for position in sorted(found))
                raise
        return tuple(spans[position] for position in range(len(spans)))

    def _uncopied(self, found: dict[int, Place]) -> dict[int, Span]:
        """Where these are; they are copied if something else uses the memory, which may be written to."""
        references = {id(place.reference): place.reference for place in found.values()}
        in_use = {key for key, reference in references.items() if _is_in_use(reference)}
        spans = {position: place.span() for position, place in found.items()}
        retained = [position for position, place in found.items() if id(place.reference) in in_use]
        if retained:
            if self._memory is None or not self._memory.index:
                raise OSError(errno.ENOMEM, "there is no block for a result that the task keeps part of")
            copies = self._memory.append([found[position].array() for position in retained])
            spans.update(zip(retained, copies, strict=True))
        return spans

    # --- afterwards ---

    def _clean_up(self, opened: list[LeaseRef], faults: int | None) -> tuple[int, ...]:
        """Make the mappings ready for other tasks, and say which blocks must not be used again."""
        blocks = self._blocks
        assert blocks is not None  # noqa: S101
        retained = set()
        clean = None
        for reference in opened:
            if _is_in_use(reference):
                retained.add(reference.index)
                self._retained.setdefault(reference.index, []).append(reference)
                blocks.forget(reference.index)
            elif reference.sentinels:
                blocks.forget(reference.index)  # private since the fork; the children are gone
            elif reference.is_private:
                if clean is None:
                    clean = faults is not None and faults == fault_count()
                if not clean:
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


def _summary(error: BaseException) -> str:
    """The error in one line; its ``__str__`` may raise anything."""
    with suppress(BaseException):
        return f"{type(error).__name__}: {error}"
    return type(error).__name__


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
