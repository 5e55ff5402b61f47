"""Messages between the caller and one of its workers, over a pair of sockets.

A message starts with its own length, in 8 bytes.  Where the system has SOCK_SEQPACKET, a short
message is one packet, which only one process reads as a whole, so the caller, which keeps both
ends, can take back messages that the worker has not read.  A long message is sent as several
packets, to a worker that is waiting for it.  Elsewhere messages follow one another on a stream,
and each is sent like a long one.
"""

import socket
import struct
from collections.abc import Iterator

from shmarray.core.posix import (
    PacketSpace,
    keeps_boundaries,
    message_socketpair,
    receive_now,
    receive_packets,
    send_all,
    send_packet,
)

_LENGTH = struct.Struct("=Q")
# Well below the 208 kB that a socket holds by default, and more than a pickle that needs no block (pickling.LONG).
PACKET = 64 << 10


class Channel:
    """One end of a pair of sockets.

    Attributes
    ----------
    has_packets : bool
        Whether short messages are packets, so that unread ones can be taken back.
    """

    def __init__(self, sock: socket.socket) -> None:
        # Whatever socket.setdefaulttimeout says: a worker waits for its next task as long as it takes.
        sock.settimeout(None)
        self.sock = sock
        self.has_packets = keeps_boundaries(sock)
        self._parts: list[bytes] = []
        self._missing = 0

    @classmethod
    def pair(cls) -> tuple["Channel", "Channel"]:
        one, other = message_socketpair(PACKET)
        return cls(one), cls(other)

    def fileno(self) -> int:
        return self.sock.fileno()

    def is_long(self, data: bytes) -> bool:
        """Whether a message can only be sent to a worker that reads it meanwhile."""
        return len(data) > PACKET or not self.has_packets

    def send(self, data: bytes) -> None:
        """Send a message, waiting for the reader if necessary; OSError if there is no reader."""
        if len(data) <= PACKET or not self.has_packets:
            send_all(self.sock, data)
            return
        view = memoryview(data)
        for start in range(0, len(view), PACKET):
            send_all(self.sock, view[start : start + PACKET])

    def send_now(self, data: bytes) -> bool:
        """Send a short message if there is room for it, otherwise return False; OSError if there is no reader."""
        return send_packet(self.sock, data)

    def receive(self) -> bytes:
        """The next message; b"" at the end."""
        while True:
            packet = self.sock.recv(PACKET if self.has_packets else self._most())
            if not packet:
                return b""
            message = self._completed(packet)
            if message is not None:
                return message

    def arrived(self, space: PacketSpace) -> Iterator[list[bytes]]:
        """The messages that have arrived, as many at a time as one call receives."""
        while packets := self._packets(space):
            messages = map(self._completed, packets)
            yield [message for message in messages if message]
            if self.has_packets and len(packets) < space.count:
                return  # there were no more; another call would only say so

    def _packets(self, space: PacketSpace) -> list[bytes]:
        """What has arrived; nothing at the end, or if the other end has closed the connection."""
        try:
            if self.has_packets:
                packets = receive_packets(self.sock, space)
            else:
                packets = [receive_now(self.sock, self._most()) or b""]
        except OSError:
            return []
        return packets if packets and packets[0] else []

    def take_back(self) -> bytes | None:
        """At the worker's end: the next message that the worker has not read; None if there is none."""
        if not self.has_packets:
            return None
        try:
            return receive_now(self.sock, PACKET) or None
        except OSError:
            return None

    def _most(self) -> int:
        """Bytes to read of a stream: only the rest of the message, because another process may read what follows."""
        return min(PACKET, self._missing) if self._parts else _LENGTH.size

    def _completed(self, packet: bytes) -> bytes | None:
        """The message of which this was the last part."""
        if not self._parts:
            if self.has_packets and len(packet) < PACKET:
                return packet
            # A stream may deliver less than was asked for, even of the length.
            whole = _LENGTH.unpack_from(packet)[0] if len(packet) >= _LENGTH.size else _LENGTH.size
            self._missing = whole - len(packet)
            if not self._missing:
                return packet
        else:
            self._missing -= len(packet)
        self._parts.append(packet)
        if self._missing:
            return None
        message = b"".join(self._parts)
        self._parts = []
        return self._completed(message) if len(message) == _LENGTH.size else message

    def close(self) -> None:
        self.sock.close()


def socket_of(fd: int) -> socket.socket:
    """The socket of a descriptor, which it owns from now on."""
    return socket.socket(fileno=fd)
