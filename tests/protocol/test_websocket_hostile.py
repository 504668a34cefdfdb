"""Peers that say to a WebSocket what no honest one would: the right code, bounded memory."""

from __future__ import annotations

import random
import struct
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwt.protocol import websocket
from gwt.protocol.deflate import DeflateParams
from gwt.protocol.websocket import Closed, Message, WebSocketProtocol
from gwt.protocol.wsframes import encode_frame
from gwt.protocol.wshandshake import Agreement

KEY = b"\x00\x00\x00\x00"
DEFLATE = Agreement(None, DeflateParams())


@pytest.fixture(params=["short way", "wsproto's way"], autouse=True)
def way(request, monkeypatch):
    """Both ways in: they may differ in nothing."""
    monkeypatch.setattr(websocket, "FAST", request.param == "short way")


def make(is_client: bool = False, **options) -> WebSocketProtocol:
    return WebSocketProtocol(is_client, now=0.0, **options)


def give(protocol: WebSocketProtocol, data: bytes) -> list:
    events = protocol.receive_data(data, 0.0)
    while protocol.pending:
        events += protocol.receive_data(b"", 0.0)
    return events


def masked(first: int, payload: bytes = b"") -> bytes:
    return encode_frame(first, payload, True)


def failure(protocol: WebSocketProtocol, events: list) -> int:
    """The code that we failed the peer with, which it was told."""
    [event] = [event for event in events if isinstance(event, Closed)]
    assert events[-1] is event
    assert event.rcvd is None
    assert protocol.state == "closed"
    code, reason = event.sent
    payload = struct.pack("!H", code) + reason.encode()
    assert len(payload) <= 125
    close = protocol.data_to_send()[-1]
    assert close[0] == 0x88
    if not close[1] & 0x80:
        assert close[2:] == payload
    assert reason
    # And nothing that follows counts.
    assert give(protocol, masked(0x81, b"x") * 3) == []
    assert protocol.data_to_send() == []
    return code


def unmasked(first: int, payload: bytes = b"") -> bytes:
    return encode_frame(first, payload, False)


HOSTILE = {
    "unmasked": (unmasked(0x81, b"x"), 1002),
    "unmasked ping": (unmasked(0x89, b"x"), 1002),
    "rsv1": (masked(0xC1, b"x"), 1002),
    "rsv2": (masked(0xA1, b"x"), 1002),
    "rsv3": (masked(0x91, b"x"), 1002),
    "rsv on a ping": (masked(0xC9, b"x"), 1002),
    "rsv on a close": (masked(0xA8, b""), 1002),
    "rsv on a continuation": (masked(0x01, b"x") + masked(0xC0, b"x"), 1002),
    **{f"opcode {code:#x}": (masked(0x80 | code, b"x"), 1002) for code in (3, 4, 5, 6, 7)},
    **{f"opcode {code:#x}": (masked(0x80 | code, b""), 1002) for code in (11, 12, 13, 14, 15)},
    "ping in fragments": (masked(0x09, b"x"), 1002),
    "close in fragments": (masked(0x08, b""), 1002),
    "long ping": (masked(0x89, b"x" * 126), 1002),
    "long close": (masked(0x88, struct.pack("!H", 1000) + b"x" * 124), 1002),
    "ping of 2^62 bytes": (b"\x89\xff" + struct.pack("!Q", 2**62) + KEY, 1002),
    "continuation of nothing": (masked(0x80, b"x"), 1002),
    "empty continuation of nothing": (masked(0x00, b""), 1002),
    "text within text": (masked(0x01, b"x") + masked(0x81, b"y"), 1002),
    "binary within text": (masked(0x01, b"x") + masked(0x02, b"y"), 1002),
    "continuation after the end": (
        masked(0x01, b"x") + masked(0x80, b"y") + masked(0x80, b"z"),
        1002,
    ),
    "length of 2 bytes for 125": (b"\x82\xfe\x00\x7d" + KEY + b"x" * 125, 1002),
    "length of 8 bytes for 65535": (b"\x82\xff" + struct.pack("!Q", 65535) + KEY, 1002),
    "length with its top bit": (b"\x82\xff" + struct.pack("!Q", 2**63) + KEY, 1002),
    "2^62 bytes": (b"\x82\xff" + struct.pack("!Q", 2**62) + KEY, 1009),
    "a byte too many": (b"\x82\xff" + struct.pack("!Q", 2**20 + 1) + KEY, 1009),
    "a byte too many in fragments": (
        masked(0x02, b"x" * 2**19) + masked(0x00, b"x" * 2**19) + masked(0x80, b"x"),
        1009,
    ),
    "close with one byte": (masked(0x88, b"\x03"), 1002),
    **{
        f"close with {code}": (masked(0x88, struct.pack("!H", code)), 1002)
        for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    },
    "close with a reason that is not UTF-8": (masked(0x88, b"\x03\xe8\xff"), 1007),
    "close with a cut reason": (masked(0x88, b"\x03\xe8\xc3"), 1007),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_no_peer_may_send(name):
    data, code = HOSTILE[name]
    protocol = make()
    assert failure(protocol, give(protocol, data)) == code


@pytest.mark.parametrize("name", [name for name, (data, _) in HOSTILE.items() if len(data) < 1000])
def test_what_no_peer_may_send_byte_by_byte(name):
    data, code = HOSTILE[name]
    protocol = make()
    events = []
    for byte in data:
        events += give(protocol, bytes([byte]))
    assert failure(protocol, events) == code


@pytest.mark.parametrize("first", [0x81, 0x82, 0x89, 0x8A, 0x88])
def test_a_server_that_masks(first):
    protocol = make(True)
    assert failure(protocol, give(protocol, masked(first, b""))) == 1002


def test_messages_before_the_error_count():
    protocol = make()
    events = give(protocol, masked(0x81, b"x") + masked(0x82, b"y") + masked(0x83))
    assert events[:2] == [Message("x"), Message(b"y")]
    assert failure(protocol, events) == 1002


def test_what_came_before_the_error_can_be_answered():
    protocol = make()
    assert protocol.receive_data(masked(0x81, b"x") + masked(0x83), 0.0) == [Message("x")]
    assert protocol.pending
    protocol.send("x")
    assert failure(protocol, protocol.receive_data(b"", 0.0)) == 1002


def test_an_error_that_was_not_told_is_told_before_the_end():
    protocol = make()
    protocol.receive_data(masked(0x81, b"x") + masked(0x83), 0.0)
    assert failure(protocol, protocol.receive_eof(0.0)) == 1002


def test_an_error_while_closing_is_no_close_of_the_peer():
    protocol = make()
    protocol.close(1000, now=0.0)
    protocol.data_to_send()
    assert give(protocol, masked(0x83)) == [Closed(None, (1000, ""), False)]
    assert protocol.data_to_send() == []


INVALID = [
    b"\xff",
    b"\xc0\x80",  # longer than need be
    b"\xe0\x80\xaf",
    b"\xed\xa0\x80",  # a surrogate
    b"\xf4\x90\x80\x80",  # beyond Unicode
    b"\xf8\x88\x80\x80\x80",
    b"\x80",
    b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited",
]


@pytest.mark.parametrize("bad", INVALID)
@pytest.mark.parametrize("around", [b"", b"abc", "é€".encode()])
def test_invalid_utf8_at_every_cut(bad, around):
    data = around + bad + around
    for cut in range(len(data) + 1):
        frames = masked(0x01, data[:cut]) + masked(0x80, data[cut:])
        for parts in ([frames], [bytes([byte]) for byte in frames]):
            protocol = make()
            events = [event for part in parts for event in give(protocol, part)]
            assert failure(protocol, events) == 1007
    protocol = make()
    assert failure(protocol, give(protocol, masked(0x81, data))) == 1007


@pytest.mark.parametrize("text", ["é", "€", "\U0001f600"])
def test_a_character_that_does_not_end(text):
    data = text.encode()
    for size in range(1, len(data)):
        for frames in (
            masked(0x81, b"ab" + data[:size]),
            masked(0x01, b"ab" + data[:size]) + masked(0x80, b""),
            masked(0x01, data[:size]) + masked(0x80, b"x"),
        ):
            protocol = make()
            assert failure(protocol, give(protocol, frames)) == 1007


def test_invalid_utf8_is_refused_before_the_message_ends():
    protocol = make()
    frame = masked(0x81, b"\xff" + b"x" * 1000)
    assert failure(protocol, give(protocol, frame[:20])) == 1007


@pytest.mark.parametrize("size", [0, 1, 125, 126, 70000])
def test_the_limit_itself_is_allowed(size):
    data = b"x" * size
    assert give(make(max_size=size), masked(0x82, data)) == [Message(data)]
    protocol = make(max_size=size)
    assert failure(protocol, give(protocol, masked(0x82, data + b"x"))) == 1009
    half = size // 2
    frames = masked(0x02, data[:half]) + masked(0x00, b"") + masked(0x80, data[half:])
    assert give(make(max_size=size), frames) == [Message(data)]


def test_the_limit_counts_bytes_not_characters():
    protocol = make(max_size=3)
    assert give(protocol, masked(0x81, "€".encode())) == [Message("€")]
    assert failure(protocol, give(protocol, masked(0x81, "é€".encode()))) == 1009


def test_no_limit():
    data = b"x" * (2**20 + 1)
    assert give(make(max_size=None), masked(0x82, data)) == [Message(data)]


def test_endless_fragments():
    protocol = make(max_fragments=1000)
    assert give(protocol, masked(0x02) + masked(0x00) * 999) == []
    assert failure(protocol, give(protocol, masked(0x00))) == 1008


def test_as_many_fragments_as_allowed_for_each_message():
    protocol = make(max_fragments=3)
    message = masked(0x02, b"a") + masked(0x00, b"b") + masked(0x80, b"c")
    assert give(protocol, message * 5) == [Message(b"abc")] * 5


def _peak(action) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_small_fragments_cost_little_more_than_their_bytes():
    protocol = make()
    data = masked(0x02, b"") + masked(0x00, b"x") * 10_000

    def action():
        for start in range(0, len(data), 4096):
            assert give(protocol, data[start : start + 4096]) == []

    assert _peak(action) < 150_000
    assert give(protocol, masked(0x80, b"")) == [Message(b"x" * 10_000)]


def test_an_announcement_allocates_nothing():
    protocol = make(max_size=None)
    header = b"\x82\xff" + struct.pack("!Q", 2**62) + KEY
    assert _peak(lambda: give(protocol, header)) < 100_000
    assert protocol.state == "open"


def compressed(payload: bytes, first: int = 0xC2) -> bytes:
    return masked(first, payload)


def deflated(data: bytes) -> bytes:
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (squeeze.compress(data) + squeeze.flush(zlib.Z_SYNC_FLUSH))[:-4]


def test_a_bomb_is_not_inflated_beyond_the_limit():
    bomb = deflated(bytes(20 * 2**20))
    protocol = make(agreement=DEFLATE, max_size=65536)

    def action():
        assert failure(protocol, give(protocol, compressed(bomb))) == 1009

    assert _peak(action) < 2**20


def test_a_bomb_in_fragments():
    bomb = deflated(bytes(10 * 2**20))
    protocol = make(agreement=DEFLATE)
    frames = masked(0x42, bomb[:1])
    frames += b"".join(masked(0x00, bomb[i : i + 100]) for i in range(1, len(bomb), 100))
    assert failure(protocol, give(protocol, frames)) == 1009


def test_large_inflated_messages_are_told_one_by_one():
    # Each takes as long as hundreds of others: who decodes looks at the clock between them.
    protocol = make(agreement=DEFLATE)
    frames = compressed(deflated(bytes(2**20))) * 3 + masked(0x81, b"end")
    assert protocol.receive_data(frames, 0.0) == [Message(bytes(2**20))]
    for _ in range(2):
        assert protocol.pending
        assert protocol.receive_data(b"", 0.0) == [Message(bytes(2**20))]
    assert protocol.receive_data(b"", 0.0) == [Message("end")]


@pytest.mark.parametrize("size", [0, 1, 1000, 65536])
def test_the_limit_is_that_of_the_inflated_message(size):
    protocol = make(agreement=DEFLATE, max_size=size)
    assert give(protocol, compressed(deflated(bytes(size)))) == [Message(bytes(size))]
    assert failure(protocol, give(protocol, compressed(deflated(bytes(size + 1))))) == 1009


def test_compressed_bytes_that_inflate_to_nothing_have_a_limit_too():
    empty = b"\x00\x00\x00\xff\xff" * 1000
    protocol = make(agreement=DEFLATE, max_size=1000)
    frames = masked(0x42) + masked(0x00, empty) * 20
    assert failure(protocol, give(protocol, frames)) == 1009


@pytest.mark.parametrize("first", [0xC1, 0xC2])
@pytest.mark.parametrize("payload", [b"\xff\xff\xff", b"\x07", b"\x00\x01\x02\x03\x04\x05"])
def test_what_cannot_be_inflated(first, payload):
    protocol = make(agreement=DEFLATE)
    assert failure(protocol, give(protocol, compressed(payload, first))) == 1007


def test_compressed_text_that_is_not_utf8():
    protocol = make(agreement=DEFLATE)
    assert failure(protocol, give(protocol, compressed(deflated(b"\xff"), 0xC1))) == 1007


@pytest.mark.parametrize("first", [0xA1, 0x91, 0xC9, 0xC8, 0xCA])
def test_reserved_bits_with_compression(first):
    protocol = make(agreement=DEFLATE)
    assert failure(protocol, give(protocol, masked(first))) == 1002


def test_a_continuation_is_not_marked_as_compressed():
    protocol = make(agreement=DEFLATE)
    data = deflated(b"hello")
    frames = masked(0x42, data[:2]) + masked(0xC0, data[2:])
    assert failure(protocol, give(protocol, frames)) == 1002


def test_a_final_block_ends_one_message_only():
    # RFC 7692 7.2.3.4, its example.
    payload = bytes.fromhex("f3 48 cd c9 c9 07 00 00")
    protocol = make(agreement=DEFLATE)
    assert give(protocol, compressed(payload, 0xC1)) == [Message("Hello")]
    assert give(protocol, compressed(payload[:-1], 0xC1)) == [Message("Hello")]
    assert give(protocol, compressed(deflated(b"x"))) == [Message(b"x")]


def test_final_blocks_without_end():
    protocol = make(agreement=DEFLATE)
    assert failure(protocol, give(protocol, compressed(b"\x03\x00" * 30_000))) == 1007


@given(data=st.binary(max_size=400), is_client=st.booleans(), deflate=st.booleans())
def test_noise_never_raises(data, is_client, deflate):
    protocol = make(is_client, agreement=DEFLATE if deflate else Agreement(), max_size=1000)
    events = give(protocol, data) + protocol.receive_eof(0.0)
    assert sum(isinstance(event, Closed) for event in events) == 1
    assert isinstance(events[-1], Closed)
    protocol.data_to_send()


def test_broken_frames_never_raise_and_both_ways_agree(monkeypatch):
    rng = random.Random(5)
    good = [
        masked(0x81, b"hello \xe2\x82\xac"),
        masked(0x82, bytes(200)),
        masked(0x01, b"abc") + masked(0x89, b"p") + masked(0x80, b"d"),
        compressed(deflated(b"some text" * 20), 0xC1),
        masked(0x8A, b""),
        masked(0x88, b"\x03\xe8bye"),
    ]
    for _ in range(500):
        wire = bytearray(b"".join(rng.choices(good, k=4)))
        for _ in range(rng.randrange(4)):
            wire[rng.randrange(len(wire))] = rng.randrange(256)
        cut = rng.randrange(1, len(wire))
        results = []
        for fast in (True, False):
            monkeypatch.setattr(websocket, "FAST", fast)
            protocol = make(agreement=DEFLATE, max_size=5000)
            events = give(protocol, bytes(wire[:cut])) + give(protocol, bytes(wire[cut:]))
            results.append((events + protocol.receive_eof(0.0), protocol.data_to_send()))
        assert results[0] == results[1]
