"""Messages between a caller and one of its workers, over a pair of SOCK_SEQPACKET sockets.

A message is a packet, and is read by one process or the other as a whole: so the caller,
who keeps both ends, can take back what the worker has not read.  Only a message too long
for a packet is several, and goes to a worker that is waiting for it.
"""

import pickle
import socket
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from shmarray.core.posix import PacketSpace, receive_packet
from shmarray.pool.parcel import Contents

# call, index in the call, bytes that follow, bytes of those that are the header, box for the result, its memory
_HEAD = struct.Struct("=QqQIqQ")
# Well below the 208 kB that a socket holds by default.
PACKET = 32 << 10

# A dead reader is an error, also in a program that has set SIGPIPE to end it (BSD and macOS have it per socket).
QUIETLY = getattr(socket, "MSG_NOSIGNAL", 0)

# The job of what a worker says when it is ready for tasks (index 0), or why it never will
# be (index 1): no call has this number.
READY = (1 << 64) - 1


class Message(NamedTuple):
    """A task or an answer.

    Attributes
    ----------
    job, task : int
        Which task of which call.
    box, reserved : int
        For the result, on the way to the worker.
    contents : Contents
    notes : tuple
        What else there is to say, on the way back.
    """

    job: int
    task: int
    box: int
    reserved: int
    contents: Contents
    notes: tuple[Any, ...] = ()


def encode(message: Message) -> bytes:
    job, task, box, reserved, (pickled, spans, loose), notes = message
    if not spans and not notes:
        return _HEAD.pack(job, task, len(pickled), 0, box, reserved) + pickled
    header = pickle.dumps((spans, len(pickled), notes))
    size = len(header) + len(pickled) + len(loose)
    return b"".join((_HEAD.pack(job, task, size, len(header), box, reserved), header, pickled, loose))


def decode(data: bytes) -> Message:
    job, index, size, header_size, box, reserved = _HEAD.unpack_from(data)
    if not header_size and size <= PACKET:
        return Message(job, index, box, reserved, Contents(data[_HEAD.size :]))
    view = memoryview(data)[_HEAD.size : _HEAD.size + size]
    if not header_size:
        return Message(job, index, box, reserved, Contents(view))
    spans, length, notes = pickle.loads(view[:header_size])  # noqa: S301 - numbers and strings of our own
    pickled, loose = view[header_size : header_size + length], view[header_size + length :]
    return Message(job, index, box, reserved, Contents(pickled, spans, loose), notes)


def key(data: bytes) -> tuple[int, int]:
    """The job and index of a message, without decoding the rest."""
    job, index, *_ = _HEAD.unpack_from(data)
    return job, index


def missing(data: bytes) -> int:
    """Bytes of a message that are in further packets, by its first one."""
    size: int = _HEAD.unpack_from(data)[2]
    return _HEAD.size + size - len(data)


def is_long(data: bytes) -> bool:
    return len(data) > PACKET


def send(sock: socket.socket, data: bytes, flags: int = 0) -> None:
    """Send a message, waiting for the reader where it must, if the flags do not say otherwise."""
    flags |= QUIETLY
    if len(data) <= PACKET:
        sock.send(data, flags)
        return
    view = memoryview(data)
    for start in range(0, len(view), PACKET):
        sock.send(view[start : start + PACKET], flags)


class Receiver:
    """Puts messages together from packets."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._parts: list[bytes] = []
        self._missing = 0

    def wait(self) -> bytes:
        """The next message; b"" at the end."""
        while True:
            packet = self._sock.recv(PACKET)
            if not packet:
                return b""
            message = self._completed(packet)
            if message is not None:
                return message

    def arrived(self, space: PacketSpace) -> Iterator[bytes]:
        """The messages that are there now."""
        while packet := receive_packet(self._sock.fileno(), space):
            message = self._completed(packet)
            if message is not None:
                yield message

    def _completed(self, packet: bytes) -> bytes | None:
        """The message of which this was the last packet."""
        if len(packet) < PACKET and not self._parts:
            return packet
        if self._parts:
            self._missing -= len(packet)
        else:
            self._missing = missing(packet)
            if not self._missing:
                return packet
        self._parts.append(packet)
        if self._missing:
            return None
        whole = b"".join(self._parts)
        self._parts = []
        return whole
