"""The WebSocket connection: messages, closing, pings, time; and the seam to wsproto."""

from __future__ import annotations

import contextlib
import itertools
import struct

import pytest
import wsproto.events as ws_events
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.frame_protocol import FrameProtocol, Opcode, XorMaskerSimple

from gwt.errors import LocalProtocolError
from gwt.protocol import websocket, wsframes, wsshort
from gwt.protocol.websocket import (
    Closed,
    Fragment,
    Message,
    Ping,
    Pong,
    WebSocketProtocol,
    encode,
)
from gwt.protocol.wsframes import encode_frame, mask

SIZES = [0, 1, 2, 125, 126, 127, 1023, 1024, 1027, 65535, 65536, 70001]


def make(is_client: bool = False, **options) -> WebSocketProtocol:
    return WebSocketProtocol(is_client, now=0.0, **options)


def give(protocol: WebSocketProtocol, data: bytes, now: float = 0.0) -> list:
    events = protocol.receive_data(data, now)
    while protocol.pending:
        events += protocol.receive_data(b"", now)
    return events


def drip(protocol: WebSocketProtocol, data: bytes, now: float = 0.0) -> list:
    return [event for byte in data for event in give(protocol, bytes([byte]), now)]


def sent(protocol: WebSocketProtocol) -> bytes:
    return b"".join(protocol.data_to_send())


def from_client(first: int, payload: bytes) -> bytes:
    return encode_frame(first, payload, True)


@pytest.fixture(params=["short way", "wsproto's way"])
def way(request, monkeypatch):
    """Both ways in: they may differ in nothing."""
    assert websocket.FAST
    monkeypatch.setattr(websocket, "FAST", request.param == "short way")


class TestSeam:
    """What is used of wsproto beyond its names. A failure here means: read the new release."""

    def test_the_short_way_is_taken_with_the_installed_release(self):
        assert websocket.FAST

    def test_private_attributes_are_where_they_are_expected(self):
        proto = FrameProtocol(False, [])
        assert proto._frame_decoder.buffer.buffer == bytearray()
        assert proto._frame_decoder.buffer.bytes_used == 0
        assert proto._frame_decoder.header is None
        assert proto._frame_decoder.masker is None
        assert proto._message_decoder.opcode is None
        assert XorMaskerSimple(b"abcd")._masking_key == b"abcd"

    def test_the_state_of_an_open_message_is_seen(self):
        proto = FrameProtocol(False, [])
        proto.receive_bytes(from_client(0x01, b"a"))
        assert len(list(proto.received_frames())) == 1
        assert proto._message_decoder.opcode is Opcode.TEXT
        proto.receive_bytes(from_client(0x80, b"b"))
        assert len(list(proto.received_frames())) == 1
        assert proto._message_decoder.opcode is None

    def test_the_decoder_is_replaced_before_it_is_used(self):
        protocol = make()
        assert protocol._proto._frame_decoder is protocol._decoder
        # A frame in parts comes through it, and is unmasked by ours.
        frame = from_client(0x82, b"0123456789")
        assert protocol.receive_data(frame[:8], 0.0) == []
        assert isinstance(protocol._decoder.masker, wsshort.Masker)
        assert protocol.receive_data(frame[8:], 0.0) == [Message(b"0123456789")]

    @pytest.mark.parametrize("broken", ["_frame_decoder", "_message_decoder"])
    def test_another_wsproto_is_noticed(self, monkeypatch, broken):
        class Other(FrameProtocol):
            def __getattribute__(self, name):
                if name == broken:
                    raise AttributeError(name)
                return super().__getattribute__(name)

        monkeypatch.setattr(wsshort, "FrameProtocol", Other)
        assert wsshort.works() is False

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("data", ["text", "bytes"])
    def test_frames_are_those_of_wsproto(self, size, data):
        message = "x" * size if data == "text" else b"x" * size
        assert encode(message) == FrameProtocol(False, []).send_data(message)


class TestControlFrames:
    """Everyday control frames take a short way; it may differ in nothing."""

    FRAMES = (
        *((first, payload) for first in (0x89, 0x8A) for payload in (b"", b"x", b"y" * 125)),
        *((0x88, struct.pack("!H", code) + b"why") for code in (1000, 1001, 1002, 3000, 4999)),
        *((0x88, struct.pack("!H", code)) for code in (0, 999, 1004, 1005, 1006, 1015, 2000, 5000)),
        (0x88, b""),
        (0x88, b"\x03"),
        (0x88, b"\x03\xe8\xff"),
        (0x89, b"y" * 126),
        (0x09, b"not final"),
        (0xC9, b"reserved"),
        (0x8B, b"unknown"),
    )

    @pytest.mark.parametrize("client", [True, False])
    @pytest.mark.parametrize("within", [False, True])
    @pytest.mark.parametrize(("first", "payload"), FRAMES)
    def test_both_ways_say_the_same(self, monkeypatch, client, within, first, payload):
        data = encode_frame(0x01, b"pa", not client) if within else b""
        data += encode_frame(first, payload, not client)
        data += encode_frame(0x80 if within else 0x81, b"rt", not client)
        said = []
        for fast in (True, False):
            monkeypatch.setattr(websocket, "FAST", fast)
            protocol = make(client)
            # Our own frames are masked at random.
            monkeypatch.setattr("gwt.protocol.wsframes.os.urandom", lambda size: b"\1\2\3\4"[:size])
            protocol.ping(b"x", 0.0)
            said.append((give(protocol, data), protocol.data_to_send(), protocol.state))
        assert said[0] == said[1]

    def test_one_that_is_not_whole_waits(self):
        protocol = make()
        frame = from_client(0x89, b"ping")
        for cut in range(len(frame)):
            assert protocol.receive_data(frame[cut : cut + 1], 0.0) == (
                [Ping(b"ping")] if cut == len(frame) - 1 else []
            )


class TestOneMessage:
    """Bytes that are just one message need not be taken by receive_data()."""

    @pytest.mark.parametrize("client", [True, False])
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("data", ["text", "bytes"])
    def test_it_is_what_receive_data_says(self, client, size, data):
        message = "x" * size if data == "text" else b"x" * size
        sender, receiver, other = make(not client), make(client), make(client)
        frame = sender.encoded(message)
        assert receiver.message(frame) == message
        assert other.receive_data(frame, 0.0) == [Message(message)]
        assert receiver.stats() == other.stats()
        assert receiver.message(frame) == message

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\x82",
            from_client(0x82, b"whole")[:-1],
            from_client(0x82, b"whole") + b"\x82",
            from_client(0x82, b"one") + from_client(0x82, b"two"),
            from_client(0x02, b"part"),
            from_client(0xC2, b"reserved bit"),
            from_client(0x89, b"ping"),
            from_client(0x88, b""),
            from_client(0x81, b"\xff"),
            from_client(0x82, b"x" * 101),
            b"\x82\x03abc",
            b"\x82\xfe\0\x01\0\0\0\0a",
        ],
    )
    def test_anything_else_is_left_alone(self, data):
        receiver, other = make(max_size=100), make(max_size=100)
        assert receiver.message(data) is None
        assert receiver.receive_data(data, 0.0) == other.receive_data(data, 0.0)
        assert receiver.data_to_send() == other.data_to_send()

    @pytest.mark.parametrize(
        "before",
        [b"\x82", b"\x82\x84", from_client(0x02, b"part"), from_client(0x82, b"cut")[:7]],
    )
    def test_nor_is_it_taken_behind_something_that_is_not_over(self, before):
        receiver = make()
        receiver.receive_data(before, 0.0)
        assert receiver.message(from_client(0x82, b"whole")) is None

    def test_nor_while_messages_are_told_in_parts_or_the_end_has_come(self):
        receiver = make()
        receiver.fragments = True
        assert receiver.message(from_client(0x82, b"whole")) is None
        receiver.fragments = False
        receiver.close(now=0.0)
        assert receiver.message(from_client(0x82, b"whole")) is None

    @given(st.binary(max_size=200), st.sampled_from([0x81, 0x82]))
    def test_whatever_it_says_is_right(self, payload, first):
        frame = from_client(first, payload)
        receiver, other = make(), make()
        message = receiver.message(frame)
        events = other.receive_data(frame, 0.0)
        assert (events == [Message(message)]) is (message is not None)

    def test_what_waits_to_be_sent_goes_before(self):
        protocol = make()
        protocol.receive_data(from_client(0x89, b"ping"), 0.0)
        assert protocol.encoded(b"x") == b"\x8a\x04ping\x82\x01x"
        assert protocol.data_to_send() == []


def _maskers():
    yield from (wsframes._mask_wsproto, wsframes._mask_small, mask)
    for make_one in (wsframes._numpy_masker, wsframes._speedups_masker):
        with contextlib.suppress(ImportError):
            yield make_one()


class TestMasking:
    @pytest.mark.parametrize("masker", list(_maskers()))
    @pytest.mark.parametrize("size", SIZES)
    def test_every_masker_does_the_same(self, masker, size):
        data, key = bytes(range(256)) * (size // 256 + 1), b"\x00\x7f\x80\xff"
        expected = bytes(byte ^ key[i % 4] for i, byte in enumerate(data[:size]))
        assert masker(data[:size], key) == expected
        assert masker(bytearray(data[:size]), bytearray(key)) == expected

    def test_a_masker_that_masks_otherwise_is_not_taken(self, monkeypatch):
        monkeypatch.setattr(wsframes, "_speedups_masker", lambda: lambda data, key: bytes(data))
        monkeypatch.setattr(wsframes, "_numpy_masker", lambda: lambda data: b"")
        assert wsframes._choose_masker()[0] == "wsproto"

    @pytest.mark.parametrize("cuts", list(itertools.combinations(range(1, 12), 3)))
    def test_parts_are_masked_on_from_where_the_last_ended(self, cuts):
        frame = from_client(0x82, b"hello world!")
        protocol = make()
        parts = [frame[a:b] for a, b in itertools.pairwise((0, 6, *(6 + c for c in cuts), 18))]
        events = [event for part in parts for event in give(protocol, part)]
        assert events == [Message(b"hello world!")]

    def test_every_frame_of_a_client_has_a_key_of_its_own(self):
        protocol = make(True)
        protocol.send(b"x")
        protocol.send(b"x")
        first, second = protocol.data_to_send()
        assert first[1] & 0x80
        assert first[2:6] != second[2:6]


@pytest.mark.usefixtures("way")
class TestMessages:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("is_client", [False, True])
    def test_whole_messages(self, size, is_client):
        protocol = make(is_client)
        frames = encode_frame(0x82, b"x" * size, not is_client)
        frames += encode_frame(0x81, b"y" * size, not is_client)
        assert give(protocol, frames) == [Message(b"x" * size), Message("y" * size)]

    @pytest.mark.parametrize("size", [0, 1, 125, 126, 300])
    def test_fed_byte_by_byte(self, size):
        frames = from_client(0x81, b"x" * size) + from_client(0x82, b"y" * size)
        assert drip(make(), frames) == [Message("x" * size), Message(b"y" * size)]

    def test_bytes_and_text_are_of_the_builtin_types(self):
        for data in (from_client(0x82, b"x" * 9), from_client(0x02, b"x") + from_client(0x80, b"")):
            [message] = give(make(), data)
            assert type(message.data) is bytes

    def test_frames_beyond_the_budget_wait(self):
        protocol = make()
        assert len(protocol.receive_data(from_client(0x82, b"x") * 100, 0.0, limit=64)) == 64
        assert protocol.pending
        assert len(protocol.receive_data(b"", 0.0, limit=64)) == 36
        assert not protocol.pending

    def test_control_frames_between_fragments(self):
        protocol = make()
        data = (
            from_client(0x01, b"a")
            + from_client(0x89, b"ping")
            + from_client(0x00, b"b")
            + from_client(0x8A, b"pong")
            + from_client(0x80, b"c")
        )
        assert give(protocol, data) == [Ping(b"ping"), Message("abc")]
        assert sent(protocol) == b"\x8a\x04ping"

    def test_a_message_in_many_small_parts_is_one(self):
        protocol = make()
        data = from_client(0x02, b"")
        data += b"".join(from_client(0x00, bytes([i & 255])) for i in range(1500))
        [message] = give(protocol, data + from_client(0x80, b""))
        assert message.data == bytes(i & 255 for i in range(1500))

    def test_fragments_as_they_come(self):
        protocol = make()
        protocol.fragments = True
        assert give(protocol, from_client(0x01, b"a\xc3")) == [Fragment("a", True, False, True)]
        assert give(protocol, from_client(0x00, b"")) == []
        assert give(protocol, from_client(0x80, b"\xa9")) == [Fragment("é", False, True, True)]
        assert give(protocol, from_client(0x82, b"b")) == [Fragment(b"b", True, True, False)]
        long = from_client(0x82, b"x" * 1000)
        assert give(protocol, long[:508]) == [Fragment(b"x" * 500, True, False, False)]
        assert give(protocol, long[508:]) == [Fragment(b"x" * 500, False, True, False)]

    def test_a_reader_of_fragments_gets_what_came_before_too(self):
        protocol = make()
        assert give(protocol, from_client(0x02, b"a")) == []
        protocol.fragments = True
        assert give(protocol, from_client(0x00, b"b")) == [Fragment(b"ab", True, False, False)]
        # And who began a message in fragments ends it so.
        protocol.fragments = False
        assert give(protocol, from_client(0x80, b"c")) == [Fragment(b"c", False, True, False)]
        assert give(protocol, from_client(0x82, b"d")) == [Message(b"d")]

    @pytest.mark.parametrize("text", ["\u00e9", "\u20ac", "\U0001f600", "a\u00e9\u20ac\U0001f600z"])
    def test_utf8_may_be_cut_anywhere(self, text):
        data = text.encode()
        for cut in range(len(data) + 1):
            frames = from_client(0x01, data[:cut]) + from_client(0x80, data[cut:])
            assert give(make(), frames) == [Message(text)]
            assert drip(make(), frames) == [Message(text)]

    def test_statistics(self):
        protocol = make()
        give(protocol, from_client(0x82, b"x") + from_client(0x02, b"") + from_client(0x80, b""))
        protocol.send("hello")
        sent(protocol)
        assert protocol.stats() == {
            "messages_received": 2,
            "messages_sent": 1,
            "bytes_received": 19,
            "bytes_sent": 7,
        }


class TestSending:
    @pytest.mark.parametrize(
        ("data", "wire"),
        [
            ("hé", b"\x81\x03h\xc3\xa9"),
            (b"ab", b"\x82\x02ab"),
            (bytearray(b"ab"), b"\x82\x02ab"),
            (memoryview(b"abcd")[::2], b"\x82\x02ac"),
            ("", b"\x81\x00"),
        ],
    )
    def test_messages(self, data, wire):
        protocol = make()
        protocol.send(data)
        assert protocol.data_to_send() == [wire]
        assert protocol.data_to_send() == []

    @pytest.mark.parametrize("data", [5, None, ["a"]])
    def test_what_is_no_message(self, data):
        with pytest.raises(TypeError):
            make().send(data)

    def test_text_that_is_not_unicode(self):
        with pytest.raises(LocalProtocolError):
            make().send("\ud800")
        with pytest.raises(LocalProtocolError):
            encode("\ud800")

    def test_fragments(self):
        protocol = make()
        protocol.send_fragment("a", text=True, first=True, final=False)
        protocol.ping(b"p", 0.0)
        protocol.send_fragment(b"b", text=True, first=False, final=False)
        protocol.send_fragment("", text=True, first=False, final=True)
        assert sent(protocol) == b"\x01\x01a\x89\x01p\x00\x01b\x80\x00"
        protocol.send_fragment(b"x", text=False, first=True, final=True)
        assert sent(protocol) == b"\x82\x01x"

    def test_nothing_gets_into_an_open_message(self):
        protocol = make()
        with pytest.raises(LocalProtocolError):
            protocol.send_fragment("a", text=True, first=False, final=True)
        protocol.send_fragment("a", text=True, first=True, final=False)
        with pytest.raises(LocalProtocolError):
            protocol.send("b")
        with pytest.raises(LocalProtocolError):
            protocol.send_fragment("a", text=True, first=True, final=False)
        with pytest.raises(TypeError):
            protocol.send_fragment("a", text=False, first=False, final=False)
        assert sent(protocol) == b"\x01\x01a"

    @pytest.mark.parametrize("state", ["closing", "closed"])
    def test_nothing_is_sent_after_the_close(self, state):
        protocol = make()
        protocol.close(now=0.0)
        if state == "closed":
            protocol.receive_eof(0.0)
        sent(protocol)
        for call in (
            lambda: protocol.send("a"),
            lambda: protocol.send_fragment("a", text=True, first=True, final=True),
            lambda: protocol.ping(None, 0.0),
        ):
            with pytest.raises(LocalProtocolError, match=state):
                call()
        protocol.close(now=0.0)
        assert sent(protocol) == b""


def close_frame(code: int, reason: bytes = b"") -> bytes:
    return struct.pack("!H", code) + reason


@pytest.mark.usefixtures("way")
class TestClosing:
    @pytest.mark.parametrize(
        "code", [*range(1000, 1004), *range(1007, 1014), 3000, 3999, 4000, 4999]
    )
    def test_the_peer_closes(self, code):
        protocol = make()
        [event] = drip(protocol, from_client(0x88, close_frame(code, b"why")))
        assert event == Closed((code, "why"), (code, "why"), True)
        assert protocol.state == "closed"
        assert protocol.close_rcvd == protocol.close_sent == (code, "why")
        assert sent(protocol) == b"\x88\x05" + close_frame(code, b"why")

    def test_the_peer_closes_without_a_code(self):
        protocol = make()
        assert give(protocol, from_client(0x88, b"")) == [Closed((1005, ""), (1005, ""), True)]
        assert sent(protocol) == b"\x88\x00"

    def test_we_close(self):
        protocol = make()
        protocol.close(4001, "enough", now=0.0)
        assert protocol.state == "closing"
        assert sent(protocol) == b"\x88\x08" + close_frame(4001, b"enough")
        # What the peer still says counts, but is not answered.
        assert give(protocol, from_client(0x89, b"p") + from_client(0x82, b"x")) == [
            Ping(b"p"),
            Message(b"x"),
        ]
        [event] = give(protocol, from_client(0x88, close_frame(1000)) + from_client(0x82, b"y"))
        assert event == Closed((1000, ""), (4001, "enough"), False)
        assert sent(protocol) == b""
        assert give(protocol, from_client(0x82, b"x")) == []
        assert protocol.receive_eof(1.0) == []
        assert protocol.on_timer(100.0) == []
        assert protocol.fail(1011, "", 1.0) == []

    def test_what_waits_goes_before_the_close(self):
        protocol = make()
        protocol.send(b"x")
        give(protocol, from_client(0x89, b"p"))
        protocol.close(now=0.0)
        assert protocol.data_to_send() == [b"\x82\x01x", b"\x8a\x01p", b"\x88\x02\x03\xe8"]

    def test_a_peer_that_does_not_answer_the_close(self):
        protocol = make(close_timeout=3.0)
        protocol.close(now=5.0)
        assert protocol.next_timer() == 8.0
        assert protocol.on_timer(7.9) == []
        assert protocol.on_timer(8.0) == [Closed(None, (1000, ""), False)]
        assert protocol.next_timer() is None

    @pytest.mark.parametrize(
        ("usual", "within", "due"), [(3.0, 1.0, 6.0), (1.0, 3.0, 6.0), (None, 1.0, 6.0)]
    )
    def test_less_time_for_the_answer(self, usual, within, due):
        protocol = make(close_timeout=usual)
        protocol.close(now=5.0, within=within)
        assert protocol.next_timer() == due

    def test_no_limit_to_the_answer(self):
        protocol = make(close_timeout=None)
        protocol.close(now=5.0)
        assert protocol.next_timer() is None
        assert protocol.on_timer(1e9) == []

    def test_the_peer_vanishes(self):
        protocol = make()
        give(protocol, from_client(0x02, b"a"))
        assert protocol.receive_eof(0.0) == [Closed(None, None, False)]
        assert protocol.receive_eof(0.0) == []
        assert sent(protocol) == b""

    def test_what_is_pending_counts_before_the_end(self):
        protocol = make()
        protocol.receive_data(from_client(0x82, b"x") * 3 + from_client(0x88, b""), 0.0, limit=1)
        events = protocol.receive_eof(0.0)
        assert events == [Message(b"x"), Message(b"x"), Closed((1005, ""), (1005, ""), True)]

    def test_the_budget_ends_at_the_close(self):
        protocol = make()
        events = protocol.receive_data(from_client(0x88, b"") + from_client(0x82, b"x"), 0.0, 1)
        assert events == [Closed((1005, ""), (1005, ""), True)]
        assert not protocol.pending

    @pytest.mark.parametrize(
        "code", [-1, 0, 999, 1004, 1005, 1006, 1014, 1015, 1016, 2999, 5000, 65536]
    )
    def test_codes_that_are_never_sent(self, code):
        protocol = make()
        with pytest.raises(LocalProtocolError):
            protocol.close(code, now=0.0)
        assert protocol.state == "open"

    @pytest.mark.parametrize("character", ["x", "é", "€", "\U0001f600"])
    def test_a_long_reason_is_cut_between_characters(self, character):
        protocol = make()
        protocol.close(1000, character * 200, now=0.0)
        frame = sent(protocol)
        reason = frame[4:].decode()
        assert 120 <= len(frame[4:]) <= 123
        assert protocol.close_sent == (1000, reason)
        assert set(reason) == {character}

    def test_a_reason_that_is_not_unicode(self):
        protocol = make()
        protocol.close(1000, "a\ud800", now=0.0)
        assert sent(protocol) == b"\x88\x04\x03\xe8a?"

    def test_failing(self):
        protocol = make()
        assert protocol.fail(1011, "oops", 0.0) == [Closed(None, (1011, "oops"), False)]
        assert sent(protocol) == b"\x88\x06" + close_frame(1011, b"oops")
        assert give(protocol, from_client(0x82, b"x")) == []

    def test_failing_while_closing_sends_no_second_close(self):
        protocol = make()
        protocol.close(now=0.0)
        sent(protocol)
        assert give(protocol, b"\xff\xff") == [Closed(None, (1000, ""), False)]
        assert sent(protocol) == b""


class TestPings:
    def test_every_ping_is_answered_in_order(self):
        protocol = make()
        events = give(protocol, b"".join(from_client(0x89, bytes([i])) for i in range(10)))
        assert events == [Ping(bytes([i])) for i in range(10)]
        assert protocol.data_to_send() == [b"\x8a\x01" + bytes([i]) for i in range(10)]

    def test_of_very_many_pings_the_newest_are_answered(self):
        protocol = make()
        for i in range(1000):
            give(protocol, from_client(0x89, struct.pack("!H", i)))
        pongs = protocol.data_to_send()
        assert pongs == [b"\x8a\x02" + struct.pack("!H", i) for i in range(936, 1000)]

    def test_latency(self):
        protocol = make()
        payload = protocol.ping(None, 1.0)
        assert sent(protocol) == b"\x89\x04" + payload
        assert protocol.latency is None
        assert give(protocol, from_client(0x8A, payload), 1.25) == [Pong(payload, 0.25)]
        assert protocol.latency == 0.25
        assert give(protocol, from_client(0x8A, payload), 2.0) == []

    def test_a_pong_answers_the_pings_before_it_too(self):
        protocol = make()
        for i, payload in enumerate((b"a", b"b", b"c")):
            protocol.ping(payload, float(i))
        assert give(protocol, from_client(0x8A, b"b"), 3.0) == [Pong(b"a", 3.0), Pong(b"b", 2.0)]
        assert give(protocol, from_client(0x8A, b"a"), 3.0) == []
        assert give(protocol, from_client(0x8A, b"c"), 4.0) == [Pong(b"c", 2.0)]

    def test_what_cannot_be_pinged(self):
        protocol = make()
        with pytest.raises(LocalProtocolError):
            protocol.ping(b"x" * 126, 0.0)
        protocol.ping(b"x" * 125, 0.0)
        with pytest.raises(LocalProtocolError):
            protocol.ping(b"x" * 125, 0.0)
        with pytest.raises(LocalProtocolError):
            for _ in range(1000):
                protocol.ping(None, 0.0)

    def test_a_pong_goes_before_what_is_sent_after_the_ping(self):
        protocol = make()
        protocol.send(b"a")
        give(protocol, from_client(0x89, b"p"))
        protocol.send(b"b")
        give(protocol, from_client(0x89, b"q"))
        protocol.send_fragment(b"c", text=False, first=True, final=True)
        assert sent(protocol) == b"\x82\x01a\x8a\x01p\x82\x01b\x8a\x01q\x82\x01c"


class TestKeepAlive:
    def test_pings_at_every_interval(self):
        protocol = make(ping_interval=20.0, ping_timeout=5.0)
        for start in (0.0, 20.0, 40.0):
            assert protocol.next_timer() == start + 20.0
            assert protocol.on_timer(start + 19.9) == []
            assert sent(protocol) == b""
            assert protocol.on_timer(start + 20.0) == []
            ping = sent(protocol)
            assert ping[:2] == b"\x89\x04"
            assert protocol.next_timer() == start + 25.0
            [pong] = give(protocol, from_client(0x8A, ping[2:]), start + 20.5)
            assert pong.latency == 0.5

    @pytest.mark.parametrize("timeout", [5.0, 20.0, 30.0])
    def test_a_peer_that_does_not_answer(self, timeout):
        protocol = make(ping_interval=20.0, ping_timeout=timeout)
        protocol.on_timer(20.0)
        ping = sent(protocol)
        give(protocol, from_client(0x82, b"not a pong") + from_client(0x8A, b"nor this"), 21.0)
        assert protocol.on_timer(20.0 + timeout - 0.1) == []
        assert sent(protocol) == b""
        expected = Closed(None, (1011, "keepalive ping timeout"), False)
        assert protocol.on_timer(20.0 + timeout) == [expected]
        assert b"keepalive" in sent(protocol)
        assert ping

    def test_no_timeout(self):
        protocol = make(ping_interval=20.0, ping_timeout=None)
        for i in range(1, 1000):
            assert protocol.next_timer() == 20.0 * i
            assert protocol.on_timer(20.0 * i) == []
            assert len(sent(protocol)) == 6
        protocol.ping(b"one of the caller's", 0.0)

    def test_no_pings(self):
        protocol = make(ping_interval=None)
        assert protocol.next_timer() is None
        assert protocol.on_timer(1e9) == []
        assert sent(protocol) == b""

    def test_while_reading_is_held_back_the_timeout_does_not_run(self):
        protocol = make(ping_interval=20.0, ping_timeout=5.0)
        protocol.on_timer(20.0)
        sent(protocol)
        protocol.hold(True, 21.0)
        # Pings go on: by them the transport finds out whether anybody is there.
        for now in (40.0, 1000.0):
            assert protocol.next_timer() <= now
            assert protocol.on_timer(now) == []
            ping = sent(protocol)
            assert ping[:2] == b"\x89\x04"
        protocol.hold(False, 1000.0)
        assert protocol.next_timer() == 1005.0
        give(protocol, from_client(0x8A, ping[2:]), 1004.0)
        assert protocol.state == "open"
        protocol.on_timer(protocol.next_timer())
        assert sent(protocol)[:2] == b"\x89\x04"

    def test_a_pong_that_is_due_with_the_next_ping_is_not_missed_while_held_back(self):
        protocol = make(ping_interval=20.0, ping_timeout=20.0)
        protocol.on_timer(20.0)
        protocol.hold(True, 21.0)
        assert protocol.on_timer(40.0) == []

    def test_a_late_timer_finds_the_pong_that_was_read_first(self):
        protocol = make(ping_interval=20.0, ping_timeout=5.0)
        protocol.on_timer(20.0)
        pong = sent(protocol)[2:]
        give(protocol, from_client(0x8A, pong), 90.0)
        assert protocol.on_timer(90.0) == []
        assert protocol.state == "open"
        # One ping, not one for each that was missed.
        assert len(protocol.data_to_send()) == 1
        assert protocol.next_timer() == 95.0


messages = st.one_of(st.text(max_size=300), st.binary(max_size=300))


@given(data=st.lists(messages, max_size=8), cut=st.integers(1, 200), is_client=st.booleans())
def test_what_one_end_sends_the_other_gets(data, cut, is_client):
    sender, receiver = make(is_client), make(not is_client)
    for message in data:
        sender.send(message)
    wire = sent(sender)
    parts = [wire[i : i + cut] for i in range(0, len(wire), cut)]
    events = [event for part in parts for event in give(receiver, part)]
    assert events == [Message(message) for message in data]


@given(data=st.lists(messages, max_size=8), cut=st.integers(1, 200), is_client=st.booleans())
def test_wsproto_gets_what_we_send(data, cut, is_client):
    sender = make(is_client)
    peer = Connection(ConnectionType.SERVER if is_client else ConnectionType.CLIENT)
    for message in data:
        half = len(message) // 2
        sender.send(message)
        text = isinstance(message, str)
        sender.send_fragment(message[:half], text=text, first=True, final=False)
        sender.send_fragment(message[half:], text=text, first=False, final=True)
    sender.close(1001, "bye", now=0.0)
    wire = sent(sender)
    got, parts = [], []
    for i in range(0, len(wire), cut):
        peer.receive_data(wire[i : i + cut])
        for event in peer.events():
            if isinstance(event, ws_events.Message):
                parts.append(event.data)
                if event.message_finished:
                    got.append(parts[0][:0].join(parts))
                    parts = []
            else:
                assert (event.code, event.reason) == (1001, "bye")
    assert got == [each for message in data for each in (message, message)]
    assert peer.state is ConnectionState.REMOTE_CLOSING


@given(data=st.lists(messages, max_size=8), cut=st.integers(1, 200), is_client=st.booleans())
def test_we_get_what_wsproto_sends(data, cut, is_client):
    receiver = make(is_client)
    peer = Connection(ConnectionType.SERVER if is_client else ConnectionType.CLIENT)
    wire = b""
    for message in data:
        kind = ws_events.TextMessage if isinstance(message, str) else ws_events.BytesMessage
        half = len(message) // 2
        wire += peer.send(kind(data=message[:half], message_finished=False))
        wire += peer.send(ws_events.Ping(payload=b"p"))
        wire += peer.send(kind(data=message[half:]))
    wire += peer.send(ws_events.CloseConnection(code=1000, reason="bye"))
    events = []
    for i in range(0, len(wire), cut):
        events += give(receiver, wire[i : i + cut])
    expected = [each for message in data for each in (Ping(b"p"), Message(message))]
    assert events == [*expected, Closed((1000, "bye"), (1000, "bye"), True)]
