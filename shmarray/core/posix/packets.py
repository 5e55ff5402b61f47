"""Messages over a pair of sockets.

Calls that return at once are made without releasing the GIL.  Socket methods release it for
every call, and if another thread wants it, getting it back takes a thread switch: with one
thread that sends small messages and one that receives the answers, most of the time was spent
on that.
"""

import ctypes
import errno
import mmap
import os
import select
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

from shmarray.core.posix import libc

SEQPACKET: int | None = getattr(socket, "SOCK_SEQPACKET", None)
# Not to wait, and no SIGPIPE if there is no reader, also in a program that has set it to end it.
# Plain integers, because combining members of an enumeration takes as long as sending a packet.
DONTWAIT = int(getattr(socket, "MSG_DONTWAIT", 0))
NOSIGNAL = int(getattr(socket, "MSG_NOSIGNAL", 0))
# macOS has this in the place of the flag; Python does not export it.
_SO_NOSIGPIPE = 0x1022
_SIGPIPE = (signal.SIGPIPE,)
_NOTHING_NOW = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR, errno.ENOBUFS)


def _found(name: str) -> Any:
    """A function of libc; None if it cannot be had."""
    # Without argtypes, which make calls slower.  Integers are then passed as C's int, which
    # libffi extends to the whole register: enough for packets.
    try:
        return getattr(ctypes.PyDLL(None, use_errno=True), name)
    except (AttributeError, OSError):
        return None


_send = _found("send")
# The structures below are as Linux has them.
_recvmmsg = _found("recvmmsg") if libc.LINUX else None


class _Segment(ctypes.Structure):
    """struct iovec."""

    _fields_: ClassVar = [("address", ctypes.c_void_p), ("size", ctypes.c_size_t)]


class _Header(ctypes.Structure):
    """struct msghdr."""

    _fields_: ClassVar = [
        ("name", ctypes.c_void_p),
        ("name_size", ctypes.c_uint),
        ("segments", ctypes.POINTER(_Segment)),
        ("segment_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_size", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    ]


class _Received(ctypes.Structure):
    """struct mmsghdr."""

    _fields_: ClassVar = [("header", _Header), ("size", ctypes.c_uint)]


class PacketSpace:
    """Memory to receive several packets of up to `size` bytes at once into; for one thread at a time."""

    def __init__(self, size: int, count: int) -> None:
        self.size = size
        self.count = count
        # A mapping, of which only the pages that are written to take memory.
        self._memory = memoryview(mmap.mmap(-1, size * count, flags=mmap.MAP_PRIVATE))
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._segments = (_Segment * count)(*(_Segment(address + number * size, size) for number in range(count)))
        self.received = (_Received * count)()
        for received, segment in zip(self.received, self._segments, strict=True):
            received.header.segments = ctypes.pointer(segment)
            received.header.segment_count = 1
        self._views = [self._memory[number * size : (number + 1) * size] for number in range(count)]
        # The size of each packet, which is read much faster here than in the structures.
        numbers = memoryview(self.received).cast("B").cast("I")
        self._sizes = numbers[_Received.size.offset // 4 :: ctypes.sizeof(_Received) // 4]

    def packets(self, count: int) -> list[bytes]:
        """The first so many packets."""
        return [view[:size].tobytes() for view, size in zip(self._views[:count], self._sizes, strict=False)]


def message_socketpair(size: int) -> tuple[socket.socket, socket.socket]:
    """Two connected sockets that keep the boundaries of packets of `size` bytes, or where there are none, a stream."""
    if SEQPACKET is not None and DONTWAIT:
        with suppress(OSError):  # macOS: EPROTONOSUPPORT
            pair = _connected(SEQPACKET)
            if all(end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= 2 * size for end in pair):
                return _quiet(pair)
            for end in pair:
                end.close()
    return _quiet(_connected(socket.SOCK_STREAM))


def _connected(kind: int) -> tuple[socket.socket, socket.socket]:
    try:
        return socket.socketpair(socket.AF_UNIX, kind)
    except OSError:  # perhaps because of SOCK_CLOEXEC, which Python adds
        fds = (ctypes.c_int * 2)()
        if ctypes.CDLL(None).socketpair(int(socket.AF_UNIX), int(kind), 0, fds):
            raise
    for fd in fds:
        os.set_inheritable(fd, False)
    return socket.socket(fileno=fds[0]), socket.socket(fileno=fds[1])


def _quiet(pair: tuple[socket.socket, socket.socket]) -> tuple[socket.socket, socket.socket]:
    if not NOSIGNAL:
        with suppress(OSError):
            for end in pair:
                end.setsockopt(socket.SOL_SOCKET, _SO_NOSIGPIPE, 1)
    return pair


def keeps_boundaries(sock: socket.socket) -> bool:
    """Whether what was sent as one packet is received as one, by one reader."""
    return sock.type == SEQPACKET


def send_all(sock: socket.socket, data: bytes | memoryview) -> None:
    """Send all of it, waiting for the reader where it must.

    Raises
    ------
    OSError
        EPIPE: there is no reader; never a signal.
    """
    if NOSIGNAL:
        sock.sendall(data, NOSIGNAL)
    else:
        with _sigpipe_blocked():
            sock.sendall(data)


@contextmanager
def _sigpipe_blocked() -> Iterator[None]:
    # The signal is sent to the thread that writes, so it is this thread's to take.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGPIPE)
    try:
        yield
    finally:
        if signal.SIGPIPE not in before:
            if signal.SIGPIPE in signal.sigpending():
                signal.sigwait(_SIGPIPE)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def send_packet(sock: socket.socket, packet: bytes) -> bool:
    """Send a packet, if it can be sent now; False if there is no room for it.

    Raises
    ------
    OSError
        EPIPE, among others: nor will there ever be.
    """
    size = len(packet)
    if _send is not None and NOSIGNAL:
        if _send(sock.fileno(), packet, size, DONTWAIT | NOSIGNAL) == size:
            return True
        code = ctypes.get_errno()
    else:
        try:
            with _sigpipe_blocked():
                return sock.send(packet, DONTWAIT | NOSIGNAL) == size
        except OSError as error:
            code = error.errno or 0
    if code in _NOTHING_NOW:
        return False
    raise OSError(code, "cannot send")


def receive_packets(sock: socket.socket, space: PacketSpace) -> list[bytes]:
    """The packets that are there, but at most `space.count`; b"" among them says that no more will come.

    Raises
    ------
    OSError
        ECONNRESET, among others.
    """
    if _recvmmsg is not None:
        count = _recvmmsg(sock.fileno(), space.received, space.count, DONTWAIT, None)
        if count >= 0:
            return space.packets(count)
        code = ctypes.get_errno()
        if code in _NOTHING_NOW:
            return []
        if code not in libc.REFUSALS:
            raise OSError(code, "cannot receive")
    packets: list[bytes] = []
    while len(packets) < space.count and (packet := receive_now(sock, space.size)) is not None:
        packets.append(packet)
        if not packet:
            break
    return packets


def receive_now(sock: socket.socket, most: int) -> bytes | None:
    """The packet that is there, b"" if no more will come, None if there is none now.

    Of a stream, at most so many bytes, and for one reader at a time.

    Raises
    ------
    OSError
        ECONNRESET, among others.
    """
    if not DONTWAIT:
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        if not poll.poll(0):
            return None
    try:
        return sock.recv(most, DONTWAIT)
    except OSError as error:
        if error.errno in _NOTHING_NOW:
            return None
        raise
