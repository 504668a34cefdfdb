"""gwt.protocol.h3: what a peer may not do to the HTTP/3 side, and what it may cost."""

from __future__ import annotations

import pylsqpack
import pytest
from aioquic.h3.connection import ErrorCode

from gwt.config import ClientConfig, ServerConfig
from gwt.protocol import codes, events
from gwt.protocol.capsules import encode_varint
from tests.helpers import raw
from tests.helpers.raw import DATA, GOAWAY, HEADERS, SETTINGS, connect_headers, frame, header_block

BOTH = pytest.mark.parametrize("is_client", [True, False], ids=["client", "server"])


def peer_of(is_client, **options):
    return raw.client(**options) if is_client else raw.server(**options)


def large(size):
    """Return a request whose decoded headers have this size (RFC 9114 4.2.2)."""
    headers = connect_headers()
    used = sum(len(name) + len(value) + 32 for name, value in headers)
    return [*headers, (b"x", b"v" * (size - used - 33))]


@pytest.mark.parametrize("limit", [1024, 16384])
def test_header_section_of_exactly_the_limit_is_taken_and_one_byte_more_is_not(limit):
    for size, taken in ((limit, True), (limit + 1, False)):
        peer = raw.server(config=ServerConfig(max_field_section_size=limit))
        peer.request(large(size))
        assert bool(peer.end.of(events.SessionRequested)) is taken
        assert peer.close_code == (None if taken else codes.H3_EXCESSIVE_LOAD)


@BOTH
@pytest.mark.parametrize("size", [16385, 1 << 30, 2**62 - 1])
def test_header_block_that_announces_too_much_is_not_waited_for(is_client, size):
    peer = peer_of(is_client)
    start = encode_varint(HEADERS) + encode_varint(size)
    if is_client:
        peer.send(peer.session(accept=False), start)
    else:
        peer.bidi(start, run=True)
    assert peer.close_code == codes.H3_EXCESSIVE_LOAD


def test_header_block_that_grows_when_it_is_decoded_is_refused():
    # Each byte of this names a static entry of about 60 bytes.
    peer = raw.server(config=ServerConfig(max_field_section_size=4096))
    block = header_block(connect_headers()) + b"\xdf" * 200
    peer.bidi(frame(HEADERS, block), run=True)
    assert peer.close_code == codes.H3_EXCESSIVE_LOAD
    assert not peer.end.of(events.SessionRequested)


@BOTH
@pytest.mark.parametrize("kind", [SETTINGS, 0xD])
def test_control_frame_that_announces_too_much_is_not_waited_for(is_client, kind):
    peer = raw.Raw(is_client=is_client)
    first = b"" if kind == SETTINGS else raw.settings_frame({})
    peer.uni(b"\0" + first + encode_varint(kind) + encode_varint(5000), run=True)
    unexpected = is_client and kind == 0xD
    wanted = ErrorCode.H3_FRAME_UNEXPECTED if unexpected else codes.H3_EXCESSIVE_LOAD
    assert peer.close_code == wanted


@BOTH
def test_unknown_and_goaway_frames_of_any_size_on_the_control_stream_cost_nothing(is_client):
    peer = peer_of(is_client)
    control = 3 if is_client else 2
    size = 1 << 20
    for kind in (0x21, GOAWAY, 0x40):
        peer.send(control, encode_varint(kind) + encode_varint(size))
        for _ in range(20):
            peer.send(control, bytes(size // 20))
        peer.send(control, bytes(size - size // 20 * 20))
        peer.run(2.0)
        assert len(peer.protocol._h3._h3._stream[control].buffer) == 0
    assert peer.close_code is None
    peer.session()


@BOTH
def test_live_sessions_survive_goaway(is_client):
    peer = peer_of(is_client)
    session_id = peer.session()
    peer.send(3 if is_client else 2, frame(GOAWAY, b"\x04"))
    assert peer.protocol.sessions[session_id].live
    assert peer.close_code is None


@BOTH
def test_qpack_dynamic_table_of_the_peer_is_refused(is_client):
    peer = peer_of(is_client)
    encoder = 7 if is_client else 6
    # "Set Dynamic Table Capacity" 220, as RFC 9204 B.2 has it.
    peer.send(encoder, b"\x3f\xbd\x01")
    assert peer.close_code == ErrorCode.QPACK_ENCODER_STREAM_ERROR


@BOTH
def test_header_block_that_needs_the_dynamic_table_fails_to_decompress(is_client):
    peer = peer_of(is_client)
    # Required Insert Count 2, Base 0, two post-base references (RFC 9204 B.2).
    block = frame(HEADERS, b"\x03\x81\x10\x11")
    if is_client:
        peer.send(peer.session(accept=False), block)
    else:
        peer.bidi(block, run=True)
    assert peer.close_code == ErrorCode.QPACK_DECOMPRESSION_FAILED


@BOTH
@pytest.mark.parametrize("capacity", [4096, 2**32, 2**62 - 1])
def test_our_headers_never_use_a_table_that_the_peer_offers(is_client, capacity):
    settings = raw.DRAFT16_SERVER if is_client else raw.DRAFT16
    peer = peer_of(is_client, settings={**settings, 0x1: capacity, 0x7: capacity})
    session_id = peer.session()
    # A decoder without any table understands every block.
    assert peer.responses(session_id)
    # RFC 9204 4.2: no stream of QPACK's is opened for a table that is not used.
    control = 2 if is_client else 3
    assert [stream_id for stream_id in peer.received if stream_id & 2] == [control]


@BOTH
@pytest.mark.parametrize(
    "how, which", [("end", 0), ("reset", 0), ("reset", 1), ("reset", 2), ("stop", 0)]
)
def test_critical_stream_that_ends_closes_the_connection(is_client, how, which):
    peer = peer_of(is_client)
    stream_id = (3 if is_client else 2) + 4 * which
    match how:
        case "end":
            peer.send(stream_id, b"", True)
        case "reset":
            peer.reset(stream_id, 0)
        case "stop":
            peer.stop(stream_id ^ 1, 0)
    assert peer.close_code == ErrorCode.H3_CLOSED_CRITICAL_STREAM


@BOTH
@pytest.mark.parametrize("kind", [0, 2, 3])
def test_second_critical_stream_closes_the_connection(is_client, kind):
    peer = peer_of(is_client)
    peer.uni(bytes([kind]), run=True)
    assert peer.close_code == codes.H3_STREAM_CREATION_ERROR


@BOTH
@pytest.mark.parametrize(
    "data, code",
    [
        (frame(DATA, b"x"), ErrorCode.H3_MISSING_SETTINGS),
        (frame(0x21, b"x"), ErrorCode.H3_MISSING_SETTINGS),
        (raw.settings_frame({}) * 2, ErrorCode.H3_FRAME_UNEXPECTED),
        (raw.settings_frame({}) + frame(HEADERS, b"x"), ErrorCode.H3_FRAME_UNEXPECTED),
        (frame(SETTINGS, b"\x40"), ErrorCode.H3_FRAME_ERROR),
        (frame(SETTINGS, b"\x33\x01\x33\x01"), ErrorCode.H3_SETTINGS_ERROR),
    ],
)
def test_broken_control_stream_closes_the_connection(is_client, data, code):
    peer = raw.Raw(is_client=is_client)
    peer.uni(b"\0" + data, run=True)
    assert peer.close_code == code


@BOTH
def test_nothing_may_be_pushed_to_a_client_or_by_one(is_client):
    peer = peer_of(is_client)
    block = header_block([(b":method", b"GET"), (b":scheme", b"https")])
    if is_client:
        peer.send(peer.session(accept=False), frame(0x5, b"\0" + block))
        assert peer.close_code == codes.H3_ID_ERROR
    else:
        peer.bidi(frame(0x5, b"\0" + block), run=True)
        assert peer.close_code == ErrorCode.H3_FRAME_UNEXPECTED
    # RFC 9114 7.2.7: our client announces no push id.
    control = bytes(peer.received[2 if is_client else 3])
    assert encode_varint(0xD) + b"\x01\x08" not in control


@BOTH
def test_settings_may_arrive_one_byte_at_a_time(is_client):
    peer = raw.Raw(is_client=is_client)
    settings = raw.DRAFT16_SERVER if is_client else raw.DRAFT16
    stream_id = peer.uni(b"", run=True)
    for byte in b"\0" + raw.settings_frame({**settings, 0x21: 5}):
        assert not peer.protocol.ready
        peer.send(stream_id, bytes([byte]))
    assert peer.protocol.ready
    assert len(peer.end.of(events.ConnectionReady)) == 1


def test_request_and_answer_may_arrive_one_byte_at_a_time():
    server, client = raw.server(), raw.client()
    stream_id = server.bidi(b"", run=True)
    for byte in frame(HEADERS, header_block(connect_headers())):
        assert not server.end.of(events.SessionRequested)
        server.send(stream_id, bytes([byte]))
    assert server.end.of(events.SessionRequested)
    session_id = client.session(accept=False)
    for byte in frame(HEADERS, header_block([(b":status", b"200"), (b"x", b"y")])):
        assert not client.end.of(events.SessionAccepted)
        client.send(session_id, bytes([byte]))
    assert client.end.of(events.SessionAccepted)


def test_client_config_bounds_responses_too():
    peer = raw.client(config=ClientConfig(max_field_section_size=1024))
    session_id = peer.session(accept=False)
    peer.respond(session_id, 200, (b"x", b"y" * 2000))
    assert peer.close_code == codes.H3_EXCESSIVE_LOAD


def test_static_encoder_is_all_that_is_needed_of_pylsqpack():
    assert {"encode", "feed_decoder", "apply_settings"} <= set(dir(pylsqpack.Encoder))
    public = {name for name in dir(pylsqpack.Decoder) if not name.startswith("_")}
    assert public == {"feed_encoder", "feed_header", "resume_header", "cancel_stream"}
