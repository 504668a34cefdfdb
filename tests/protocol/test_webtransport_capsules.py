"""Capsules on a session's request stream: closing, draining, what is skipped, what is broken."""

from __future__ import annotations

import pytest

from gwt.protocol import capsules, codes, events
from tests.helpers import raw
from tests.helpers.pair import Pair
from tests.helpers.raw import DATA, HEADERS, frame, header_block, leftovers

TRAILERS = frame(HEADERS, header_block([(b"x", b"y")]))

BOTH = pytest.mark.parametrize("is_client", [True, False], ids=["client", "server"])


def opened(is_client, **options):
    peer = raw.client(**options) if is_client else raw.server(**options)
    return peer, peer.session()


def assert_broken(peer, session_id, code=codes.H3_MESSAGE_ERROR):
    assert peer.resets[session_id] == peer.stops[session_id] == code
    assert peer.end.last(events.SessionEnded).code is None
    assert peer.close_code is None
    peer.finish(session_id)
    peer.run(1.0)
    assert leftovers(peer.protocol) == {}


@BOTH
@pytest.mark.parametrize("code", [0, 77, 4242, 2**32 - 1])
@pytest.mark.parametrize("reason", ["", "göödbye", "x" * 1024, "€" * 341])
def test_close_arrives_with_code_and_reason(is_client, code, reason):
    pair = Pair()
    session_id = pair.session()
    one, other = (pair.client, pair.server) if is_client else (pair.server, pair.client)
    one.protocol.close_session(session_id, code, reason)
    one.protocol.close_session(session_id, 1, "again")
    pair.run()
    assert one.of(events.SessionEnded) == [events.SessionEnded(session_id, code, reason, False)]
    assert other.of(events.SessionEnded) == [events.SessionEnded(session_id, code, reason, True)]
    assert leftovers(one.protocol) == leftovers(other.protocol) == {}


@BOTH
@pytest.mark.parametrize("reason", ["x" * 5000, "€" * 342, "x" + "😀" * 300])
def test_long_reason_is_cut_between_characters(is_client, reason):
    pair = Pair()
    session_id = pair.session()
    one, other = (pair.client, pair.server) if is_client else (pair.server, pair.client)
    one.protocol.close_session(session_id, 1, reason)
    pair.run()
    arrived = other.last(events.SessionEnded).reason
    assert reason.startswith(arrived)
    assert 1020 < len(arrived.encode()) <= 1024


@BOTH
def test_our_close_is_the_capsule_and_the_end_at_once(is_client):
    peer, session_id = opened(is_client)
    before = len(peer.received[session_id])
    peer.protocol.close_session(session_id, 3, "bye")
    peer.run()
    sent = bytes(peer.received[session_id][before:])
    assert sent == frame(DATA, capsules.encode_close(3, b"bye"))
    assert session_id in peer.ended


@BOTH
@pytest.mark.parametrize("with_end", [True, False])
def test_close_of_the_peer_is_answered_with_the_end(is_client, with_end):
    peer, session_id = opened(is_client)
    peer.capsule(session_id, capsules.encode_close(3, b"bye"), end=with_end)
    assert peer.end.last(events.SessionEnded) == events.SessionEnded(session_id, 3, "bye", True)
    assert session_id in peer.ended
    peer.finish(session_id)
    assert leftovers(peer.protocol) == {}


@BOTH
def test_end_alone_is_a_close_without_code_and_reason(is_client):
    peer, session_id = opened(is_client)
    peer.send(session_id, b"", True)
    assert peer.end.last(events.SessionEnded) == events.SessionEnded(session_id, 0, "", True)
    assert session_id in peer.ended
    assert leftovers(peer.protocol) == {}


@BOTH
def test_close_may_arrive_one_byte_at_a_time_in_frames_of_one_byte(is_client):
    peer, session_id = opened(is_client)
    for byte in capsules.encode_close(70000, "größe".encode()):
        assert not peer.end.of(events.SessionEnded)
        for piece in frame(DATA, bytes([byte])):
            peer.send(session_id, bytes([piece]))
    assert peer.end.last(events.SessionEnded).reason == "größe"


@BOTH
@pytest.mark.parametrize(
    "payload",
    [b"", b"\0\0\0", b"\0\0\0\0\xff", b"\0\0\0\0" + bytes(1025), b"\0\0\0\0" + bytes(100_000)],
    ids=["empty", "short", "not UTF-8", "1025", "100000"],
)
def test_close_that_breaks_its_rules_resets_the_request(is_client, payload):
    peer, session_id = opened(is_client)
    peer.capsule(session_id, capsules.encode_capsule(capsules.CLOSE_SESSION, payload))
    assert_broken(peer, session_id)


@BOTH
@pytest.mark.parametrize("behind", [b"\0", capsules.encode_capsule(0x21), b"\x78\xae\x00"])
@pytest.mark.parametrize("together", [True, False])
def test_data_behind_a_close_resets_the_request(is_client, behind, together):
    peer, session_id = opened(is_client)
    close = capsules.encode_close(1, b"x")
    if together:
        peer.capsule(session_id, close + behind)
        assert_broken(peer, session_id)
        return
    # While our answer, the end, is on its way: it becomes a reset.
    peer.quic.send_stream_data(session_id, frame(DATA, close))
    peer.run(0.0)
    peer.capsule(session_id, behind)
    assert len(peer.end.of(events.SessionEnded)) == 1
    assert session_id in peer.stops
    assert peer.close_code is None
    peer.finish(session_id)
    assert leftovers(peer.protocol) == {}


@BOTH
@pytest.mark.parametrize(
    "behind, together",
    [(TRAILERS, True), (TRAILERS, False), (frame(DATA, b""), False), (b"\0", False)],
    ids=["trailers in its packet", "trailers", "an empty frame", "half a frame"],
)
def test_no_frame_may_follow_a_close(is_client, behind, together):
    peer, session_id = opened(is_client)
    close = frame(DATA, capsules.encode_close(1, b"x"))
    if together:
        peer.quic.send_stream_data(session_id, close + behind)
    else:
        peer.quic.send_stream_data(session_id, close)
        peer.run(0.0)
        peer.quic.send_stream_data(session_id, behind)
    peer.run()
    assert peer.end.of(events.SessionEnded) == [events.SessionEnded(session_id, 1, "x", True)]
    assert peer.stops[session_id] == codes.H3_MESSAGE_ERROR
    assert peer.close_code is None
    peer.finish(session_id)
    assert leftovers(peer.protocol) == {}


@BOTH
@pytest.mark.parametrize("size", [1, 3, 5])
def test_end_inside_a_capsule_resets_the_request(is_client, size):
    peer, session_id = opened(is_client)
    peer.capsule(session_id, capsules.encode_close(1, b"x")[:size], end=True)
    assert peer.resets[session_id] == codes.H3_MESSAGE_ERROR
    assert peer.end.last(events.SessionEnded).code is None
    assert leftovers(peer.protocol) == {}


@BOTH
def test_end_inside_an_unknown_capsule_resets_the_request(is_client):
    peer, session_id = opened(is_client)
    peer.capsule(session_id, b"\x21\x40\x64" + bytes(99), end=True)
    assert peer.resets[session_id] == codes.H3_MESSAGE_ERROR


@BOTH
@pytest.mark.parametrize("size", [0, 7, 55, 1 << 20])
def test_unknown_capsule_is_skipped_as_it_arrives(is_client, size):
    peer, session_id = opened(is_client)
    peer.capsule(session_id, capsules.encode_capsule(0x1F * 12345 + 0x21, bytes(size)))
    peer.run(3.0)
    reader = peer.protocol.sessions[session_id].reader
    assert len(reader._buffer) == 0
    assert not reader.pending
    peer.capsule(session_id, capsules.encode_capsule(capsules.DRAIN_SESSION))
    assert peer.end.of(events.SessionDraining) == [events.SessionDraining(session_id)]


@BOTH
def test_drain_arrives_and_the_session_goes_on(is_client):
    pair = Pair()
    session_id = pair.session()
    one, other = (pair.client, pair.server) if is_client else (pair.server, pair.client)
    one.protocol.drain_session(session_id)
    pair.run()
    assert other.of(events.SessionDraining) == [events.SessionDraining(session_id)]
    assert other.protocol.open_stream(session_id, True) is not None
    one.protocol.close_session(session_id)
    one.protocol.drain_session(session_id)
    pair.run()
    assert len(other.of(events.SessionDraining)) == 1


@BOTH
def test_drain_with_a_payload_resets_the_request(is_client):
    peer, session_id = opened(is_client)
    peer.capsule(session_id, capsules.encode_capsule(capsules.DRAIN_SESSION, b"x"))
    assert_broken(peer, session_id)


@BOTH
def test_flow_control_capsules_mean_nothing_while_flow_control_is_off(is_client):
    peer, session_id = opened(is_client)
    for kind in (capsules.MAX_DATA, capsules.MAX_STREAMS_UNI, capsules.DATA_BLOCKED):
        peer.capsule(session_id, capsules.encode_capsule(kind, b"\0"))
        peer.capsule(session_id, capsules.encode_capsule(kind, b""))
    assert peer.protocol.sessions[session_id].live


@BOTH
def test_frames_that_http3_does_not_know_are_no_capsules(is_client):
    peer, session_id = opened(is_client)
    peer.send(session_id, frame(0x21, bytes(100)) + frame(0x40, b"x"))
    peer.capsule(session_id, capsules.encode_close(2, b""))
    assert peer.end.last(events.SessionEnded).code == 2
