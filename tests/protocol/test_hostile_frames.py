"""Frames of QUIC that no honest peer sends, or not so many of them: bounded, or the end."""

from __future__ import annotations

from collections import Counter

import pytest
from aioquic.quic.connection import QuicNetworkPath
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicErrorCode, QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.tls import Epoch
from hypothesis import given, settings
from hypothesis import strategies as st

from gwt.config import ClientConfig, ServerConfig
from gwt.protocol import codes, events
from gwt.protocol.capsules import encode_varint
from gwt.protocol.quic import Quic
from gwt.protocol.quicguard import MAX_CRYPTO, Ranges
from tests.helpers import raw
from tests.helpers.pair import CLIENT, SERVER, Pair, quic_options

BOTH = pytest.mark.parametrize("is_client", [True, False], ids=["client", "server"])

PING, ACK, RESET, STOP, CRYPTO, NEW_TOKEN, STREAM = 0x1, 0x2, 0x4, 0x5, 0x6, 0x7, 0x8
MAX_DATA, MAX_STREAM_DATA, MAX_STREAMS, BLOCKED = 0x10, 0x11, 0x12, 0x14
NEW_CID, RETIRE, CHALLENGE, RESPONSE, HANDSHAKE_DONE = 0x18, 0x19, 0x1A, 0x1B, 0x1E
OFFSET, LENGTH, FIN = 4, 2, 1


def f(kind, *numbers, rest=b""):
    """Encode a frame."""
    return encode_varint(kind) + b"".join(map(encode_varint, numbers)) + rest


def connected(is_client=False, **options):
    peer = raw.client(**options) if is_client else raw.server(**options)
    session_id = peer.session()
    peer.run(1.0)
    return peer, session_id


def ended(peer, code):
    """Assert that the connection, and nothing else, ended with a code, and is counted."""
    assert peer.close_code == code
    assert peer.protocol.counters["protocol_errors"] == 1
    assert raw.leftovers(peer.protocol).keys() <= {"h3", "quic", "queue"}
    assert peer.protocol.quic.budget.buffered == 0
    # It says so once, and never again.
    assert len(peer.protocol.datagrams_to_send(peer.now)) == 1
    assert not peer.protocol.datagrams_to_send(peer.now)


def alive(peer, session_id):
    peer.run(1.0)
    assert peer.close_code is None and peer.protocol.sessions[session_id].live
    stream_id = peer.wt_uni(session_id, b"still there", True, run=True)
    assert peer.end.data(stream_id) == b"still there"


def sent(peer):
    """Return how many packets our side wants to send now."""
    return len(peer.protocol.datagrams_to_send(peer.now))


# What is wrong by itself

WRONG = {
    "unknown": (f(0x3F), QuicErrorCode.FRAME_ENCODING_ERROR),
    "truncated": (f(MAX_DATA, rest=b"\xc0"), QuicErrorCode.FRAME_ENCODING_ERROR),
    "ack of nothing sent": (f(ACK, 100_000, 0, 0, 0), QuicErrorCode.PROTOCOL_VIOLATION),
    "ack of the largest": (f(ACK, 2**62 - 1, 0, 0, 0), QuicErrorCode.PROTOCOL_VIOLATION),
    "ack of the next": (None, QuicErrorCode.PROTOCOL_VIOLATION),
    "ack below zero": (f(ACK, 1, 0, 0, 5), QuicErrorCode.FRAME_ENCODING_ERROR),
    "ack ranges below zero": (f(ACK, 3, 0, 1, 0, 9, 0), QuicErrorCode.FRAME_ENCODING_ERROR),
    "ack ranges missing": (f(ACK, 3, 0, 2**40, 0), QuicErrorCode.FRAME_ENCODING_ERROR),
    "id that is empty": (
        f(NEW_CID, 9, 0, rest=b"\0" + bytes(16)),
        QuicErrorCode.FRAME_ENCODING_ERROR,
    ),
    "id retired before it came": (
        f(NEW_CID, 9, 10, rest=b"\x08" + bytes(24)),
        QuicErrorCode.PROTOCOL_VIOLATION,
    ),
    "unknown id retired": (f(RETIRE, 500), QuicErrorCode.PROTOCOL_VIOLATION),
    "id in use retired": (f(RETIRE, 0), QuicErrorCode.PROTOCOL_VIOLATION),
    "streams beyond 2^60": (f(MAX_STREAMS, 2**60 + 1), QuicErrorCode.FRAME_ENCODING_ERROR),
    "too large a datagram": (f(0x31, 2**20, rest=b"\0"), QuicErrorCode.FRAME_ENCODING_ERROR),
}


@BOTH
@pytest.mark.parametrize("payload, code", WRONG.values(), ids=WRONG)
def test_wrong_frame_ends_the_connection_with_its_code(is_client, payload, code):
    peer, _ = connected(is_client)
    if payload is None:
        payload = f(ACK, peer.protocol.quic._quic._packet_number, 0, 0, 0)
    peer.inject(payload)
    ended(peer, code)


@BOTH
@pytest.mark.parametrize(
    "frame, code",
    [
        (lambda s: f(STREAM | OFFSET, s.theirs, 16_384, rest=b"x"), "FLOW_CONTROL_ERROR"),
        (lambda s: f(RESET, s.theirs, 0, 16_385), "FLOW_CONTROL_ERROR"),
        (lambda s: f(STREAM, s.theirs + 4 * 256, rest=b"x"), "STREAM_LIMIT_ERROR"),
        (lambda s: f(STREAM, 2**62 - 4 + s.theirs % 4, rest=b"x"), "STREAM_LIMIT_ERROR"),
        (lambda s: f(MAX_STREAM_DATA, s.theirs + 4 * 256, 1), "STREAM_LIMIT_ERROR"),
        (lambda s: f(STOP, s.theirs + 4 * 256, 1), "STREAM_LIMIT_ERROR"),
        (lambda s: f(STREAM, s.unopened, rest=b"x"), "STREAM_STATE_ERROR"),
        (lambda s: f(MAX_STREAM_DATA, s.unopened, 1), "STREAM_STATE_ERROR"),
        (lambda s: f(STREAM, s.ours_uni, rest=b"x"), "STREAM_STATE_ERROR"),
        (lambda s: f(RESET, s.ours_uni, 0, 0), "STREAM_STATE_ERROR"),
        (lambda s: f(STOP, s.theirs_uni, 0), "STREAM_STATE_ERROR"),
        (lambda s: f(MAX_STREAM_DATA, s.theirs_uni, 9), "STREAM_STATE_ERROR"),
        (
            lambda s: (
                f(STREAM | FIN | LENGTH, s.theirs, 3, rest=b"abc")
                + f(STREAM | OFFSET, s.theirs, 3, rest=b"d")
            ),
            "FINAL_SIZE_ERROR",
        ),
        (
            lambda s: (
                f(STREAM | LENGTH, s.theirs, 3, rest=b"abc") + f(STREAM | FIN, s.theirs, rest=b"a")
            ),
            "FINAL_SIZE_ERROR",
        ),
        (
            lambda s: f(STREAM | LENGTH, s.theirs, 3, rest=b"abc") + f(RESET, s.theirs, 0, 2),
            "FINAL_SIZE_ERROR",
        ),
    ],
)
def test_stream_frame_that_breaks_a_limit_ends_the_connection(is_client, frame, code):
    peer, _ = connected(is_client)

    class Ids:
        ours = 0 if is_client else 1
        theirs = peer.quic.get_next_available_stream_id()
        theirs_uni = 3 if is_client else 2
        ours_uni = theirs_uni ^ 1
        unopened = 4000 + ours

    peer.inject(frame(Ids))
    ended(peer, QuicErrorCode[code])


def test_connection_may_not_send_more_than_its_limit():
    # More than 4 MiB at once, on streams that are each within their window.
    peer, _ = connected(config=ServerConfig(initial_stream_window=1024 * 1024))
    for number in range(1, 4):
        peer.inject(f(STREAM | OFFSET, 4 * number, 1024 * 1024 - 1, rest=b"x"))
    assert peer.close_code is None
    peer.inject(f(STREAM | OFFSET, 16, 1024 * 1024 - 1, rest=b"x"))
    ended(peer, QuicErrorCode.FLOW_CONTROL_ERROR)


@pytest.mark.parametrize("kind", [HANDSHAKE_DONE, NEW_TOKEN])
def test_client_may_not_send_what_is_the_servers(kind):
    peer, _ = connected(False)
    peer.inject(f(kind, *([1] if kind == NEW_TOKEN else []), rest=b"x"))
    ended(peer, QuicErrorCode.PROTOCOL_VIOLATION)


# The handshake


def initial(payload, destination, number=0, size=1200):
    """Build a client's Initial packet around any frames."""
    crypto = CryptoPair()
    crypto.setup_initial(cid=destination, is_client=True, version=1)
    builder = QuicPacketBuilder(
        host_cid=bytes(8),
        is_client=True,
        max_datagram_size=size,
        packet_number=number,
        peer_cid=destination,
        version=1,
    )
    builder.start_packet(QuicPacketType.INITIAL, crypto)
    builder._buffer.push_bytes(payload + bytes(size - len(payload) - 80))
    builder._packet.in_flight = builder._packet.is_ack_eliciting = True
    return builder.flush()[0][0]


class Stranger:
    """Who sends first packets to a server, to a new connection of its."""

    def __init__(self, *payloads):
        maker = raw.Raw.__new__(raw.Raw)
        maker.config, maker.is_client, maker.budget = ServerConfig(), False, raw.SendBudget()
        self.end = maker._our_end(bytes(8))
        self.protocol = self.end.protocol
        self.number = 0
        for payload in payloads:
            self.send(payload)

    def send(self, payload):
        packet = initial(payload, bytes(8), self.number)
        self.number += 1
        self.end.take(self.protocol.receive_datagrams([packet], CLIENT, 1000.0))

    @property
    def held(self):
        quic = self.protocol.quic._quic
        waiting = [len(s.receiver._buffer) for s in quic._crypto_streams.values()]
        return sum(waiting) + len(quic.tls._receive_buffer)

    @property
    def code(self):
        return [e.code for e in self.end.of(events.ConnectionEnded)]


ILLEGAL = {
    "stream": f(STREAM, 0, rest=b"x"),
    "reset": f(RESET, 0, 0, 0),
    "stop": f(STOP, 0, 0),
    "max data": f(MAX_DATA, 9),
    "new id": f(NEW_CID, 1, 0, rest=b"\x08" + bytes(24)),
    "retire": f(RETIRE, 0),
    "challenge": f(CHALLENGE, rest=bytes(8)),
    "datagram": f(0x30, rest=b"\0x"),
    "done": f(HANDSHAKE_DONE),
    "close of an application": f(0x1D, 0, 0),
}


@pytest.mark.parametrize("payload", ILLEGAL.values(), ids=ILLEGAL)
def test_frame_that_may_not_be_in_an_initial_packet_ends_the_connection(payload):
    assert Stranger(payload).code == [QuicErrorCode.PROTOCOL_VIOLATION]


def test_first_packet_without_a_handshake_ends_the_connection():
    assert Stranger(f(PING)).code == [QuicErrorCode.PROTOCOL_VIOLATION]


@pytest.mark.parametrize("offset", [MAX_CRYPTO, 500_000, 2**40])
def test_handshake_that_begins_far_ahead_is_not_held(offset):
    end = Stranger(f(CRYPTO, offset, 1, rest=b"x"))
    assert end.code == [QuicErrorCode.CRYPTO_BUFFER_EXCEEDED] and end.held == 0


def test_what_is_held_of_a_handshake_is_bounded_out_of_order_and_in_order():
    ahead = Stranger(f(CRYPTO, MAX_CRYPTO - 1, 1, rest=b"x"))
    assert ahead.held == MAX_CRYPTO and not ahead.code
    # A message that announces 16 MB, and comes.
    end = Stranger()
    message = b"\x01\xff\xff\xff" + bytes(60_000)
    for offset in range(0, 60_000, 1000):
        piece = message[offset : offset + 1000]
        end.send(f(CRYPTO, offset, len(piece), rest=piece))
        assert end.held <= MAX_CRYPTO
    assert end.code == [QuicErrorCode.CRYPTO_BUFFER_EXCEEDED]


def test_handshake_of_single_bytes_with_holes_is_bounded():
    end = Stranger()
    for packet in range(10):
        begin = packet * 400
        end.send(b"".join(f(CRYPTO, begin + 2 * n + 1, 1, rest=b"x") for n in range(100)))
    assert end.code == [codes.H3_EXCESSIVE_LOAD]


@given(data=st.data())
@settings(max_examples=150)
def test_any_hello_is_survived(data):
    client = Quic(quic_options(ClientConfig(), is_client=True))
    client.connect(SERVER, 1000.0)
    hello = bytearray(client._quic._crypto_streams[Epoch.INITIAL].sender._buffer)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(4, len(hello) - 1))
        hello[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=6))
    hello[1:4] = (len(hello) - 4).to_bytes(3, "big")
    end = Stranger(f(CRYPTO, 0, len(hello), rest=bytes(hello)))
    # The handshake goes on, or has ended with one close.
    assert len(end.code) <= 1 and end.held <= MAX_CRYPTO


@BOTH
def test_crypto_behind_the_handshake_is_bounded(is_client):
    peer, _ = connected(is_client)
    peer.inject(f(CRYPTO, MAX_CRYPTO, 1, rest=b"x"))
    ended(peer, QuicErrorCode.CRYPTO_BUFFER_EXCEEDED)


def test_tickets_that_nobody_wants_cost_nothing():
    peer, session_id = connected(True)
    ticket = b"\x04\0\0\x15" + bytes(4 + 4) + b"\0" + b"\0\x08" + bytes(8) + b"\0\0"
    for number in range(500):
        peer.inject(f(CRYPTO, len(ticket) * number, len(ticket), rest=ticket))
        peer.end.take(peer.protocol.next_events())
    assert peer.protocol.quic._quic.tls._receive_buffer == b""
    alive(peer, session_id)


def test_message_that_has_no_place_behind_the_handshake_ends_the_connection():
    peer, _ = connected(False)
    peer.inject(f(CRYPTO, 0, 4, rest=b"\x01\0\0\0"))
    ended(peer, QuicErrorCode.CRYPTO_ERROR + 10)


# Holes, pieces, repetitions


def test_ranges_are_what_they_say():
    ranges = Ranges()
    for start in (10, 20, 30):
        ranges.add(start, start + 5)
    assert [ranges[n] for n in range(len(ranges))] == [range(10, 15), range(20, 25), range(30, 35)]
    ranges.add(15, 20)
    ranges.add(2, 3)
    ranges.add(26, 27)
    assert [ranges[n] for n in range(len(ranges))] == [
        range(2, 3),
        range(10, 25),
        range(26, 27),
        range(30, 35),
    ]
    assert ranges.shift() == range(2, 3)
    ranges.add(0, 100)
    assert len(ranges) == 1 and ranges[0] == range(0, 100)
    with pytest.raises(IndexError):
        Ranges()[0]


@BOTH
def test_pieces_with_holes_are_bounded_and_then_the_end(is_client):
    peer, session_id = connected(is_client)
    stream_id = peer.wt_uni(session_id, b"", run=True)
    receiver = peer.protocol.quic._quic._streams[stream_id].receiver
    most = 0
    for packet in range(100):
        frames = b"".join(
            f(STREAM | OFFSET | LENGTH, stream_id, 100 + 2 * (packet * 100 + n), 1, rest=b"x")
            for n in range(100)
        )
        peer.inject(frames)
        most = max(most, len(receiver._ranges))
        if peer.protocol.quic.closed:
            break
    assert most <= 128 + 16
    ended(peer, codes.H3_EXCESSIVE_LOAD)


@BOTH
def test_pieces_in_any_order_are_put_together(is_client):
    peer, session_id = connected(is_client)
    stream_id = peer.wt_uni(session_id, b"", run=True)
    begin = 3
    data = bytes(range(250))
    for offset in [*range(1, 250, 2), *range(249, -1, -1)]:
        peer.inject(f(STREAM | OFFSET, stream_id, begin + offset, rest=data[offset : offset + 2]))
    peer.inject(f(STREAM | OFFSET | FIN, stream_id, begin + 250))
    peer.run()
    assert peer.end.data(stream_id) == data
    assert peer.end.of(events.StreamDataReceived)[-1].ended


@BOTH
def test_empty_and_repeated_stream_frames_cost_nothing(is_client):
    peer, session_id = connected(is_client)
    stream_id = peer.wt_uni(session_id, b"once", run=True)
    told = len(peer.end.events)
    for _ in range(50):
        peer.inject(f(STREAM | LENGTH, stream_id, 0) * 200)
        peer.inject(f(STREAM | OFFSET | LENGTH, stream_id, 3, 4, rest=b"once") * 100)
    assert len(peer.end.events) == told
    assert peer.protocol.streams[stream_id].received == 4
    assert sent(peer) <= 2
    alive(peer, session_id)


# Floods of what is legal

FLOODS = {
    "ping": lambda s: f(PING) * 1000,
    "max data": lambda s: b"".join(f(MAX_DATA, 2**30 + s.n * 100 + n) for n in range(110)),
    "max streams": lambda s: b"".join(f(MAX_STREAMS, 2**20 + s.n * 100 + n) for n in range(200)),
    "max stream data": lambda s: b"".join(
        f(MAX_STREAM_DATA, s.stream, 2**30 + s.n * 100 + n) for n in range(150)
    ),
    "blocked": lambda s: f(BLOCKED, 5) * 300,
    "stop": lambda s: f(STOP, s.stream, 7) * 300,
    "challenge": lambda s: b"".join(f(CHALLENGE, rest=bytes(7) + bytes([n])) for n in range(120)),
    "response": lambda s: f(RESPONSE, rest=bytes(8)) * 120,
    "acks": lambda s: f(ACK, 3, 0, 1, 0, 0, 0) * 150,
    "datagrams": lambda s: f(0x31, 2, rest=encode_varint(s.session // 4) + b"x") * 300,
}


@BOTH
@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_flood_keeps_nothing_and_is_answered_with_few_packets(is_client, flood):
    peer, session_id = connected(is_client)
    quic = peer.protocol.quic._quic

    class State:
        n = 0
        session = session_id
        stream = peer.protocol.open_stream(session_id, False)

    peer.run()
    sizes = None
    answers = 0
    for number in range(60):
        State.n = number
        peer.now += 0.01
        peer.end.take(peer.protocol.on_timer(peer.now))
        peer.inject(flood(State))
        answers += sent(peer)
        if number == 10:
            sizes = held(quic)
    grown = held(quic) - sizes
    # Challenges wait while nothing may be sent.
    assert grown.pop("challenges", 0) <= 32 and not grown
    # An acknowledgement for each, and what a challenge asks for.
    assert answers <= 2 * 60 + 5
    peer.end.events.clear()
    alive(peer, session_id)


def held(quic):
    """Return the sizes of whatever frames can fill; what is in flight is bounded elsewhere."""
    return Counter(
        streams=len(quic._streams),
        queue=len(quic._streams_queue),
        events=len(quic._events),
        progress=len(quic.progress),
        paths=len(quic._network_paths),
        challenges=sum(len(path.remote_challenges) for path in quic._network_paths),
        ids=len(quic._host_cids),
        peer_ids=len(quic._peer_cid_available),
        retired=len(quic._retire_connection_ids),
        pings=len(quic._ping_pending),
        blocked=len(quic._streams_blocked_bidi) + len(quic._streams_blocked_uni),
    )


@BOTH
def test_challenges_of_one_packet_are_answered_within_a_bound(is_client):
    peer, session_id = connected(is_client)
    for _ in range(20):
        peer.inject(b"".join(f(CHALLENGE, rest=bytes(7) + bytes([n])) for n in range(120)))
    path = peer.protocol.quic._quic._network_paths[0]
    assert len(path.remote_challenges) == 32
    # They are answered in one packet, or two.
    assert sent(peer) <= 2 and not path.remote_challenges
    alive(peer, session_id)


def remembered(quic):
    return sum(len(space.sent_packets) for space in quic._loss.spaces)


@BOTH
def test_packets_that_the_peer_never_acknowledges_are_forgotten(is_client):
    peer, session_id = connected(is_client)
    quic = peer.protocol.quic._quic
    for _ in range(2000):
        peer.now += 0.002
        peer.inject(f(PING))
        peer.now += 0.002
        peer.end.take(peer.protocol.on_timer(peer.now))
        assert sent(peer) == 1
    assert remembered(quic) <= 2 * 256 + 16
    alive(peer, session_id)


def test_packets_of_a_handshake_that_are_never_acknowledged_are_forgotten():
    end = Stranger(f(CRYPTO, 0, 1, rest=b"\x01"))
    for _ in range(2000):
        end.send(f(PING))
        end.protocol.datagrams_to_send(1000.0)
    assert remembered(end.protocol.quic._quic) <= 2 * 256 + 16


def test_peer_to_whom_nothing_but_acknowledgements_is_sent_costs_no_memory():
    # As honest as can be: a client that sends datagrams, and a server that receives them.
    pair = Pair(latency=0.001)
    session_id = pair.session()
    for _ in range(1500):
        pair.client.protocol.send_datagram(session_id, b"measured")
        pair.run(0.01)
    assert len(pair.server.of(events.DatagramReceived)) == 1500
    assert remembered(pair.server.protocol.quic._quic) <= 2 * 256 + 16


# Connection ids


def new_id(sequence, retire=0):
    cid = b"%08d" % sequence
    return f(NEW_CID, sequence, retire, rest=b"\x08" + cid + bytes(16))


@BOTH
def test_more_connection_ids_than_we_take_end_the_connection(is_client):
    peer, _ = connected(is_client)
    peer.inject(b"".join(new_id(n) for n in range(50, 60)))
    ended(peer, QuicErrorCode.CONNECTION_ID_LIMIT_ERROR)


@BOTH
def test_churn_of_connection_ids_is_bounded(is_client):
    peer, _ = connected(is_client)
    quic = peer.protocol.quic._quic
    for number in range(50, 500):
        # Each takes the place of all before it; the peer never acknowledges that we retired them.
        peer.inject(new_id(number, number))
        assert len(quic._peer_cid_available) <= 4 and len(quic._peer_cid_sequence_numbers) <= 4
        assert len(quic._retire_connection_ids) <= 17
        if peer.protocol.quic.closed:
            break
        sent(peer)
    ended(peer, QuicErrorCode.CONNECTION_ID_LIMIT_ERROR)


def rotate(peer, sequence):
    """Make our side use the next id, as a peer does that changes its own, and give another."""
    quic = peer.protocol.quic._quic
    quic.change_connection_id()
    quic._retire_connection_ids.clear()
    peer.inject(new_id(sequence))


@BOTH
def test_connection_ids_used_up_one_after_the_other_are_forgotten(is_client):
    peer, _ = connected(is_client)
    quic = peer.protocol.quic._quic
    for number in range(20, 520):
        rotate(peer, number)
    assert peer.close_code is None
    assert len(quic._peer_cid_sequence_numbers) <= 65
    # One of those that are forgotten does not come to life again.
    available = list(quic._peer_cid_available)
    peer.inject(new_id(30))
    assert quic._peer_cid_available == available and peer.close_code is None


@BOTH
def test_connection_ids_in_no_order_are_forgotten_too(is_client):
    peer, _ = connected(is_client)
    for number in range(1000, 500, -1):
        rotate(peer, number)
    assert len(peer.protocol.quic._quic._peer_cid_sequence_numbers) <= 65
    assert peer.close_code is None


@BOTH
def test_connection_ids_without_end_beside_one_that_is_kept_end_the_connection(is_client):
    peer, _ = connected(is_client)
    quic = peer.protocol.quic._quic
    # Another path holds an old one.
    path = QuicNetworkPath(("203.0.113.9", 1), is_validated=True)
    path.peer_cid = quic._peer_cid_available.pop(0)
    quic._network_paths.append(path)
    for number in range(20, 120):
        rotate(peer, number)
        if peer.protocol.quic.closed:
            break
    ended(peer, QuicErrorCode.PROTOCOL_VIOLATION)


@BOTH
def test_peer_that_retires_all_ids_and_gives_none_ends_its_connection(is_client):
    peer, _ = connected(is_client)
    quic = peer.protocol.quic._quic
    peer.inject(new_id(60, 60) + new_id(51, 0))
    peer.inject(new_id(70) + new_id(61))
    sent(peer)
    # Used, and left: 70 is known, and not there any more.
    quic.change_connection_id()
    quic.change_connection_id()
    assert quic._peer_cid.sequence_number == 61
    peer.inject(new_id(70, 70))
    ended(peer, QuicErrorCode.PROTOCOL_VIOLATION)


@BOTH
def test_retiring_our_ids_again_and_again_is_bounded(is_client):
    peer, _ = connected(is_client)
    quic = peer.protocol.quic._quic
    added = retired = 0
    for _ in range(100):
        last = quic._host_cid_seq
        peer.inject(b"".join(f(RETIRE, n) for n in range(max(1, last - 8), last)))
        answers = sent(peer)
        assert answers <= 2
        assert len(quic._host_cids) <= 8
    told = peer.end.events + peer.protocol.next_events()
    added = sum(isinstance(e, events.ConnectionIdAdded) for e in told)
    retired = sum(isinstance(e, events.ConnectionIdRetired) for e in told)
    assert added - retired <= 8
    assert peer.close_code is None
