"""Packets arrive whole and in order, several with one call, whatever the system lacks."""

import errno
import socket

import pytest

from shmarray.core.posix import PacketSpace, keeps_boundaries, message_socketpair, packets, receive_packets, send_packet
from tests.helpers import refusing
from tests.helpers.processes import in_child
from tests.pool.test_portable_pools import needs_filters

SIZE = 4096
COUNT = 4


def refuse_recvmmsg():
    refusing.refuse(["recvmmsg"], errno.ENOSYS)


def lack_recvmmsg():
    packets._recvmmsg = None


@pytest.fixture
def pair():
    one, other = message_socketpair(SIZE)
    if not keeps_boundaries(one):
        pytest.skip("this system has no SOCK_SEQPACKET")
    with one, other:
        yield one, other


def received(sock, space):
    """Everything that is there."""
    found = []
    while arrived := receive_packets(sock, space):
        found += arrived
        if b"" in arrived:
            break
    return found


def exchange(pair):
    one, other = pair
    space = PacketSpace(SIZE, COUNT)
    sent = [bytes([number]) * size for number, size in enumerate([1, SIZE, 7, SIZE - 1, 100, 2, 3, 4, 5, 6, 1])]
    assert receive_packets(other, space) == []
    for packet in sent:
        assert send_packet(one, packet)
    assert received(other, space) == sent
    assert send_packet(one, b"last")
    one.shutdown(socket.SHUT_WR)
    arrived = received(other, space)
    assert arrived[0] == b"last"
    assert set(arrived[1:]) == {b""}


def test_packets_arrive_whole_and_in_order(pair):
    exchange(pair)


@pytest.mark.parametrize("without", [pytest.param(refuse_recvmmsg, marks=needs_filters), lack_recvmmsg])
def test_packets_arrive_one_by_one_where_several_cannot(pair, without):
    def child():
        without()
        exchange(pair)

    in_child(child)


def test_a_reader_that_is_gone_is_an_error(pair):
    one, other = pair
    assert send_packet(one, b"unread")
    other.close()
    with pytest.raises(OSError, match="cannot receive") as caught:
        received(one, PacketSpace(SIZE, COUNT))
    assert caught.value.errno == errno.ECONNRESET
    with pytest.raises(OSError, match="cannot send") as caught:
        send_packet(one, b"more")
    assert caught.value.errno == errno.EPIPE
