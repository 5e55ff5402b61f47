"""The caller's side of parcels: lends the boxes for a task, and takes them back when it is answered or lost."""

import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shmarray.errors import SharedMemoryFullError
from shmarray.pool import parcel
from shmarray.pool.arena import Arena, Box, Use
from shmarray.pool.link import Message
from shmarray.pool.parcel import LOOSE, Bundle, Contents, Octets, Repeated, Span
from shmarray.pool.worker import Notes

# Results smaller than this are copied out: making their box an array's memory takes as long,
# and there may be a hundred thousand of them.  For 128 kB copying takes 1.5 times as long,
# for 1 MB four times (benchmarks/constants.py: _COPY_OUT).
_COPY_OUT = 128 << 10
# Tasks that a worker may have unread when neither arguments nor results take boxes; with
# fewer, it waits for the caller's threads to be scheduled (benchmarks/constants.py: DEEP).
DEEP = 64


class Keeper:
    """What is known of a worker that may hold on to boxes after their tasks."""

    def __init__(self) -> None:
        self.kept: set[Box] = set()
        self.has_forked = False


class Shared:
    """The box of an array that many tasks of one call carry."""

    __slots__ = ("box", "in_use", "open")

    def __init__(self, box: Box) -> None:
        self.box = box
        self.in_use = 0
        self.open = True


class Trip:
    """A task on its way: which one, and the boxes that are lent for it.

    Attributes
    ----------
    group : int
        The tasks that share the arrays which all of them carry.
    data : bytes
        The message, to send it again.
    is_long : bool
        Whether its message is several packets; such a one is not taken back.
    is_being_sent : bool
        Whether it is not all sent, so that nobody has run it.
    """

    __slots__ = ("argument", "data", "func", "group", "index", "is_being_sent", "is_long", "job", "result", "shares")

    def __init__(self, job: int, index: int, func: Any, group: int | None = None) -> None:
        self.job = job
        self.index = index
        self.func = func
        self.group = job if group is None else group
        self.argument: Box | None = None
        self.result: Box | None = None
        self.shares: list[Shared] = []
        self.data = b""
        self.is_long = False
        self.is_being_sent = False

    def forget(self, box: Box) -> None:
        """That box is the user's now."""
        if box is self.argument:
            self.argument = None
        else:
            self.result = None

    @property
    def key(self) -> tuple[int, int]:
        return self.job, self.index

    @property
    def function(self) -> str:
        name = getattr(self.func, "__qualname__", None)
        return f"{self.func.__module__}.{name}()" if name else repr(self.func)


class Traffic:
    """Packs tasks and unpacks results, with boxes where they pay and can be had.

    Parameters
    ----------
    arena : Arena or None
    ahead : int
        Tasks with arrays that a worker may have at a time.

    Notes
    -----
    Packing happens in one thread, unpacking in another.
    """

    def __init__(self, arena: Arena | None, ahead: int) -> None:
        self.arena = arena
        self.ahead = ahead
        self._lock = threading.RLock()
        self._shared: dict[tuple[int, int], Shared] = {}
        self._light_results = DEEP
        self._has_warned = False

    def depth(self, trip: Trip) -> int:
        """How many tasks a worker may have, so that this one may be added.

        Few, if tasks or results are big: what is in flight is memory.
        """
        return self.ahead if trip.argument is not None or self._light_results < DEEP else DEEP

    # --- packing ---

    def pack(self, bundle: Bundle, trip: Trip) -> Message:
        """Copy a task's arrays into a box, and name another for its result."""
        try:
            contents = self._contents(bundle, trip)
            trip.result = result = self._lend_for_result()
        except BaseException:
            self.lost(trip, ran=False)
            raise
        if result is None:
            return Message(trip.job, trip.index, 0, 0, contents)
        return Message(trip.job, trip.index, result.index, result.reserved, contents)

    def _contents(self, bundle: Bundle, trip: Trip) -> Contents:
        pieces = parcel.boxed(bundle)
        if not pieces:
            return Contents(bundle.pickle)
        if self.arena is None:
            self._warn("this system has no anonymous shared memory")
            return parcel.loosely(bundle)
        try:
            spans = self._in_boxes(self.arena, pieces, trip)
        except SharedMemoryFullError:
            raise  # through the pipe it would take twice the memory, and the kernel kill a process for it
        except (OSError, MemoryError) as error:
            self._warn(str(error))
            self._give_up_boxes(trip)
            return parcel.loosely(bundle)
        return Contents(bundle.pickle if pieces is bundle.pieces else b"", spans)

    def _in_boxes(self, arena: Arena, pieces: Sequence[NDArray[Any] | Repeated], trip: Trip) -> tuple[Span, ...]:
        own = [piece for piece in pieces if not isinstance(piece, Repeated)]
        own_spans = iter(self._fill(arena, own, trip) if own else ())
        return tuple(
            self._shared_span(arena, piece, trip) if isinstance(piece, Repeated) else next(own_spans)
            for piece in pieces
        )

    def _fill(self, arena: Arena, pieces: list[NDArray[Any]], trip: Trip) -> list[Span]:
        trip.argument = box = arena.lend(Use.ARGUMENT)
        offsets = arena.load(box, pieces)
        return [(box.index, offset, piece.nbytes, False) for piece, offset in zip(pieces, offsets, strict=True)]

    def _shared_span(self, arena: Arena, piece: Repeated, trip: Trip) -> Span:
        array = piece.array
        key = trip.group, id(array)  # the call holds the array, so no other gets its id
        shared = self._shared.get(key)
        if shared is None:
            box = arena.lend(Use.ARGUMENT)
            try:
                arena.load(box, [array])
            except BaseException:
                arena.give_back(box)
                raise
            shared = self._shared[key] = Shared(box)
        with self._lock:
            shared.in_use += 1
        trip.shares.append(shared)
        return shared.box.index, 0, array.nbytes, True

    def exhausted(self, group: int) -> None:
        """No more tasks of this group come; may be called by a finalizer."""
        if not self._shared:
            return
        with self._lock:
            for key in [key for key in self._shared if key[0] == group]:
                shared = self._shared.pop(key)
                shared.open = False
                if not shared.in_use:
                    self._finished(shared.box)

    def _lend_for_result(self) -> Box | None:
        if self.arena is None:
            return None
        try:
            box = self.arena.lend(Use.RESULT)
        except OSError as error:
            self._warn(str(error))
            return None
        self.arena.set_word(box.index, 0)
        return box

    def _warn(self, why: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            text = f"arrays go to and from workers through a pipe, which is slower: {why}"
            # Made an error, it would end this thread, which is not the user's; and the call can succeed.
            with suppress(RuntimeWarning):
                warnings.warn(text, RuntimeWarning, stacklevel=2)

    # --- unpacking ---

    def unpack(self, trip: Trip, message: Message, keeper: Keeper) -> tuple[bool, Any]:
        """The result of a task: ``(True, value)`` or ``(False, exception)``; its boxes are taken back."""
        contents = message.contents
        if not contents.spans and not message.notes:  # most small tasks: nothing but to give the boxes back
            self._give_up_boxes(trip)
            self._light_results += 1
            return _put_together(contents, [])
        notes = Notes(*message.notes)
        if notes.shortage and contents.spans:
            self._warn(notes.shortage)
        try:
            buffers = self._buffers(trip, contents) if contents.spans else []
        except BaseException as error:  # noqa: BLE001 - MemoryError: this result's, not the pool's
            buffers, contents = [], _failure(error)
        self._take_back(trip, notes, keeper)
        self._light_results = self._light_results + 1 if not contents.spans else 0
        return _put_together(contents, buffers)

    def _buffers(self, trip: Trip, contents: Contents) -> list[Octets]:
        """Where the result's arrays lie from now on; the box, if it is kept, is no longer the trip's."""
        spans = contents.spans
        index = spans[0][0]
        if index == LOOSE:
            whole = np.array(np.frombuffer(contents.loose, np.uint8))
            return [whole[offset : offset + size] for _, offset, size, _ in spans]
        arena = self.arena
        assert arena is not None  # noqa: S101 - it named the box
        end = max(offset + size for _, offset, size, _ in spans)
        box = trip.argument if trip.argument is not None and trip.argument.index == index else trip.result
        assert box is not None  # noqa: S101
        arena.holds(box, end)
        if end >= _COPY_OUT:
            try:
                whole = arena.deliver(box)
            except OSError:
                pass  # no address space for a mapping, or no more of them
            else:
                trip.forget(box)
                return [whole[offset : offset + size] for _, offset, size, _ in spans]
        copies = []
        for _, offset, size, _ in spans:
            copies.append(np.empty(size, np.uint8))
            arena.copy_out(box, offset, copies[-1])
        return copies

    def _take_back(self, trip: Trip, notes: Notes, keeper: Keeper) -> None:
        arena = self.arena
        if arena is None:
            return
        keeper.has_forked |= notes.has_forked
        if notes.shortage:
            self._lose(trip)
        for index in notes.kept:
            box = arena.box(index)
            if box not in keeper.kept:
                keeper.kept.add(box)
                box.holders += 1
        self._give_up_boxes(trip)
        for index in notes.released:
            self._released(arena.box(index), keeper)

    def _lose(self, trip: Trip) -> None:
        if trip.result is not None and self.arena is not None:
            self.arena.lose(trip.result)
            trip.result = None

    def _give_up_boxes(self, trip: Trip) -> None:
        for box in (trip.argument, trip.result):
            if box is not None:
                self._finished(box)
        trip.argument = trip.result = None
        if trip.shares:
            self._give_up_shares(trip)

    def _give_up_shares(self, trip: Trip) -> None:
        with self._lock:
            for shared in trip.shares:
                shared.in_use -= 1
                if not shared.in_use and not shared.open:
                    self._finished(shared.box)
            trip.shares.clear()

    def _finished(self, box: Box) -> None:
        """Take back a box, when the last worker that keeps it has let go."""
        if box.holders:
            box.is_due = True
        elif self.arena is not None:
            self.arena.give_back(box)

    def _released(self, box: Box, keeper: Keeper) -> None:
        if box in keeper.kept:
            keeper.kept.remove(box)
            box.holders -= 1
            if box.is_due and not box.holders:
                box.is_due = False
                self._finished(box)

    # --- loss ---

    def lost(self, trip: Trip, *, ran: bool, forked: bool = False) -> None:
        """Take back the boxes of a task that will not be answered.

        If its worker has forked, its children may look at them for as long as they live.
        """
        if ran and forked:
            for box in (trip.argument, trip.result, *(shared.box for shared in trip.shares)):
                if box is not None:
                    box.holders += 1
        elif ran:
            self._lose(trip)
        self._give_up_boxes(trip)

    def has_begun(self, trip: Trip) -> bool:
        """Whether a worker may have begun to run this task, which it says before all else.

        A killed process still takes a message that comes at that moment.
        """
        return self.arena is None or trip.result is None or self.arena.word(trip.result.index) != 0

    def bury(self, keeper: Keeper, trips: Sequence[Trip]) -> bool:
        """Take back what a worker kept that is dead now; returns whether it has forked."""
        arena = self.arena
        if arena is None:
            return False
        forked = keeper.has_forked or any(trip.result and arena.word(trip.result.index) < 0 for trip in trips)
        if not forked:
            for box in tuple(keeper.kept):
                self._released(box, keeper)
        return forked


def _put_together(contents: Contents, buffers: list[Octets]) -> tuple[bool, Any]:
    try:
        return parcel.unpacked(contents, buffers)  # type: ignore[no-any-return]
    except BaseException as error:  # noqa: BLE001 - user code: whatever unpickling it raises
        # The error holds this frame, and behind Pool's door itself, by the frame of `get`: the
        # box would not be free before the garbage collector runs.
        buffers.clear()
        return False, error


def _failure(error: BaseException) -> Contents:
    kind = MemoryError if isinstance(error, MemoryError) else RuntimeError
    return Contents(parcel.take_apart((False, kind(f"the result cannot be received: {error!r}"))).pickle)
