"""Streams and datagrams that arrive before their session: held in order, bounded, given up."""

from __future__ import annotations

import pytest

from gwt.config import ClientConfig, ServerConfig
from gwt.protocol import capsules, codes, events
from tests.helpers import raw
from tests.helpers.raw import connect_headers, frame, header_block, leftovers

KINDS = pytest.mark.parametrize("unidirectional", [False, True], ids=["bidi", "uni"])

# The id that the first request of a raw client has, when a bidirectional stream is not first.
REQUEST = frame(raw.HEADERS, header_block(connect_headers()))


def ahead(peer):
    """Reserve the request's stream and send nothing on it yet; returns the session's id."""
    return peer.bidi(b"", run=False)


def opener(peer, unidirectional):
    return peer.wt_uni if unidirectional else peer.wt_bidi


def test_streams_and_datagrams_before_the_request_are_delivered_in_order():
    peer = raw.server()
    session_id = ahead(peer)
    first = peer.wt_bidi(session_id, b"first", run=True)
    second = peer.wt_uni(session_id, b"second", True, run=True)
    third = peer.wt_uni(session_id, run=True)
    for number in range(3):
        peer.datagram(b"\x00%d" % number)
    peer.send(first, b" and more")
    assert not peer.end.of(events.StreamOpened) + peer.end.of(events.DatagramReceived)
    peer.send(session_id, REQUEST)
    assert not peer.end.of(events.StreamOpened)
    before = len(peer.end.events)
    assert peer.protocol.accept_session(session_id)
    peer.run()
    told = [
        e
        for e in peer.end.events[before:]
        if isinstance(e, (events.StreamOpened, events.StreamDataReceived, events.DatagramReceived))
    ]
    assert told == [
        events.StreamOpened(session_id, first),
        events.StreamDataReceived(first, b"first and more", False),
        events.StreamOpened(session_id, second),
        events.StreamDataReceived(second, b"second", True),
        events.StreamOpened(session_id, third),
        *(events.DatagramReceived(session_id, b"%d" % n) for n in range(3)),
    ]


def test_streams_of_the_server_before_its_answer_wait_on_the_client():
    peer = raw.client()
    session_id = peer.session(accept=False)
    first = peer.wt_uni(session_id, b"early", True, run=True)
    second = peer.wt_bidi(session_id, run=True)
    peer.datagram(b"\x00dgram")
    assert not peer.end.of(events.StreamOpened)
    peer.respond(session_id)
    names = [
        type(e).__name__
        for e in peer.end.events
        if type(e).__name__.startswith(("Session", "Stream", "Datagram"))
    ]
    assert names == [
        "SessionAccepted",
        "StreamOpened",
        "StreamDataReceived",
        "StreamOpened",
        "DatagramReceived",
    ]
    assert peer.end.data(first) == b"early"
    assert second in peer.protocol.streams


@KINDS
def test_more_early_streams_than_the_bound_are_refused(unidirectional):
    peer = raw.server(config=ServerConfig(max_pending_streams=3))
    session_id = ahead(peer)
    streams = [opener(peer, unidirectional)(session_id, b"x", run=True) for _ in range(5)]
    assert peer.stops == dict.fromkeys(streams[3:], codes.WT_BUFFERED_STREAM_REJECTED)
    if not unidirectional:
        assert peer.resets == dict.fromkeys(streams[3:], codes.WT_BUFFERED_STREAM_REJECTED)
    assert peer.protocol.counters["streams_refused"] == 2
    peer.send(session_id, REQUEST)
    peer.protocol.accept_session(session_id)
    peer.run()
    assert [e.stream_id for e in peer.end.of(events.StreamOpened)] == streams[:3]


def test_what_an_early_stream_may_hold_is_its_first_window():
    peer = raw.server(config=ServerConfig(initial_stream_window=2048))
    session_id = ahead(peer)
    stream_id = peer.wt_uni(session_id, bytes(100_000), True, run=True)
    # The prefix has been read, and counts as such only once a new limit is worth sending.
    assert len(peer.protocol.streams[stream_id].early) == 2048 - 3
    peer.send(session_id, REQUEST)
    peer.end.react = lambda e: (
        peer.protocol.consumed(e.stream_id, len(e.data))
        if isinstance(e, events.StreamDataReceived)
        else None
    )
    peer.protocol.accept_session(session_id)
    peer.run(5.0)
    assert len(peer.end.data(stream_id)) == 100_000


@KINDS
def test_early_stream_is_given_up_when_its_session_never_comes(unidirectional):
    peer = raw.server(config=ServerConfig(pending_timeout=2.0))
    session_id = ahead(peer)
    stream_id = opener(peer, unidirectional)(session_id, b"x", run=True)
    peer.datagram(b"\x00x")
    peer.run(1.5)
    assert peer.stops == {}
    deadline = peer.protocol.next_timer()
    assert deadline is not None and deadline <= peer.now + 0.6
    peer.run(0.6)
    assert peer.stops == {stream_id: codes.WT_BUFFERED_STREAM_REJECTED}
    assert peer.protocol.counters["streams_expired"] == 1
    assert peer.protocol.counters["datagrams_unknown_session"] == 1
    peer.finish(session_id)
    assert leftovers(peer.protocol) == {}


def test_early_stream_of_a_request_that_nobody_answers_yet_does_not_expire():
    peer = raw.server(config=ServerConfig(pending_timeout=2.0))
    session_id = ahead(peer)
    peer.wt_uni(session_id, b"x", run=True)
    peer.send(session_id, REQUEST)
    peer.run(10.0)
    peer.protocol.accept_session(session_id)
    peer.run()
    assert peer.end.of(events.StreamOpened)


@KINDS
@pytest.mark.parametrize("requested", [False, True])
def test_early_stream_that_is_reset_is_never_told_of(unidirectional, requested):
    peer = raw.server()
    session_id = ahead(peer)
    stream_id = opener(peer, unidirectional)(session_id, b"x", run=True)
    if requested:
        peer.send(session_id, REQUEST)
    peer.reset(stream_id, 0)
    if not requested:
        peer.send(session_id, REQUEST)
    peer.protocol.accept_session(session_id)
    peer.run()
    assert not peer.end.of(events.StreamOpened) + peer.end.of(events.StreamReset)
    assert peer.protocol._early_streams == 0


def test_early_stream_whose_answers_are_stopped_is_told_so_when_it_is_opened():
    peer = raw.server()
    session_id = ahead(peer)
    stream_id = peer.wt_bidi(session_id, b"x", True, run=True)
    peer.stop(stream_id, codes.wire_code(7))
    peer.run(1.0)
    peer.send(session_id, REQUEST)
    assert not peer.end.of(events.StreamStopped)
    peer.protocol.accept_session(session_id)
    peer.run()
    assert peer.end.of(events.StreamStopped) == [events.StreamStopped(stream_id, 7)]
    peer.protocol.consumed(stream_id, 1)
    peer.run()
    assert stream_id not in peer.protocol.streams


@KINDS
@pytest.mark.parametrize("how", ["reject", "abort", "reset", "stop", "end"])
def test_session_that_ends_before_it_began_takes_its_early_streams_along(unidirectional, how):
    peer = raw.server()
    session_id = ahead(peer)
    stream_id = opener(peer, unidirectional)(session_id, b"x", run=True)
    ended = opener(peer, unidirectional)(session_id, b"x", True, run=True)
    peer.datagram(b"\x00x")
    peer.send(session_id, REQUEST)
    match how:
        case "reject":
            peer.protocol.reject_session(session_id, 403)
        case "abort":
            peer.protocol.abort_session(session_id)
        case "reset":
            peer.reset(session_id, 0x10C)
        case "stop":
            peer.stop(session_id, 0x10C)
        case "end":
            peer.send(session_id, b"", True)
    peer.run()
    assert peer.stops[stream_id] == codes.WT_SESSION_GONE
    assert ended not in peer.stops
    if not unidirectional:
        assert peer.resets[stream_id] == peer.resets[ended] == codes.WT_SESSION_GONE
    assert not peer.end.of(events.StreamOpened)
    peer.finish(session_id)
    assert leftovers(peer.protocol) == {}


def test_streams_and_datagrams_of_a_session_that_is_over_are_refused():
    for peer in (raw.server(), raw.client()):
        session_id = peer.session()
        peer.protocol.close_session(session_id, 0, "")
        # Before the close is acknowledged, and behind it.
        for _ in range(2):
            uni = peer.wt_uni(session_id, b"late", run=True)
            bidi = peer.wt_bidi(session_id, b"late", run=True)
            assert peer.stops[uni] == peer.stops[bidi] == codes.WT_SESSION_GONE
            assert peer.resets[bidi] == codes.WT_SESSION_GONE
            peer.datagram(b"\x00late")
            peer.run(1.0)
        assert peer.protocol.counters["datagrams_unknown_session"] == 2
        assert not peer.end.of(events.StreamOpened) + peer.end.of(events.DatagramReceived)
        peer.finish(session_id)
        assert leftovers(peer.protocol) == {}


def test_stream_of_a_request_that_was_answered_501_is_refused():
    peer = raw.server()
    request = peer.request(connect_headers(protocol=b"websocket"))
    stream_id = peer.wt_uni(request, b"x", run=True)
    assert peer.stops == {stream_id: codes.WT_SESSION_GONE}


def test_early_datagrams_are_bounded_and_the_oldest_goes():
    peer = raw.server(config=ServerConfig(max_pending_datagrams=2))
    session_id = ahead(peer)
    for number in range(5):
        peer.datagram(b"\x00%d" % number)
    peer.send(session_id, REQUEST)
    peer.protocol.accept_session(session_id)
    peer.run()
    assert [e.data for e in peer.end.of(events.DatagramReceived)] == [b"3", b"4"]
    assert peer.protocol.counters["datagrams_unknown_session"] == 3


@pytest.mark.parametrize("is_client", [True, False])
def test_bounds_of_zero_hold_nothing(is_client):
    make = (raw.client, ClientConfig) if is_client else (raw.server, ServerConfig)
    peer = make[0](config=make[1](max_pending_streams=0, max_pending_datagrams=0))
    session_id = peer.session(accept=False)
    stream_id = peer.wt_uni(session_id, b"x", run=True)
    peer.datagram(b"\x00x")
    assert peer.stops == {stream_id: codes.WT_BUFFERED_STREAM_REJECTED}
    assert not peer.protocol._early_datagrams


def test_capsules_before_the_answer_are_read_when_the_session_begins():
    peer = raw.server()
    session_id = peer.session(accept=False)
    peer.capsule(session_id, capsules.encode_capsule(0x21, bytes(50)))
    peer.capsule(session_id, capsules.encode_capsule(capsules.DRAIN_SESSION))
    assert not peer.end.of(events.SessionDraining)
    peer.protocol.accept_session(session_id)
    peer.run()
    assert peer.end.of(events.SessionDraining)


def test_close_before_the_answer_ends_the_session_as_soon_as_it_begins():
    peer = raw.server()
    session_id = ahead(peer)
    peer.wt_uni(session_id, b"x", run=True)
    peer.datagram(b"\x00x")
    peer.send(session_id, REQUEST)
    peer.capsule(session_id, capsules.encode_close(5, b"never mind"))
    peer.protocol.accept_session(session_id)
    peer.run()
    assert peer.end.of(events.SessionEnded) == [
        events.SessionEnded(session_id, 5, "never mind", True)
    ]
    assert not peer.end.of(events.StreamOpened) + peer.end.of(events.DatagramReceived)


def test_capsules_before_the_answer_are_bounded():
    peer = raw.server()
    session_id = peer.session(accept=False)
    for _ in range(40):
        peer.capsule(session_id, capsules.encode_capsule(0x21, bytes(500)))
        if peer.end.of(events.SessionEnded):
            break
    assert peer.resets[session_id] == codes.H3_EXCESSIVE_LOAD
    assert peer.close_code is None
