"""Streams and datagrams of a session that is open: both ways, from both sides, in any fragments."""

from __future__ import annotations

import pytest

from gwt.protocol import codes, events
from gwt.protocol.capsules import encode_varint
from tests.helpers import raw
from tests.helpers.pair import Pair
from tests.helpers.raw import leftovers

BOTH = pytest.mark.parametrize("is_client", [True, False], ids=["client", "server"])
KINDS = pytest.mark.parametrize("unidirectional", [False, True], ids=["bidi", "uni"])
CODES = [0, 29, 30, 31, 255, 256, 70000, 2**32 - 1]


def ends(pair, is_client):
    """Return the side that acts, and the other one."""
    return (pair.client, pair.server) if is_client else (pair.server, pair.client)


def peer_of(is_client, **options):
    return raw.client(**options) if is_client else raw.server(**options)


def open_raw(peer, session_id, unidirectional, data=b"", end=False):
    opener = peer.wt_uni if unidirectional else peer.wt_bidi
    return opener(session_id, data, end, run=True)


@BOTH
@KINDS
def test_stream_carries_data_and_its_end(is_client, unidirectional):
    pair = Pair()
    session_id = pair.session()
    one, other = ends(pair, is_client)
    stream_id = one.protocol.open_stream(session_id, unidirectional)
    assert one.protocol.send_stream(stream_id, b"hello ")
    assert one.protocol.send_stream(stream_id, b"world", end=True)
    pair.run()
    assert other.of(events.StreamOpened) == [events.StreamOpened(session_id, stream_id)]
    assert other.data(stream_id) == b"hello world"
    assert other.last(events.StreamDataReceived).ended
    assert one.of(events.StreamFinished) == [events.StreamFinished(stream_id)]
    other.protocol.consumed(stream_id, 11)
    if not unidirectional:
        other.protocol.send_stream(stream_id, b"answer", end=True)
        pair.run()
        assert one.data(stream_id) == b"answer"
        one.protocol.consumed(stream_id, 6)
    pair.run()
    assert stream_id not in one.protocol.streams
    assert stream_id not in other.protocol.streams


@BOTH
@KINDS
def test_stream_without_data_is_seen_by_the_other_side(is_client, unidirectional):
    pair = Pair()
    session_id = pair.session()
    one, other = ends(pair, is_client)
    stream_id = one.protocol.open_stream(session_id, unidirectional)
    pair.run()
    assert other.of(events.StreamOpened) == [events.StreamOpened(session_id, stream_id)]
    assert not other.of(events.StreamDataReceived)


@BOTH
@KINDS
@pytest.mark.parametrize("body", [b"", b"body"])
def test_prefix_may_arrive_one_byte_at_a_time(is_client, unidirectional, body):
    peer = peer_of(is_client)
    session_id = peer.session()
    kind = 0x54 if unidirectional else 0x41
    # Also in a form that is longer than it needs to be.
    for prefix in (
        encode_varint(kind) + encode_varint(session_id),
        b"\x80\0\0" + bytes([kind]) + b"\xc0\0\0\0\0\0\0" + bytes([session_id]),
    ):
        stream_id = peer.quic.get_next_available_stream_id(is_unidirectional=unidirectional)
        data = prefix + body
        for index in range(len(data)):
            assert len(peer.end.of(events.StreamOpened)) == (index >= len(prefix))
            peer.send(stream_id, data[index : index + 1])
        peer.send(stream_id, b"", True)
        assert peer.end.of(events.StreamOpened) == [events.StreamOpened(session_id, stream_id)]
        assert peer.end.data(stream_id) == body
        assert peer.end.last(events.StreamDataReceived).ended
        peer.end.events.clear()


@BOTH
@pytest.mark.parametrize("size", [2, 3])
def test_end_of_a_bidirectional_stream_inside_its_prefix_is_a_frame_error(is_client, size):
    peer = peer_of(is_client)
    peer.session()
    peer.bidi(b"\x40\x41\x80"[:size], True, run=True)
    assert peer.close_code == codes.H3_FRAME_ERROR


@BOTH
@KINDS
@pytest.mark.parametrize("data", [b"", b"\x40"])
def test_end_or_reset_before_a_stream_says_what_it_is_is_harmless(is_client, unidirectional, data):
    peer = peer_of(is_client)
    session_id = peer.session()
    make = peer.uni if unidirectional else peer.bidi
    if is_client or unidirectional or not data:
        # A request that breaks off inside a frame is another matter (RFC 9114 7.1).
        make(data, True, run=True)
    stream_id = make(data, run=True)
    peer.reset(stream_id, 0x10C)
    peer.protocol.close_session(session_id)
    peer.run()
    peer.finish(session_id)
    assert peer.close_code is None
    assert leftovers(peer.protocol) == {}


@BOTH
@pytest.mark.parametrize("state", ["connecting", "open"])
def test_webtransport_frame_in_the_middle_of_a_stream_is_a_frame_error(is_client, state):
    peer = peer_of(is_client)
    session_id = peer.session(accept=state == "open" or is_client)
    peer.send(session_id, b"\x40\x41\x00")
    assert peer.close_code == codes.H3_FRAME_ERROR


@BOTH
@KINDS
@pytest.mark.parametrize("bad", [1, 2, 3, 5, 4 * 4096, 2**62 - 4, 2**62 - 1])
def test_impossible_session_id_on_a_stream_is_an_id_error(is_client, unidirectional, bad):
    peer = peer_of(is_client)
    peer.session()
    open_raw(peer, bad, unidirectional)
    assert peer.close_code == codes.H3_ID_ERROR


@BOTH
@pytest.mark.parametrize("quarter", [4096, 2**60, 2**62 - 1])
def test_impossible_session_id_on_a_datagram_is_an_id_error(is_client, quarter):
    peer = peer_of(is_client)
    peer.session()
    peer.datagram(encode_varint(quarter) + b"x")
    assert peer.close_code == codes.H3_ID_ERROR


@BOTH
@pytest.mark.parametrize("data", [b"", b"\x40", b"\xc0\0\0"])
def test_datagram_without_a_session_is_a_datagram_error(is_client, data):
    peer = peer_of(is_client)
    peer.session()
    peer.datagram(data)
    assert peer.close_code == codes.H3_DATAGRAM_ERROR


@pytest.mark.parametrize("data", [b"\x01\x00", b"\x00", b"\x21\x00", b"\x04\x00"])
def test_bidirectional_stream_of_a_server_that_is_no_webtransport_closes_the_client(data):
    peer = raw.client()
    peer.bidi(data, run=True)
    assert peer.close_code == codes.H3_STREAM_CREATION_ERROR


@BOTH
@pytest.mark.parametrize("kind", [0x21, 0x21 + 0x1F * 7, 0x54 + 0x1F, 2**62 - 1])
@pytest.mark.parametrize("end", [True, False])
def test_unknown_unidirectional_stream_is_stopped_and_harmless(is_client, kind, end):
    peer = peer_of(is_client)
    stream_id = peer.uni(encode_varint(kind) + b"grease", end, run=True)
    if not end:
        assert peer.stops == {stream_id: codes.H3_STREAM_CREATION_ERROR}
    assert peer.close_code is None
    assert leftovers(peer.protocol) == {}
    peer.session()


def test_push_stream_that_nobody_allowed_closes_the_client():
    peer = raw.client()
    peer.session()
    peer.uni(b"\x01\x00", run=True)
    assert peer.close_code == codes.H3_ID_ERROR


@BOTH
def test_answer_on_a_stream_of_ours_is_no_http(is_client):
    # Trap 6 of aioquic: it would parse the answer as HTTP/3 frames.
    peer = peer_of(is_client)
    session_id = peer.session()
    stream_id = peer.protocol.open_stream(session_id, False)
    peer.run()
    for answer in (b"\x00\x05", b"\x01\x00", b"\x04\x00\x00", b"\x40\x41\x00", b"plain text"):
        peer.send(stream_id, answer)
        assert peer.end.last(events.StreamDataReceived).data == answer
    assert peer.close_code is None


@BOTH
@KINDS
@pytest.mark.parametrize("code", CODES)
def test_reset_arrives_with_its_code(is_client, unidirectional, code):
    pair = Pair()
    session_id = pair.session()
    one, other = ends(pair, is_client)
    stream_id = one.protocol.open_stream(session_id, unidirectional)
    pair.run()
    one.protocol.reset_stream(stream_id, code)
    pair.run()
    assert other.of(events.StreamReset) == [events.StreamReset(stream_id, code)]
    assert one.of(events.StreamFinished) == [events.StreamFinished(stream_id)]


@BOTH
@KINDS
@pytest.mark.parametrize("code", CODES)
def test_stop_arrives_with_its_code(is_client, unidirectional, code):
    pair = Pair()
    session_id = pair.session()
    one, other = ends(pair, is_client)
    stream_id = other.protocol.open_stream(session_id, unidirectional)
    other.protocol.send_stream(stream_id, b"x")
    pair.run()
    one.protocol.stop_stream(stream_id, code)
    pair.run()
    assert other.of(events.StreamStopped) == [events.StreamStopped(stream_id, code)]
    assert not other.protocol.send_stream(stream_id, b"more")
    assert other.protocol.room(stream_id) == 0


@BOTH
@pytest.mark.parametrize("wire", [0, 0x10C, codes.WT_SESSION_GONE, 0x52E4A40FA8F9, 2**62 - 1])
def test_code_that_is_no_application_code_arrives_as_none(is_client, wire):
    peer = peer_of(is_client)
    session_id = peer.session()
    stream_id = open_raw(peer, session_id, False)
    peer.quic.reset_stream(stream_id, wire)
    peer.stop(stream_id, wire)
    assert peer.end.last(events.StreamReset).code is None
    assert peer.end.last(events.StreamStopped).code is None
    peer.protocol.close_session(session_id)


@BOTH
@KINDS
@pytest.mark.parametrize("partial", [True, False])
def test_reset_does_not_outrun_the_prefix_of_its_stream(is_client, unidirectional, partial):
    pair = Pair()
    session_id = pair.session()
    pair.run()
    one, other = ends(pair, is_client)
    one.protocol.quic._quic.partial_resets = partial
    stream_id = one.protocol.open_stream(session_id, unidirectional)
    one.protocol.send_stream(stream_id, b"lost")
    one.protocol.reset_stream(stream_id, 5)
    assert not one.protocol.send_stream(stream_id, b"more")
    one.protocol.reset_stream(stream_id, 6)
    # The packet with the prefix is lost once.
    lost = []

    def lose(to_server, data):
        if to_server == is_client and not lost:
            lost.append(data)
            return False
        return True

    pair.filter = lose
    pair.run(3.0)
    assert lost
    assert other.of(events.StreamOpened) == [events.StreamOpened(session_id, stream_id)]
    assert other.of(events.StreamReset) == [events.StreamReset(stream_id, 5)]
    if unidirectional:
        assert stream_id not in one.protocol.streams


@BOTH
@pytest.mark.parametrize("partial", [True, False])
def test_stop_while_a_reset_waits_for_the_prefix(is_client, partial):
    pair = Pair()
    session_id = pair.session()
    one, other = ends(pair, is_client)
    one.protocol.quic._quic.partial_resets = partial
    other.react = lambda e: (
        other.protocol.stop_stream(e.stream_id, 8) if isinstance(e, events.StreamOpened) else None
    )
    stream_id = one.protocol.open_stream(session_id, True)
    one.protocol.reset_stream(stream_id, 5)
    pair.run(2.0)
    assert other.of(events.StreamOpened)
    assert stream_id not in one.protocol.streams
    assert stream_id not in other.protocol.streams


@BOTH
def test_stop_that_overtakes_the_prefix_is_told_when_the_stream_is_known(is_client):
    peer = peer_of(is_client)
    session_id = peer.session()
    stream_id = peer.bidi(b"", run=True)
    peer.stop(stream_id, codes.wire_code(9))
    peer.run(1.0)
    peer.send(stream_id, b"\x40\x41" + encode_varint(session_id) + b"data")
    seen = [type(e) for e in peer.end.events if getattr(e, "stream_id", None) == stream_id]
    assert seen == [
        events.StreamOpened,
        events.StreamStopped,
        events.StreamFinished,
        events.StreamDataReceived,
    ]
    assert peer.end.last(events.StreamStopped).code == 9
    peer.send(stream_id, b"", True)
    peer.protocol.consumed(stream_id, 4)
    peer.run()
    assert stream_id not in peer.protocol.streams
    assert stream_id not in peer.protocol.quic._quic._streams


@BOTH
def test_nothing_can_be_written_behind_the_end_a_reset_or_a_stop(is_client):
    peer = peer_of(is_client)
    session_id = peer.session()
    protocol = peer.protocol
    ended, reset, stopped = (protocol.open_stream(session_id, True) for _ in range(3))
    peer.run()
    assert protocol.send_stream(ended, b"x", end=True)
    protocol.reset_stream(reset)
    peer.stop(stopped, 0)
    for stream_id in (ended, reset, stopped):
        assert not protocol.send_stream(stream_id, b"more")
        assert not protocol.send_stream(stream_id, b"", end=True)
    peer.run()
    for stream_id in (ended, reset, stopped):
        assert stream_id not in protocol.streams
        protocol.reset_stream(stream_id, 1)
        protocol.stop_stream(stream_id, 1)
        assert not protocol.want_flush(stream_id)
        assert not protocol.consumed(stream_id, 0)


@BOTH
def test_data_behind_a_stop_is_discarded(is_client):
    peer = peer_of(is_client)
    session_id = peer.session()
    stream_id = open_raw(peer, session_id, True, b"first")
    peer.protocol.stop_stream(stream_id, 3)
    peer.protocol.stop_stream(stream_id, 4)
    peer.protocol.consumed(stream_id, 5)
    peer.quic.send_stream_data(stream_id, b"second")
    peer.run()
    assert peer.end.data(stream_id) == b"first"
    assert peer.stops == {stream_id: codes.wire_code(3)}
    assert stream_id not in peer.protocol.streams


@BOTH
def test_datagrams_go_both_ways(is_client):
    pair = Pair()
    session_id = pair.session()
    one, other = ends(pair, is_client)
    for size in (0, 1, one.protocol.max_datagram_size(session_id)):
        assert one.protocol.send_datagram(session_id, bytes(size))
        pair.run(0.1)
        assert other.last(events.DatagramReceived) == events.DatagramReceived(
            session_id, bytes(size)
        )


def test_streams_and_datagrams_of_no_session_are_refused_by_our_own_side():
    pair = Pair()
    session_id = pair.session()
    protocol = pair.client.protocol
    assert protocol.open_stream(session_id + 4, False) is None
    assert not protocol.send_datagram(session_id + 4, b"x")
    protocol.close_session(session_id)
    assert protocol.open_stream(session_id, False) is None
    assert not protocol.send_datagram(session_id, b"x")
