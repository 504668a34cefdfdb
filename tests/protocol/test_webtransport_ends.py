"""How sessions end, from either side and in any way, and that nothing is left of them."""

from __future__ import annotations

import pytest

from gwt.config import ClientConfig, ServerConfig
from gwt.protocol import capsules, codes, events
from tests.helpers import raw
from tests.helpers.pair import Pair
from tests.helpers.raw import leftovers

BOTH = pytest.mark.parametrize("is_client", [True, False], ids=["client", "server"])


def peer_of(is_client, **options):
    return raw.client(**options) if is_client else raw.server(**options)


def populate(peer, session_id):
    """Open a stream of each kind from each side; returns ours, and the peer's."""
    ours = [peer.protocol.open_stream(session_id, uni) for uni in (False, True)]
    for stream_id in ours:
        peer.protocol.send_stream(stream_id, b"ours")
    theirs = [peer.wt_bidi(session_id, b"theirs"), peer.wt_uni(session_id, b"theirs")]
    peer.run()
    return ours, theirs


def end(peer, session_id, how):
    match how:
        case "our close":
            peer.protocol.close_session(session_id, 1, "x")
        case "our abort":
            peer.protocol.abort_session(session_id)
        case "their close":
            peer.capsule(session_id, capsules.encode_close(1, b"x"), end=True)
        case "their end":
            peer.send(session_id, b"", True)
        case "their reset":
            peer.reset(session_id, codes.H3_REQUEST_CANCELLED)
        case "their stop":
            peer.stop(session_id, codes.H3_REQUEST_CANCELLED)
        case "their error":
            peer.capsule(session_id, capsules.encode_capsule(capsules.DRAIN_SESSION, b"x"))
    peer.run()
    peer.finish(session_id)
    peer.run(2.0)


HOW = ["our close", "our abort", "their close", "their end", "their reset", "their stop"]


@BOTH
@pytest.mark.parametrize("how", [*HOW, "their error"])
def test_session_takes_all_its_streams_along(is_client, how):
    peer = peer_of(is_client)
    session_id = peer.session()
    (our_bidi, our_uni), (their_bidi, their_uni) = populate(peer, session_id)
    end(peer, session_id, how)
    gone = codes.WT_SESSION_GONE
    assert {peer.resets[i] for i in (our_bidi, our_uni, their_bidi)} == {gone}
    assert {peer.stops[i] for i in (our_bidi, their_bidi, their_uni)} == {gone}
    assert len(peer.end.of(events.SessionEnded)) == 1
    assert peer.close_code is None
    for stream_id in (our_bidi, their_bidi, their_uni):
        peer.finish(stream_id)
    assert leftovers(peer.protocol) == {}
    assert peer.end.of(events.SessionGone) == [events.SessionGone(session_id)]


@BOTH
@pytest.mark.parametrize("how", HOW)
def test_other_sessions_of_the_connection_live_on(is_client, how):
    settings = {**raw.CHROMIUM, 0x8: 1}
    peer = raw.Raw(is_client=is_client, settings=settings)
    headers = raw.CHROMIUM_CONNECT
    doomed, other = peer.session(headers), peer.session(headers)
    ours, theirs = populate(peer, other)
    populate(peer, doomed)
    end(peer, doomed, how)
    assert not {*ours, *theirs} & (set(peer.resets) | set(peer.stops))
    assert {s.session_id for s in peer.protocol.streams.values()} == {other}
    stream_id = peer.wt_uni(other, b"still here", True, run=True)
    assert peer.end.data(stream_id) == b"still here"
    assert peer.status(other) == 200 if not is_client else True
    end(peer, other, how)
    assert leftovers(peer.protocol) == {}


@BOTH
def test_session_is_gone_only_when_our_close_was_acknowledged(is_client):
    pair = Pair()
    session_id = pair.session()
    pair.run()
    one = pair.client if is_client else pair.server
    pair.filter = lambda to_server, data: to_server != is_client
    one.protocol.close_session(session_id, 1, "x")
    pair.run(3.0)
    assert one.of(events.SessionEnded)
    assert not one.of(events.SessionGone)
    assert session_id in one.protocol.sessions
    pair.filter = lambda to_server, data: True
    pair.run(20.0)
    assert one.of(events.SessionGone) == [events.SessionGone(session_id)]


@BOTH
@pytest.mark.parametrize("how", ["close", "peer", "idle"])
def test_end_of_the_connection_ends_its_sessions_once_and_keeps_nothing(is_client, how):
    pair = Pair(
        client=ClientConfig(idle_timeout=5.0), server=ServerConfig(idle_timeout=5.0), latency=0.001
    )
    session_id = pair.session()
    one, other = (pair.client, pair.server) if is_client else (pair.server, pair.client)
    stream_id = one.protocol.open_stream(session_id, True)
    one.protocol.send_stream(stream_id, bytes(100_000))
    one.protocol.want_room(stream_id)
    one.protocol.want_flush(stream_id)
    one.protocol.want_stream(session_id)
    if how == "close":
        one.protocol.close(0x123, "enough")
        one.protocol.close(0x124, "really")
        assert not one.protocol.send_stream(stream_id, b"x")
        assert one.protocol.open_stream(session_id, True) is None
    elif how == "peer":
        other.protocol.close(0x123, "enough")
    else:
        pair.filter = lambda to_server, data: False
    pair.run(20.0)
    ended = one.last(events.ConnectionEnded)
    if how != "idle":
        assert (ended.code, ended.reason, ended.application) == (0x123, "enough", True)
        assert other.last(events.ConnectionEnded).remote == (how == "close")
    assert ended.remote == (how == "peer")
    assert one.events[-1] is ended
    assert len(one.of(events.ConnectionEnded)) == 1
    assert one.of(events.SessionEnded) == [
        events.SessionEnded(session_id, None, ended.reason, ended.remote)
    ]
    assert one.protocol.next_timer() is None
    assert one.protocol.datagrams_to_send(pair.now) == []
    assert pair.budget[is_client].buffered == 0
    for protocol in (one.protocol, other.protocol):
        kept = leftovers(protocol)
        kept.pop("quic", None), kept.pop("queue", None), kept.pop("h3", None)
        assert kept == {}


def test_acknowledgements_behind_a_close_do_not_disturb_the_budget():
    pair = Pair()
    session_id = pair.session()
    stream_id = pair.client.protocol.open_stream(session_id, True)
    pair.client.protocol.send_stream(stream_id, bytes(20_000))
    pair._send()
    arrived = [data for _, _, to_server, data in pair.wire if to_server]
    pair.wire.clear()
    for data in arrived:
        pair.server.protocol.receive_datagrams([data], ("192.0.2.1", 50000), pair.now)
    answers = pair.server.protocol.datagrams_to_send(pair.now + 0.1)
    pair.client.protocol.close()
    assert pair.budget[True].buffered == 0
    pair.client.protocol.receive_datagrams(
        [data for data, _ in answers], ("192.0.2.2", 4433), pair.now + 0.2
    )
    assert pair.budget[True].buffered == 0


def test_reason_of_any_kind_can_close_a_connection():
    for reason in ("", "x" * 5000, "€" * 500, "lone \ud800 surrogate"):
        pair = Pair()
        pair.session()
        pair.client.protocol.close(0x100, reason)
        pair.run()
        arrived = pair.server.last(events.ConnectionEnded).reason
        assert len(arrived) <= len(reason)
        assert arrived[:5] == reason[:5]


# Nothing is left behind


@BOTH
@pytest.mark.parametrize("latency", [0.0002, 0.01])
def test_three_hundred_echo_streams_leave_nothing_behind(is_client, latency):
    pair = Pair(latency=latency)
    session_id = pair.session()
    one, other = (pair.client, pair.server) if is_client else (pair.server, pair.client)

    def echo(event):
        if isinstance(event, events.StreamDataReceived):
            other.protocol.consumed(event.stream_id, len(event.data))
            other.protocol.send_stream(event.stream_id, event.data, event.ended)

    other.react = echo
    for number in range(300):
        data = b"echo %d" % number
        stream_id = one.protocol.open_stream(session_id, False)
        assert stream_id is not None
        one.protocol.send_stream(stream_id, data, True)
        pair.run_until(lambda: one.data(stream_id) == data)  # noqa: B023
        one.protocol.consumed(stream_id, len(data))
        one.events.clear()
    pair.run(1.0)
    one.protocol.close_session(session_id)
    pair.run(1.0)
    for protocol in (one.protocol, other.protocol):
        assert leftovers(protocol) == {}
        # A control stream each way, of which HTTP/3 keeps what it reads.
        assert len(protocol.quic._quic._streams) == 2
        assert len(protocol._h3._h3._stream) == 1


@BOTH
@pytest.mark.parametrize("what", ["reset", "stop", "both", "refused", "nothing"])
def test_streams_that_end_otherwise_leave_nothing_behind(is_client, what):
    pair = Pair()
    session_id = pair.session()
    one, other = (pair.client, pair.server) if is_client else (pair.server, pair.client)

    def react(event):
        if isinstance(event, events.StreamOpened) and what == "refused":
            other.protocol.stop_stream(event.stream_id, 1)
            other.protocol.reset_stream(event.stream_id, 1)
        elif isinstance(event, events.StreamDataReceived):
            other.protocol.consumed(event.stream_id, len(event.data))
            if event.ended and not event.stream_id & 2:
                other.protocol.send_stream(event.stream_id, b"", True)
        elif isinstance(event, events.StreamReset) and not event.stream_id & 2:
            other.protocol.reset_stream(event.stream_id, 3)

    other.react = react
    for number in range(120):
        stream_id = one.protocol.open_stream(session_id, bool(number % 2))
        assert stream_id is not None
        one.protocol.send_stream(stream_id, b"data" * (number % 5))
        if number % 3:
            pair.run(0.015)
        if what in ("reset", "both"):
            one.protocol.reset_stream(stream_id, 1)
        if what in ("stop", "both") and not number % 2:
            one.protocol.stop_stream(stream_id, 1)
        one.protocol.send_stream(stream_id, b"", True)
        pair.run(0.1)
    pair.run(2.0)
    for protocol in (one.protocol, other.protocol):
        assert not protocol.streams
        assert not protocol._ignored
    one.protocol.close_session(session_id)
    pair.run(1.0)
    assert leftovers(one.protocol) == leftovers(other.protocol) == {}


@BOTH
def test_hundred_sessions_in_a_row_leave_nothing_behind(is_client):
    pair = Pair()
    for number in range(100):
        session_id = pair.session()
        one, other = (pair.client, pair.server) if is_client else (pair.server, pair.client)
        one.protocol.open_stream(session_id, bool(number % 2))
        other.protocol.open_stream(session_id, bool(number % 2))
        pair.run(0.05 * (number % 2))
        if number % 5:
            one.protocol.close_session(session_id, number, "next")
        else:
            one.protocol.abort_session(session_id)
        pair.run(0.3)
    pair.run(2.0)
    assert leftovers(pair.client.protocol) == leftovers(pair.server.protocol) == {}


def test_rejected_sessions_leave_nothing_behind():
    pair = Pair()
    pair.run_until(lambda: pair.client.protocol.ready)
    for number in range(100):
        session_id = pair.client.protocol.open_session("example.test", "/")
        assert session_id is not None
        pair.run_until(lambda: len(pair.server.of(events.SessionRequested)) > number)  # noqa: B023
        if number % 2:
            pair.client.protocol.open_stream(session_id, True)
        pair.server.protocol.reject_session(session_id, 404, body=b"no" * (number % 3))
        pair.run(0.2)
    assert len(pair.client.of(events.SessionRefused)) == 100
    assert leftovers(pair.client.protocol) == leftovers(pair.server.protocol) == {}
