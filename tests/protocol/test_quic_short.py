"""
The short ways in and out of aioquic's connection (quicreceive.py, quicsend.py), and parked streams.

They do again what methods of aioquic do, for the usual case. The first tests hold those methods to
the text that they were written after: a release that changes one must be read before it is let in.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
from contextlib import suppress

import pytest
from aioquic._crypto import AEAD, CryptoError, HeaderProtection
from aioquic.quic import packet_builder
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection, QuicNetworkPath
from aioquic.quic.crypto import CryptoContext, CryptoPair
from aioquic.quic.packet_builder import QuicDeliveryState
from aioquic.quic.recovery import QuicPacketRecovery, QuicPacketSpace
from aioquic.quic.stream import QuicStream, QuicStreamReceiver, QuicStreamSender
from aioquic.tls import CipherSuite, Epoch

from gwt import certificates
from gwt.config import ClientConfig, ServerConfig
from gwt.protocol import events
from gwt.protocol.quiccrypto import open_packet, seal_packet
from gwt.protocol.quicreceive import Receiving, StreamData
from gwt.protocol.quicsend import Sending
from tests.helpers import pair as pairs
from tests.helpers import raw
from tests.helpers.pair import Pair

AIOQUIC = importlib.metadata.version("aioquic")

# Methods that are done again, or whose conditions are asked again, with the digest of their source.
DONE_AGAIN = {
    QuicConnection.receive_datagram: "3c7f29826050cbfe",
    QuicConnection._payload_received: "612b67759a96c701",
    QuicConnection._handle_stream_frame: "8c79348a854e307d",
    QuicConnection.datagrams_to_send: "f4eb22c8add260fe",
    QuicConnection.get_timer: "07184a05f894e968",
    QuicPacketRecovery.get_loss_detection_time: "de155cb9bef95f8e",
    QuicConnection._write_application: "c37bf64378f72b2f",
    QuicConnection._write_stream_frame: "9bc0be962394a322",
    QuicConnection._write_stream_limits: "398d4a898f7c580f",
    QuicConnection._write_datagram_frame: "ec62fd6f1ce24a10",
    QuicConnection._write_ping_frame: "cfcbc98ac33c49b2",
    QuicConnection._write_ack_frame: "dc0bde63adda7ae4",
    QuicConnection._write_connection_limits: "02c42c5455ae1a31",
    QuicConnection._flush_builder: "ac4bd66d7c3892df",
    AEAD.encrypt: "dcd48e4cec215a20",
    AEAD.decrypt: "3cb5f698b2ee2dc4",
    AEAD._nonce: "cdb45a754af0032d",
    HeaderProtection.apply: "dfbedf5f0cb7f981",
    HeaderProtection.remove: "86c5aacd3c9c1024",
    CryptoContext.encrypt_packet: "fe4c0f9b61d15b01",
    CryptoContext.decrypt_packet: "fe94c52f762d3f3d",
    CryptoPair.encrypt_packet: "f244294823e49235",
    CryptoPair.decrypt_packet: "2d2c3a3bf1295a27",
    QuicStreamReceiver.handle_frame: "c54bce9f11e6f2de",
    QuicStreamSender.get_frame: "c9d68a424b94b52b",
}


def digest(method):
    return hashlib.sha256(inspect.getsource(method).encode()).hexdigest()[:16]


@pytest.mark.parametrize("method", DONE_AGAIN, ids=lambda method: method.__qualname__)
def test_what_is_done_again_is_as_it_was_read(method):
    assert digest(method) == DONE_AGAIN[method], (
        f"aioquic {AIOQUIC} has changed {method.__qualname__}: read it, and bring "
        "gwt/protocol/quicreceive.py, quicsend.py or quicstream.py in line with it"
    )


def test_what_the_short_ways_touch_is_there():
    connection = QuicConnection(configuration=QuicConfiguration(is_client=True))
    connection.connect(("192.0.2.1", 1), 0.0)
    for name in (
        "_ack_delay",
        "_ack_eliciting_sent_since_receipt",
        "_close_at",
        "_close_pending",
        "_configuration",
        "_crypto_buffers",
        "_crypto_streams",
        "_cryptos",
        "_events",
        "_handshake_confirmed",
        "_handshake_done_pending",
        "_host_cids",
        "_local_ack_delay_exponent",
        "_local_max_data",
        "_local_max_streams_bidi",
        "_local_max_streams_uni",
        "_loss_at",
        "_packet_number",
        "_pacing_at",
        "_ping_pending",
        "_probe_pending",
        "_quic_logger",
        "_QuicConnection__frame_handlers",
        "_remote_max_data",
        "_remote_max_data_used",
        "_remote_preferred_address",
        "_retire_connection_ids",
        "_spin_bit",
        "_spin_highest_pn",
        "_streams_blocked_pending",
    ):
        assert hasattr(connection, name), name
    for name in ("_pto_count", "_time_of_last_sent_ack_eliciting_packet"):
        assert hasattr(connection._loss, name), name
    for name in ("_idle_timeout", "_on_ack_delivery"):
        assert callable(getattr(connection, name)), name
    assert connection._host_cids[0].was_sent is True
    path = connection._network_paths[0]
    assert isinstance(path, QuicNetworkPath)
    assert (path.bytes_sent, list(path.remote_challenges)) == (0, [])
    assert isinstance(path.is_validated, bool)
    assert (path.local_challenge_sent, path.peer_cid) == (False, None)
    assert connection._cryptos[Epoch.ONE_RTT].key_phase == 0
    assert set(connection._crypto_buffers) == {Epoch.INITIAL, Epoch.HANDSHAKE, Epoch.ONE_RTT}
    handler, epochs = connection._QuicConnection__frame_handlers[0x06]
    assert handler.__func__ is QuicConnection._handle_crypto_frame
    assert Epoch.ONE_RTT in epochs


def test_every_frame_is_allowed_in_short_packets():
    # What lets `_payload_received` leave the question out for them.
    connection = QuicConnection(configuration=QuicConfiguration(is_client=True))
    for _, epochs in connection._QuicConnection__frame_handlers.values():
        assert Epoch.ONE_RTT in epochs


def test_what_is_remembered_of_packets_and_streams_is_there():
    space = QuicPacketSpace()
    assert space.ack_at is None
    assert space.largest_received_time is None
    assert space.largest_received_packet == -1
    assert space.expected_packet_number == 0
    assert 0 not in space.received_packets
    fields = packet_builder.QuicSentPacket.__dataclass_fields__
    assert list(fields)[:9] == [
        "epoch",
        "in_flight",
        "is_ack_eliciting",
        "is_crypto_packet",
        "packet_number",
        "packet_type",
        "sent_time",
        "sent_bytes",
        "delivery_handlers",
    ]
    stream = QuicStream(stream_id=0)
    receiver, sender = stream.receiver, stream.sender
    assert (receiver._buffer_start, receiver._buffer, receiver._final_size) == (0, b"", None)
    assert (receiver.stop_pending, stream.is_blocked) == (False, False)
    assert callable(receiver.on_stop_sending_delivery)
    assert (sender._pending_eof, sender.next_offset, sender.buffer_is_empty) == (False, 0, True)
    assert packet_builder.PACKET_NUMBER_SEND_SIZE == 2
    assert CryptoPair().aead_tag_size == 16
    assert CryptoPair()._update_key_requested is False
    aead = AEAD(b"aes-128-gcm", bytes(16), bytes(12))
    assert (aead._iv, callable(aead._aead.encrypt)) == (0, True)
    assert len(HeaderProtection(b"aes-128-ecb", bytes(16))._mask(bytes(16))) == 16
    for owner, name in (
        (QuicPacketRecovery, "on_packet_sent"),
        (CryptoPair, "encrypt_packet"),
        (CryptoPair, "decrypt_packet"),
        (CryptoContext, "is_valid"),
    ):
        assert callable(getattr(owner, name))


# The ways


class Counted:
    """How often aioquic's own ways are taken."""

    def __init__(self, monkeypatch):
        self.calls = {"receive_datagram": 0, "datagrams_to_send": 0}
        for name in self.calls:
            self._count(monkeypatch, name)

    def _count(self, monkeypatch, name):
        method = getattr(QuicConnection, name)

        def counted(*args, **kwargs):
            self.calls[name] += 1
            return method(*args, **kwargs)

        monkeypatch.setattr(QuicConnection, name, counted)


def read_all(end):
    """Let an end accept and consume whatever comes."""

    def react(event):
        if isinstance(event, events.StreamOpened):
            end.protocol.accept_stream(event.stream_id)
        elif isinstance(event, events.StreamDataReceived):
            end.protocol.consumed(event.stream_id, len(event.data))

    end.react = react


def open_and_write(end, session, data, ended=True):
    stream = end.protocol.open_stream(session, unidirectional=False)
    end.protocol.send_stream(stream, data, ended)
    return stream


def test_what_is_usual_takes_the_short_ways(monkeypatch):
    pair = Pair()
    session = pair.session()
    pair.run(1.0)
    read_all(pair.server)
    counted = Counted(monkeypatch)
    data = bytes(range(256)) * 400
    stream = open_and_write(pair.client, session, data)
    for number in range(50):
        pair.client.protocol.send_datagram(session, b"%d" % number)
    pair.run(5.0)
    assert pair.server.data(stream) == data
    assert len(pair.server.of(events.DatagramReceived)) == 50
    packets = pair.server.protocol.quic.packets_received
    assert packets > 80
    # Credit and connection ids go the long way.
    assert counted.calls["receive_datagram"] < 5
    assert counted.calls["datagrams_to_send"] < 15


def test_all_pieces_of_a_wake_up_come_as_one(monkeypatch):
    pair = Pair()
    session = pair.session()
    pair.run(1.0)
    quic = pair.server.protocol.quic._quic
    stream = open_and_write(pair.client, session, bytes(8000))
    sent = [data for data, _ in pair.client.protocol.datagrams_to_send(pair.now)]
    assert len(sent) > 2
    pair.server.protocol.quic.feed(sent, pairs.CLIENT, pair.now)
    (found,) = [event for event in quic._events if isinstance(event, StreamData)]
    assert (found.stream_id, found.ended) == (stream, False)
    assert 2000 < len(found.data) < 8003
    assert 1 < len(found.pieces) <= len(sent)


def test_packets_of_others_and_repeated_ones_are_counted():
    pair = Pair()
    session = pair.session()
    pair.run(1.0)
    open_and_write(pair.client, session, b"once")
    ((data, _),) = pair.client.protocol.datagrams_to_send(pair.now)
    damaged = data[:-1] + bytes((data[-1] ^ 1,))
    quic = pair.server.protocol.quic
    before = quic.stats()
    quic.feed([data, data, damaged, data[:12]], pairs.CLIENT, pair.now)
    after = quic.stats()
    assert after["packets_ignored"] - before["packets_ignored"] == 3
    assert not quic.closed


@pytest.mark.parametrize(
    "first, payload, code",
    [
        (0x41 | 0x18, b"\x01\x01\x01\x01", 0xA),  # Reserved bits: PROTOCOL_VIOLATION.
        (0x41, b"\x3f\x00\x00\x00", 0x7),  # An unknown frame: FRAME_ENCODING_ERROR.
        (0x41, b"\x01\x01\x01\x40", 0x7),  # Half a frame type.
        (0x41, b"\x01\x01\x0a\x00", 0x7),  # Half a STREAM frame.
        (0x41, b"\x0a\x01\x01", 0x5),  # A stream of ours that does not exist.
    ],
)
def test_broken_packets_close_with_their_code(first, payload, code):
    pair = Pair()
    pair.session()
    pair.run(1.0)
    client, server = (end.protocol.quic._quic for end in pair.ends())
    number = client._packet_number
    header = bytes((first,)) + server.host_cid + number.to_bytes(2, "big")
    payload += bytes(8) if payload[:1] == b"\x0a" else b""
    packet = client._cryptos[Epoch.ONE_RTT].encrypt_packet(header, payload, number)
    pair.server.take(pair.server.protocol.receive_datagrams([packet], pairs.CLIENT, pair.now))
    assert pair.server.last(events.ConnectionEnded).code == code


def test_keys_are_renewed_on_the_short_ways():
    pair = Pair()
    session = pair.session()
    pair.run(1.0)
    read_all(pair.server)
    pair.client.protocol.quic._quic.request_key_update()
    stream = open_and_write(pair.client, session, bytes(30_000))
    pair.run(2.0)
    assert len(pair.server.data(stream)) == 30_000
    assert [end.protocol.quic._quic._cryptos[Epoch.ONE_RTT].key_phase for end in pair.ends()] == [
        1,
        1,
    ]


@pytest.mark.parametrize(
    "suite",
    [
        CipherSuite.AES_128_GCM_SHA256,
        CipherSuite.AES_256_GCM_SHA384,
        CipherSuite.CHACHA20_POLY1305_SHA256,
    ],
)
@pytest.mark.parametrize("number", [0, 1, 255, 65535, 65536, 5_000_000])
def test_packets_are_protected_as_aioquic_does(suite, number):
    ours, theirs = CryptoPair(), CryptoPair()
    for context in (ours.send, ours.recv, theirs.send, theirs.recv):
        context.setup(cipher_suite=suite, secret=bytes(range(32)), version=1)
    cid, payload = b"12345678", b"\x01payload"
    header = b"\x41" + cid + (number & 0xFFFF).to_bytes(2, "big")
    packet = seal_packet(ours, 0x41, cid, number, payload)
    assert packet == theirs.encrypt_packet(header, payload, number)
    assert open_packet(ours, packet, 9, number) == (0x41, payload, number)
    assert theirs.decrypt_packet(packet, 9, number) == (header, payload, number)
    for broken in (packet[:24], packet[:-1], packet[:-1] + bytes((packet[-1] ^ 1,))):
        with pytest.raises(CryptoError):
            open_packet(ours, broken, 9, number)


# Parked streams


def test_streams_with_nothing_to_send_are_parked_and_wake_again():
    config = {"max_incoming_streams": 2048}
    pair = Pair(client=ClientConfig(), server=ServerConfig(**config))
    session = pair.session()
    pair.run(1.0)
    streams = [open_and_write(pair.client, session, b"x", False) for _ in range(300)]
    pair.run(1.0)
    for end in pair.ends():
        assert end.protocol.quic._quic._streams_queue == []
    for stream in streams:
        pair.server.protocol.accept_stream(stream)
        pair.client.protocol.send_stream(stream, b"y", True)
        pair.server.protocol.send_stream(stream, b"z", True)
    pair.run(1.0)
    assert all(pair.server.data(stream) == b"xy" for stream in streams)
    assert all(pair.client.data(stream) == b"z" for stream in streams)
    for stream in streams:
        pair.server.protocol.consumed(stream, 2)
        pair.client.protocol.consumed(stream, 1)
    pair.run(1.0)
    for end in pair.ends():
        assert not end.protocol.streams
        assert not set(streams) & set(end.protocol.quic._quic._streams)


@pytest.mark.parametrize("action", ["reset_stream", "stop_stream"])
def test_a_parked_stream_is_reset_and_stopped(action):
    pair = Pair()
    session = pair.session()
    stream = open_and_write(pair.client, session, b"x", False)
    pair.run(1.0)
    getattr(pair.client.protocol, action)(stream, 7)
    pair.run(1.0)
    kind = events.StreamReset if action == "reset_stream" else events.StreamStopped
    assert pair.server.last(kind).code == 7


@pytest.mark.parametrize("way", ["short", "long"])
@pytest.mark.parametrize("limit", ["stream", "connection"])
def test_streams_that_wait_for_credit_are_parked_and_wake_with_it(limit, way, monkeypatch):
    pair = Pair()
    session = pair.session()
    pair.run(1.0)
    quic = pair.client.protocol.quic._quic
    if way == "long":
        monkeypatch.setattr(quic, "_something_else_to_send", lambda: True)
    if limit == "connection":
        quic._remote_max_data = quic._remote_max_data_used + 20_000
    streams = [open_and_write(pair.client, session, bytes(40_000)) for _ in range(20)]
    pair.run(1.0)
    assert quic._streams_queue == []
    sent = sum(pair.client.protocol.quic.sent(stream) for stream in streams)
    assert sent == (20_000 if limit == "connection" else 20 * 16 * 1024)
    # What was lost is sent again without new credit.
    lost = quic._streams[streams[0]].sender
    lost.on_data_delivery(QuicDeliveryState.LOST, 0, 100, False)
    pair.run(1.0)
    assert quic._streams_queue == [] and lost.next_offset > 100
    read_all(pair.server)
    for stream in streams:
        pair.server.protocol.accept_stream(stream)
        pair.server.protocol.consumed(stream, len(pair.server.data(stream)))
    if limit == "connection":
        pair.server.protocol.quic._quic._local_max_data.value += 1
    pair.run(5.0)
    assert [len(pair.server.data(stream)) for stream in streams] == [40_000] * 20
    assert not set(streams) & {stream.stream_id for stream in quic._streams_queue}


def test_a_lost_stop_and_a_lost_limit_are_sent_again():
    pair = Pair()
    session = pair.session()
    stream = open_and_write(pair.client, session, bytes(10_000), False)
    pair.run(1.0)
    pair.server.protocol.accept_stream(stream)
    lost = []
    pair.filter = lambda to_server, data: to_server or bool(lost.append(data))
    pair.run(0.01)
    pair.server.protocol.consumed(stream, 10_000)
    pair.run(0.01)
    assert lost
    pair.filter = lambda to_server, data: True
    pair.run(3.0)
    assert pair.client.protocol.quic.send_limit(stream) > 1 << 20
    pair.filter = lambda to_server, data: to_server
    pair.server.protocol.stop_stream(stream, 9)
    pair.run(0.01)
    pair.filter = lambda to_server, data: True
    pair.run(3.0)
    assert pair.client.last(events.StreamStopped).code == 9


# Taking from a stream


@pytest.mark.parametrize(
    "written, ended, takes, expected",
    [
        (b"abcdef", False, [(4, 99), (4, 99), (4, 99)], [(b"abcd", False), (b"ef", False), None]),
        (b"abcdef", True, [(6, 99)], [(b"abcdef", True)]),
        (b"abcdef", True, [(9, 4), (9, 4)], [(b"abcd", False), None]),
        (b"", True, [(-1, 99), (0, 99), (0, 99)], [None, (b"", True), None]),
        (b"abc", True, [(0, 99), (-3, 99)], [None, None]),
    ],
)
def test_taking_from_a_stream(written, ended, takes, expected):
    pair = Pair()
    session = pair.session()
    stream = pair.client.protocol.open_stream(session, unidirectional=True)
    pair.run(1.0)
    sender = pair.client.protocol.quic._quic._streams[stream].sender
    base = sender.next_offset
    sender.write(written, ended)
    assert [sender.take(room, base + limit) for room, limit in takes] == expected
    taken = b"".join(data for data, _ in filter(None, expected))
    done = taken == written and (not ended or expected[-1] != (written, False))
    assert sender.buffer_is_empty == (done and (not ended or any(e and e[1] for e in expected)))
    assert sender.highest_offset == base + len(taken)


# What a handshake needs of memory


def test_buffers_of_the_handshake_are_small_and_go(monkeypatch):
    pair = Pair()
    pair.run_until(lambda: pair.server is not None)
    sizes = [
        sum(buf.capacity for buf in end.protocol.quic._quic._crypto_buffers.values())
        for end in pair.ends()
    ]
    assert max(sizes) < 8192
    pair.session()
    for end in pair.ends():
        buffers = end.protocol.quic._quic._crypto_buffers
        assert {epoch: buf.capacity for epoch, buf in buffers.items()} == {Epoch.ONE_RTT: 512}
        assert not hasattr(end.protocol.quic._quic, "_QuicConnection__frame_handlers")


def test_a_long_chain_of_certificates_fits(monkeypatch):
    cert = certificates.generate(["example.test"] + [f"{i}.example.test" for i in range(200)])

    def options(config, *, is_client):
        if is_client:
            return original(config, is_client=True)
        return pairs.QuicOptions.of(
            config,
            is_client=False,
            certificate=cert.certificate,
            chain=(cert.certificate,) * 5,
            private_key=cert.private_key,
        )

    original = pairs.quic_options
    monkeypatch.setattr(pairs, "quic_options", options)
    pair = Pair()
    pair.session()
    assert len(cert.certificate.public_bytes(certificates.Encoding.DER)) * 6 > 16384


def test_no_way_is_short_before_the_handshake_is_confirmed():
    peer = raw.server()
    quic = peer.protocol.quic._quic
    assert isinstance(quic, Sending)
    assert isinstance(quic, Receiving)
    with suppress(StopIteration):
        assert quic._short_keys is not None
    fresh = Pair()
    assert fresh.client.protocol.quic._quic._short_keys is None
