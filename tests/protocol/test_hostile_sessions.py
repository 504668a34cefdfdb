"""Requests, sessions and streams of a peer that wears us out, or cheats with credit."""

from __future__ import annotations

import pytest

from gwt.config import ServerConfig
from gwt.protocol import capsules, codes, events
from gwt.protocol.capsules import encode_capsule, encode_varint
from gwt.protocol.rates import Allowance
from tests.helpers import raw
from tests.helpers.raw import DATA, HEADERS, frame, header_block, leftovers

BOTH = pytest.mark.parametrize("is_client", [True, False], ids=["client", "server"])
FLOW = {codes.SETTING_WT_INITIAL_MAX_DATA: 1 << 30, 0x2B64: 1000, 0x2B65: 1000}
REQUEST = frame(HEADERS, header_block(raw.connect_headers()))


def flowing(is_client=False, **config):
    """Return a peer with which session flow control is on."""
    settings = {**(raw.DRAFT16_SERVER if is_client else raw.DRAFT16), **FLOW}
    if is_client:
        return raw.client(settings)
    return raw.server(settings, config=ServerConfig(**config))


# Sessions asked for in vain


def test_allowance_is_a_burst_and_a_rate():
    allowance = Allowance(3, 2.0)
    assert [allowance.spend(100.0) for _ in range(4)] == [True, True, True, False]
    assert not allowance.spend(100.4)
    assert allowance.spend(100.6)
    assert not allowance.spend(100.7)
    assert [allowance.spend(1000.0) for _ in range(4)] == [True, True, True, False]


def take_back(peer):
    """Ask for a session, and throw it away at once."""
    stream_id = peer.request(run=False)
    peer.run(0.0)
    peer.quic.reset_stream(stream_id, codes.H3_REQUEST_CANCELLED)
    peer.quic.stop_stream(stream_id, codes.H3_REQUEST_CANCELLED)
    peer.run(0.001)


@pytest.mark.parametrize("accepts", [False, True])
def test_sessions_asked_for_and_reset_again_and_again_end_the_connection(accepts):
    peer = raw.server()
    if accepts:
        peer.end.react = lambda e: (
            peer.protocol.accept_session(e.session_id)
            if isinstance(e, events.SessionRequested)
            else None
        )
    asked = 0
    while peer.close_code is None and asked < 1000:
        take_back(peer)
        asked += 1
        assert len(peer.protocol.sessions) <= 16
    assert peer.close_code == codes.H3_EXCESSIVE_LOAD
    # So many greenlets at most, whatever the peer does.
    assert len(peer.end.of(events.SessionRequested)) <= 256 + 16
    assert peer.protocol.counters["requests_cancelled"] <= 256 + 16
    assert peer.protocol.counters["protocol_errors"] == 1
    assert leftovers(peer.protocol).keys() <= {"h3", "quic", "queue"}


def test_sessions_asked_for_and_reset_now_and_then_harm_nobody():
    peer = flowing()
    lasting = peer.session()
    for _ in range(300):
        take_back(peer)
        peer.run(0.1)
    assert peer.close_code is None
    assert peer.protocol.counters["requests_cancelled"] == 300
    assert peer.protocol.sessions[lasting].live
    assert list(peer.protocol.sessions) == [lasting]


def test_sessions_that_end_in_order_are_never_too_many():
    peer = raw.server()
    for _ in range(300):
        session_id = peer.session()
        peer.capsule(session_id, capsules.encode_close(0, b""), end=True)
        peer.run(0.0)
    assert peer.close_code is None
    assert leftovers(peer.protocol) == {}


def test_malformed_requests_again_and_again_end_the_connection():
    peer = raw.server()
    bad = [(b":method", b"CONNECT"), (b":method", b"CONNECT")]
    count = 0
    while peer.close_code is None and count < 1000:
        peer.request(bad, end=True, run=False)
        peer.run(0.001)
        count += 1
    assert peer.close_code == codes.H3_EXCESSIVE_LOAD
    assert 256 < count < 300
    assert peer.protocol.counters["requests_malformed"] == count


def test_requests_of_one_batch_behind_the_end_are_not_told():
    peer = raw.server()
    peer.protocol._cancellations = Allowance(1, 0.0)
    for _ in range(3):
        stream_id = peer.request([(b":method", b"GET"), (b":method", b"GET")], run=False)
    stream_id = peer.request(run=False)
    peer.run()
    assert peer.close_code == codes.H3_EXCESSIVE_LOAD
    assert not peer.end.of(events.SessionRequested), stream_id


# Streams opened in vain


@BOTH
@pytest.mark.parametrize("unidirectional", [True, False], ids=["uni", "bidi"])
@pytest.mark.parametrize("said", ["", "40", "40 prefix"])
def test_streams_opened_and_reset_before_they_say_what_they_are_leave_nothing(
    is_client, unidirectional, said
):
    peer = raw.client() if is_client else raw.server()
    session_id = peer.session()
    kind = b"\x40\x54" if unidirectional else b"\x40\x41"
    for _ in range(300):
        opener = peer.uni if unidirectional else peer.bidi
        stream_id = opener({"": b"", "40": b"\x40"}.get(said, kind))
        peer.run(0.001)
        peer.quic.reset_stream(stream_id, 1)
        peer.run(0.001)
    peer.run()
    assert peer.close_code is None and peer.protocol.sessions[session_id].live
    assert leftovers(peer.protocol).keys() <= {"sessions", "h3", "quic", "queue"}
    assert leftovers(peer.protocol)["quic"] == {session_id}


@BOTH
def test_streams_opened_and_reset_in_a_session_take_its_slots_only(is_client):
    peer = raw.client() if is_client else raw.server()
    peer.end.accepts_ended = False
    session_id = peer.session()
    streams = []
    while len(streams) < peer.quic._remote_max_streams_uni - 3 and len(streams) < 300:
        streams.append(peer.wt_uni(session_id, b"x"))
        peer.run(0.001)
        peer.quic.reset_stream(streams[-1], 1)
        peer.run(0.001)
    # Nobody accepted them: the peer waits for credit, and we keep so many records.
    assert len(peer.protocol.streams) == len(streams) == 256 - 3
    assert len(peer.end.of(events.StreamOpened)) == len(streams)
    for stream_id in streams:
        peer.protocol.accept_stream(stream_id)
    peer.run()
    assert peer.close_code is None and peer.protocol.sessions[session_id].live


@BOTH
def test_streams_of_unknown_types_are_refused_and_leave_nothing(is_client):
    peer = raw.client() if is_client else raw.server()
    session_id = peer.session()
    for number in range(300):
        stream_id = peer.uni(encode_varint(0x21 + 0x1F * number) + b"whatever")
        peer.run(0.001)
        if stream_id in peer.stops:
            peer.run(0.001)
    peer.run()
    assert set(peer.stops.values()) == {codes.H3_STREAM_CREATION_ERROR}
    assert len(peer.stops) == 300
    kept = leftovers(peer.protocol)
    assert len(kept.pop("ignored", ())) <= 64
    assert set(kept) <= {"sessions", "h3", "quic", "queue"}
    assert peer.close_code is None and peer.protocol.sessions[session_id].live


# Frames of HTTP/3


@BOTH
@pytest.mark.parametrize("size", [0, 100, 1 << 40, (1 << 62) - 1])
def test_unknown_frames_on_a_request_cost_nothing_whatever_they_announce(is_client, size):
    peer = raw.client() if is_client else raw.server()
    session_id = peer.session()
    start = encode_varint(0x21) + encode_varint(size)
    for _ in range(20):
        peer.send(session_id, start + bytes(min(size, 5000)))
        stream = peer.protocol._h3._h3._stream[session_id]
        assert len(stream.buffer) < 16
        if size > 5000:
            start = b""
    assert peer.close_code is None and peer.protocol.sessions[session_id].live


@BOTH
def test_empty_data_frames_are_no_capsules_and_leave_nothing(is_client):
    peer = raw.client() if is_client else raw.server()
    session_id = peer.session()
    for _ in range(20):
        peer.send(session_id, frame(DATA, b"") * 500)
    session = peer.protocol.sessions[session_id]
    assert session.live and not session.reader.pending
    assert len(peer.end.events) < 20


def test_endless_interim_responses_are_skipped_and_nothing_is_kept():
    peer = raw.client()
    session_id = peer.session(accept=False)
    told = len(peer.end.events)
    for _ in range(300):
        peer.respond(session_id, 103, (b"link", b"x" * 500))
    assert len(peer.end.events) == told
    assert len(peer.protocol._h3._h3._stream[session_id].buffer) == 0
    peer.respond(session_id, 200)
    assert peer.end.of(events.SessionAccepted)


@BOTH
def test_endless_trailers_end_the_connection(is_client):
    peer = raw.client() if is_client else raw.server()
    session_id = peer.session()
    trailers = frame(HEADERS, header_block([(b"x", b"y")]))
    peer.send(session_id, trailers * 3)
    assert peer.close_code == 0x105  # H3_FRAME_UNEXPECTED


@BOTH
@pytest.mark.parametrize("kind", [0x7, 0xD, 0x3, 0xF0700], ids=["goaway", "push", "cancel", "prio"])
def test_control_frames_again_and_again_leave_nothing(is_client, kind):
    peer = raw.client() if is_client else raw.server()
    session_id = peer.session()
    control = 3 if is_client else 2
    if kind == 0xD and is_client:
        peer.send(control, frame(kind, b"\0"))
        assert peer.close_code == 0x105  # H3_FRAME_UNEXPECTED: only clients send it
        return
    for _ in range(50):
        peer.send(control, frame(kind, b"\0") * 200)
    assert peer.close_code is None and peer.protocol.sessions[session_id].live
    assert len(peer.protocol._h3._h3._stream[control].buffer) == 0


# Capsules


@BOTH
@pytest.mark.parametrize("kind", capsules.PROHIBITED)
@pytest.mark.parametrize("flow", [True, False])
def test_capsule_that_limits_a_stream_ends_the_session_with_flow_control(is_client, kind, flow):
    peer = flowing(is_client) if flow else (raw.client() if is_client else raw.server())
    session_id = peer.session()
    peer.capsule(session_id, encode_capsule(kind, encode_varint(4) + encode_varint(999)))
    if flow:
        assert peer.resets[session_id] == peer.stops[session_id] == codes.WT_FLOW_CONTROL_ERROR
        assert leftovers(peer.protocol) == {}
    else:
        assert peer.protocol.sessions[session_id].live
    assert peer.protocol.counters["sessions_broken"] == flow
    assert peer.close_code is None


@BOTH
def test_what_is_held_of_capsules_is_bounded_at_every_byte(is_client):
    peer = raw.client() if is_client else raw.server()
    session_id = peer.session()
    reader = peer.protocol.sessions[session_id].reader
    data = (
        encode_varint(0x21) + encode_varint(1 << 61) + bytes(3000),
        encode_varint(0x2843) + encode_varint(1028) + bytes(1027),
    )[is_client]
    for begin in range(0, len(data), 7):
        peer.send(session_id, frame(DATA, data[begin : begin + 7]), run=False)
        peer.run(0.0)
        assert len(reader._buffer) <= 16 + 1028
    assert peer.protocol.sessions[session_id].live


@BOTH
def test_limits_raised_by_one_again_and_again_cost_nothing(is_client):
    peer = flowing(is_client)
    session_id = peer.session()
    buffered = peer.protocol.quic.buffered_total
    for number in range(100):
        limits = (
            encode_capsule(capsules.MAX_DATA, encode_varint((1 << 30) + 1 + number * 50 + n))
            for n in range(50)
        )
        peer.capsule(session_id, b"".join(limits))
    assert peer.protocol.sessions[session_id].live
    assert peer.protocol.quic.buffered_total == buffered
    assert not [e for e in peer.end.events if isinstance(e, events.StreamWritable)]


def test_capsules_that_the_peer_never_takes_are_bounded():
    peer = flowing()
    session_id = peer.session()
    # As many as there may be, none of them acknowledged.
    for _ in range(10_000):
        peer.protocol.drain_session(session_id)
    assert peer.protocol.quic.buffered(session_id) <= 16 * 1024 + 8
    peer.run()
    assert peer.close_code == codes.H3_EXCESSIVE_LOAD


# Credit of what came before its session


def settled(peer, session_id):
    """Assert that all that was refused or read counts as done with, so that no credit is lost."""
    flow = peer.protocol.sessions[session_id].flow
    assert flow.received == flow.consumed
    assert flow.streams_received == flow.streams_closed
    return flow


@pytest.mark.parametrize("unidirectional", [True, False], ids=["uni", "bidi"])
@pytest.mark.parametrize("requested", [True, False])
@pytest.mark.parametrize("how", ["refused", "expired", "reset"])
def test_credit_of_streams_that_were_given_up_before_their_session_returns(
    unidirectional, requested, how
):
    limit = 0 if how == "refused" else 32
    peer = flowing(max_pending_streams=limit, pending_timeout=1.0)
    session_id = peer.bidi(b"")
    if requested:
        if how == "expired":
            # One that somebody asked for does not expire.
            return
        peer.send(session_id, REQUEST)
    opener = peer.wt_uni if unidirectional else peer.wt_bidi
    streams = [opener(session_id, b"x" * 1000, run=True) for _ in range(10)]
    if how == "expired":
        peer.run(2.0)
        assert peer.protocol.counters["streams_expired"] == 10
    elif how == "reset":
        for stream_id in streams:
            peer.reset(stream_id, 5)
    else:
        assert peer.protocol.counters["streams_refused"] == 10
    peer.run()
    if not requested:
        peer.send(session_id, REQUEST)
    peer.protocol.accept_session(session_id)
    peer.run()
    flow = settled(peer, session_id)
    assert flow.streams_received[unidirectional] == 10
    assert flow.received == 10 * 1000
    assert not peer.protocol._early_accounts
    # The first of its session that is taken has nothing to pay for them.
    assert peer.protocol.sessions[session_id].live


def test_late_bytes_of_refused_streams_count_too():
    peer = flowing(max_pending_streams=0)
    session_id = peer.bidi(b"")
    stream_id = peer.wt_uni(session_id, b"x" * 100)
    ((packet, _),) = peer.quic.datagrams_to_send(peer.now)
    peer.end.take(peer.protocol.receive_datagrams([packet], ("192.0.2.1", 50000), peer.now))
    # What was under way before the peer heard of it.
    for offset in (103, 203):
        peer.inject(b"\x0c" + encode_varint(stream_id) + encode_varint(offset) + b"y" * 100)
    peer.inject(b"\x04" + encode_varint(stream_id) + encode_varint(5) + encode_varint(403))
    assert peer.protocol._early_accounts[session_id] == [0, 1, 400]
    peer.inject(b"\x08" + encode_varint(session_id) + REQUEST)
    assert peer.protocol.accept_session(session_id)
    assert settled(peer, session_id).received == 400


def test_accounts_of_sessions_that_never_come_are_bounded():
    peer = flowing(max_pending_streams=0)
    for _ in range(150):
        session_id = peer.bidi(b"")
        peer.wt_uni(session_id, b"x")
        peer.run(0.001)
        peer.quic.reset_stream(session_id, 1)
        peer.run(0.001)
        assert len(peer.protocol._early_accounts) <= 64
    assert peer.close_code is None


def test_cheating_with_early_streams_is_noticed():
    peer = flowing(max_pending_streams=0, max_incoming_streams=16)
    session_id = peer.bidi(b"")
    for _ in range(12):
        peer.wt_uni(session_id, b"x", run=True)
    peer.send(session_id, REQUEST)
    peer.protocol.accept_session(session_id)
    peer.run()
    # Eight were allowed; what was refused came back, so that the limit is higher by now.
    flow = settled(peer, session_id)
    assert flow.streams_received[1] == 12 and flow.max_streams[1] == 12 + 8
