"""What the driver of a connection makes of packets that are not its peer's."""

from __future__ import annotations

import os

from gwt.config import ServerConfig
from gwt.connection import ConnectionState, WebTransportConnection
from gwt.net.timers import now
from gwt.observe import Counters
from gwt.protocol.quic import Quic
from gwt.protocol.webtransport import WebTransport
from tests.helpers.pair import CLIENT, quic_options
from tests.protocol.test_hostile_frames import initial
from tests.test_connection import Endpoint, world

__all__ = ["world"]

STRANGER = ("203.0.113.9", 5)


def forged(connection):
    return b"\x40" + connection.protocol.quic.connection_id + os.urandom(40)


def test_forged_packets_do_not_keep_a_dead_connection_alive(world):
    w = world(client_options={"idle_timeout": 6.0})
    before = w.server.last_active
    # A clock in leaps looks like a stall, behind which a peer is asked once more.
    until = w.now + 9
    while w.now < until:
        w.now += 0.5
        w.server.receive([forged(w.server)], STRANGER, "198.51.100.1")
        w.server.send_now()
        if w.server._timer.deadline is not None and w.server._timer.deadline <= w.now:
            w.server._on_timer()
    assert w.server.is_closed and w.server.closed.reason == "Idle timeout"
    assert w.server.last_active == before
    assert w.server.stats()["packets_ignored"] >= 12


def test_forged_packets_do_not_hold_back_keep_alive_pings(world):
    w = world(client_options={"keep_alive_interval": 2.0})
    packets = w.client.stats()["packets_sent"]
    for _ in range(50):
        w.now += 0.1
        w.client.receive([forged(w.client)], STRANGER, None)
        w.exchange()
    assert w.client.stats()["packets_sent"] > packets


def test_forged_packets_change_no_address(world):
    w = world()
    addresses = w.server.remote_address, w.server.local_address
    w.server.receive([forged(w.server)], STRANGER, "198.51.100.1")
    assert (w.server.remote_address, w.server.local_address) == addresses


def newcomer(first, clock=now):
    """Make a server's connection for a first packet, as the listener does."""
    endpoint = Endpoint()
    endpoint.stats = Counters()
    config = ServerConfig()
    quic = Quic(
        quic_options(config, is_client=False),
        original_destination_connection_id=first[6 : 6 + first[5]],
    )
    protocol = WebTransport(quic, config)
    connection = WebTransportConnection(
        endpoint, protocol, {}, config, keep_alive=False, clock=clock
    )
    return connection, endpoint


def test_first_packet_that_cannot_be_opened_leaves_nothing(world):
    w = world()
    first = bytearray(w.first)
    connection, endpoint = newcomer(first)
    gone = []
    connection.on_gone(lambda: gone.append(True))
    first[-1] ^= 1
    connection.receive([bytes(first)], CLIENT, None)
    connection.flush()
    connection.send_now()
    assert connection.is_closed and gone == [True] and not connection._routes
    assert not endpoint.outbox, "nobody is answered who has said nothing"
    assert connection._timer.deadline is None


def test_first_packet_that_can_be_opened_begins_a_handshake(world):
    w = world()
    connection, endpoint = newcomer(w.first)
    connection.receive([w.first], CLIENT, None)
    connection.send_now()
    assert endpoint.outbox and not connection.is_closed
    assert connection.state is ConnectionState.CONNECTING
    connection.fail(OSError("the test is over"))


def test_packets_that_take_long_are_looked_at_a_few_a_turn(world):
    w = world()
    before = w.now
    w.client.protocol.quic.ping()
    datagrams = []
    for _ in range(20):
        w.client.protocol.quic.ping()
        w.now += 0.001
        datagrams += [data for data, _ in w.client.protocol.datagrams_to_send(w.now)]
    assert len(datagrams) == 20
    received = w.server.stats()["packets_received"]
    feed = w.server.protocol.quic._quic.receive_datagram

    def slow(*args):
        w.now += 0.0009
        feed(*args)

    w.server.protocol.quic._quic.receive_datagram = slow
    left = w.server.receive(datagrams, CLIENT, None)
    # What is begun in 2 ms is done.
    assert left == datagrams[3:]
    while left:
        left = w.server.receive(left, CLIENT, None)
    assert w.server.stats()["packets_received"] - received == 20
    assert w.server.last_active > before


def test_handshake_that_is_dribbled_is_given_up_in_time(world):
    w = world()
    connection, _ = newcomer(w.first, lambda: w.now)
    connection.handshake_deadline = w.now + 10
    destination = w.first[6 : 6 + w.first[5]]
    offset = 0
    while not connection.is_closed and offset < 1000:
        # One byte of a handshake every second, each in a packet that is authentic.
        connection.receive([initial(dribble(offset), destination, offset)], CLIENT, None)
        connection.send_now()
        assert connection.protocol.quic.heard == offset + 1
        offset += 1
        w.now += 1.0
        if connection._timer.deadline is not None and connection._timer.deadline <= w.now:
            connection._on_timer()
    assert offset == 10
    assert connection.stats()["handshakes_timed_out"] == 1
    w.now += 10
    connection._on_timer()
    assert connection._timer.deadline is None


def dribble(offset):
    """Return a frame with one byte of a ClientHello that announces 4096."""
    return b"\x06" + bytes([offset, 1]) + b"\x01\x00\x10\x00"[min(offset, 3) : min(offset, 3) + 1]
