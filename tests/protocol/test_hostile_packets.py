"""Datagrams that hold nothing of the peer's: ignored, counted, and no sign of life."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gwt.protocol import events
from gwt.protocol.quicreceive import MAX_DATAGRAM
from tests.helpers import raw
from tests.helpers.pair import CLIENT, SERVER, Pair

BOTH = pytest.mark.parametrize("is_client", [True, False], ids=["client", "server"])

# Of a handshake and a stream, at least.
NUMBER = 5


def connection(is_client):
    """Return a connection at rest, with a session, and where its packets come from."""
    peer = raw.client() if is_client else raw.server()
    session_id = peer.session()
    peer.run(1.0)
    return peer, session_id, SERVER if is_client else CLIENT


def feed(peer, datagrams, source):
    peer.end.take(peer.protocol.receive_datagrams(datagrams, source, peer.now))


def undisturbed(peer, session_id, datagrams, source):
    """Feed what must change nothing but the count of what was ignored."""
    quic = peer.protocol.quic
    ignored, heard, deadline = quic.stats()["packets_ignored"], quic.heard, quic.deadline()
    told, kept = len(peer.end.events), raw.leftovers(peer.protocol)
    peer.now += 1.0
    feed(peer, datagrams, source)
    assert quic.stats()["packets_ignored"] - ignored == len(datagrams)
    # The idle timer of the connection runs on.
    assert (quic.heard, quic.deadline()) == (heard, deadline)
    assert len(peer.end.events) == told and raw.leftovers(peer.protocol) == kept
    assert peer.protocol.datagrams_to_send(peer.now) == []
    assert peer.protocol.sessions[session_id].live


@BOTH
@pytest.mark.parametrize("first", [0x40, 0x5F, 0xC0, 0xD0, 0xE0, 0xF0, 0x00, 0x80])
@pytest.mark.parametrize("size", [0, 1, 20, 21, 22, 37, 60, 1200, 1500])
def test_packet_that_no_key_fits_is_ignored(is_client, first, size):
    peer, session_id, source = connection(is_client)
    cid = peer.protocol.quic.connection_id
    header = bytes([first])
    if first & 0x80:
        header += b"\0\0\0\1" + bytes([len(cid)]) + cid + b"\x08" + bytes(8) + b"\0\x44\x00"
    else:
        header += cid
    undisturbed(peer, session_id, [header + os.urandom(size)] * 3, source)


@given(is_client=st.booleans(), garbage=st.lists(st.binary(max_size=1500), min_size=1, max_size=5))
@settings(max_examples=30)
def test_garbage_is_ignored(is_client, garbage):
    peer, session_id, source = connection(is_client)
    undisturbed(peer, session_id, garbage, source)


@BOTH
def test_packet_that_comes_again_is_ignored(is_client):
    peer, session_id, source = connection(is_client)
    peer.quic.send_ping(1)
    sent = [data for data, _ in peer.quic.datagrams_to_send(peer.now)]
    feed(peer, sent, source)
    peer.run()
    undisturbed(peer, session_id, sent, source)


@BOTH
def test_datagram_larger_than_any_path_carries_is_not_looked_at(is_client):
    peer, session_id, source = connection(is_client)
    peer.quic.send_ping(1)
    ((sent, _),) = peer.quic.datagrams_to_send(peer.now)
    undisturbed(peer, session_id, [sent + bytes(MAX_DATAGRAM)], source)


@pytest.mark.parametrize("number", range(NUMBER))
def test_datagrams_cut_off_at_any_length_are_ignored_and_the_whole_one_is_not(number):
    # Every datagram of a handshake and of a session's beginning, Initial to 1-RTT.
    pair, count = Pair(), 0

    def cut(to_server, data):
        nonlocal count
        count += 1
        end = pair.server if to_server else pair.client
        if count - 1 == number and end is not None:
            for size in range(len(data)):
                end.take(
                    end.protocol.receive_datagrams(
                        [data[:size]], CLIENT if to_server else SERVER, pair.now
                    )
                )
        return True

    pair.filter = cut
    session_id = pair.session()
    stream_id = pair.client.protocol.open_stream(session_id, False)
    pair.client.protocol.send_stream(stream_id, b"hello", True)
    pair.run_until(lambda: pair.server.data(stream_id) == b"hello")
    assert not pair.client.of(events.ConnectionEnded) + pair.server.of(events.ConnectionEnded)
    assert count > number


@BOTH
@pytest.mark.parametrize("garbage", [b"\0", b"\xff" * 30, b"\x40" + bytes(60)])
def test_garbage_behind_a_packet_does_not_harm_it(is_client, garbage):
    pair = Pair()

    def append(to_server, data):
        end = pair.server if to_server else pair.client
        if to_server == is_client or end is None or not data[0] & 0x80:
            return True
        address = CLIENT if to_server else SERVER
        end.take(end.protocol.receive_datagrams([data + garbage], address, pair.now))
        return False

    pair.filter = append
    session_id = pair.session()
    stream_id = pair.client.protocol.open_stream(session_id, False)
    pair.client.protocol.send_stream(stream_id, b"hello", True)
    pair.run_until(lambda: pair.server.data(stream_id) == b"hello")
    for end in pair.ends():
        assert not end.of(events.ConnectionEnded)


@pytest.mark.parametrize("source", [SERVER, ("203.0.113.9", 443)], ids=["known", "stranger"])
def test_version_negotiation_and_retry_behind_the_handshake_are_ignored(source):
    peer, session_id, _ = connection(True)
    cid = peer.protocol.quic.connection_id
    ids = bytes([len(cid)]) + cid + b"\x08" + bytes(8)
    negotiation = b"\xc0\0\0\0\0" + ids + b"\0\0\0\7"
    retry = b"\xf0\0\0\0\1" + ids + b"token" + bytes(16)
    undisturbed(peer, session_id, [negotiation, retry], source)


@pytest.mark.parametrize("announced, taken", [(0.001, 0.6), (5.0, 5.0), (100.0, 30.0), (0.0, 30.0)])
def test_idle_timeout_of_the_peer_is_taken_for_what_makes_sense(announced, taken):
    # A third of it is what keep-alives wait, and 0 means that there is none (RFC 9000 18.2).
    peer = raw.server(idle_timeout=announced)
    assert peer.protocol.quic.idle_timeout == taken
