"""Retry over real sockets: who has to come again, when, and what becomes of bad tokens."""

from __future__ import annotations

import gc
import socket
import weakref
from collections.abc import Iterator

import gevent
import pytest
from aioquic.quic.events import ConnectionTerminated
from gevent.queue import Queue

import gwt
from gwt.observe import Counters
from gwt.protocol import codes
from gwt.protocol.packets import classify
from tests.helpers import eventually
from tests.helpers.live import connect, echo, serving
from tests.protocol.test_packets import aioquic_client, events_of


@pytest.fixture
def stranger() -> Iterator[socket.socket]:
    """A socket of somebody who says one thing and leaves."""
    with gevent.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
        yield sock


def udp(server):
    counters = Counters()
    counters.update(server.stats()["udp"])
    return counters


def is_retry(data):
    # Long header, version 1, and the type of Retry packets.
    return data[0] & 0xF0 == 0xF0 and data[1:5] == bytes([0, 0, 0, 1])


def begin(server, count, sock):
    """Begin handshakes that nobody will finish."""
    before = udp(server)["newcomers"]
    for number in range(1, count + 1):
        sock.sendto(aioquic_client()[1], server.address)
        eventually(lambda n=number: udp(server)["newcomers"] >= before + n)


def test_on_everybody_comes_again_and_is_served():
    with serving(echo, retry="on") as server:
        for _ in range(3):
            with connect(server) as session:
                stream = session.create_bidirectional_stream()
                stream.write_all(b"x" * 50_000)
                assert stream.read_all(timeout=5) == b"x" * 50_000
        assert udp(server)["retries_sent"] == 3
        assert udp(server)["newcomers"] == 3
        assert not udp(server)["tokens_invalid"]


def test_on_a_first_packet_leaves_nothing_behind(stranger):
    with serving(echo, retry="on") as server:
        for _ in range(20):
            _, first = aioquic_client()
            stranger.sendto(first, server.address)
            answer = stranger.recv(2000)
            assert is_retry(answer) and len(answer) < 150
        assert udp(server)["handshakes_unfinished"] == 0
        assert len(server.connections) == 0 and not server._udp.lingering


def test_off_nobody_comes_again_however_many_have_begun(stranger):
    with serving(echo, retry="off", retry_threshold=1) as server:
        begin(server, 3, stranger)
        assert udp(server)["handshakes_unfinished"] == 3
        connect(server).close()
        assert not udp(server)["retries_sent"]


def test_auto_newcomers_come_again_while_many_are_unfinished(stranger):
    with serving(echo, retry_threshold=3, handshake_timeout=1.0) as server:
        connect(server).close()
        assert not udp(server)["retries_sent"]
        begin(server, 3, stranger)
        while stranger.recv(2000)[1:5] != bytes([0, 0, 0, 1]):
            pass
        stranger.sendto(aioquic_client()[1], server.address)
        eventually(lambda: udp(server)["retries_sent"] == 1)
        # Who has proven its address is served all the same.
        with connect(server) as session:
            stream = session.create_bidirectional_stream()
            stream.write_all(b"x")
            assert stream.read_all(timeout=5) == b"x"
        assert udp(server)["retries_sent"] == 2
        # It stops when they are given up.
        eventually(lambda: udp(server)["handshakes_unfinished"] == 0)
        connect(server).close()
        assert udp(server)["retries_sent"] == 2


def test_a_token_of_another_address_is_refused_with_invalid_token(stranger):
    with serving(echo, retry="on") as server:
        client, first = aioquic_client()
        stranger.sendto(first, server.address)
        client.receive_datagram(stranger.recv(2000), ("192.0.2.2", 4433), 1.1)
        ((second, _), *_) = client.datagrams_to_send(1.1)
        with gevent.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as thief:
            thief.settimeout(5)
            thief.sendto(second, server.address)
            answer = thief.recv(2000)
        assert len(answer) < 150
        client.receive_datagram(answer, ("192.0.2.2", 4433), 1.2)
        client.handle_timer(client.get_timer() + 0.001)
        (ended,) = [e for e in events_of(client) if isinstance(e, ConnectionTerminated)]
        assert ended.error_code == codes.QUIC_INVALID_TOKEN
        assert udp(server)["tokens_invalid"] == 1
        assert udp(server)["handshakes_unfinished"] == 0
        # The client itself would have been served.
        stranger.sendto(second, server.address)
        eventually(lambda: udp(server)["newcomers"] == 1)


def test_a_token_that_is_not_ours_counts_as_none(stranger):
    """RFC 9000 8.1.3: of a NEW_TOKEN frame of whoever had this address before."""
    with serving(echo, retry="on") as server:
        _, first = aioquic_client(token=b"from somebody else")
        assert classify(first).token
        stranger.sendto(first, server.address)
        assert is_retry(stranger.recv(2000))


def test_a_server_that_stops_refuses_without_a_retry():
    here: Queue = Queue()

    def handler(session):
        here.put(session)
        session.accept_stream()

    with serving(handler, retry="on") as server:
        with connect(server) as session:
            here.get(timeout=5)
            session.create_bidirectional_stream().write(b"busy")
            server._udp.refuse_newcomers()
            with pytest.raises(gwt.HandshakeError, match="stopping"):
                connect(server)
        assert udp(server)["retries_sent"] == 1


@pytest.mark.parametrize(
    "options", [{"retry": "always"}, {"retry": True}, {"retry_threshold": 0}], ids=repr
)
def test_bad_options_are_refused_by_name(options):
    (name,) = options
    with pytest.raises(gwt.ConfigError, match=name):
        gwt.ServerConfig(**options)


def test_a_handshake_that_is_given_up_leaves_nothing_to_the_garbage_collector(stranger):
    with serving(echo, handshake_timeout=0.2) as server:
        begin(server, 1, stranger)
        (connection,) = server.connections.get_all_resources()
        gone = weakref.ref(connection)
        gc.disable()
        try:
            del connection
            eventually(lambda: gone() is None)
        finally:
            gc.enable()
        assert len(server._udp._farewells) == 1
