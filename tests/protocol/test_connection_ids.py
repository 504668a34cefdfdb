"""Connection ids that come and go (RFC 9000 5.1): what a peer may do with them, and how often."""

from __future__ import annotations

import pytest

from gwt.protocol import events
from gwt.protocol.capsules import encode_varint
from tests.helpers import raw

PROTOCOL_VIOLATION, LIMIT_ERROR = 0xA, 0x9

# What aioquic issues, at most, and what we allow a peer.
OURS, THEIRS = 8, 4


def retire(*numbers):
    return b"".join(b"\x19" + encode_varint(number) for number in numbers)


def new(number, prior=0, connection_id=None):
    connection_id = connection_id or number.to_bytes(8, "big")
    return (
        b"\x18"
        + encode_varint(number)
        + encode_varint(prior)
        + bytes([len(connection_id)])
        + connection_id
        + bytes(16)
    )


def in_use(end):
    """The connection ids that lead to a connection, as the floor above knows them."""
    routes = {end.protocol.quic.connection_id}
    for event in end.events:
        match event:
            case events.ConnectionIdAdded(connection_id=connection_id):
                routes.add(connection_id)
            case events.ConnectionIdRetired(connection_id=connection_id):
                routes.discard(connection_id)
    return routes


@pytest.fixture
def peer():
    made = raw.server()
    made.session()
    made.run()
    assert made.close_code is None
    # What is injected goes past the peer's own account, which must not mind.
    made.quic._local_active_connection_id_limit = 10**6
    return made


def test_a_peer_that_retires_ids_as_fast_as_it_gets_them_is_given_no_more_of_them(peer):
    seen = set()
    for number in range(1, 300):
        peer.inject(retire(number))
        peer.run(0.02)
        seen |= in_use(peer.end)
        assert len(in_use(peer.end)) <= OURS
        assert len(peer.protocol.quic._quic._host_cids) <= OURS
    assert peer.close_code is None
    # They were all different, and the connection is well.
    assert len(seen) > 290
    peer.datagram(encode_varint(0) + b"still here")
    assert peer.end.last(events.DatagramReceived).data == b"still here"


def test_many_retirements_in_one_packet_are_as_harmless(peer):
    """Of ids too that are only being made while the packet is read."""
    quic = peer.protocol.quic._quic
    for burst in range(20):
        first = 1 + burst * 200
        peer.inject(retire(*range(first, first + 200)))
        assert len(quic._host_cids) <= OURS
        peer.run(0.02)
        assert len(in_use(peer.end)) <= OURS
    assert peer.close_code is None
    assert quic._host_cid_seq > 4000


def test_the_id_that_a_packet_came_with_cannot_be_retired_by_it(peer):
    peer.inject(retire(0))
    assert peer.close_code == PROTOCOL_VIOLATION


@pytest.mark.parametrize("number", [100, 2**30, 2**62 - 1])
def test_an_id_that_does_not_exist_cannot_be_retired(peer, number):
    peer.inject(retire(number))
    assert peer.close_code == PROTOCOL_VIOLATION


def test_an_id_may_be_retired_twice(peer):
    """Its frame was lost, and the copy was not."""
    for _ in range(3):
        peer.inject(retire(1))
        peer.run(0.02)
    assert peer.close_code is None


def test_more_ids_than_were_asked_for_end_the_connection(peer):
    quic = peer.protocol.quic._quic
    # aioquic gives as many as it may: one in use, and the spares.
    assert 1 + len(quic._peer_cid_available) == THEIRS
    peer.inject(new(3))
    peer.inject(new(2))
    assert peer.close_code is None
    peer.inject(new(THEIRS))
    assert peer.close_code == LIMIT_ERROR


def test_ids_that_replace_one_another_without_end_are_no_burden(peer):
    quic = peer.protocol.quic._quic
    for number in range(THEIRS, 300):
        peer.inject(new(number, number))
        peer.run(0.02)
        assert len(quic._peer_cid_available) < THEIRS
        assert len(quic._retire_connection_ids) <= 4 * THEIRS
        assert len(quic._peer_cid_sequence_numbers) <= THEIRS
        if peer.close_code is not None:
            break
    assert peer.close_code is None
    assert quic._peer_cid.sequence_number == 299


def test_replacing_ids_without_reading_what_we_retire_ends_the_connection(peer):
    """RFC 9000 5.1.2: what waits to be retired is bounded, too."""
    quic = peer.protocol.quic._quic
    for number in range(THEIRS, 300):
        # Nothing is sent in between, as behind a full congestion window.
        peer.inject(new(number, number))
        assert len(quic._retire_connection_ids) <= 4 * THEIRS + 1
        if peer.close_code is not None:
            break
    assert peer.close_code == LIMIT_ERROR


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(new(5, 6), id="retires itself"),
        pytest.param(b"\x18\x05\x00\x00" + bytes(16), id="no id"),
        pytest.param(new(5, 0, bytes(21)), id="too long"),
        pytest.param(new(5)[:-1], id="cut off"),
    ],
)
def test_a_malformed_id_ends_the_connection(peer, frame):
    peer.inject(frame)
    assert peer.close_code in (PROTOCOL_VIOLATION, 0x7)
