"""Tunnels (RFC 9114 4.4): CONNECT requests whose DATA frames are a stream."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gwt.config import MIB, ClientConfig, ServerConfig
from gwt.protocol import codes, events, requests
from gwt.protocol.capsules import encode_varint
from gwt.protocol.records import NO_SESSION
from gwt.protocol.webtransport import WebTransport
from tests.helpers import raw
from tests.helpers.pair import Pair
from tests.helpers.raw import DATA, GOAWAY, HEADERS, SETTINGS, frame, header_block, leftovers

ASK = [(b":method", b"CONNECT"), (b":authority", b"example.test:80")]


def taking(quic, config):
    """A server's protocol that takes tunnels."""
    protocol = WebTransport(quic, config)
    protocol.takes_tunnels = True
    return protocol


def pair(**options):
    made = Pair(server_factory=taking, **options)
    made.run_until(lambda: made.client.protocol.ready)
    return made


def tunnel(made, authority="example.test:80"):
    """Bring up a tunnel; returns its stream."""
    stream_id = made.client.protocol.open_tunnel(authority)
    made.run_until(lambda: told(made.server, events.TunnelRequested, stream_id))
    assert made.server.protocol.accept_tunnel(stream_id)
    made.run_until(lambda: told(made.client, events.TunnelAccepted, stream_id))
    return stream_id


def told(end, kind, stream_id):
    return [event for event in end.of(kind) if event.stream_id == stream_id]


def read_all(end):
    """Read whatever comes, from now on."""

    def react(event):
        if isinstance(event, events.StreamDataReceived) and event.data:
            end.protocol.consumed(event.stream_id, len(event.data))

    end.react = react


def server(**options):
    """Our server, and a raw client."""
    made = raw.server(**options)
    made.protocol.takes_tunnels = True
    return made


def opened(**options):
    """Our server with a tunnel of a raw client's; returns both."""
    peer = server(**options)
    stream_id = peer.request(ASK)
    assert peer.protocol.accept_tunnel(stream_id)
    peer.run()
    assert peer.status(stream_id) == 200
    return peer, stream_id


# Both ways


def test_a_tunnel_carries_bytes_both_ways_and_leaves_nothing():
    made = pair()
    stream_id = tunnel(made, "Example.TEST:8080")
    request = made.server.last(events.TunnelRequested)
    assert (request.host, request.port) == ("example.test", 8080)
    assert made.client.protocol.send_stream(stream_id, b"up")
    assert made.client.protocol.send_stream(stream_id, b"stream", True)
    assert made.server.protocol.send_stream(stream_id, b"down", True)
    made.run()
    assert made.server.data(stream_id) == b"upstream"
    assert made.client.data(stream_id) == b"down"
    for end in made.ends():
        for event in end.of(events.StreamDataReceived):
            end.protocol.consumed(stream_id, len(event.data))
        assert end.of(events.StreamFinished)
    made.run()
    assert not leftovers(made.client.protocol) and not leftovers(made.server.protocol)


@pytest.mark.parametrize("loss", [0.0, 0.05])
def test_large_transfers_both_ways_at_once(loss):
    made = pair(loss=loss, seed=6)
    stream_id = tunnel(made)
    sent = {}
    for end in made.ends():
        read_all(end)
        sent[end] = bytes(range(256)) * 2 * 1024
    queues = dict(sent)

    def push():
        for end, left in queues.items():
            room = end.protocol.room(stream_id) if left else 0
            if room:
                queues[end] = left[room:]
                assert end.protocol.send_stream(stream_id, left[:room], not left[room:])
        return all(told(end, events.StreamFinished, stream_id) for end in sent)

    made.run_until(push, 200)
    made.run(3)
    assert made.server.data(stream_id) == sent[made.client]
    assert made.client.data(stream_id) == sent[made.server]
    assert not leftovers(made.client.protocol) and not leftovers(made.server.protocol)


@pytest.mark.parametrize("piece", [3, 1000, 100_000])
def test_who_does_not_read_stops_the_writer_within_the_first_window(piece):
    config = ServerConfig(initial_stream_window=16384, stream_window=MIB)
    made = pair(server=config)
    stream_id = tunnel(made)
    total = 0
    while (room := made.client.protocol.room(stream_id)) and total < 60_000:
        made.client.protocol.send_stream(stream_id, b"x" * min(piece, room))
        total += min(piece, room)
    made.run(5)
    # What frames cost beside their payload is given back at once, or small ones would stall it.
    held = len(made.server.data(stream_id))
    assert config.initial_stream_window // 2 <= held <= config.stream_window
    assert made.server.protocol.streams[stream_id].unread == held
    before = held
    read_all(made.server)
    made.server.protocol.consumed(stream_id, held)
    made.run(20)
    assert len(made.server.data(stream_id)) == total >= before


def test_small_frames_do_not_widen_what_is_held_beyond_the_window():
    peer, stream_id = opened(config=ServerConfig(initial_stream_window=16384, stream_window=16384))
    for _ in range(40):
        peer.send(stream_id, frame(DATA, b"x") * 1000, run=False)
    peer.run(2)
    held = len(peer.end.data(stream_id))
    assert held == peer.protocol.streams[stream_id].unread <= 16384
    read_all(peer.end)
    peer.protocol.consumed(stream_id, held)
    peer.run(5)
    assert len(peer.end.data(stream_id)) == 40_000


def test_several_tunnels_and_a_session_share_a_connection():
    made = pair()
    ids = [tunnel(made, f"host-{n}.test:{n + 1}") for n in range(8)]
    session_id = made.session()
    for stream_id in ids:
        made.client.protocol.send_stream(stream_id, b"%d" % stream_id, True)
    inner = made.client.protocol.open_stream(session_id, False)
    made.client.protocol.send_stream(inner, b"in the session", True)
    made.run()
    for stream_id in ids:
        assert made.server.data(stream_id) == b"%d" % stream_id
    made.client.protocol.close_session(session_id)
    made.run()
    assert made.server.data(inner) == b"in the session"
    for stream_id in ids:
        assert made.server.protocol.send_stream(stream_id, b"still there", True)
    made.run()
    assert all(made.client.data(stream_id) == b"still there" for stream_id in ids)


def test_a_tunnel_has_its_half_ends():
    made = pair()
    stream_id = tunnel(made)
    made.client.protocol.send_stream(stream_id, b"", True)
    made.run()
    assert made.server.last(events.StreamDataReceived).ended
    assert made.server.protocol.send_stream(stream_id, b"late")
    assert not made.client.protocol.send_stream(stream_id, b"too late")
    made.run()
    assert made.client.data(stream_id) == b"late"
    assert not made.client.last(events.StreamDataReceived).ended


def test_codes_are_those_of_http3():
    made = pair()
    stream_id = tunnel(made)
    made.server.protocol.reset_stream(stream_id, codes.H3_CONNECT_ERROR)
    made.client.protocol.stop_stream(stream_id)
    made.run()
    assert made.client.last(events.StreamReset).code == codes.H3_CONNECT_ERROR
    other = tunnel(made)
    made.client.protocol.reset_stream(other)
    made.client.protocol.stop_stream(other, codes.H3_NO_ERROR)
    made.run()
    assert made.server.last(events.StreamReset).code == codes.H3_REQUEST_CANCELLED
    assert told(made.server, events.StreamStopped, other)[0].code == codes.H3_NO_ERROR


@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_a_reset_may_come_behind_what_was_written(loss):
    made = pair(loss=loss, seed=3)
    stream_id = tunnel(made)
    for piece in (b"x" * 5000, b"y" * 7000):
        made.server.protocol.send_stream(stream_id, piece)
    made.server.protocol.keep_written(stream_id)
    made.server.protocol.reset_stream(stream_id, codes.H3_CONNECT_ERROR)
    made.run(10)
    assert made.client.data(stream_id) == b"x" * 5000 + b"y" * 7000
    reset = made.client.last(events.StreamReset)
    assert (reset.code, reset.reliable) == (codes.H3_CONNECT_ERROR, 12_000)
    made.client.protocol.consumed(stream_id, 12_000)
    for end in made.ends():
        end.protocol.cancel_tunnel(stream_id)
    made.run(10)
    assert not leftovers(made.client.protocol) and not leftovers(made.server.protocol)


def test_a_reset_that_is_sent_keeps_no_more_than_it_said():
    made = pair()
    stream_id = tunnel(made)
    proxy = made.server.protocol
    proxy.send_stream(stream_id, b"last words")
    proxy.keep_written(stream_id)
    proxy.reset_stream(stream_id, codes.H3_CONNECT_ERROR)
    proxy.keep_written(stream_id)
    made.run()
    made.client.protocol.consumed(stream_id, 10)
    made.client.protocol.cancel_tunnel(stream_id)
    made.run()
    assert not leftovers(made.client.protocol) and not leftovers(proxy)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_two_sides_do_to_each_other_leaves_nothing(seed):
    chance = random.Random(seed)
    made = pair(loss=chance.choice((0, 0, 0.05, 0.2)), jitter=chance.choice((0, 0.01)), seed=seed)
    made.run()
    unread, asked, opened = [], [], []

    def watch(end):
        def react(event):
            if isinstance(event, events.StreamDataReceived):
                unread.append((end.protocol, event.stream_id, len(event.data)))
            elif isinstance(event, events.TunnelRequested) and chance.random() < 0.8:
                asked.append(event.stream_id)

        end.react = react

    def catch_up():
        while unread:
            protocol, stream_id, size = unread.pop()
            protocol.consumed(stream_id, size)

    def settle():
        for _ in range(3):
            made.run(3.0)
            catch_up()

    watch(made.client)
    watch(made.server)
    client, proxy = made.client.protocol, made.server.protocol
    for _ in range(chance.randrange(5, 60)):
        while asked:
            proxy.accept_tunnel(asked.pop())
        opened += [client.open_tunnel("example.test:80")] if chance.random() < 0.1 else []
        stream_id, side = chance.choice(opened or [0]), chance.choice((client, proxy))
        match chance.randrange(14):
            case 0:
                proxy.reject_tunnel(stream_id, 502, body=b"no")
            case 1 | 2 | 3:
                size = chance.choice((0, 1, 1000, 20_000))
                side.send_stream(stream_id, bytes(size), chance.random() < 0.1)
            case 4:
                side.send_stream(stream_id, b"", True)
            case 5:
                side.reset_stream(stream_id, chance.choice((0, codes.H3_CONNECT_ERROR)))
            case 6:
                side.stop_stream(stream_id, chance.choice((0, codes.H3_CONNECT_ERROR)))
            case 7:
                side.cancel_tunnel(stream_id)
            case 8:
                side.keep_written(stream_id)
            case 9:
                side.want_flush(stream_id)
                side.want_room(stream_id)
            case 10:
                catch_up()
            case _:
                made.run(chance.choice((0.001, 0.02, 0.3)))
    settle()
    for stream_id in opened:
        proxy.reject_tunnel(stream_id, 503)
        proxy.cancel_tunnel(stream_id)
        client.cancel_tunnel(stream_id)
    settle()
    assert not leftovers(client) and not leftovers(proxy)
    assert not made.client.of(events.ConnectionEnded)


def test_a_cancelled_tunnel_leaves_nothing():
    made = pair()
    stream_id = tunnel(made)
    made.client.protocol.send_stream(stream_id, b"x" * 5000)
    made.server.protocol.send_stream(stream_id, b"y" * 5000)
    made.client.protocol.cancel_tunnel(stream_id)
    made.run()
    assert made.server.last(events.StreamReset).code == codes.H3_REQUEST_CANCELLED
    made.server.protocol.consumed(stream_id, len(made.server.data(stream_id)))
    made.server.protocol.cancel_tunnel(stream_id)
    made.run()
    assert not leftovers(made.client.protocol) and not leftovers(made.server.protocol)


def test_more_tunnels_than_the_peer_allows_wait_for_credit():
    made = pair(server=ServerConfig(max_incoming_streams=8))
    ids = [tunnel(made) for _ in range(8)]
    client = made.client.protocol
    assert client.open_tunnel("example.test:80") is None
    client.want_tunnel()
    for end in made.ends():
        assert end.protocol.send_stream(ids[0], b"", True)
    made.run()
    assert made.client.last(events.StreamAvailable).session_id == NO_SESSION
    assert client.open_tunnel("example.test:80") is not None


# What clients ask for


def test_who_takes_no_tunnels_answers_501():
    peer = raw.server()
    stream_id = peer.request(ASK)
    assert peer.status(stream_id) == 501
    assert not peer.end.of(events.TunnelRequested)


def to(authority):
    return [ASK[0], (b":authority", authority)]


MALFORMED = {
    "path": [*ASK, (b":path", b"/")],
    "scheme": [*ASK, (b":scheme", b"https")],
    "no authority": ASK[:1],
    "empty": to(b""),
    "no port": to(b"example.test"),
    "empty port": to(b"example.test:"),
    "port 0": to(b"example.test:0"),
    "port too large": to(b"example.test:65536"),
    "port with a sign": to(b"example.test:+80"),
    "no host": to(b":80"),
    "user": to(b"me@example.test:80"),
    "path behind": to(b"example.test:80/"),
    "bare IPv6": to(b"::1:80"),
    "empty brackets": to(b"[]:80"),
    "zone": to(b"[fe80::1%eth0]:80"),
    "space": to(b"a b:80"),
    "percent": to(b"a%00b:80"),
    "not ASCII": to("hößt:80".encode()),
    "line end": to(b"example.test:80\n"),
    "too long": to(b"a" * 256 + b":80"),
}


@pytest.mark.parametrize("takes", [True, False], ids=["on", "off"])
@pytest.mark.parametrize("end", [False, True], ids=["open", "ended"])
@pytest.mark.parametrize("headers", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_request_is_reset_and_the_connection_lives(headers, end, takes):
    peer = server()
    peer.protocol.takes_tunnels = takes
    stream_id = peer.request(headers, end)
    assert peer.resets == {stream_id: codes.H3_MESSAGE_ERROR}
    assert not peer.end.of(events.TunnelRequested)
    assert peer.protocol.counters["requests_malformed"] == 1
    assert peer.close_code is None
    assert leftovers(peer.protocol) == {}
    assert peer.status(peer.session()) == 200


@pytest.mark.parametrize(
    ("authority", "host", "port"),
    [
        (b"example.test:80", "example.test", 80),
        (b"EXAMPLE.test.:443", "example.test.", 443),
        (b"[::1]:65535", "::1", 65535),
        (b"127.0.0.1:1", "127.0.0.1", 1),
        (b"under_score:080", "under_score", 80),
    ],
)
def test_where_to(authority, host, port):
    peer = server()
    peer.request(to(authority))
    event = peer.end.last(events.TunnelRequested)
    assert (event.host, event.port) == (host, port)


@pytest.mark.parametrize("ended", [True, False])
def test_what_comes_before_the_answer_is_kept_and_read_behind_it(ended):
    peer = server()
    request = frame(HEADERS, header_block(ASK))
    stream_id = peer.bidi(request + frame(DATA, b"early ") + frame(DATA, b"bird"), ended, run=True)
    assert not peer.protocol.send_stream(stream_id, b"before the answer")
    assert peer.protocol.streams[stream_id].unread == 10
    assert peer.protocol.accept_tunnel(stream_id)
    assert not peer.protocol.accept_tunnel(stream_id)
    assert peer.end.data(stream_id) == b"early bird"
    assert peer.protocol.send_stream(stream_id, b"answer", True)
    peer.protocol.consumed(stream_id, 10)
    if not ended:
        peer.finish(stream_id)
    peer.run()
    assert peer.end.last(events.StreamDataReceived).ended
    assert bytes(peer.received[stream_id]).endswith(frame(DATA, b"answer"))
    assert leftovers(peer.protocol) == {}


def test_what_comes_before_the_answer_has_the_first_window_and_no_more():
    peer = server()
    stream_id = peer.request(ASK)
    peer.send(stream_id, frame(DATA, b"x" * 200_000))
    peer.run(2)
    window = peer.config.initial_stream_window
    assert window - 100 <= len(peer.end.data(stream_id)) <= window
    # It is read, but the rest waits for the answer all the same.
    peer.protocol.reject_tunnel(stream_id, 403)
    peer.run(2)
    assert peer.status(stream_id) == 403
    peer.finish(stream_id)
    peer.run(2)
    assert leftovers(peer.protocol) == {}


def test_a_request_that_comes_before_settings_waits_for_them():
    peer = raw.Raw(is_client=False)
    peer.protocol.takes_tunnels = True
    stream_id = peer.bidi(frame(HEADERS, header_block(ASK)) + frame(DATA, b"early"), run=True)
    assert not peer.end.of(events.TunnelRequested)
    peer.send_settings({})
    peer.run()
    assert peer.end.last(events.TunnelRequested).stream_id == stream_id
    assert peer.protocol.accept_tunnel(stream_id)
    assert peer.end.data(stream_id) == b"early"


@pytest.mark.parametrize("body", [b"", b"not there"])
@pytest.mark.parametrize("ended", [True, False])
def test_a_rejected_request_has_its_answer_and_leaves_nothing(body, ended):
    peer = server()
    stream_id = peer.bidi(
        frame(HEADERS, header_block(ASK)) + frame(DATA, b"unread"), ended, run=True
    )
    peer.protocol.reject_tunnel(stream_id, 403, [(b"proxy-status", b"gwt")], body)
    peer.protocol.reject_tunnel(stream_id, 502)
    assert not peer.protocol.accept_tunnel(stream_id)
    peer.run()
    assert dict(peer.responses(stream_id)[0])[b"proxy-status"] == b"gwt"
    assert [peer.status(stream_id), peer.ended] == [403, {stream_id}]
    assert bytes(peer.received[stream_id]).endswith(frame(DATA, body) if body else b"")
    if not ended:
        peer.send(stream_id, frame(DATA, b"x" * 50_000), True)
        peer.run()
    assert leftovers(peer.protocol) == {}
    assert peer.close_code is None


@pytest.mark.parametrize("how", ["reset", "stop"])
def test_a_request_that_its_client_takes_back_is_over_both_ways(how):
    peer = server()
    stream_id = peer.request(ASK)
    getattr(peer, how)(stream_id, codes.H3_REQUEST_CANCELLED)
    assert told(peer.end, events.StreamReset, stream_id)
    assert told(peer.end, events.StreamStopped, stream_id)
    assert not peer.protocol.accept_tunnel(stream_id)
    peer.protocol.reject_tunnel(stream_id, 502)
    if how == "stop":
        peer.finish(stream_id)
    peer.run()
    assert peer.protocol.counters["requests_cancelled"] == 1
    assert stream_id in peer.resets
    assert leftovers(peer.protocol) == {}


def test_a_request_whose_answer_nobody_wants_is_refused():
    peer = server()
    stream_id = peer.bidi(b"", run=False)
    peer.quic.stop_stream(stream_id, codes.H3_REQUEST_CANCELLED)
    peer.send(stream_id, frame(HEADERS, header_block(ASK)))
    assert not peer.end.of(events.TunnelRequested)
    peer.finish(stream_id)
    assert leftovers(peer.protocol) == {}


def test_who_asks_in_vain_without_end_is_turned_out():
    peer = server()
    for _ in range(400):
        if peer.close_code is not None:
            break
        stream_id = peer.request(ASK, run=False)
        peer.run(0.001)
        peer.quic.reset_stream(stream_id, codes.H3_REQUEST_CANCELLED)
        peer.run(0.001)
    assert peer.close_code == codes.H3_EXCESSIVE_LOAD
    assert peer.protocol.counters["requests_cancelled"] <= 256 + 16


def test_a_crowd_whose_patience_is_over_does_not_cost_the_other_tunnels():
    # A client's greenlets share one connection, and their targets may all be silent.
    peer, other = opened()
    for _ in range(4):
        asked = [peer.request(ASK, run=False) for _ in range(200)]
        peer.run(0.3)
        for stream_id in asked:
            peer.quic.reset_stream(stream_id, codes.H3_REQUEST_CANCELLED)
        peer.run()
    assert peer.close_code is None
    assert peer.protocol.counters["requests_cancelled"] == 800
    peer.send(other, frame(DATA, b"still here"))
    assert peer.end.last(events.StreamDataReceived).data == b"still here"


# What may be in a tunnel


@pytest.mark.parametrize("accepted", [True, False], ids=["open", "asked"])
@pytest.mark.parametrize(
    "bad",
    [
        frame(HEADERS, header_block([(b"trailer", b"x")])),
        frame(HEADERS, header_block(ASK)),
        frame(SETTINGS, b""),
        frame(0x5, b"\0"),
        frame(0x7, b"\0"),
        frame(0x2, b""),
        encode_varint(0x41) + b"\0",
    ],
    ids=["trailers", "headers", "settings", "push promise", "goaway", "reserved", "webtransport"],
)
def test_another_frame_than_data_closes_the_connection(bad, accepted):
    peer = server()
    stream_id = peer.request(ASK)
    if accepted:
        assert peer.protocol.accept_tunnel(stream_id)
    peer.send(stream_id, frame(DATA, b"fine") + bad)
    expected = codes.H3_FRAME_ERROR if bad[:1] == b"\x40" else codes.H3_FRAME_UNEXPECTED
    assert peer.close_code == expected
    assert peer.protocol.counters["protocol_errors"] == 1


def test_frames_that_nobody_knows_are_passed_over_and_cost_no_window():
    peer, stream_id = opened()
    window = peer.config.initial_stream_window
    for _ in range(8):
        peer.send(stream_id, frame(0x21 + 0x1F, b"?" * (window // 2)) + frame(DATA, b"ok"))
    assert peer.end.data(stream_id) == b"ok" * 8
    peer.send(stream_id, frame(DATA, b"") * 50 + frame(0x40, b"") + frame(DATA, b"!"), True)
    assert peer.end.data(stream_id) == b"ok" * 8 + b"!"
    assert peer.end.last(events.StreamDataReceived).ended


def test_an_end_behind_a_frame_that_nobody_knows_is_one():
    peer, stream_id = opened()
    peer.send(stream_id, frame(DATA, b"x") + frame(0x40, b"unknown"), True)
    assert peer.end.data(stream_id) == b"x"
    assert peer.end.last(events.StreamDataReceived).ended


@pytest.mark.parametrize("cut", [frame(DATA, b"abc")[:-1], b"\x00", b"\x40", frame(0x40, b"x")[:2]])
def test_an_end_inside_a_frame_closes_the_connection(cut):
    peer, stream_id = opened()
    peer.send(stream_id, cut, True)
    assert peer.close_code == codes.H3_FRAME_ERROR


def test_bytes_that_come_one_by_one():
    peer, stream_id = opened()
    read_all(peer.end)
    wire = frame(DATA, b"abc") + frame(0x40, b"unknown") + frame(DATA, b"") + frame(DATA, b"d" * 70)
    for position in range(len(wire)):
        peer.send(stream_id, wire[position : position + 1], position == len(wire) - 1, run=False)
        peer.run(0.001)
    assert peer.end.data(stream_id) == b"abc" + b"d" * 70
    assert peer.end.last(events.StreamDataReceived).ended


def test_a_length_means_nothing_in_a_tunnel():
    peer = server()
    stream_id = peer.request([*ASK, (b"content-length", b"5")])
    assert peer.protocol.accept_tunnel(stream_id)
    peer.send(stream_id, frame(DATA, b"more than five"), True)
    assert peer.end.data(stream_id) == b"more than five"
    assert peer.close_code is None and not peer.resets


def test_what_comes_after_stop_is_credit():
    peer, stream_id = opened()
    peer.protocol.stop_stream(stream_id, codes.H3_CONNECT_ERROR)
    peer.run()
    assert peer.stops == {stream_id: codes.H3_CONNECT_ERROR}
    stream = peer.protocol.streams[stream_id]
    assert stream.unread == 0 and not stream.send_done
    assert peer.protocol.send_stream(stream_id, b"", True)
    peer.run()
    assert leftovers(peer.protocol) == {}


def test_what_was_reset_is_told_with_its_code_and_the_other_way_goes_on():
    peer, stream_id = opened()
    peer.send(stream_id, frame(DATA, b"x" * 100))
    peer.reset(stream_id, codes.H3_CONNECT_ERROR)
    assert peer.end.last(events.StreamReset).code == codes.H3_CONNECT_ERROR
    assert peer.protocol.send_stream(stream_id, b"bye", True)
    peer.protocol.consumed(stream_id, 100)
    peer.run()
    assert bytes(peer.received[stream_id]).endswith(frame(DATA, b"bye"))
    assert leftovers(peer.protocol) == {}


def test_who_stops_reading_is_told_of_with_the_code():
    peer, stream_id = opened()
    peer.stop(stream_id, codes.H3_NO_ERROR)
    assert peer.end.last(events.StreamStopped).code == codes.H3_NO_ERROR
    assert not peer.protocol.send_stream(stream_id, b"more")
    peer.send(stream_id, frame(DATA, b"still sending"), True)
    peer.protocol.consumed(stream_id, len(b"still sending"))
    peer.run()
    assert peer.end.data(stream_id) == b"still sending"
    assert leftovers(peer.protocol) == {}


def test_streams_and_datagrams_that_name_a_tunnel_find_no_session():
    peer, stream_id = opened()
    peer.wt_bidi(stream_id, b"lost", run=True)
    peer.datagram(encode_varint(stream_id // 4) + b"lost")
    peer.run(10)
    assert not peer.end.of(events.StreamOpened) and not peer.end.of(events.DatagramReceived)
    peer.send(stream_id, frame(DATA, b"here"))
    assert peer.end.data(stream_id) == b"here"
    assert peer.close_code is None


FRAMES = st.one_of(
    st.binary(max_size=60),
    st.builds(frame, st.sampled_from([DATA, DATA, DATA, 0x40, 0x21, 0x1]), st.binary(max_size=90)),
)


@given(pieces=st.lists(FRAMES, max_size=12), cut=st.integers(1, 40), ended=st.booleans())
@settings(max_examples=80)
def test_whatever_comes_is_data_or_the_end_of_the_connection(pieces, cut, ended):
    peer, stream_id = opened()
    wire = b"".join(pieces)
    for position in range(0, len(wire), cut):
        peer.send(stream_id, wire[position : position + cut], run=False)
        peer.run(0.01)
        if peer.close_code is not None:
            break
    if peer.close_code is None and ended:
        peer.send(stream_id, b"", True)
    if peer.close_code is None:
        stream = peer.protocol.streams.get(stream_id)
        assert stream is not None
        assert stream.unread == len(peer.end.data(stream_id))
        assert stream.receive_done is ended
    else:
        assert 0x100 <= peer.close_code <= 0x110 or peer.close_code == 0x200
        assert not peer.protocol.streams


def test_what_asks_for_a_tunnel_is_looked_at_whatever_it_is():
    @given(authority=st.one_of(st.binary(max_size=300), st.from_regex(rb"[a-z\[\]:.%@]*:[0-9]*")))
    def check(authority):
        found = requests.parse_tunnel([ASK[0], (b":authority", authority)])
        if not isinstance(found, str):
            host, port = found
            assert 0 < port < 65536 and host and host.isascii()
            assert not set(host) & set("/@%[] \\\n\r\0#?")

    check()


# What proxies answer


def asking(settings=None):
    """Our client with a request that a raw proxy, which knows no WebTransport, has not answered."""
    peer = raw.client({} if settings is None else settings)
    stream_id = peer.protocol.open_tunnel("example.test:80", [(b"user-agent", b"gwt")])
    peer.run()
    assert peer.responses(stream_id) == [[*ASK, (b"user-agent", b"gwt")]]
    return peer, stream_id


def test_a_proxy_needs_no_webtransport():
    peer, stream_id = asking()
    peer.respond(stream_id, 200, (b"via", b"3 x"))
    accepted = peer.end.last(events.TunnelAccepted)
    assert (accepted.stream_id, dict(accepted.headers)[b"via"]) == (stream_id, b"3 x")
    peer.protocol.send_stream(stream_id, b"up", True)
    peer.send(stream_id, frame(DATA, b"down"), True)
    assert bytes(peer.received[stream_id]).endswith(frame(DATA, b"up"))
    assert peer.end.data(stream_id) == b"down"
    peer.protocol.consumed(stream_id, 4)
    peer.run()
    assert leftovers(peer.protocol) == {}


def test_bytes_in_the_packet_of_the_answer_are_not_lost():
    peer, stream_id = asking()
    answer = frame(HEADERS, header_block([(b":status", b"200")]))
    peer.send(stream_id, answer + frame(DATA, b"220 ready"), True)
    kinds = [type(e) for e in peer.end.events if getattr(e, "stream_id", None) == stream_id]
    assert kinds[0] is events.TunnelAccepted
    assert peer.end.data(stream_id) == b"220 ready"
    assert peer.end.last(events.StreamDataReceived).ended


def test_interim_answers_are_passed_over_and_any_2xx_is_a_tunnel():
    peer, stream_id = asking()
    peer.respond(stream_id, 103)
    assert not peer.end.of(events.TunnelAccepted)
    peer.respond(stream_id, 204, (b"content-length", b"7"))
    peer.send(stream_id, frame(DATA, b"longer than that"), True)
    assert peer.end.data(stream_id) == b"longer than that"
    assert peer.close_code is None


@pytest.mark.parametrize("status", [300, 403, 407, 503])
@pytest.mark.parametrize("ended", [True, False])
def test_another_status_is_a_refusal_whose_body_is_passed_over(status, ended):
    peer, stream_id = asking()
    answer = header_block([(b":status", b"%d" % status), (b"proxy-status", b"x")])
    peer.send(stream_id, frame(HEADERS, answer) + frame(DATA, b"because" * 1000), ended)
    refused = peer.end.last(events.TunnelRefused)
    assert (refused.status, refused.code) == (status, None)
    assert dict(refused.headers)[b"proxy-status"] == b"x"
    assert not peer.protocol.send_stream(stream_id, b"x")
    assert not told(peer.end, events.StreamDataReceived, stream_id)
    if not ended:
        peer.finish(stream_id)
    peer.run()
    assert peer.resets == {stream_id: codes.H3_REQUEST_CANCELLED}
    assert leftovers(peer.protocol) == {}
    assert peer.close_code is None


def test_a_refusal_that_is_all_in_one_packet_leaves_nothing():
    peer, stream_id = asking()
    answer = frame(HEADERS, header_block([(b":status", b"502")]))
    peer.send(stream_id, answer + frame(DATA, b"no"), True)
    assert peer.end.last(events.TunnelRefused).status == 502
    peer.run()
    assert leftovers(peer.protocol) == {}


def test_a_proxy_may_stop_reading_before_it_refuses():
    peer, stream_id = asking()
    peer.stop(stream_id, codes.H3_NO_ERROR)
    assert not peer.end.of(events.TunnelRefused)
    peer.respond(stream_id, 503, end=True)
    assert peer.end.last(events.TunnelRefused).status == 503
    assert leftovers(peer.protocol) == {}


def test_a_proxy_that_stops_reading_and_accepts_has_no_tunnel():
    peer, stream_id = asking()
    peer.stop(stream_id, codes.H3_NO_ERROR)
    peer.respond(stream_id, 200)
    refused = peer.end.last(events.TunnelRefused)
    assert (refused.status, refused.code) == (None, codes.H3_NO_ERROR)
    assert not peer.end.of(events.TunnelAccepted)


@pytest.mark.parametrize("how", ["reset", "stop"])
def test_a_request_that_is_reset_is_refused_with_the_code(how):
    peer, stream_id = asking()
    getattr(peer, how)(stream_id, codes.H3_REQUEST_REJECTED)
    refused = peer.end.last(events.TunnelRefused)
    assert (refused.status, refused.code) == (None, codes.H3_REQUEST_REJECTED)
    peer.finish(stream_id)
    peer.run()
    assert leftovers(peer.protocol) == {}


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        frame(HEADERS, header_block([(b"x", b"y")])),
        frame(HEADERS, header_block([(b":status", b"abc")])),
        frame(HEADERS, header_block([(b":status", b"101")])),
        frame(HEADERS, header_block([(b":status", b"200"), (b"transfer-encoding", b"chunked")])),
    ],
    ids=["nothing", "no status", "bad status", "101", "chunked"],
)
def test_a_malformed_answer_is_a_refusal(answer):
    peer, stream_id = asking()
    peer.send(stream_id, answer, True)
    refused = peer.end.last(events.TunnelRefused)
    assert (refused.status, refused.code) == (None, codes.H3_MESSAGE_ERROR)
    assert len(peer.end.of(events.TunnelRefused)) == 1
    peer.run()
    assert leftovers(peer.protocol) == {}
    assert peer.close_code is None


@pytest.mark.parametrize(
    "before", [b"", frame(HEADERS, header_block([(b":status", b"200")]))], ids=["first", "behind"]
)
@pytest.mark.parametrize("bad", [frame(SETTINGS, b""), frame(0x5, b"\0"), b"trailers"])
def test_a_proxy_that_sends_another_frame_is_left(before, bad):
    peer, stream_id = asking()
    if bad == b"trailers":
        bad = frame(HEADERS, header_block([(b"x", b"y")])) if before else frame(DATA, b"early")
    peer.send(stream_id, before + bad)
    assert peer.close_code in (codes.H3_FRAME_UNEXPECTED, codes.H3_ID_ERROR)


def test_a_proxy_that_goes_away_is_asked_for_nothing_more_and_keeps_what_there_is():
    peer, stream_id = asking()
    assert not peer.protocol.going_away
    peer.send(3, frame(GOAWAY, b"\x04"))
    assert peer.protocol.going_away
    peer.respond(stream_id)
    assert peer.end.last(events.TunnelAccepted).stream_id == stream_id
    assert peer.close_code is None


def test_the_end_of_the_connection_is_the_end_of_its_tunnels():
    made = pair()
    stream_id = tunnel(made)
    made.server.protocol.close(codes.H3_NO_ERROR, "bye")
    made.run()
    assert made.client.last(events.ConnectionEnded).reason == "bye"
    for end in made.ends():
        assert not end.protocol.streams
        assert not end.protocol.send_stream(stream_id, b"x")
        assert end.protocol.room(stream_id) == 0


def test_tunnels_share_the_account_of_a_connection():
    config = ServerConfig(receive_pool=256 * 1024, stream_window=MIB)
    made = pair(server=config, client=ClientConfig(stream_send_buffer=4 * MIB))
    ids = [tunnel(made) for _ in range(6)]
    for stream_id in ids:
        made.client.protocol.send_stream(stream_id, b"x" * 500_000)
    made.run(10)
    held = sum(len(made.server.data(stream_id)) for stream_id in ids)
    assert held <= config.receive_pool + 6 * config.initial_stream_window
    read_all(made.server)
    for stream_id in ids:
        made.server.protocol.consumed(stream_id, len(made.server.data(stream_id)))
    made.run(60)
    assert all(len(made.server.data(stream_id)) == 500_000 for stream_id in ids)
