"""Connections over real sockets whose way changes, or loses just the wrong packet."""

from __future__ import annotations

import hashlib
import random
from contextlib import contextmanager

import gevent
import pytest
from gevent.queue import Queue

import gwt
from tests.helpers import eventually, spawn
from tests.helpers.live import serving
from tests.helpers.relay import Relay


def waiting(sessions):
    def handler(session):
        sessions.put(session)
        session.wait_closed()

    return handler


@contextmanager
def routed(server):
    """A relay to a server, and a session through it."""
    with Relay(server.address) as relay:
        with gwt.connect(relay.url(), verify=False, client_sockets=None) as session:
            yield relay, session
        # The relay still has to carry the client's close.
        eventually(lambda: not len(server.connections))


# A close that gets lost


def test_a_lost_close_is_said_again_long_after_the_connection_is_gone():
    sessions: Queue = Queue()
    with serving(waiting(sessions)) as server:
        with routed(server) as (relay, session):
            connection = sessions.get(timeout=5).connection
            relay.passes = lambda to_server, data: to_server
            connection.close(0x107, "enough")
            eventually(lambda: not server._udp.lingering)
            assert not session.connection.is_closed
            relay.passes = lambda to_server, data: True
            session.connection.protocol.quic.ping()
            session.connection.flush_soon()
            session.connection.wait_closed(timeout=5)
            closed = session.connection.closed
            assert (closed.code, closed.reason, closed.remote) == (0x107, "enough", True)
        assert server.stats()["udp"]["closes_repeated"] >= 1


def test_a_connection_that_its_client_closed_says_nothing_more():
    sessions: Queue = Queue()
    with serving(waiting(sessions)) as server, routed(server) as (relay, session):
        kept = []
        relay.passes = lambda to_server, data: to_server and kept.append(data) is None
        session.send_datagram(b"x")
        eventually(lambda: kept)
        relay.passes = lambda to_server, data: True
        session.abort()
        session.connection.close()
        eventually(lambda: not server._udp.lingering)
        before = server.stats()["udp"]["datagrams_sent"]
        unrouted = server.stats()["udp"].get("unrouted", 0)
        relay._back.sendto(kept[0], server.address)
        eventually(lambda: server.stats()["udp"].get("unrouted", 0) > unrouted)
        assert server.stats()["udp"]["datagrams_sent"] == before


# A client that moves


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"], ids=["port", "host"])
def test_an_echo_goes_on_while_the_client_s_address_changes_again_and_again(host):
    data = random.Random(1).randbytes(3_000_000)
    seen: Queue = Queue()

    def handler(session):
        seen.put(session)
        with session.accept_bidirectional_stream() as stream:
            for chunk in stream:
                stream.write(chunk)

    with serving(handler) as server, routed(server) as (relay, session):
        there = seen.get(timeout=5)
        assert there.remote_address == relay.source
        stream = session.create_bidirectional_stream()
        writing = spawn(stream.write_all, data)
        digest, moves, size = hashlib.sha256(), 0, 0
        while chunk := stream.read(timeout=10):
            digest.update(chunk)
            size += len(chunk)
            if size > (moves + 1) * 500_000:
                relay.move(host)
                moves += 1
        writing.get()
        assert digest.digest() == hashlib.sha256(data).digest()
        assert moves >= 4
        assert there.remote_address == relay.source
        assert 1 <= there.connection.stats()["migrations"] <= moves


def test_a_server_that_only_sends_finds_its_client_again():
    """The client's acknowledgements, and its keep-alives, are what tells of the new address."""
    seen: Queue = Queue()

    def handler(session):
        seen.put(session)
        for number in range(10_000):
            session.send_datagram(b"%d" % number)
            gevent.sleep(0.005)

    with serving(handler) as server, routed(server) as (relay, session):
        there = seen.get(timeout=5)
        session.receive_datagram(timeout=5)
        relay.move()
        session.connection.protocol.quic.ping()
        session.connection.flush_soon()
        eventually(lambda: there.remote_address == relay.source)
        before = session.stats()["datagrams_received"]
        eventually(lambda: session.stats()["datagrams_received"] > before + 5)


def test_forged_packets_from_elsewhere_change_nothing():
    """Whoever saw a connection id cannot take the connection away, or change what users see."""
    seen: Queue = Queue()
    with serving(waiting(seen)) as server, routed(server) as (_relay, session):
        there = seen.get(timeout=5)
        (some_id, *_) = there.connection.connection_ids
        home = there.remote_address
        received = server.stats()["udp"]["datagrams_received"]
        with Relay(server.address) as elsewhere:
            for first in (0x40, 0x7F, 0xC0):
                forged = bytes([first]) + some_id + random.Random(first).randbytes(40)
                elsewhere._back.sendto(forged, server.address)
            eventually(lambda: server.stats()["udp"]["datagrams_received"] >= received + 3)
            assert there.remote_address == home
        session.send_datagram(b"x")
        assert there.receive_datagram(timeout=5) == b"x"
        assert "migrations" not in there.connection.stats()
