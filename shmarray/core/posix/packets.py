"""System calls that return at once, made without letting go of the interpreter's lock, where it has one.

A method of a socket lets go of it for every call, and when another thread wants it, getting
it back is a switch of threads: with one thread that sends small messages and one that
receives the answers, 60 % of their time went there (measured with a sampling profiler).
"""

import ctypes
import errno
import socket

# Without argtypes, with which a call takes 0.4 us more.  Integers go as C's int then, which
# libffi extends to the whole register: enough for packets.
_libc = ctypes.PyDLL(None, use_errno=True)
_send, _recv = _libc.send, _libc.recv
_FLAGS = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)
_NOTHING_NOW = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR)


class PacketSpace:
    """Memory to receive packets into; for one thread at a time."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.memory = ctypes.create_string_buffer(size)
        self.view = memoryview(self.memory)


def message_socketpair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets that keep the boundaries of messages, or where the system refuses those, a stream."""
    try:
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except (AttributeError, OSError):  # macOS: EPROTONOSUPPORT
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def send_packet(fd: int, packet: bytes) -> bool:
    """Send a packet, if it can be sent now."""
    size = len(packet)
    return bool(_send(fd, packet, size, _FLAGS) == size)


def receive_packet(fd: int, space: PacketSpace, most: int) -> bytes | None:
    """The packet that is there, b"" if no more will come, None if there is none now.

    Of a stream, at most so many bytes.

    Raises
    ------
    OSError
        ECONNRESET, among others.
    """
    size = _recv(fd, space.memory, min(most, space.size), _FLAGS)
    if size >= 0:
        return space.view[:size].tobytes()
    code = ctypes.get_errno()
    if code in _NOTHING_NOW:
        return None
    raise OSError(code, "cannot receive")
