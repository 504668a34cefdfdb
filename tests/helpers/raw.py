"""
A protocol of ours against a bare aioquic connection, which says whatever a test wants it to say.

There is no latency and no loss here; helpers/pair.py has those. Time is virtual.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pylsqpack
from aioquic.h3.connection import H3Connection
from aioquic.quic import events as quic_events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.tls import Epoch

from gwt.config import ClientConfig, ServerConfig, TransportConfig
from gwt.protocol import codes, events
from gwt.protocol.capsules import encode_varint
from gwt.protocol.quic import Quic
from gwt.protocol.seam import SendBudget
from gwt.protocol.webtransport import WebTransport

from .pair import CLIENT, SERVER, End, certificate, quic_options

DATA, HEADERS, SETTINGS, GOAWAY = 0x0, 0x1, 0x4, 0x7

# What Chromium 156 sends, as measured.
CHROMIUM = {0x1: 65536, 0x6: 16384, 0x7: 100, 0x33: 1, 0xFFD277: 1, 0x2B603742: 1, 0x1F9: 7}

DRAFT16 = {0x33: 1, codes.SETTING_WT_ENABLED: 1}

# A server of draft 16.
DRAFT16_SERVER = {**DRAFT16, 0x8: 1}


def frame(kind: int, payload: bytes) -> bytes:
    """Encode one HTTP/3 frame."""
    return encode_varint(kind) + encode_varint(len(payload)) + payload


def header_block(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Encode headers with QPACK's static table."""
    _, block = pylsqpack.Encoder().encode(0, list(headers))
    return bytes(block)


def settings_frame(settings: Mapping[int, int]) -> bytes:
    pairs = settings.items()
    return frame(SETTINGS, b"".join(encode_varint(k) + encode_varint(v) for k, v in pairs))


def connect_headers(
    *extra: tuple[bytes, bytes], protocol: bytes = b"webtransport-h3", path: bytes = b"/"
) -> list[tuple[bytes, bytes]]:
    return [
        (b":method", b"CONNECT"),
        (b":protocol", protocol),
        (b":scheme", b"https"),
        (b":authority", b"example.test"),
        (b":path", path),
        *extra,
    ]


CHROMIUM_CONNECT = connect_headers(codes.DRAFT02_REQUEST, protocol=b"webtransport")


def one_rtt(quic: Any, payload: bytes, *, is_client: bool = True) -> list[bytes]:
    """Build a 1-RTT packet of a connection's around any payload."""
    builder = QuicPacketBuilder(
        host_cid=quic.host_cid,
        is_client=is_client,
        max_datagram_size=1200,
        packet_number=quic._packet_number,
        peer_cid=quic._peer_cid.cid,
        version=quic._version,
    )
    builder.start_packet(QuicPacketType.ONE_RTT, quic._cryptos[Epoch.ONE_RTT])
    if payload:
        builder._buffer.push_bytes(payload[:1100])
        builder._packet.in_flight = builder._packet.is_ack_eliciting = False
    datagrams, _ = builder.flush()
    quic._packet_number = builder.packet_number
    return datagrams


class Raw:
    """One protocol of ours (`end`) and the aioquic connection that is its peer (`quic`)."""

    def __init__(
        self,
        *,
        is_client: bool,
        config: TransportConfig | None = None,
        settings: Mapping[int, int] | None = None,
        h3: Callable[[QuicConnection], H3Connection] | None = None,
        max_datagram_frame_size: int | None = 65536,
        **peer_options: Any,
    ) -> None:
        """
        Make both; `is_client` says which side is ours. With `settings` the peer opens the three
        streams of HTTP/3; with `h3` it is what that returns.
        """
        self.now = 1000.0
        self.is_client = is_client
        self.settings = settings
        self.make_h3 = h3
        self.h3: H3Connection | None = None
        self.config = config or (ClientConfig() if is_client else ServerConfig())
        self.budget = SendBudget()
        self.end: End = None  # type: ignore[assignment]

        # What the peer saw.
        self.received: dict[int, bytearray] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.stops: dict[int, int] = {}
        self.datagrams: list[bytes] = []
        self.http: list[Any] = []

        # Called for each QUIC event of the peer's.
        self.react: Callable[[Any], None] | None = None

        options: dict[str, Any] = {
            "alpn_protocols": ["h3"],
            "is_client": not is_client,
            "max_datagram_frame_size": max_datagram_frame_size,
            "verify_mode": ssl.CERT_NONE,
            **peer_options,
        }
        if is_client:
            cert = certificate()
            self.configuration = QuicConfiguration(
                certificate=cert.certificate, private_key=cert.private_key, **options
            )
            self.quic: QuicConnection = None  # type: ignore[assignment]
            self.end = self._our_end()
            self.end.protocol.quic.connect(SERVER, self.now)
        else:
            self.configuration = QuicConfiguration(server_name="example.test", **options)
            self.quic = QuicConnection(configuration=self.configuration)
            self.quic.connect(SERVER, self.now)
        self.run()

    @property
    def protocol(self) -> WebTransport:
        return self.end.protocol

    def _our_end(self, destination: bytes | None = None) -> End:
        quic = Quic(
            quic_options(self.config, is_client=self.is_client),
            budget=self.budget,
            original_destination_connection_id=destination,
        )
        return End(WebTransport(quic, self.config))

    # The network

    def run(self, seconds: float = 0.2) -> None:
        """Exchange everything, and let `seconds` pass."""
        until = self.now + seconds
        for _ in range(100_000):
            if self._exchange():
                continue
            due = min(
                (t for t in self._timers() if t is not None),
                default=None,
            )
            if due is None or due > until:
                break
            self.now = max(self.now, due)
            if self.quic is not None and self.quic.get_timer() is not None:
                timer = self.quic.get_timer()
                if timer is not None and timer <= self.now:
                    self.quic.handle_timer(self.now)
            if self.end is not None:
                self.end.take(self.protocol.on_timer(self.now))
        else:
            raise AssertionError("the network never comes to rest")
        self.now = until

    def _timers(self) -> list[float | None]:
        ours = self.protocol.next_timer() if self.end is not None else None
        return [ours, self.quic.get_timer() if self.quic is not None else None]

    def _exchange(self) -> bool:
        moved = False
        if self.quic is not None:
            self._peer_events()
            for data, _ in self.quic.datagrams_to_send(self.now):
                moved = True
                if self.end is None:
                    self.end = self._our_end(data[6 : 6 + data[5]])
                address = SERVER if self.is_client else CLIENT
                self.end.take(self.protocol.receive_datagrams([data], address, self.now))
        if self.end is not None:
            self.end.take(self.protocol.next_events())
            for data, _ in self.protocol.datagrams_to_send(self.now):
                moved = True
                if self.quic is None:
                    self.quic = QuicConnection(
                        configuration=self.configuration,
                        original_destination_connection_id=data[6 : 6 + data[5]],
                    )
                self.quic.receive_datagram(data, CLIENT if self.is_client else SERVER, self.now)
                self._peer_events()
            self.end.take(self.protocol.next_events())
        return moved

    def _peer_events(self) -> None:
        while (event := self.quic.next_event()) is not None:
            match event:
                case quic_events.ProtocolNegotiated():
                    if self.make_h3 is not None:
                        self.h3 = self.make_h3(self.quic)
                    elif self.settings is not None:
                        self.send_settings(self.settings)
                case quic_events.StreamDataReceived():
                    self.received.setdefault(event.stream_id, bytearray()).extend(event.data)
                    if event.end_stream:
                        self.ended.add(event.stream_id)
                case quic_events.StreamReset():
                    self.resets[event.stream_id] = event.error_code
                case quic_events.StopSendingReceived():
                    self.stops[event.stream_id] = event.error_code
                case quic_events.DatagramFrameReceived():
                    self.datagrams.append(event.data)
            if self.h3 is not None:
                self.http += self.h3.handle_event(event)
            if self.react is not None:
                self.react(event)

    # What the peer does

    def send_settings(self, settings: Mapping[int, int]) -> None:
        """Open control, encoder and decoder streams."""
        self.uni(b"\x00" + settings_frame(settings))
        self.uni(b"\x02")
        self.uni(b"\x03")

    def send(self, stream_id: int, data: bytes, end: bool = False, *, run: bool = True) -> int:
        self.quic.send_stream_data(stream_id, data, end)
        if run:
            self.run()
        return stream_id

    def finish(self, stream_id: int) -> None:
        """End a stream, unless we have stopped it: aioquic resets it then by itself."""
        stream = self.quic._streams.get(stream_id)
        if stream is not None and stream.sender._reset_error_code is None:
            self.send(stream_id, b"", True)

    def uni(self, data: bytes, end: bool = False, *, run: bool = False) -> int:
        """Open a unidirectional stream with these bytes."""
        stream_id = self.quic.get_next_available_stream_id(is_unidirectional=True)
        return self.send(stream_id, data, end, run=run)

    def bidi(self, data: bytes, end: bool = False, *, run: bool = False) -> int:
        """Open a bidirectional stream with these bytes."""
        return self.send(self.quic.get_next_available_stream_id(), data, end, run=run)

    def request(
        self,
        headers: Sequence[tuple[bytes, bytes]] | None = None,
        end: bool = False,
        *,
        run: bool = True,
    ) -> int:
        """Send a request."""
        block = header_block(connect_headers() if headers is None else headers)
        return self.bidi(frame(HEADERS, block), end, run=run)

    def capsule(self, session_id: int, data: bytes, end: bool = False) -> None:
        """Send bytes of capsules in a DATA frame."""
        self.send(session_id, frame(DATA, data), end)

    def datagram(self, data: bytes) -> None:
        self.quic.send_datagram_frame(data)
        self.run()

    def reset(self, stream_id: int, code: int) -> None:
        self.quic.reset_stream(stream_id, code)
        self.run()

    def stop(self, stream_id: int, code: int) -> None:
        self.quic.stop_stream(stream_id, code)
        self.run()

    def inject(self, payload: bytes, address: tuple[str, int] | None = None) -> None:
        """Send a 1-RTT packet with any payload, perhaps from another address."""
        datagrams = one_rtt(self.quic, payload, is_client=not self.is_client)
        address = address or (SERVER if self.is_client else CLIENT)
        self.end.take(self.protocol.receive_datagrams(datagrams, address, self.now))

    # Ready-made

    def session(
        self, headers: Sequence[tuple[bytes, bytes]] | None = None, *, accept: bool = True
    ) -> int:
        """Bring up a session; returns its id."""
        if not self.is_client:
            session_id = self.request(headers)
            if accept:
                assert self.protocol.accept_session(session_id)
                self.run()
            return session_id
        opened = self.protocol.open_session("example.test", "/")
        assert opened is not None
        self.run()
        if accept:
            self.respond(opened)
        return opened

    def respond(
        self, session_id: int, status: int = 200, *extra: tuple[bytes, bytes], end: bool = False
    ) -> None:
        """Answer our request, as a server."""
        block = header_block([(b":status", b"%d" % status), *extra])
        self.send(session_id, frame(HEADERS, block), end)

    def responses(self, stream_id: int) -> list[list[tuple[bytes, bytes]]]:
        """Decode all header blocks that our server sent on a stream."""
        from gwt.protocol.capsules import pull_varint

        data, position, found = bytes(self.received.get(stream_id, b"")), 0, []
        while position < len(data):
            kind = pull_varint(data, position)
            length = kind and pull_varint(data, kind[1])
            if not kind or not length:
                break
            position = length[1] + length[0]
            if kind[0] == HEADERS:
                decoder = pylsqpack.Decoder(0, 0)
                found.append(decoder.feed_header(0, data[length[1] : position])[1])
        return found

    def status(self, stream_id: int) -> int:
        return int(dict(self.responses(stream_id)[-1])[b":status"])

    def wt_uni(
        self, session_id: int, data: bytes = b"", end: bool = False, *, run: bool = False
    ) -> int:
        """Open a unidirectional WebTransport stream."""
        return self.uni(b"\x40\x54" + encode_varint(session_id) + data, end, run=run)

    def wt_bidi(
        self, session_id: int, data: bytes = b"", end: bool = False, *, run: bool = False
    ) -> int:
        """Open a bidirectional WebTransport stream."""
        return self.bidi(b"\x40\x41" + encode_varint(session_id) + data, end, run=run)

    # What is left

    @property
    def close_code(self) -> int | None:
        """The code with which our side closed the connection; None while it lives."""
        ended = self.end.of(events.ConnectionEnded)
        assert len(ended) <= 1
        return ended[0].code if ended else None


def server(settings: Mapping[int, int] | None = None, **options: Any) -> Raw:
    """Our server and a raw client, which speaks draft 16 unless told otherwise."""
    return Raw(is_client=False, settings=DRAFT16 if settings is None else settings, **options)


def client(settings: Mapping[int, int] | None = None, **options: Any) -> Raw:
    """Our client and a raw server, which speaks draft 16 unless told otherwise."""
    return Raw(is_client=True, settings=DRAFT16_SERVER if settings is None else settings, **options)


def leftovers(protocol: WebTransport) -> dict[str, Any]:
    """
    Return everything that a protocol still keeps of sessions and streams, without what is empty.

    Between any two tests of a connection that is at rest this is {}.
    """
    h3 = protocol._h3
    assert h3 is not None
    inner = h3._h3
    control = {
        inner._peer_control_stream_id,
        inner._peer_encoder_stream_id,
        inner._peer_decoder_stream_id,
        inner._local_control_stream_id,
        inner._local_encoder_stream_id,
        inner._local_decoder_stream_id,
    }
    kept = {
        "sessions": protocol.sessions,
        "streams": protocol.streams,
        "ignored": protocol._ignored,
        "partial": protocol._partial,
        "held": protocol._held,
        "early_datagrams": protocol._early_datagrams,
        "early_since": protocol._early_since,
        "early_streams": protocol._early_streams,
        "writers": protocol._writers,
        "flushers": protocol._flushers,
        "openers": protocol._openers,
        "granted": protocol._granted,
        "unaccepted": protocol._unaccepted,
        "buffered": protocol.quic.buffered_total,
        "h3": set(inner._stream) - control,
        "quic": set(protocol.quic._quic._streams) - control,
        "queue": {s.stream_id for s in protocol.quic._quic._streams_queue} - control,
    }
    return {name: value for name, value in kept.items() if value}
