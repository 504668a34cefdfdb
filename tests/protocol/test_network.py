"""
Two of ours over a network that loses, reorders and delays: every byte is accounted for.

And anything at all that a peer, or somebody else, may send: it is ignored, or the connection
closes with a code; nothing raises, and nothing is logged.
"""

from __future__ import annotations

import hashlib
import logging
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gwt.config import ClientConfig, ServerConfig
from gwt.protocol import events
from gwt.protocol.capsules import encode_varint
from gwt.protocol.packets import classify
from gwt.protocol.seam import SILENT
from tests.helpers import raw
from tests.helpers.chopper import cuts
from tests.helpers.pair import CLIENT, SERVER, Pair
from tests.helpers.raw import connect_headers, frame, header_block, leftovers

NETWORKS = {
    "loss": {"loss": 0.1},
    "heavy loss": {"loss": 0.25},
    "reordering": {"jitter": 0.05},
    "everything": {"loss": 0.08, "jitter": 0.03},
}
# Much can be lost before anybody gives up.
PATIENT = {"idle_timeout": 600.0}
SMALL = {
    "initial_stream_window": 2048,
    "stream_window": 8192,
    "session_window": 30_000,
    **PATIENT,
}


def body(stream_id, size):
    return random.Random(stream_id).randbytes(size)


class Echo:
    """An application on one side: it accepts, reads, and sends back what it read."""

    def __init__(self, pair, end):
        self.pair, self.end = pair, end
        self.waiting: dict[int, tuple[bytes, bool]] = {}
        end.react = self.react

    def react(self, event):
        protocol = self.end.protocol
        match event:
            case events.SessionRequested(session_id=session_id):
                protocol.accept_session(session_id)
            case events.StreamOpened(stream_id=stream_id):
                protocol.accept_stream(stream_id)
            case events.StreamDataReceived(stream_id=stream_id, data=data, ended=ended):
                protocol.consumed(stream_id, len(data))
                if not stream_id & 2:
                    held, _ = self.waiting.get(stream_id, (b"", False))
                    self.waiting[stream_id] = (held + data, ended)
                    self.write(stream_id)
            case events.StreamWritable(stream_id=stream_id):
                self.write(stream_id)

    def write(self, stream_id):
        data, ended = self.waiting.get(stream_id, (b"", False))
        protocol = self.end.protocol
        room = protocol.room(stream_id)
        chunk, rest = data[:room], data[room:]
        if chunk or (ended and not rest):
            assert protocol.send_stream(stream_id, chunk, ended and not rest)
        self.waiting[stream_id] = (rest, ended)
        if rest:
            protocol.want_room(stream_id)
        elif ended:
            del self.waiting[stream_id]


class Writer(Echo):
    """The other side: it writes, reads what comes back, and sends nothing in answer."""

    def react(self, event):
        protocol = self.end.protocol
        match event:
            case events.StreamDataReceived(stream_id=stream_id, data=data):
                protocol.consumed(stream_id, len(data))
            case events.StreamWritable(stream_id=stream_id):
                self.write(stream_id)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", range(6))
def test_every_byte_arrives_and_comes_back(name, seed):
    config = SMALL if seed % 2 else PATIENT
    pair = Pair(
        client=ClientConfig(**config), server=ServerConfig(**config), seed=seed, **NETWORKS[name]
    )
    pair.run_until(lambda: pair.client.protocol.ready)
    session_id = pair.client.protocol.open_session("example.test", "/")
    pair.run_until(lambda: pair.server is not None)
    Echo(pair, pair.server)
    # What happened before there was an application.
    for event in pair.server.of(events.SessionRequested):
        pair.server.protocol.accept_session(event.session_id)
    pair.run_until(lambda: pair.client.of(events.SessionAccepted))
    writer = Writer(pair, pair.client)
    sizes = {}
    for number in range(12):
        stream_id = pair.client.protocol.open_stream(session_id, number % 3 == 0)
        sizes[stream_id] = pair.random.choice((0, 1, 1000, 15_000, 60_000))
        writer.waiting[stream_id] = (body(stream_id, sizes[stream_id]), True)
        writer.write(stream_id)
        pair.run(pair.random.random() * 0.1)

    def done():
        return not pair.client.protocol.streams and not pair.server.protocol.streams

    pair.run_until(done, 300.0)
    assert not pair.client.of(events.ConnectionEnded)
    for stream_id, size in sizes.items():
        expected = hashlib.sha256(body(stream_id, size)).digest()
        assert hashlib.sha256(pair.server.data(stream_id)).digest() == expected
        if not stream_id & 2:
            assert hashlib.sha256(pair.client.data(stream_id)).digest() == expected
    flows = [end.protocol.sessions[session_id].flow for end in pair.ends()]
    assert flows[0].sent == flows[1].received == flows[1].consumed
    assert flows[1].sent == flows[0].received == flows[0].consumed
    pair.client.protocol.close_session(session_id, 5, "done")
    pair.run(30.0)
    assert pair.server.last(events.SessionEnded).reason == "done"
    assert leftovers(pair.client.protocol) == leftovers(pair.server.protocol) == {}
    assert pair.budget[True].buffered == pair.budget[False].buffered == 0


@pytest.mark.parametrize("seed", range(20))
def test_random_resets_and_stops_under_loss_leave_nothing_behind(seed):
    pair = Pair(
        loss=0.15,
        jitter=0.02,
        seed=seed,
        client=ClientConfig(**SMALL),
        server=ServerConfig(**PATIENT),
    )
    session_id = pair.session()
    for end in pair.ends():
        # Peers that know RESET_STREAM_AT, and peers that do not.
        end.protocol.quic._quic.partial_resets = seed % 2 == 0
    streams = {}
    for end in pair.ends():
        end.react = lambda e, end=end: (
            end.protocol.consumed(e.stream_id, len(e.data))
            if isinstance(e, events.StreamDataReceived)
            else None
        )
    for _ in range(25):
        end = pair.random.choice(pair.ends())
        stream_id = end.protocol.open_stream(session_id, pair.random.random() < 0.5)
        if stream_id is not None:
            streams[stream_id] = end
            end.protocol.send_stream(
                stream_id, bytes(min(end.protocol.room(stream_id), pair.random.randrange(9000)))
            )
        for _ in range(pair.random.randrange(3)):
            stream_id = pair.random.choice(list(streams) or [0])
            end = pair.random.choice(pair.ends())
            action = pair.random.choice(("reset_stream", "stop_stream", "end"))
            if action == "end":
                end.protocol.send_stream(stream_id, b"", True)
            else:
                getattr(end.protocol, action)(stream_id, pair.random.randrange(2**32))
        pair.run(pair.random.random() * 0.05)
    for stream_id in streams:
        for end in pair.ends():
            if pair.random.random() < 0.5:
                end.protocol.reset_stream(stream_id)
            else:
                end.protocol.send_stream(stream_id, b"", True)
    pair.run(60.0)
    for stream_id in streams:
        for end in pair.ends():
            end.protocol.reset_stream(stream_id)
    pair.run(60.0)
    assert not pair.client.of(events.ConnectionEnded)
    assert not pair.client.protocol.streams
    assert not pair.server.protocol.streams
    flows = [end.protocol.sessions[session_id].flow for end in pair.ends()]
    assert flows[0].sent == flows[1].received == flows[1].consumed
    assert flows[1].sent == flows[0].received == flows[0].consumed
    pair.client.protocol.close_session(session_id)
    pair.run(60.0)
    assert leftovers(pair.client.protocol) == leftovers(pair.server.protocol) == {}


@pytest.mark.parametrize("seed", range(10))
def test_handshake_survives_any_network(seed):
    pair = Pair(loss=0.3, jitter=0.05, seed=seed)
    pair.run_until(lambda: pair.client.protocol.ready, 120.0)
    assert pair.client.protocol.missing_requirement() is None


# Garbage


def check(peer):
    """After anything at all: the connection lives, or has ended once with a code."""
    protocol = peer.protocol
    ended = peer.end.of(events.ConnectionEnded)
    assert len(ended) <= 1
    assert bool(ended) == protocol.quic.closed
    if ended:
        assert isinstance(ended[0].code, int)
        assert not protocol.sessions
        assert not protocol.streams
        assert peer.budget.buffered == 0
    else:
        # It still does its work.
        peer.run(0.1)
    protocol.datagrams_to_send(peer.now)


def capsule_like(draw):
    kind = draw(st.sampled_from([0x2843, 0x78AE, 0x190B4D3D, 0x190B4D3F, 0x190B4D40, 0x21]))
    payload = draw(st.binary(max_size=20))
    return encode_varint(kind) + encode_varint(draw(st.integers(0, 30))) + payload


@st.composite
def stream_bytes(draw):
    """Draw bytes that look like what a stream of HTTP/3 or WebTransport may carry."""
    parts = []
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.integers(0, 6))
        if kind == 0:
            parts.append(draw(st.binary(max_size=30)))
        elif kind == 1:
            parts.append(
                frame(draw(st.sampled_from([0, 1, 3, 4, 5, 7, 13, 0x41, 0x21])), draw(st.binary()))
            )
        elif kind == 2:
            parts.append(frame(0, capsule_like(draw)))
        elif kind == 3:
            parts.append(draw(st.sampled_from([b"\x40\x41", b"\x40\x54", b"\x00", b"\x02", b"\3"])))
        elif kind == 4:
            parts.append(encode_varint(draw(st.sampled_from([0, 1, 4, 8, 400, 2**62 - 1]))))
        elif kind == 5:
            names = draw(
                st.lists(st.tuples(st.binary(min_size=1, max_size=9), st.binary(max_size=9)))
            )
            parts.append(frame(1, header_block([*connect_headers(), *names])))
        else:
            parts.append(frame(1, header_block(connect_headers())))
    return b"".join(parts)


@given(is_client=st.booleans(), data=st.data())
@settings(max_examples=60)
def test_any_bytes_on_any_streams_are_survived(is_client, data):
    peer = raw.client() if is_client else raw.server()
    if data.draw(st.booleans()):
        peer.session(accept=data.draw(st.booleans()))
    for _ in range(data.draw(st.integers(1, 5))):
        content = data.draw(stream_bytes())
        unidirectional = data.draw(st.booleans())
        if not is_client and data.draw(st.booleans()):
            stream_id = 0
        else:
            stream_id = peer.quic.get_next_available_stream_id(is_unidirectional=unidirectional)
        try:
            pieces = data.draw(cuts(content))
            for piece in pieces:
                peer.send(stream_id, piece)
            match data.draw(st.integers(0, 3)):
                case 0:
                    peer.send(stream_id, b"", True)
                case 1:
                    peer.reset(stream_id, data.draw(st.integers(0, 2**62 - 1)))
                case 2 if not stream_id & 2:
                    peer.stop(stream_id, data.draw(st.integers(0, 2**62 - 1)))
        except (ValueError, RuntimeError):
            pass  # aioquic does not let the peer go on: we stopped it
        if data.draw(st.booleans()):
            peer.datagram(data.draw(st.binary(max_size=20)))
        # The application answers whatever it is asked.
        for event in peer.end.of(events.SessionRequested):
            peer.protocol.accept_session(event.session_id)
        peer.run(0.05)
    check(peer)


@given(is_client=st.booleans(), payload=st.binary(max_size=200))
@settings(max_examples=60)
def test_any_payload_of_a_packet_is_survived(is_client, payload):
    peer = raw.client() if is_client else raw.server()
    peer.session()
    peer.inject(payload)
    check(peer)


FRAME_TYPES = st.sampled_from([*range(0x20), 0x24, 0x30, 0x31, 0x40, 0x173E])
SMALL_INTEGERS = st.sampled_from([0, 1, 2, 3, 4, 5, 8, 1000, 2**20, 2**60, 2**62 - 1])


@given(
    is_client=st.booleans(),
    frames=st.lists(
        st.tuples(FRAME_TYPES, st.lists(SMALL_INTEGERS, max_size=5), st.binary(max_size=8)),
        min_size=1,
        max_size=4,
    ),
)
@settings(max_examples=120)
def test_any_frames_of_quic_are_survived(is_client, frames):
    peer = raw.client() if is_client else raw.server()
    session_id = peer.session()
    peer.protocol.open_stream(session_id, False)
    peer.run()
    for kind, numbers, rest in frames:
        peer.inject(encode_varint(kind) + b"".join(map(encode_varint, numbers)) + rest)
    check(peer)


@given(data=st.data())
@settings(max_examples=60)
def test_damaged_datagrams_are_survived(data):
    pair = Pair()
    victim = data.draw(st.booleans())

    def damage(to_server, datagram):
        if to_server != victim or not data.draw(st.booleans()):
            return True
        damaged = bytearray(datagram)
        for _ in range(data.draw(st.integers(1, 4))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        damaged = damaged[: data.draw(st.integers(0, len(damaged)))]
        end = pair.server if to_server else pair.client
        if end is not None:
            end.take(
                end.protocol.receive_datagrams(
                    [bytes(damaged)], CLIENT if to_server else SERVER, pair.now
                )
            )
        elif to_server:
            classify(bytes(damaged))
        return True

    pair.filter = damage
    pair.run(0.2)
    pair.filter = lambda to_server, datagram: True
    pair.run_until(
        lambda: pair.client.protocol.ready or pair.client.of(events.ConnectionEnded), 120.0
    )


@given(st.lists(st.binary(max_size=1500), max_size=5))
@settings(max_examples=40)
def test_strangers_cannot_harm_a_connection(datagrams):
    peer = raw.server()
    session_id = peer.session()
    peer.end.take(peer.protocol.receive_datagrams(datagrams, ("203.0.113.9", 1), peer.now))
    peer.run()
    assert peer.close_code is None
    assert peer.protocol.sessions[session_id].live


def test_nothing_is_logged_whatever_a_peer_does(caplog):
    caplog.set_level(logging.DEBUG)
    for is_client in (True, False):
        peer = raw.client() if is_client else raw.server()
        # The peer is aioquic as it comes, and talks.
        peer.quic._logger = peer.quic._loss._logger = SILENT
        session_id = peer.session()
        stream_id = peer.wt_uni(session_id, b"x", run=True)
        caplog.clear()
        peer.reset(stream_id, 5)
        peer.inject(b"\x40\x41garbage")
        peer.run(1.0)
        assert peer.protocol.quic.closed
        assert not caplog.records
    caplog.clear()
    pair = Pair(loss=0.2, seed=3)
    session_id = pair.session()
    pair.client.protocol.abort_session(session_id)
    pair.run(1.0)
    pair.client.protocol.close()
    pair.run(10.0)
    assert not caplog.records
