"""What runs in a worker: open the parcel, call, pack the result, drop the arguments, see whether they were kept.

All of it under ``try``: an error in unpickling or in mapping a box is the error of that
task, and the worker goes on.
"""

import gc
import os
import resource
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shmarray.core.posix import Part
from shmarray.errors import SharedMemoryFullError
from shmarray.pool import link, parcel
from shmarray.pool.boxes import Boxes, Lent
from shmarray.pool.calls import restored
from shmarray.pool.link import Message
from shmarray.pool.parcel import LOOSE, Bundle, Contents, Octets, Span
from shmarray.pool.stdlib import Manners

# Bits of an entry of /proc/self/pagemap.
_PRESENT, _SWAPPED, _OF_FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))


class Notes(NamedTuple):
    """What comes back beside the result.

    Attributes
    ----------
    kept : tuple of int
        The boxes that the task, or a child that it forked, still looks at.
    released : tuple of int
        Boxes kept by earlier tasks that nobody looks at any more.
    shortage : str
        Why the result is not in a box, though it should be.
    has_forked : bool
        Whether this worker has ever forked.
    worker : int
        Its pid.
    """

    kept: tuple[int, ...] = ()
    released: tuple[int, ...] = ()
    shortage: str = ""
    has_forked: bool = False
    worker: int = 0


class Worker:
    """A worker's hands: it carries out one task after the other.

    Parameters
    ----------
    boxes : Boxes or None
        None where there is no shared memory: everything goes through the pipe.
    manners : Manners
        How errors are sent.
    """

    def __init__(self, boxes: Boxes | None, manners: Manners) -> None:
        self._boxes = boxes
        self._manners = manners
        self._busy = False
        self._kept: dict[int, list[Lent]] = {}

    def perform(self, message: bytes) -> bytes:
        """Carry out a task, and answer; raises nothing, whatever the task does."""
        job, index, box, reserved, contents, _ = link.decode(message)
        boxes = self._boxes
        if boxes is not None and box:
            boxes.errand = box
            boxes.set_word(box, os.getpid())
        opened: list[Lent] = []
        faults = _faults() if contents.spans and _has_private(contents.spans) else 0
        bundle = self._bundle(self._outcome(contents, opened))
        contents, shortage = self._pack(bundle, box, reserved, opened)
        del bundle
        kept = self._clean_up(opened, faults) if opened else ()
        released = self._released() if self._kept else ()
        has_forked = boxes is not None and boxes.has_forked
        notes: tuple[Any, ...] = ()
        if kept or released or shortage or has_forked:
            notes = tuple(Notes(kept, released, shortage, has_forked, os.getpid()))
        return link.encode(Message(job, index, 0, 0, contents, notes))

    # --- the call ---

    def _outcome(self, contents: Contents, opened: list[Lent]) -> tuple[bool, Any]:
        func = None
        try:
            func, args, kwargs = self._open(contents, opened)
            return True, self.interruptible(func, args, kwargs)
        except BaseException as error:  # noqa: BLE001 - user code: whatever it raises is the caller's
            self._busy = False  # Ctrl-C may have come just when it was to be said
            return False, self._manners.failed(error, func)

    def interruptible(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call a function of the user's, during which Ctrl-C raises KeyboardInterrupt."""
        self._busy = True
        try:
            return func(*args, **kwargs)
        finally:
            self._busy = False

    def _open(self, contents: Contents, opened: list[Lent]) -> Any:
        return restored(parcel.unpacked(contents, self._buffers(contents, opened) if contents.spans else []))

    def _buffers(self, contents: Contents, opened: list[Lent]) -> list[Octets]:
        loose = np.array(np.frombuffer(contents.loose, np.uint8)) if contents.loose else np.empty(0, np.uint8)
        whole = {LOOSE: loose}
        for box, private in {(span[0], span[3]) for span in contents.spans} - {(LOOSE, False)}:
            size = max(offset + size for index, offset, size, _ in contents.spans if index == box)
            whole[box] = self._lend(box, size, opened, private=private)
        return [whole[box][offset : offset + size] for box, offset, size, _ in contents.spans]

    def _lend(self, index: int, size: int, opened: list[Lent], *, private: bool) -> Octets:
        boxes = self._boxes
        assert boxes is not None  # noqa: S101 - the caller has no arena either, then
        try:
            part = boxes.private(index, size) if private else boxes.ready(index, size)
        except OSError:
            copied = np.empty(size, np.uint8)  # no address space for a mapping, or no more of them
            boxes.read(index, 0, copied)
            return copied
        lease, lent = boxes.lease(index, part)
        opened.append(lent)
        return lease.octets()

    # --- the result ---

    def _bundle(self, outcome: tuple[bool, Any]) -> Bundle:
        try:
            return parcel.take_apart(outcome)
        except BaseException as error:  # noqa: BLE001 - user code: a result's __reduce__
            failure = self._manners.unsendable(error, outcome[1])
        try:
            return parcel.take_apart((False, failure))
        except Exception as error:  # noqa: BLE001 - the error does not pickle either
            return parcel.take_apart((False, RuntimeError(f"the result cannot be sent: {error!r}")))

    def _pack(self, bundle: Bundle, box: int, reserved: int, opened: list[Lent]) -> tuple[Contents, str]:
        """Put the result where the caller can have it; empties `bundle`."""
        pieces: list[Any] = parcel.boxed(bundle)
        if not pieces:
            return Contents(bundle.pickle), ""
        if pieces is bundle.pieces:
            spans = _at_home(pieces, opened)
            if spans is not None:
                return Contents(bundle.pickle, spans), ""
        if self._boxes is None or not box:
            return parcel.loosely(bundle), ""
        try:
            return self._in_box(bundle, pieces, box, reserved), ""
        except SharedMemoryFullError as error:  # through the pipe it would take twice the memory
            return Contents(parcel.take_apart((False, self._manners.failed(error, None))).pickle), str(error)
        except (OSError, MemoryError) as error:
            return parcel.loosely(bundle), str(error)

    def _in_box(self, bundle: Bundle, pieces: list[NDArray[Any]], box: int, reserved: int) -> Contents:
        boxes = self._boxes
        assert boxes is not None  # noqa: S101
        offsets, _ = boxes.fill(box, reserved, pieces)
        spans = tuple((box, offset, piece.nbytes, False) for piece, offset in zip(pieces, offsets, strict=True))
        return Contents(bundle.pickle if pieces is bundle.pieces else b"", spans)

    # --- afterwards ---

    def _clean_up(self, opened: list[Lent], faults: int) -> tuple[int, ...]:
        """Make the mappings ready for other tasks, and say which boxes must not be used again."""
        boxes = self._boxes
        assert boxes is not None  # noqa: S101
        kept = []
        clean = faults == _faults()
        for lent in opened:
            if _is_seen(lent):
                kept.append(lent.index)
                self._kept.setdefault(lent.index, []).append(lent)
                boxes.forget(lent.index)
            elif lent.witnesses:
                boxes.forget(lent.index)  # private since the fork; the children are gone
            elif lent.is_private and not clean:
                _reset(boxes, lent.index)
        boxes.returned()
        return tuple(kept)

    def _released(self) -> tuple[int, ...]:
        released = [index for index, lents in self._kept.items() if not any(lent.is_seen() for lent in lents)]
        for index in released:
            del self._kept[index]
        return tuple(released)

    def install_interrupt(self) -> None:
        """Let Ctrl-C interrupt what is `interruptible` only; else the caller decides what becomes of this process."""
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            with suppress(ValueError):  # not the main thread
                signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, number: int, frame: Any) -> None:
        if self._busy:
            signal.default_int_handler(number, frame)


def _has_private(spans: tuple[Span, ...]) -> bool:
    return any(span[3] for span in spans)


def _at_home(pieces: list[Any], opened: list[Lent]) -> tuple[Span, ...] | None:
    """Where the result lies in the task's own box, if all of it does and nothing else is left of the arguments.

    Then it goes back in that box, uncopied.  Empties `pieces` to find out, and fills it again if not.
    """
    home = next((lent for lent in opened if not lent.is_private), None)
    lease = None if home is None else home()
    if home is None or lease is None or lease.part.private or not all(piece.flags.forc for piece in pieces):
        return None
    part = lease.part
    del lease
    places = [(piece.__array_interface__["data"][0] - part.address, piece.nbytes) for piece in pieces]
    if not _fit(places, part.size):
        return None
    kinds: Any = [(piece.shape, piece.dtype, "F" if piece.flags.fnc else "C") for piece in pieces]
    pieces.clear()
    if not _is_seen(home):
        return tuple((home.index, start, size, False) for start, size in places)
    # Kept, so it must be copied: from the mapping itself, which outlives the arrays.
    octets = part.octets()
    for (shape, dtype, order), (start, size) in zip(kinds, places, strict=True):
        pieces.append(np.ndarray(shape, dtype, octets[start : start + size], 0, None, order))
    return None


def _fit(places: list[tuple[int, int]], size: int) -> bool:
    end = 0
    for start, length in sorted(places):
        if start < end:  # before the box, or over another piece: two arrays that share memory
            return False
        end = start + length
    return end <= size


def _is_seen(lent: Lent) -> bool:
    """Whether anybody looks at a box after its task."""
    # A cycle, such as `except E as e: err = e` makes, is young: 10 us; a full collection takes 45 ms.
    for generation in (0, 1):
        if lent() is None:
            break
        gc.collect(generation)
    return lent.is_seen()


def _faults() -> int:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt + usage.ru_majflt


def _reset(boxes: Boxes, index: int) -> None:
    """Let a private box show its content again, if anything was written to it."""
    part = boxes.private(index, 0)
    if not _is_clean(part):
        try:
            part.discard_writes()
        except OSError:  # mlockall
            boxes.forget(index)


def _is_clean(part: Part) -> bool:
    """Whether no page of a private mapping was written to; False if one cannot know."""
    page = resource.getpagesize()
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            pagemap.seek(8 * (part.address // page))
            data = pagemap.read(8 * (part.size // page))
    except OSError:
        return False
    entries = np.frombuffer(data, np.uint64)
    written = (entries & (_PRESENT | _SWAPPED)).astype(bool) & ~(entries & _OF_FILE).astype(bool)
    return len(entries) == part.size // page and not written.any()
