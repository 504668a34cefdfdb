"""DatagramSocket on loopback: whole datagrams, plain addresses, answers from the address asked."""

from __future__ import annotations

import socket

import gevent
import pytest

import gwt
from gwt.net.datagrams import MOST, DatagramSocket
from tests.helpers import arrival, spawn


@pytest.fixture
def peer():
    sock = gevent.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.settimeout(5)
    yield sock
    sock.close()


@pytest.fixture
def listen():
    made = []

    def make(bind):
        made.append(DatagramSocket(bind))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("size", [0, 1, 1500, 20_000, MOST])
def test_datagrams_come_and_go_whole(listen, peer, size):
    server = listen("127.0.0.1:0")
    data = bytes(index % 251 for index in range(size))
    peer.sendto(data, server.address)
    [datagram] = server.receive()
    assert datagram == (data, peer.getsockname(), None)
    assert server.send(data, datagram.peer)
    assert peer.recvfrom(65_535) == (data, server.address)


def test_a_wake_up_reads_many_and_not_all(listen, peer):
    server = listen("127.0.0.1:0")
    for number in range(100):
        peer.sendto(b"%d" % number, server.address)
    arrival.arrived(server._sock, 100)
    first, second = server.receive(), server.receive()
    assert len(first) == 64
    assert [int(each.data) for each in first + second] == list(range(100))


def test_receive_waits_and_can_be_killed(listen, peer):
    server = listen("127.0.0.1:0")
    waiting = spawn(server.receive)
    gevent.sleep(0)
    waiting.kill()
    waiting = spawn(server.receive)
    gevent.sleep(0)
    peer.sendto(b"x", server.address)
    assert waiting.get()[0].data == b"x"


def test_answers_leave_from_the_address_that_was_asked(listen, peer):
    server = listen("0.0.0.0:0")
    for host in ("127.0.0.1", "127.0.0.7"):
        peer.sendto(b"x", (host, server.address[1]))
        [datagram] = server.receive()
        assert datagram.local == host
        server.send(b"y", datagram.peer, datagram.local)
        assert peer.recvfrom(10) == (b"y", (host, server.address[1]))


def test_one_socket_for_both_families(listen, peer):
    server = listen("[::]:0")
    peer.sendto(b"four", ("127.0.0.1", server.address[1]))
    [datagram] = server.receive()
    assert datagram.peer == peer.getsockname()
    assert server.send(b"back", datagram.peer, datagram.local)
    assert peer.recv(10) == b"back"
    with gevent.socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as six:
        six.bind(("::1", 0))
        six.settimeout(5)
        six.sendto(b"six", ("::1", server.address[1]))
        [datagram] = server.receive()
        assert datagram.peer == six.getsockname()[:2]
        assert server.send(b"back", datagram.peer, datagram.local)
        assert six.recv(10) == b"back"


def test_a_false_address_is_no_error(listen):
    server = listen("127.0.0.1:0")
    for peer in (("255.255.255.255", 9), ("127.0.0.1", 0)):
        assert not server.send(b"x", peer)
    assert server.stats["lost"] == 2


class _Full:
    """A socket that is full for the first few times."""

    def __init__(self, sock, times):
        self._sock = sock
        self.times = times

    def sendmsg(self, *args):
        self.times -= 1
        if self.times >= 0:
            raise BlockingIOError
        return self._sock.sendmsg(*args)

    def __getattr__(self, name):
        return getattr(self._sock, name)


def test_a_writer_waits_while_the_socket_is_full(listen, peer):
    server = listen("127.0.0.1:0")
    server._sock = full = _Full(server._sock, 3)
    assert server.send(b"x", peer.getsockname())
    assert full.times == -1
    assert peer.recv(10) == b"x"


def test_what_cannot_be_bound_is_named(listen):
    server = listen("127.0.0.1:0")
    host, port = server.address
    with pytest.raises(OSError, match=f"Cannot listen on UDP {host}:{port}"):
        DatagramSocket(f"{host}:{port}")
    with pytest.raises(OSError, match="Cannot listen on 'no-such-host"):
        DatagramSocket("no-such-host.invalid:0")
    with pytest.raises(gwt.ConfigError):
        DatagramSocket("127.0.0.1")


def test_closing_twice_is_closing_once(listen):
    server = listen("127.0.0.1:0")
    server.close()
    server.close()
    assert "closed" in repr(server)
