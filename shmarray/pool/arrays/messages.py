"""Tasks and answers as bytes.

::

    offset  size
         0     8  length of the whole message, bytes
         8     8  number of the call
        16     8  index of the task in its call
        24     4  length of the header, bytes; 0 if there are neither spans nor notes
        28     8  block for the result (on the way to the worker)
        36     8  bytes of memory that this block has already
        44     8  seconds that the task took (on the way back)
        52        header (spans, length of the pickle, notes), the pickle, inline buffers
"""

import pickle
import struct
from dataclasses import dataclass
from typing import Any, NamedTuple

_FIXED = struct.Struct("=QQqIqQd")
_KEY = struct.Struct("=8xQq")

# No call has this number.  Index 0 says that a worker is ready, 1 why it cannot be.
READY = (1 << 64) - 1

Span = tuple[int, int, int, bool]
"""Where a buffer lies: the number of its block, or INLINE; its offset and size in bytes; and
whether many tasks have it, none of which may see another's writes.  A plain tuple pickles in
a third of the time of a named one."""
INLINE = -1


# Made for each task, in half the time that a named tuple takes.
@dataclass(slots=True)
class Payload:
    """An object on its way; inert, whatever the object is.

    Attributes
    ----------
    pickled : bytes-like
        The pickle.  Empty if it lies in a block itself; then the first span says where.
    spans : tuple of Span
        Where the buffers are, in the order of the pickle.
    inline : bytes-like
        The buffers themselves, one after the other, where no block could be had.
    """

    pickled: bytes | memoryview
    spans: tuple[Span, ...] = ()
    inline: bytes | memoryview = b""


class Notes(NamedTuple):
    """What an answer says beside the result.

    Attributes
    ----------
    retained : tuple of int
        The blocks that the task, or a child that it forked, still uses.
    released : tuple of int
        Blocks retained by earlier tasks that nothing uses any more.
    shortage : str
        Why the result is not in a block, though it should be.
    has_forked : bool
        Whether this worker has ever forked.
    traceback : str
        Of the exception that the task raised, as text.
    taken : int
        Bytes of memory that the result's block has, if the task has taken some for arrays of its own.
    """

    retained: tuple[int, ...] = ()
    released: tuple[int, ...] = ()
    shortage: str = ""
    has_forked: bool = False
    traceback: str = ""
    taken: int = 0


@dataclass(slots=True)
class Message:
    """A task or an answer.

    Attributes
    ----------
    job, index : int
        Which task of which call.
    block, reserved : int
        For the result: the number of its block, and the bytes of memory that it has.
    seconds : float
    payload : Payload
    notes : tuple
        The fields of `Notes`, or empty.
    """

    job: int
    index: int
    block: int
    reserved: int
    payload: Payload
    notes: tuple[Any, ...] = ()
    seconds: float = 0.0


def encode(
    job: int, index: int, block: int, reserved: int, payload: Payload, notes: tuple[Any, ...] = (), seconds: float = 0.0
) -> bytes:
    """The bytes of a `Message` with these fields."""
    pickled, spans = payload.pickled, payload.spans
    size = _FIXED.size + len(pickled)
    if not spans and not notes:
        return _FIXED.pack(size, job, index, 0, block, reserved, seconds) + pickled
    header = pickle.dumps((spans, len(pickled), notes))
    size += len(header) + len(payload.inline)
    fixed = _FIXED.pack(size, job, index, len(header), block, reserved, seconds)
    return b"".join((fixed, header, pickled, payload.inline))


def decode(data: bytes) -> Message:
    _, job, index, header_size, block, reserved, seconds = _FIXED.unpack_from(data)
    if not header_size:
        return Message(job, index, block, reserved, Payload(memoryview(data)[_FIXED.size :]), (), seconds)
    view = memoryview(data)[_FIXED.size :]
    spans, length, notes = pickle.loads(view[:header_size])  # noqa: S301 - numbers and strings of our own
    pickled, inline = view[header_size : header_size + length], view[header_size + length :]
    return Message(job, index, block, reserved, Payload(pickled, spans, inline), notes, seconds)


def key(data: bytes) -> tuple[int, int]:
    """The call and index of a message, without decoding the rest."""
    return _KEY.unpack_from(data)


def ready(trouble: str = "") -> bytes:
    """What a worker sends first: that it is ready, or why it cannot be."""
    pickled = trouble.encode(errors="backslashreplace")
    return encode(READY, int(bool(trouble)), 0, 0, Payload(pickled))
