"""TcpConnection: bytes in and out without waiting, over loopback sockets, plain and by TLS."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent import ssl

from gwt import certificates
from gwt.net.tcp import TcpConnection
from gwt.net.waiting import Deadline
from tests.helpers.arrival import acknowledged


class Receiver:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.pieces: list[int] = []
        self.ends: list[OSError | None] = []
        self.drains = 0

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.pieces.append(len(data))

    def connection_ended(self, error: OSError | None) -> None:
        self.ends.append(error)

    def drained(self) -> None:
        self.drains += 1


def eventually(condition) -> None:
    deadline = Deadline(5)
    while not condition():
        assert not deadline.expired
        gevent.sleep(0.001)


@pytest.fixture(scope="module")
def contexts(tmp_path_factory) -> tuple[Any, Any]:
    cert, key = certificates.write(tmp_path_factory.mktemp("tls"), certificates.generate())
    server, client = (
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
    )
    server.load_cert_chain(cert, key)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    return server, client


def sockets() -> tuple[Any, Any]:
    with gevent.socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        ours = gevent.socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    theirs.settimeout(5)
    return ours, theirs


@pytest.fixture(params=["plain", "tls"])
def ends(request, contexts) -> Iterator[tuple[TcpConnection, Receiver, Any]]:
    """A connection, its receiver, and the socket at the other end."""
    ours, theirs = sockets()
    if request.param == "tls":
        server, client = contexts
        shaking = gevent.spawn(server.wrap_socket, theirs, server_side=True)
        ours = client.wrap_socket(ours)
        theirs = shaking.get(timeout=5)
    with using(ours, theirs) as both:
        yield *both, theirs


@contextmanager
def using(ours: Any, theirs: Any) -> Iterator[tuple[TcpConnection, Receiver]]:
    receiver = Receiver()
    connection = TcpConnection(ours, receiver)
    connection.start()
    try:
        yield connection, receiver
    finally:
        connection.abort()
        theirs.close()


def drain(sock: Any, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        more = sock.recv(65536)
        assert more
        data += more
    return bytes(data)


def test_bytes_come_and_go(ends):
    connection, receiver, theirs = ends
    theirs.sendall(b"hello")
    eventually(lambda: receiver.data == b"hello")
    connection.write([b"a", b"", b"bc"])
    assert drain(theirs, 3) == b"abc"
    assert connection.queued == 0
    assert connection.remote_address == theirs.getsockname()
    assert connection.local_address == theirs.getpeername()


def test_what_the_socket_does_not_take_waits_in_order(ends):
    connection, receiver, theirs = ends
    data = os.urandom(1_000_000)
    for start in range(0, len(data), 100_000):
        connection.write([data[start : start + 50_000], data[start + 50_000 : start + 100_000]])
    big = os.urandom(12_000_000)
    connection.write([big[:6_000_000], big[6_000_000:]])
    connection.write([b"end"])
    assert connection.queued > 1_000_000
    assert drain(theirs, len(data) + len(big) + 3) == data + big + b"end"
    eventually(lambda: receiver.drains == 1)
    assert connection.queued == 0
    connection.write([b"again"])
    assert drain(theirs, 5) == b"again"


@pytest.mark.parametrize("paused", [False, True])
def test_what_tls_has_decrypted_before_is_read_too(contexts, paused):
    ours, theirs = sockets()
    server, client = contexts
    shaking = gevent.spawn(server.wrap_socket, theirs, server_side=True)
    ours, theirs = client.wrap_socket(ours), shaking.get(timeout=5)
    theirs.sendall(bytes(16_000))
    # As a buffered file does it.
    assert len(ours.recv(8192)) == 8192
    with using(ours, theirs) as (connection, receiver):
        if paused:
            connection.pause()
            gevent.sleep(0.01)
            assert not receiver.data
            connection.resume()
        eventually(lambda: len(receiver.data) == 16_000 - 8192)


def test_one_wakeup_reads_at_most_64_kib(ends):
    connection, receiver, theirs = ends
    connection.pause()
    sender = gevent.spawn(theirs.sendall, bytes(300_000))
    gevent.sleep(0.02)
    assert not receiver.data
    connection.resume()
    assert connection.read_waiting() <= 64 * 1024
    eventually(lambda: len(receiver.data) == 300_000)
    assert max(receiver.pieces) <= 64 * 1024
    sender.get(timeout=5)


def test_paused_it_reads_nothing_and_the_peer_is_stopped(ends):
    connection, receiver, theirs = ends
    connection.pause()
    sender = gevent.spawn(theirs.sendall, bytes(30_000_000))
    gevent.sleep(0.05)
    assert not sender.ready()
    assert connection.read_waiting() == 0
    assert not receiver.data
    connection.resume()
    eventually(lambda: len(receiver.data) == 30_000_000)
    sender.get(timeout=5)


def test_what_waits_is_handed_on_as_one(ends):
    connection, receiver, theirs = ends
    connection.pause()
    # By TLS each is a record.
    theirs.sendall(b"abc")
    theirs.sendall(b"defg")
    acknowledged(theirs)
    connection.resume()
    eventually(lambda: receiver.data == b"abcdefg")
    assert receiver.pieces == [7]


def test_the_end_is_told_behind_those_who_answer_what_came_before(ends):
    connection, receiver, theirs = ends
    connection.pause()
    told = []

    def data_received(data):
        gevent.get_hub().loop.run_callback(lambda: told.append(len(receiver.ends)))

    receiver.data_received = data_received
    theirs.sendall(b"last words")
    theirs.shutdown(socket.SHUT_WR)
    acknowledged(theirs)
    connection.resume()
    eventually(lambda: receiver.ends)
    assert (told, receiver.ends) == ([0], [None])


def test_the_end_is_told_once_and_after_everything(ends):
    connection, receiver, theirs = ends
    theirs.sendall(b"last words")
    theirs.shutdown(socket.SHUT_WR)
    eventually(lambda: receiver.ends)
    assert (receiver.data, receiver.ends) == (b"last words", [None])
    connection.resume()
    gevent.sleep(0.01)
    assert receiver.ends == [None]


def test_a_reset_is_told_once():
    ours, theirs = sockets()
    with using(ours, theirs) as (connection, receiver):
        connection.pause()
        connection.write([bytes(20_000_000)])
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        eventually(lambda: receiver.ends)
        assert isinstance(receiver.ends[0], OSError)
        connection.resume()
        connection.write([b"into the void"])
        gevent.sleep(0.01)
        assert len(receiver.ends) == 1
        assert connection.queued == 0


def test_closing_sends_what_is_queued_and_waits_for_the_peer(ends):
    connection, receiver, theirs = ends
    connection.write([bytes(5_000_000)])
    theirs.sendall(b"unread")
    connection.close()
    connection.close()
    assert not connection.closed
    assert drain(theirs, 5_000_000) == bytes(5_000_000)
    assert theirs.recv(1) == b""
    theirs.close()
    eventually(lambda: connection.closed)
    assert not receiver.ends


def test_closing_does_not_wait_for_ever(ends):
    connection, _, _ = ends
    connection.write([bytes(20_000_000)])
    connection.close()
    eventually(lambda: connection.closed)


@pytest.mark.parametrize("full", [False, True])
def test_nothing_is_waited_for_when_the_peer_is_done_and_everything_was_taken(full):
    ours, theirs = sockets()
    with using(ours, theirs) as (connection, _):
        data = b"last" * (1_000_000 if full else 1)
        connection.send(data)
        assert bool(connection.queued) is full
        connection.close(done=True)
        assert connection.closed is not full
        assert drain(theirs, len(data)) == data
        assert theirs.recv(1) == b""


def test_aborting_is_at_once(ends):
    connection, receiver, _ = ends
    connection.write([bytes(20_000_000)])
    connection.abort()
    connection.abort()
    assert connection.closed
    connection.write([b"x"])
    connection.close()
    assert connection.read_waiting() == 0
    gevent.sleep(0.01)
    assert not receiver.ends and not receiver.drains


def test_nothing_is_heard_by_who_closes_while_hearing():
    ours, theirs = sockets()

    class Closing(Receiver):
        def data_received(self, data):
            super().data_received(data)
            connection.abort()

    receiver = Closing()
    connection = TcpConnection(ours, receiver)
    connection.start()
    theirs.sendall(b"x" * 100_000)
    theirs.close()
    eventually(lambda: connection.closed)
    gevent.sleep(0.01)
    assert len(receiver.pieces) == 1 and not receiver.ends


def test_of_unix_sockets():
    ours, theirs = gevent.socket.socketpair()
    with using(ours, theirs) as (connection, receiver):
        theirs.sendall(b"hello")
        eventually(lambda: receiver.data == b"hello")
        connection.write([b"you"])
        assert theirs.recv(3) == b"you"


def test_small_and_large_pieces_wait_in_order_and_small_ones_together(ends):
    connection, _, theirs = ends
    connection.send(b"x" * 16_000_000)
    assert connection.queued
    expected = bytearray(b"x" * 16_000_000)
    for number in range(2000):
        piece = b"%d," % number if number % 500 else b"y" * 5000
        connection.send(piece)
        expected += piece
    connection.push()
    # The large ones, and what is between them.
    assert len(connection._output) < 20
    received = bytearray()
    while len(received) < len(expected):
        received += theirs.recv(1_000_000)
    assert received == expected
    eventually(lambda: connection.queued == 0)


def test_what_waits_leaves_at_once_when_it_is_pushed(ends):
    connection, receiver, theirs = ends
    connection.send(b"x" * 16_000_000)
    taken = 0
    while connection.queued:
        # Without the loop, which would find by itself that there is room.
        with gevent.Timeout(5):
            taken += len(theirs.recv(16_000_000))
        connection.push()
    while taken < 16_000_000:
        taken += len(theirs.recv(16_000_000))
    assert connection.send(b"more")
    assert theirs.recv(100) == b"more"
    eventually(lambda: receiver.drains)


def test_sending_behind_the_end_says_so(ends):
    connection, _, theirs = ends
    assert connection.send(b"x")
    connection.close()
    assert not connection.send(b"x")
    connection.push()
    assert theirs.recv(100) == b"x"
