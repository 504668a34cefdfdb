"""Requests and answers: what is refused, with which code, and that the connection lives on."""

from __future__ import annotations

import pytest

from gwt.config import ServerConfig
from gwt.protocol import capsules, codes, events
from tests.helpers import raw
from tests.helpers.pair import Pair
from tests.helpers.raw import DATA, HEADERS, connect_headers, frame, header_block, leftovers

GOOD = connect_headers()


def without(name):
    return [item for item in GOOD if item[0] != name]


def changed(name, value):
    return [(n, value if n == name else v) for n, v in GOOD]


MALFORMED = {
    "no scheme": without(b":scheme"),
    "no authority": without(b":authority"),
    "no path": without(b":path"),
    "no method": without(b":method"),
    "empty authority": changed(b":authority", b""),
    "empty path": changed(b":path", b""),
    "http": changed(b":scheme", b"http"),
    "path without slash": changed(b":path", b"chat"),
    "path not ASCII": changed(b":path", "/ä".encode()),
    "authority not ASCII": changed(b":authority", "hößt".encode()),
    "userinfo": changed(b":authority", b"me@example.test"),
    "method twice": [GOOD[0], *GOOD],
    "path twice": [*GOOD, (b":path", b"/")],
    "unknown pseudo-header": [(b":unknown", b"x"), *GOOD],
    "response pseudo-header": [(b":status", b"200"), *GOOD],
    "pseudo-header behind a header": [*GOOD[:-1], (b"x", b"y"), GOOD[-1]],
    "upper case": [*GOOD, (b"X-Name", b"y")],
    "line break": [*GOOD, (b"x", b"a\r\nb")],
    "connection header": [*GOOD, (b"connection", b"close")],
    "bad content-length": [*GOOD, (b"content-length", b"x")],
    "two origins": [*GOOD, (b"origin", b"https://a"), (b"origin", b"https://b")],
    "origin not ASCII": [*GOOD, (b"origin", "https://ä".encode())],
}


@pytest.mark.parametrize("end", [False, True], ids=["open", "ended"])
@pytest.mark.parametrize("headers", MALFORMED.values(), ids=MALFORMED)
def test_malformed_request_is_reset_and_the_connection_lives(headers, end):
    peer = raw.server()
    stream_id = peer.request(headers, end)
    assert peer.resets == {stream_id: codes.H3_MESSAGE_ERROR}
    assert not peer.end.of(events.SessionRequested)
    assert peer.close_code is None
    assert peer.protocol.counters["requests_malformed"] == 1
    if not end:
        assert peer.stops == {stream_id: codes.H3_MESSAGE_ERROR}
    assert leftovers(peer.protocol) == {}
    assert peer.status(peer.session()) == 200


@pytest.mark.parametrize(
    "headers",
    [
        [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a"), (b":path", b"/")],
        [(b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"a"), (b":path", b"/")],
        [(b":method", b"CONNECT"), (b":authority", b"a:443")],
        connect_headers(protocol=b"websocket"),
        connect_headers(protocol=b"connect-udp"),
        connect_headers(protocol=b"webtransport-h4"),
    ],
)
@pytest.mark.parametrize("end", [False, True], ids=["open", "ended"])
def test_request_that_is_no_webtransport_is_answered_501(headers, end):
    peer = raw.server()
    stream_id = peer.request(headers, end)
    assert peer.status(stream_id) == 501
    assert stream_id in peer.ended
    assert stream_id not in peer.stops
    if not end:
        peer.send(stream_id, frame(DATA, bytes(100)), end=True)
    assert leftovers(peer.protocol) == {}
    assert peer.status(peer.session()) == 200


def test_large_body_of_a_request_that_nobody_reads_gets_its_credit():
    peer = raw.server()
    headers = [(b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"a")]
    stream_id = peer.request([*headers, (b":path", b"/")])
    peer.send(stream_id, frame(DATA, bytes(1 << 20)), end=True)
    peer.run(5.0)
    assert leftovers(peer.protocol) == {}


@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("data", [b"", b"\x01", b"\x01\x05", b"\x21\x00"])
def test_request_that_ends_before_its_headers_is_reset(data, end):
    peer = raw.server()
    stream_id = peer.bidi(data, True, run=True)
    if data in (b"\x01", b"\x01\x05"):
        assert peer.close_code == codes.H3_FRAME_ERROR
    else:
        assert peer.resets[stream_id] == 0x10D
        assert leftovers(peer.protocol) == {}


def test_request_waits_for_the_settings_of_the_client():
    peer = raw.Raw(is_client=False)
    session_id = peer.request()
    stream_id = peer.wt_bidi(session_id, b"early", True, run=True)
    peer.capsule(session_id, capsules.encode_capsule(capsules.DRAIN_SESSION))
    assert not peer.end.of(events.SessionRequested)
    peer.send_settings(raw.DRAFT16)
    peer.run()
    assert peer.end.last(events.SessionRequested).session_id == session_id
    assert peer.protocol.accept_session(session_id)
    peer.run()
    assert peer.end.of(events.SessionDraining)
    assert peer.end.data(stream_id) == b"early"


@pytest.mark.parametrize("end", [False, True])
def test_request_that_waits_byte_by_byte_is_read_whole(end):
    peer = raw.Raw(is_client=False)
    request = frame(HEADERS, header_block(GOOD))
    stream_id = peer.bidi(b"", run=True)
    for index in range(len(request)):
        last = index == len(request) - 1
        peer.send(stream_id, request[index : index + 1], end and last)
    peer.send_settings(raw.DRAFT16)
    peer.run()
    assert len(peer.end.of(events.SessionRequested)) == 1
    # One that ended with its request is no session any more.
    assert len(peer.end.of(events.SessionEnded)) == end


def test_request_that_was_reset_while_it_waited_is_never_seen():
    peer = raw.Raw(is_client=False)
    session_id = peer.request()
    peer.reset(session_id, codes.H3_REQUEST_CANCELLED)
    peer.send_settings(raw.DRAFT16)
    peer.run()
    assert not peer.end.of(events.SessionRequested)
    assert leftovers(peer.protocol) == {}


def test_request_whose_answer_is_not_wanted_any_more_is_never_seen():
    peer = raw.Raw(is_client=False)
    session_id = peer.request()
    peer.stop(session_id, codes.H3_REQUEST_CANCELLED)
    peer.send_settings(raw.DRAFT16)
    peer.run()
    assert not peer.end.of(events.SessionRequested)
    assert peer.stops[session_id] == codes.H3_REQUEST_CANCELLED
    peer.finish(session_id)
    assert leftovers(peer.protocol) == {}


@pytest.mark.parametrize("headers", [GOOD, changed(b":protocol", b"websocket"), GOOD[:1]])
def test_stop_before_the_headers_are_complete_harms_nobody(headers):
    peer = raw.server()
    request = frame(HEADERS, header_block(headers))
    stream_id = peer.bidi(request[:3], run=True)
    peer.stop(stream_id, codes.H3_REQUEST_CANCELLED)
    peer.send(stream_id, request[3:], True)
    assert peer.close_code is None
    assert not peer.end.of(events.SessionRequested)
    assert leftovers(peer.protocol) == {}


def test_requests_before_settings_are_bounded():
    peer = raw.Raw(is_client=False, config=ServerConfig(max_sessions_per_connection=2))
    sessions = [peer.request(raw.CHROMIUM_CONNECT) for _ in range(4)]
    assert set(peer.resets) == set(sessions[2:])
    assert set(peer.resets.values()) == {codes.H3_REQUEST_REJECTED}
    peer.send_settings(raw.CHROMIUM)
    peer.run()
    assert [e.session_id for e in peer.end.of(events.SessionRequested)] == sessions[:2]


# Answers


@pytest.mark.parametrize("status", [403, 404, 429, 503])
@pytest.mark.parametrize("body", [b"", b"sorry" * 100])
def test_rejection_reaches_the_client_as_its_status_at_once(status, body):
    pair = Pair()
    pair.run_until(lambda: pair.client.protocol.ready)
    session_id = pair.client.protocol.open_session("example.test", "/secret")
    pair.run_until(lambda: pair.server.of(events.SessionRequested))
    asked = pair.now
    pair.server.protocol.reject_session(
        session_id, status, headers=[(b"retry-after", b"5")], body=body
    )
    pair.run_until(lambda: pair.client.of(events.SessionRefused))
    assert pair.now - asked < 2 * pair.latency
    refused = pair.client.last(events.SessionRefused)
    assert (refused.status, refused.code) == (status, None)
    assert (b"retry-after", b"5") in refused.headers
    pair.run(2.0)
    assert not pair.client.of(events.SessionEnded)
    assert leftovers(pair.client.protocol) == leftovers(pair.server.protocol) == {}
    assert pair.session()


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 500])
@pytest.mark.parametrize("end", [False, True])
def test_redirect_or_error_is_a_refusal(status, end):
    peer = raw.client()
    session_id = peer.session(accept=False)
    peer.respond(session_id, status, (b"location", b"https://else/"), end=end)
    refused = peer.end.last(events.SessionRefused)
    assert (refused.session_id, refused.status) == (session_id, status)
    peer.finish(session_id)
    assert leftovers(peer.protocol) == {}
    assert peer.protocol.may_open_session()


@pytest.mark.parametrize("first", ["stop", "response"])
def test_rejection_with_a_polite_stop_sending_is_still_its_status(first):
    peer = raw.client()
    session_id = peer.session(accept=False)
    if first == "stop":
        peer.stop(session_id, codes.H3_NO_ERROR)
        assert not peer.end.of(events.SessionRefused)
        peer.respond(session_id, 403, end=True)
    else:
        peer.quic.stop_stream(session_id, codes.H3_NO_ERROR)
        peer.respond(session_id, 403, end=True)
    assert [e.status for e in peer.end.of(events.SessionRefused)] == [403]
    assert leftovers(peer.protocol) == {}


def test_acceptance_of_a_request_that_the_server_stopped_reading_is_a_refusal():
    peer = raw.client()
    session_id = peer.session(accept=False)
    peer.stop(session_id, codes.H3_NO_ERROR)
    peer.respond(session_id, 200)
    assert not peer.end.of(events.SessionAccepted)
    assert peer.end.last(events.SessionRefused).code == codes.H3_NO_ERROR


def test_interim_responses_are_skipped():
    peer = raw.client()
    session_id = peer.session(accept=False)
    for status in (100, 103, 103):
        peer.respond(session_id, status)
    assert not peer.end.of(events.SessionAccepted) + peer.end.of(events.SessionRefused)
    peer.respond(session_id, 200)
    assert peer.end.of(events.SessionAccepted)


@pytest.mark.parametrize("code", [codes.H3_REQUEST_REJECTED, codes.H3_REQUEST_CANCELLED])
@pytest.mark.parametrize("how", ["reset", "stop", "both"])
def test_request_that_the_server_resets_is_a_refusal_with_its_code(code, how):
    peer = raw.client()
    session_id = peer.session(accept=False)
    if how in ("reset", "both"):
        peer.quic.reset_stream(session_id, code)
    if how in ("stop", "both"):
        peer.quic.stop_stream(session_id, code)
    peer.run()
    (refused,) = peer.end.of(events.SessionRefused)
    assert (refused.status, refused.code) == (None, code)
    if how == "stop":
        peer.reset(session_id, code)
    assert leftovers(peer.protocol) == {}


@pytest.mark.parametrize(
    "headers",
    [
        [(b"x", b"y")],
        [(b":status", b"2")],
        [(b":status", b"abc")],
        [(b":status", b"101")],
        [(b":status", b"200"), (b":status", b"200")],
        [(b":status", b"200"), (b"X", b"y")],
    ],
)
def test_malformed_response_is_a_refusal_and_the_connection_lives(headers):
    peer = raw.client()
    session_id = peer.session(accept=False)
    peer.send(session_id, frame(HEADERS, header_block(headers)))
    assert peer.end.last(events.SessionRefused).code == codes.H3_MESSAGE_ERROR
    assert peer.resets[session_id] == peer.stops[session_id] == codes.H3_MESSAGE_ERROR
    assert peer.close_code is None
    peer.finish(session_id)
    assert leftovers(peer.protocol) == {}


def test_trailers_are_ignored_and_malformed_ones_end_the_session():
    peer = raw.client()
    session_id = peer.session()
    peer.send(session_id, frame(HEADERS, header_block([(b"x", b"y")])))
    assert not peer.end.of(events.SessionEnded)
    peer = raw.server()
    session_id = peer.session()
    peer.send(session_id, frame(HEADERS, header_block([(b":path", b"/")])))
    assert peer.end.last(events.SessionEnded).code is None
    assert peer.resets[session_id] == codes.H3_MESSAGE_ERROR
    assert peer.close_code is None


@pytest.mark.parametrize("name", [b"wt-protocol", b"webtransport-subprotocol"])
@pytest.mark.parametrize("value, chosen", [(b'"b"', "b"), (b"b", None), (b'"z"', None)])
def test_subprotocol_is_the_one_that_the_server_chose(name, value, chosen):
    peer = raw.client()
    session_id = peer.protocol.open_session("example.test", "/", subprotocols=["a", "b"])
    peer.run()
    peer.respond(session_id, 200, (name, value))
    assert peer.end.last(events.SessionAccepted).subprotocol == chosen


def test_path_that_is_not_ascii_is_the_callers_error_and_costs_nothing():
    peer = raw.client()
    with pytest.raises(UnicodeEncodeError):
        peer.protocol.open_session("example.test", "/ä")
    assert leftovers(peer.protocol) == {}


def test_session_that_finds_no_stream_credit_is_none():
    peer = raw.client({0x33: 1, 0x8: 1, codes.SETTING_ENABLE_WEBTRANSPORT: 1})
    quic = peer.protocol.quic._quic
    quic._remote_max_streams_bidi = 0
    peer.protocol.quic.drain(peer.protocol)
    assert peer.protocol.open_session("example.test", "/") is None
    assert leftovers(peer.protocol) == {}


def test_answering_twice_or_too_late_does_nothing():
    peer = raw.server()
    session_id = peer.session()
    assert not peer.protocol.accept_session(session_id)
    peer.protocol.reject_session(session_id, 403)
    peer.run()
    assert len(peer.responses(session_id)) == 1
    other = raw.server()
    session_id = other.request()
    other.reset(session_id, codes.H3_REQUEST_CANCELLED)
    assert other.end.of(events.SessionEnded)
    assert not other.protocol.accept_session(session_id)
    other.protocol.reject_session(session_id, 403)
    other.run()
    assert leftovers(other.protocol) == {}
