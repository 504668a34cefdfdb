"""Drafts and settings: who speaks what with whom, ours on either side."""

from __future__ import annotations

import itertools

import pytest
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import (
    DatagramReceived,
    DataReceived,
    HeadersReceived,
    WebTransportStreamDataReceived,
)

from gwt.config import ClientConfig, ServerConfig
from gwt.protocol import capsules, codes, events
from tests.helpers import raw
from tests.helpers.pair import Pair
from tests.helpers.raw import leftovers

SETTINGS = {
    16: {codes.SETTING_WT_ENABLED: 1},
    14: {codes.SETTING_WT_MAX_SESSIONS: 8},
    12: {codes.SETTING_WEBTRANSPORT_MAX_SESSIONS: 8},
    2: {codes.SETTING_ENABLE_WEBTRANSPORT: 1},
}
COMBINATIONS = [c for n in range(1, 5) for c in itertools.combinations(SETTINGS, n)]


def offer(numbers, *, server):
    settings = {0x33: 1, **({0x8: 1} if server else {})}
    for number in numbers:
        settings |= SETTINGS[number]
    return settings


@pytest.mark.parametrize(
    "settings, headers, number",
    [
        (raw.CHROMIUM, raw.CHROMIUM_CONNECT, 2),
        ({**raw.CHROMIUM, **SETTINGS[12]}, raw.CHROMIUM_CONNECT, 2),
        (offer([12], server=False), raw.connect_headers(protocol=b"webtransport"), 12),
        (offer([14], server=False), raw.connect_headers(protocol=b"webtransport"), 14),
        (offer([14, 12], server=False), raw.connect_headers(protocol=b"webtransport"), 14),
        (raw.DRAFT16, raw.connect_headers(), 16),
        (offer([16, 14, 12, 2], server=False), raw.connect_headers(), 16),
    ],
    ids=["chromium", "chromium-draft07", "07-12", "13-14", "12+14", "15-16", "all"],
)
def test_server_answers_each_draft(settings, headers, number):
    peer = raw.server(settings)
    session_id = peer.session(headers)
    assert peer.protocol.sessions[session_id].draft.number == number
    assert peer.status(session_id) == 200
    answer = dict(peer.responses(session_id)[0])
    assert (answer.get(b"sec-webtransport-http3-draft") == b"draft02") == (number == 2)
    stream_id = peer.wt_bidi(session_id, b"hello", True, run=True)
    assert peer.end.data(stream_id) == b"hello"
    peer.datagram(bytes([session_id // 4]) + b"dgram")
    assert peer.end.last(events.DatagramReceived).data == b"dgram"


def test_server_offers_all_drafts_at_once():
    peer = raw.server()
    frame = next(bytes(data) for data in peer.received.values() if data[:1] == b"\0")
    kind = capsules.pull_varint(frame, 1)
    length = capsules.pull_varint(frame, kind[1])
    payload = frame[length[1] : length[1] + length[0]]
    sent, position = {}, 0
    while position < len(payload):
        name, position = capsules.pull_varint(payload, position)
        sent[name], position = capsules.pull_varint(payload, position)
    assert sent[0x8] == sent[0x33] == sent[0x2B603742] == sent[0x2C7CF000] == 1
    assert sent[0xC671706A] == sent[0x14E9CD29] == 16
    assert all(sent[name] > 0 for name in (0x2B61, 0x2B64, 0x2B65))
    assert sent[0x1] == sent[0x7] == 0
    assert sent[0x6] == ServerConfig().max_field_section_size


@pytest.mark.parametrize("numbers", COMBINATIONS, ids=lambda n: "+".join(map(str, n)))
def test_client_takes_the_best_that_the_server_offers(numbers):
    peer = raw.client(offer(numbers, server=True))
    assert peer.protocol.draft.number == max(numbers)
    assert peer.protocol.missing_requirement() is None
    session_id = peer.session(accept=False)
    request = dict(peer.responses(session_id)[0])
    best = max(numbers)
    assert request[b":protocol"] == (b"webtransport-h3" if best == 16 else b"webtransport")
    assert (b"sec-webtransport-http3-draft02" in request) == (best == 2)
    peer.respond(session_id)
    assert peer.end.last(events.SessionAccepted).session_id == session_id


@pytest.mark.parametrize(
    "settings, options, text",
    [
        ({0x33: 1, 0x8: 1}, {}, "no WebTransport"),
        ({0x8: 1, **SETTINGS[16]}, {}, "datagrams"),
        ({0x8: 1, **SETTINGS[16]}, {"max_datagram_frame_size": None}, "datagrams"),
        ({0x33: 1, **SETTINGS[16]}, {}, "extended CONNECT"),
        ({0x33: 1, **SETTINGS[14]}, {}, "extended CONNECT"),
        ({0x33: 1, **SETTINGS[12]}, {}, "extended CONNECT"),
        ({0x33: 1, 0x8: 0, **SETTINGS[12]}, {}, "extended CONNECT"),
    ],
)
def test_client_says_what_the_server_lacks(settings, options, text):
    peer = raw.client(settings, **options)
    assert peer.protocol.ready
    assert text in peer.protocol.missing_requirement()


def test_draft_02_needs_no_setting_for_extended_connect():
    peer = raw.client({0x33: 1, **SETTINGS[2]})
    assert peer.protocol.missing_requirement() is None


def test_client_that_meets_no_webtransport_may_open_no_session():
    assert not raw.client({0x33: 1, 0x8: 1}).protocol.may_open_session()


@pytest.mark.parametrize("value", [2, 3, 2**62 - 1])
def test_wt_enabled_above_one_is_a_settings_error_for_a_client(value):
    peer = raw.client({**raw.DRAFT16_SERVER, codes.SETTING_WT_ENABLED: value})
    assert peer.close_code == codes.H3_SETTINGS_ERROR
    assert not peer.protocol.ready


@pytest.mark.parametrize("is_client", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {0x33: 2},
        {0x2B603742: 2, 0x33: 1},
        {0x8: 2},
        # Settings of HTTP/2 are reserved.
        {0x2: 1},
        {0x2B603742: 1},
    ],
)
def test_illegal_settings_close_the_connection(is_client, settings):
    peer = raw.Raw(is_client=is_client, settings=settings)
    assert peer.close_code == codes.H3_SETTINGS_ERROR


@pytest.mark.parametrize("is_client", [True, False])
def test_datagram_setting_without_the_transport_parameter_is_a_settings_error(is_client):
    peer = raw.Raw(is_client=is_client, settings=raw.DRAFT16_SERVER, max_datagram_frame_size=None)
    assert peer.close_code == codes.H3_SETTINGS_ERROR


@pytest.mark.parametrize("number, limit", [(12, 3), (14, 3), (2, 16), (16, 1)])
def test_client_opens_as_many_sessions_as_the_server_takes(number, limit):
    settings = {0x33: 1, 0x8: 1, **SETTINGS[number]}
    if number in (12, 14):
        settings[codes.DRAFTS[[16, 14, 12, 2].index(number)].setting] = 3
    peer = raw.client(settings)
    opened = 0
    while peer.protocol.may_open_session():
        peer.session(accept=False)
        opened += 1
    assert opened == limit


def test_server_refuses_one_session_too_many_and_takes_another_after_one_ended():
    peer = raw.server(raw.CHROMIUM, config=ServerConfig(max_sessions_per_connection=2))
    first, second = (peer.session(raw.CHROMIUM_CONNECT) for _ in range(2))
    third = peer.request(raw.CHROMIUM_CONNECT)
    assert peer.resets[third] == peer.stops[third] == codes.H3_REQUEST_REJECTED
    assert len(peer.end.of(events.SessionRequested)) == 2
    peer.capsule(first, capsules.encode_close(0, b""), end=True)
    assert peer.status(peer.session(raw.CHROMIUM_CONNECT)) == 200
    assert peer.protocol.sessions[second].live


@pytest.mark.parametrize("numbers, count", [([16], 1), ([14], 16), ([12], 16), ([2], 16)])
def test_connection_without_flow_control_has_one_session_since_draft_13(numbers, count):
    protocol = b"webtransport-h3" if numbers == [16] else b"webtransport"
    extra = [codes.DRAFT02_REQUEST] if numbers == [2] else []
    peer = raw.server(offer(numbers, server=False))
    for _ in range(count):
        peer.session(raw.connect_headers(*extra, protocol=protocol))
    refused = peer.request(raw.connect_headers(*extra, protocol=protocol))
    assert peer.resets[refused] == codes.H3_REQUEST_REJECTED


@pytest.mark.parametrize("client", [ClientConfig(), ClientConfig(max_udp_payload=1452)])
def test_two_of_ours_speak_the_newest_draft(client):
    pair = Pair(client=client)
    session_id = pair.session()
    assert pair.client.protocol.draft.number == 16
    assert pair.server.protocol.sessions[session_id].draft.number == 16
    assert pair.client.protocol.sessions[session_id].flow is not None


# aioquic's own H3Connection


def aioquic_h3(quic):
    return H3Connection(quic, enable_webtransport=True)


def of(peer, kind):
    return [event for event in peer.http if isinstance(event, kind)]


def test_aioquic_client_talks_to_our_server():
    peer = raw.Raw(is_client=False, h3=aioquic_h3)
    h3, ours = peer.h3, peer.protocol
    session_id = peer.quic.get_next_available_stream_id()
    h3.send_headers(session_id, raw.connect_headers(protocol=b"webtransport"))
    peer.run()
    assert ours.sessions[session_id].draft.number == 2
    assert ours.accept_session(session_id)
    peer.run()
    (response,) = of(peer, HeadersReceived)
    assert (b":status", b"200") in response.headers

    # Its streams and datagrams.
    bidi = h3.create_webtransport_stream(session_id)
    uni = h3.create_webtransport_stream(session_id, is_unidirectional=True)
    peer.quic.send_stream_data(bidi, b"question", True)
    peer.quic.send_stream_data(uni, b"one way", True)
    h3.send_datagram(session_id, b"dgram")
    peer.run()
    assert peer.end.data(bidi) == b"question"
    assert peer.end.data(uni) == b"one way"
    assert peer.end.last(events.DatagramReceived).data == b"dgram"
    for stream_id, size in ((bidi, 8), (uni, 7)):
        ours.consumed(stream_id, size)
    ours.send_stream(bidi, b"", True)

    # Ours.
    for unidirectional in (False, True):
        stream_id = ours.open_stream(session_id, unidirectional)
        ours.send_stream(stream_id, b"from the server", True)
        peer.run()
        data = [e for e in of(peer, WebTransportStreamDataReceived) if e.stream_id == stream_id]
        assert b"".join(e.data for e in data) == b"from the server"
        assert data[-1].stream_ended
        if not unidirectional:
            peer.send(stream_id, b"answer", True)
            assert peer.end.data(stream_id) == b"answer"
            ours.consumed(stream_id, 6)
    ours.send_datagram(session_id, b"back")
    peer.run()
    assert of(peer, DatagramReceived)[-1].data == b"back"

    ours.close_session(session_id, 7, "bye")
    peer.run()
    data = b"".join(e.data for e in of(peer, DataReceived) if e.stream_id == session_id)
    assert data == capsules.encode_close(7, b"bye")
    peer.finish(session_id)
    assert leftovers(ours) == {}


def test_our_client_talks_to_an_aioquic_server():
    peer = raw.Raw(is_client=True, h3=aioquic_h3)
    h3, ours = peer.h3, peer.protocol
    assert ours.draft.number == 2
    assert ours.missing_requirement() is None
    session_id = peer.session(accept=False)
    (request,) = of(peer, HeadersReceived)
    assert codes.DRAFT02_REQUEST in request.headers
    h3.send_headers(session_id, [(b":status", b"200")])
    peer.run()
    assert peer.end.of(events.SessionAccepted)

    for unidirectional in (False, True):
        stream_id = ours.open_stream(session_id, unidirectional)
        ours.send_stream(stream_id, b"hello", True)
        peer.run()
        data = [e for e in of(peer, WebTransportStreamDataReceived) if e.stream_id == stream_id]
        assert b"".join(e.data for e in data) == b"hello"
        if not unidirectional:
            peer.send(stream_id, b"answer", True)
            assert peer.end.data(stream_id) == b"answer"
            ours.consumed(stream_id, 6)
    for unidirectional in (False, True):
        stream_id = h3.create_webtransport_stream(session_id, is_unidirectional=unidirectional)
        peer.send(stream_id, b"pushed", True)
        assert peer.end.data(stream_id) == b"pushed"
        ours.consumed(stream_id, 6)
        if not unidirectional:
            ours.send_stream(stream_id, b"", True)
    h3.send_datagram(session_id, b"dgram")
    ours.send_datagram(session_id, b"back")
    peer.run()
    assert peer.end.last(events.DatagramReceived).data == b"dgram"
    assert of(peer, DatagramReceived)[-1].data == b"back"

    h3.send_data(session_id, capsules.encode_close(9, b"over"), True)
    peer.run()
    ended = peer.end.last(events.SessionEnded)
    assert (ended.code, ended.reason, ended.remote) == (9, "over", True)
    assert leftovers(ours) == {}
