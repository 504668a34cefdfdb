"""What a closed connection still says: its close again, to whoever has missed it, and rarely."""

from __future__ import annotations

from gwt.config import ServerConfig
from gwt.protocol import events
from gwt.protocol.farewell import _LIMIT, Farewell, Farewells
from tests.helpers import raw
from tests.helpers.pair import CLIENT, SERVER, Pair

POWERS = [1, 2, 4, 8, 16, 32, 64]


def connected():
    pair = Pair()
    pair.session()
    pair.run(0.5)
    return pair


def close_lost(pair):
    """Close the server's side so that the client does not hear of it; return what was sent."""
    lost = []
    pair.filter = lambda to_server, data: to_server or lost.append(data)
    pair.server.protocol.close(0x100, "bye")
    pair._send()
    pair.filter = lambda to_server, data: True
    return lost


def test_a_close_that_was_lost_is_said_again_to_the_next_packet():
    pair = connected()
    (lost,) = close_lost(pair)
    assert not pair.client.of(events.ConnectionEnded)
    pair.client.protocol.quic.ping()
    pair.run(0.05)
    ended = pair.client.last(events.ConnectionEnded)
    assert (ended.code, ended.reason, ended.remote) == (0x100, "bye", True)
    assert pair.server.protocol.quic.farewell.datagram == lost


def test_it_is_said_ever_more_rarely():
    pair = connected()
    close_lost(pair)
    server = pair.server.protocol
    answered = []
    for number in range(1, 101):
        server.receive_datagrams([bytes(100)], CLIENT, pair.now)
        for answer, address in server.datagrams_to_send(pair.now):
            assert (answer, address) == (server.quic.farewell.datagram, CLIENT)
            answered.append(number)
    assert answered == POWERS


def test_it_is_said_where_it_was_asked_and_at_most_three_times_as_loud():
    pair = connected()
    close_lost(pair)
    server, elsewhere = pair.server.protocol, ("198.51.100.9", 9)
    small = len(server.quic.farewell.datagram) // 3
    server.receive_datagrams([bytes(small - 1)], elsewhere, pair.now)
    assert server.datagrams_to_send(pair.now) == []
    server.receive_datagrams([bytes(small + 1)], elsewhere, pair.now)
    ((_, address),) = server.datagrams_to_send(pair.now)
    assert address == elsewhere


def test_who_was_closed_says_nothing():
    pair = connected()
    pair.server.protocol.close(0x100)
    pair.run(0.02)
    client = pair.client.protocol
    assert client.quic.closed and client.quic.farewell is None
    for _ in range(10):
        client.receive_datagrams([bytes(100)], SERVER, pair.now)
        assert client.datagrams_to_send(pair.now) == []


def test_two_that_close_at_once_come_to_rest():
    pair = connected()
    pair.client.protocol.close(1)
    pair.server.protocol.close(2)
    sent = []
    pair.filter = lambda to_server, data: sent.append(to_server) or True
    pair.run(30)
    assert len(sent) <= 6


def test_it_is_repeated_after_the_closing_period_of_the_connection_too():
    pair = connected()
    close_lost(pair)
    pair.run(10)
    server = pair.server.protocol
    assert server.next_timer() is None
    pair.client.protocol.quic.ping()
    pair.run(0.05)
    assert pair.client.last(events.ConnectionEnded).reason == "bye"


# After the connection is gone


def test_farewells_are_found_by_every_connection_id_until_they_are_too_old():
    farewells = Farewells(30.0)
    one, two = Farewell(b"one"), Farewell(b"two")
    farewells.add([b"a", b"b"], one, 100.0)
    farewells.add({b"c"}, two, 110.0)
    assert farewells.find(b"a", 120.0) is farewells.find(b"b", 120.0) is one
    assert farewells.find(b"c", 129.9) is two
    assert farewells.find(b"", 129.9) is None
    assert farewells.find(b"a", 130.0) is None
    assert farewells.find(b"c", 130.0) is two
    assert farewells.find(b"c", 140.0) is None
    assert len(farewells) == 0 and not farewells._known


def test_farewells_are_bounded_and_the_oldest_goes():
    farewells = Farewells(30.0)
    for number in range(_LIMIT + 10):
        farewells.add([b"%d" % number, b"also %d" % number], Farewell(b""), 100.0)
    assert len(farewells) == _LIMIT
    assert len(farewells._known) == 2 * _LIMIT
    assert farewells.find(b"9", 100.0) is None
    assert farewells.find(b"10", 100.0) is not None


def test_a_protocol_error_is_said_again_too():
    r = raw.server(config=ServerConfig())
    r.session()
    r.inject(b"\x21" * 20)
    protocol = r.protocol
    assert protocol.quic.closed
    ((close, _),) = protocol.datagrams_to_send(r.now)
    r.inject(b"\x01")
    ((again, _),) = protocol.datagrams_to_send(r.now)
    assert again == close
