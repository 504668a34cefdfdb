"""Receive credit: it moves when the application reads, is bounded, returns, and starves nobody."""

from __future__ import annotations

import pytest

from gwt.config import KIB, MIB, ClientConfig, ServerConfig
from gwt.protocol import capsules, codes, events
from gwt.protocol.capsules import encode_capsule, encode_varint
from tests.helpers import raw
from tests.helpers.pair import Pair
from tests.helpers.raw import leftovers

BOTH = pytest.mark.parametrize("is_client", [True, False], ids=["client", "server"])
FLOW = {codes.SETTING_WT_INITIAL_MAX_DATA: 1 << 30, 0x2B64: 1000, 0x2B65: 1000}
CHROMIUM = {**raw.CHROMIUM, 0x8: 1}


def peer_of(is_client, config=None, **options):
    kind = ClientConfig if is_client else ServerConfig
    make = raw.client if is_client else raw.server
    return make(config=kind(**(config or {})), **options)


def arrived(peer, streams=None):
    return sum(
        len(e.data)
        for e in peer.end.of(events.StreamDataReceived)
        if streams is None or e.stream_id in streams
    )


def read_everything(end):
    """Answer every byte with its credit, as an application that reads at once."""

    def react(event):
        if isinstance(event, events.StreamOpened):
            end.protocol.accept_stream(event.stream_id)
        elif isinstance(event, events.StreamDataReceived):
            end.protocol.consumed(event.stream_id, len(event.data))
            if event.ended and not event.stream_id & 2:
                end.protocol.send_stream(event.stream_id, b"", True)

    end.react = react


@BOTH
@pytest.mark.parametrize("unidirectional", [False, True], ids=["bidi", "uni"])
def test_stream_that_nobody_reads_stops_at_its_window(is_client, unidirectional):
    peer = peer_of(is_client, {"initial_stream_window": 10_000, "stream_window": 50_000})
    session_id = peer.session()
    opener = peer.wt_uni if unidirectional else peer.wt_bidi
    stream_id = opener(session_id, bytes(200_000), run=True)
    peer.run(3.0)
    assert arrived(peer) == 10_000 - 3
    peer.protocol.accept_stream(stream_id)
    peer.run(3.0)
    assert arrived(peer) == pytest.approx(50_000, abs=3)
    # Less than half a window is not worth an update.
    assert not peer.protocol.consumed(stream_id, 20_000)
    peer.run(3.0)
    assert arrived(peer) == pytest.approx(50_000, abs=3)
    assert peer.protocol.consumed(stream_id, 20_000)
    peer.run(3.0)
    assert arrived(peer) == pytest.approx(90_000, abs=3)
    read_everything(peer.end)
    peer.protocol.consumed(stream_id, 50_000)
    peer.run(3.0)
    assert arrived(peer) == 200_000


@BOTH
def test_stream_of_our_own_has_its_full_window_at_once(is_client):
    peer = peer_of(is_client, {"initial_stream_window": 10_000, "stream_window": 50_000})
    session_id = peer.session()
    stream_id = peer.protocol.open_stream(session_id, False)
    peer.run()
    peer.send(stream_id, bytes(200_000))
    peer.run(3.0)
    assert arrived(peer) == 50_000


@pytest.mark.parametrize("session_window, pool", [(100_000, 10 * MIB), (10 * MIB, 100_000)])
def test_accepted_streams_share_a_bounded_window(session_window, pool):
    config = {
        "initial_stream_window": 2048,
        "stream_window": 30_000,
        "session_window": session_window,
        "receive_pool": pool,
    }
    peer = peer_of(False, config)
    session_id = peer.session()
    streams = []
    for _ in range(20):
        streams.append(peer.wt_uni(session_id, bytes(100_000)))
        peer.run()
        peer.protocol.accept_stream(streams[-1])
    peer.run(3.0)
    assert 100_000 <= arrived(peer) <= 100_000 + 20 * 2048
    # Each moves on with at least its first window, and what one returns another can have.
    read_everything(peer.end)
    for stream_id in streams:
        peer.protocol.consumed(stream_id, arrived(peer, {stream_id}))
    peer.run(20.0)
    assert arrived(peer) == 20 * 100_000


def test_unaccepted_streams_hold_a_quarter_of_everything_and_the_newest_are_refused():
    config = {
        "initial_stream_window": 16 * KIB,
        "receive_pool": 1 * MIB,
        "max_incoming_streams": 64,
    }
    peer = peer_of(False, config)
    session_id = peer.session()
    limit = (2 * 64 * 16 * KIB + 1 * MIB) // 4
    streams = [peer.wt_uni(session_id, bytes(15 * KIB), run=True) for _ in range(60)]
    refused = {i for i, code in peer.stops.items() if code == codes.WT_BUFFERED_STREAM_REJECTED}
    assert refused
    assert refused == set(streams[-len(refused) :])
    assert {e.stream_id for e in peer.end.of(events.StreamReset)} == refused
    kept = arrived(peer, set(streams) - refused)
    assert limit - 16 * KIB <= kept <= limit
    assert peer.protocol._unaccepted == kept
    for stream_id in set(streams) - refused:
        peer.protocol.accept_stream(stream_id)
    assert peer.protocol._unaccepted == 0


@BOTH
@pytest.mark.parametrize("draft", [2, 16])
def test_session_that_accepts_and_reads_nothing_stalls_no_other(is_client, draft):
    # In draft 02 by a raw peer, without session flow control; in draft 16 by two of ours.
    config = {"max_incoming_streams": 64}
    if draft == 2:
        peer = peer_of(is_client, config, settings=CHROMIUM)
        deaf, other = peer.session(raw.CHROMIUM_CONNECT), peer.session(raw.CHROMIUM_CONNECT)
        for number in range(200):
            opener = peer.wt_uni if number % 2 else peer.wt_bidi
            kind = number % 2
            quic = peer.quic
            available = (quic._remote_max_streams_uni, quic._remote_max_streams_bidi)[not kind]
            if quic.get_next_available_stream_id(is_unidirectional=bool(kind)) // 4 < available:
                opener(deaf, bytes(100_000), run=True)
        here, there = peer.end, None

        def exchange(number):
            opener = peer.wt_uni if number % 2 else peer.wt_bidi
            stream_id = opener(other, bytes(20_000), True, run=True)
            peer.run(0.2)
            return stream_id, 20_000
    else:
        pair = Pair(client=ClientConfig(**config), server=ServerConfig(**config))
        deaf, other = pair.session(), pair.session()
        here, there = (pair.client, pair.server) if is_client else (pair.server, pair.client)
        for number in range(200):
            stream_id = there.protocol.open_stream(deaf, bool(number % 2))
            if stream_id is not None:
                room = there.protocol.room(stream_id)
                there.protocol.send_stream(stream_id, bytes(min(room, 100_000)))
        pair.run(5.0)

        def exchange(number):
            stream_id = there.protocol.open_stream(other, bool(number % 2))
            assert stream_id is not None
            size = min(there.protocol.room(stream_id), 20_000)
            assert size >= 16 * KIB
            there.protocol.send_stream(stream_id, bytes(size), True)
            pair.run(0.5)
            return stream_id, size

    held_by_the_deaf = sum(s.unread for s in here.protocol.streams.values() if s.session_id == deaf)
    assert held_by_the_deaf > 200_000
    for number in range(70):
        here.react = lambda e: (
            read(here, e, deaf) if isinstance(e, events.StreamDataReceived) else None
        )
        stream_id, size = exchange(number)
        assert len(here.data(stream_id)) == size
        assert stream_id not in here.protocol.streams
        here.events.clear()


def read(end, event, deaf):
    stream = end.protocol.streams.get(event.stream_id)
    if stream is not None and stream.session_id != deaf:
        end.protocol.accept_stream(event.stream_id)
        end.protocol.consumed(event.stream_id, len(event.data))
        if event.ended and not event.stream_id & 2:
            end.protocol.send_stream(event.stream_id, b"", True)


@BOTH
def test_credit_of_what_nobody_reads_comes_back(is_client):
    config = {
        "initial_stream_window": 4 * KIB,
        "session_window": 64 * KIB,
        "stream_window": 64 * KIB,
    }
    pair = Pair(client=ClientConfig(**config), server=ServerConfig(**config), latency=0.001)
    session_id = pair.session()
    one, other = (pair.client, pair.server) if is_client else (pair.server, pair.client)
    ways = ["reset", "reset unread", "stop", "stop and reset", "refuse"]
    how = {}

    def react(event):
        match event:
            case events.StreamOpened(stream_id=stream_id):
                if how[stream_id] == "refuse":
                    other.protocol._abandon(
                        other.protocol.streams[stream_id], codes.WT_BUFFERED_STREAM_REJECTED
                    )
                elif "stop" in how[stream_id]:
                    other.protocol.stop_stream(stream_id, 1)
            case events.StreamDataReceived(stream_id=stream_id, data=data):
                if how[stream_id] != "reset unread":
                    other.protocol.consumed(stream_id, len(data))
            case events.StreamReset(stream_id=stream_id):
                stream = other.protocol.streams.get(stream_id)
                if stream is not None:
                    other.protocol.consumed(stream_id, stream.unread)

    other.react = react
    for number in range(1000):
        stream_id = one.protocol.open_stream(session_id, True)
        assert stream_id is not None, number
        how[stream_id] = ways[number % len(ways)]
        room = one.protocol.room(stream_id)
        assert room, number
        one.protocol.send_stream(stream_id, bytes(min(room, 3000)))
        pair.run(0.004)
        if "reset" in how[stream_id]:
            one.protocol.reset_stream(stream_id, 1)
        pair.run(0.004)
        other.events.clear()
        one.events.clear()
    pair.run(1.0)
    flow, there = (end.protocol.sessions[session_id].flow for end in (one, other))
    assert not one.protocol.streams
    assert not other.protocol.streams
    assert there.consumed == there.received == flow.sent
    assert flow.room() >= 32 * KIB
    read_everything(other)
    stream_id = one.protocol.open_stream(session_id, True)
    sent = 0
    while sent < 200_000:
        room = one.protocol.room(stream_id)
        one.protocol.send_stream(stream_id, bytes(room))
        sent += room
        pair.run(0.05)
    # What was taken beyond the stream's own window goes as that moves.
    pair.run(5.0)
    assert len(other.data(stream_id)) == sent


def test_stream_credit_comes_only_when_the_application_is_done():
    peer = peer_of(False, {"max_incoming_streams": 8}, settings=CHROMIUM)
    session_id = peer.session(raw.CHROMIUM_CONNECT)
    streams = [peer.wt_uni(session_id, b"data", True) for _ in range(5)]
    peer.run(1.0)
    assert peer.quic._remote_max_streams_uni == 8
    for stream_id in streams[:4]:
        assert peer.protocol.consumed(stream_id, 4), "worth telling the peer"
    # No time passes, nothing else is sent.
    peer.run(0.0)
    assert peer.quic._remote_max_streams_uni == 12


def test_stream_credit_of_the_last_stream_is_not_left_behind():
    peer = peer_of(False, {"max_incoming_streams": 8}, settings=CHROMIUM)
    session_id = peer.session(raw.CHROMIUM_CONNECT)
    read_everything(peer.end)
    for _ in range(50):
        limit = peer.quic._remote_max_streams_uni
        assert peer.quic.get_next_available_stream_id(is_unidirectional=True) // 4 < limit
        peer.wt_uni(session_id, b"data", True)
        # Time only for the pacing of packets, not for timers that would send anything.
        peer.run(0.0005)


@BOTH
def test_waiting_opener_is_told_when_there_is_credit_again(is_client):
    config = {"max_incoming_streams": 8}
    pair = Pair(client=ClientConfig(**config), server=ServerConfig(**config))
    session_id = pair.session()
    one, other = (pair.client, pair.server) if is_client else (pair.server, pair.client)
    opened = []
    while (stream_id := one.protocol.open_stream(session_id, True)) is not None:
        opened.append(stream_id)
        one.protocol.send_stream(stream_id, b"", True)
    assert len(opened) == 4, "half of what the connection has"
    one.protocol.want_stream(session_id)
    assert not one.of(events.StreamAvailable)
    read_everything(other)
    pair.run(1.0)
    assert one.of(events.StreamAvailable)
    assert one.protocol.open_stream(session_id, True) is not None


# A peer that does not keep to the session's limits


def flow_session(is_client, **config):
    settings = {**(raw.DRAFT16_SERVER if is_client else raw.DRAFT16), **FLOW}
    peer = peer_of(is_client, config, settings=settings)
    session_id = peer.session()
    assert peer.protocol.sessions[session_id].flow is not None
    return peer, session_id


def assert_flow_error(peer, session_id):
    assert peer.resets[session_id] == peer.stops[session_id] == codes.WT_FLOW_CONTROL_ERROR
    assert len(peer.end.of(events.SessionEnded)) == 1
    assert peer.close_code is None
    assert leftovers(peer.protocol) == {}


@BOTH
def test_more_bytes_than_the_session_limit_are_a_flow_control_error(is_client):
    peer, session_id = flow_session(is_client)
    # Not what was announced, which the windows of streams keep a peer from using up.
    peer.protocol.sessions[session_id].flow.max_data = 20_000
    for _ in range(2):
        peer.wt_uni(session_id, bytes(10_000), run=True)
    assert not peer.stops
    peer.wt_uni(session_id, b"x", run=True)
    assert_flow_error(peer, session_id)


@BOTH
@pytest.mark.parametrize("unidirectional", [False, True], ids=["bidi", "uni"])
def test_more_streams_than_the_session_limit_are_a_flow_control_error(is_client, unidirectional):
    peer, session_id = flow_session(is_client, max_incoming_streams=16)
    opener = peer.wt_uni if unidirectional else peer.wt_bidi
    for _ in range(8):
        opener(session_id, run=True)
    assert not peer.stops
    opener(session_id, run=True)
    assert_flow_error(peer, session_id)


def test_early_streams_count_like_others():
    settings = {**raw.DRAFT16, **FLOW}
    peer = peer_of(False, {"max_incoming_streams": 16}, settings=settings)
    session_id = peer.bidi(b"")
    for _ in range(9):
        peer.wt_uni(session_id, b"x", run=True)
    peer.send(session_id, raw.frame(raw.HEADERS, raw.header_block(raw.connect_headers())))
    peer.protocol.accept_session(session_id)
    peer.run()
    assert_flow_error(peer, session_id)


LIMITS = {
    "data": (capsules.MAX_DATA, 1 << 30),
    "bidi": (capsules.MAX_STREAMS_BIDI, 1000),
    "uni": (capsules.MAX_STREAMS_UNI, 1000),
}


@BOTH
@pytest.mark.parametrize("kind, current", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("change", [0, -1])
def test_limit_that_does_not_grow_is_a_flow_control_error(is_client, kind, current, change):
    peer, session_id = flow_session(is_client)
    peer.capsule(session_id, encode_capsule(kind, encode_varint(current + 1)))
    assert not peer.stops
    peer.capsule(session_id, encode_capsule(kind, encode_varint(current + 1 + change)))
    assert_flow_error(peer, session_id)


@BOTH
def test_stream_limit_that_no_stream_id_can_reach_is_a_flow_control_error(is_client):
    peer, session_id = flow_session(is_client)
    limit = encode_varint(2**60 + 1)
    peer.capsule(session_id, encode_capsule(capsules.MAX_STREAMS_UNI, limit))
    assert_flow_error(peer, session_id)


@BOTH
@pytest.mark.parametrize("payload", [b"", b"\x40", b"\x01\x02"])
def test_limit_that_is_no_integer_is_a_message_error(is_client, payload):
    peer, session_id = flow_session(is_client)
    peer.capsule(session_id, encode_capsule(capsules.MAX_DATA, payload))
    assert peer.resets[session_id] == codes.H3_MESSAGE_ERROR


@BOTH
@pytest.mark.parametrize("kind", [capsules.DATA_BLOCKED, capsules.STREAMS_BLOCKED_UNI])
def test_peer_may_say_that_it_is_blocked(is_client, kind):
    peer, session_id = flow_session(is_client)
    peer.capsule(session_id, encode_capsule(kind, b"\x05"))
    assert peer.protocol.sessions[session_id].live


@BOTH
@pytest.mark.parametrize("unidirectional", [False, True], ids=["bidi", "uni"])
def test_limits_of_zero_can_be_raised_by_capsules(is_client, unidirectional):
    # pywebtransport#7: WT_MAX_STREAMS was ignored when the initial limits were 0.
    settings = {**(raw.DRAFT16_SERVER if is_client else raw.DRAFT16)}
    settings[codes.SETTING_WT_INITIAL_MAX_DATA] = 5
    peer = peer_of(is_client, settings=settings)
    session_id = peer.session()
    protocol = peer.protocol
    assert protocol.open_stream(session_id, unidirectional) is None
    protocol.want_stream(session_id)
    kind = capsules.MAX_STREAMS_UNI if unidirectional else capsules.MAX_STREAMS_BIDI
    peer.capsule(session_id, encode_capsule(kind, encode_varint(1)))
    assert peer.end.of(events.StreamAvailable) == [events.StreamAvailable(session_id)]
    stream_id = protocol.open_stream(session_id, unidirectional)
    assert stream_id is not None
    assert protocol.open_stream(session_id, unidirectional) is None
    assert protocol.room(stream_id) == 5
    protocol.send_stream(stream_id, b"12345")
    assert protocol.room(stream_id) == 0
    protocol.want_room(stream_id)
    peer.run(1.0)
    assert not peer.end.of(events.StreamWritable)
    peer.capsule(session_id, encode_capsule(capsules.MAX_DATA, encode_varint(8)))
    assert peer.end.of(events.StreamWritable) == [events.StreamWritable(stream_id)]
    assert protocol.room(stream_id) == 3


def test_limits_are_raised_as_the_application_reads():
    peer, session_id = flow_session(False, session_window=20_000, stream_window=20_000)
    before = peer.protocol.sessions[session_id].flow.max_data
    read_everything(peer.end)
    for _ in range(45):
        peer.wt_uni(session_id, bytes(15_000), True, run=True)
    sent = bytes(peer.received[session_id])
    assert encode_varint(capsules.MAX_DATA) in sent
    assert peer.protocol.sessions[session_id].live
    assert peer.protocol.sessions[session_id].flow.max_data >= before + MIB // 2
