"""
aioquic's connection, with credit by consumption and an account of what is buffered.

Part of the seam of quic.py, which has the theory of operation and is the only one who uses it.
"""

from __future__ import annotations

from typing import Any

from aioquic.buffer import Buffer  # type: ignore[attr-defined]
from aioquic.quic.connection import (
    MAX_STREAM_DATA_FRAME_CAPACITY,
    QuicNetworkPath,
    QuicReceiveContext,
)
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.events import QuicEvent
from aioquic.quic.packet import QuicFrameType
from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream
from aioquic.tls import AlertUnexpectedMessage, CipherSuite, Direction, Epoch, State
from cryptography.hazmat.primitives.serialization import Encoding

from .quiccrypto import quiet_keys
from .quicguard import Guard
from .quicreset import PartialResets
from .quicsend import Sending
from .quicstream import Stream
from .quictls import Exporter
from .quictrust import TrustingContext
from .seam import CONNECTION_WINDOW, MOMENT, SILENT, Address, QuicOptions, SendBudget

__all__ = ["Connection"]

# Connection ids that the peer may give us (RFC 9000 18.2), each a frame to read and to keep: one
# in use, and spares for when a path changes.
_ACTIVE_CONNECTION_IDS = 4


# What TLS may write of each epoch in one go, beside the certificates of a server: a ClientHello has
# its transport parameters and names, a server's flight its own and a signature. aioquic takes three
# times 16 KiB for the life of the connection.
_CLIENT_HELLO = 4096
_SERVER_FLIGHT = 4096
_SHORT_FLIGHT = 512


class _Finished:
    """In place of a server's TLS once the handshake is over: it takes no message any more."""

    state = State.SERVER_POST_HANDSHAKE
    session_resumed = early_data_accepted = False
    _peer_certificate = None
    _receive_buffer = b""

    def handle_message(self, input_data: bytes, output_buf: dict[Epoch, Buffer]) -> None:
        raise AlertUnexpectedMessage


# What stands for the epochs of the handshake once they are over, of every connection: 40 objects
# less to keep, and for the garbage collector to look at. Nothing is written to them: a pair without
# keys refuses every packet before its space is touched, and sends none.
_NO_KEYS = CryptoPair()
_NO_PACKETS = QuicPacketSpace()
_NO_PACKETS.discarded = True
_NO_CRYPTO = QuicStream()


class _Streams(dict[int, Stream]):
    """
    All streams by id; `values()` are only those with a limit to be announced.

    aioquic asks for the values in one place only: for every packet, to announce limits.
    """

    __slots__ = ("_due",)

    def __init__(self, due: dict[Stream, None]) -> None:
        super().__init__()
        self._due = due

    def values(self) -> Any:
        return list(self._due)


class Connection(Guard, PartialResets, Sending):
    """QuicConnection with credit by consumption and an account of what is buffered."""

    _streams: _Streams  # type: ignore[assignment]

    def __init__(self, options: QuicOptions, budget: SendBudget, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._streams = _Streams(self._limits_due)
        self.budget = budget
        self.buffered = 0
        self.settled = False
        self.frames_lost = 0
        self.progress: set[int | None] = set()
        self.exporter: Exporter | None = None
        self._authorities = options.authorities if options.verify else None
        self._logger = SILENT
        for limit in (self._local_max_streams_bidi, self._local_max_streams_uni):
            limit.value = limit.sent = options.max_incoming_streams
        self._local_active_connection_id_limit = _ACTIVE_CONNECTION_IDS

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        if self._authorities is not None:
            self.tls.__class__ = TrustingContext
            self.tls.authorities = self._authorities  # type: ignore[attr-defined]
        if self._quic_logger is None:
            for pair in self._cryptos.values():
                quiet_keys(pair)
        server = self._configuration.certificate
        if server is None:
            sizes = (_CLIENT_HELLO, _SHORT_FLIGHT)
        else:
            chain = (server, *self._configuration.certificate_chain)
            size = sum(len(each.public_bytes(Encoding.DER)) + 16 for each in chain)
            sizes = (_SHORT_FLIGHT, _SERVER_FLIGHT + size)
        self._crypto_buffers = {
            Epoch.INITIAL: Buffer(capacity=sizes[0]),
            Epoch.HANDSHAKE: Buffer(capacity=sizes[1]),
            Epoch.ONE_RTT: Buffer(capacity=_SHORT_FLIGHT),
        }

    def _push_crypto_data(self) -> None:
        buffer = self._crypto_buffers.get(Epoch.HANDSHAKE)
        flight = 0 if buffer is None or self._is_client else buffer.tell()
        super()._push_crypto_data()
        if flight:
            # A server's TLS has said all that it says before the handshake is over.
            for epoch in (Epoch.INITIAL, Epoch.HANDSHAKE):
                self._crypto_buffers[epoch] = Buffer(capacity=1)

    def trim(self) -> None:
        """Let go of what only the handshake needed."""
        self._crypto_buffers = {Epoch.ONE_RTT: Buffer(capacity=_SHORT_FLIGHT)}
        if not self._is_client:
            self.tls = _Finished()  # type: ignore[assignment]

    def _discard_epoch(self, epoch: Epoch) -> None:
        super()._discard_epoch(epoch)
        over = (Epoch.INITIAL, Epoch.HANDSHAKE)
        # The first ends while packets of it are being made, the other when none will be.
        if epoch is Epoch.HANDSHAKE and all(self._spaces[each].discarded for each in over):
            for each in over:
                self._cryptos[each] = _NO_KEYS
                self._spaces[each] = _NO_PACKETS
                self._crypto_streams[each] = _NO_CRYPTO
            for version in self._cryptos_initial:
                self._cryptos_initial[version] = _NO_KEYS
            # It has no keys either, since nobody here takes or sends early data.
            self._cryptos[Epoch.ZERO_RTT] = _NO_KEYS
            self._loss.spaces = [self._spaces[Epoch.ONE_RTT]]

    # Streams that have nothing to send, or may not, are parked: for every packet all of the queue
    # is looked at.

    def wake(self, stream_id: int | None, *, ending: bool = False) -> None:
        """Put a stream into the queue: it has something to send, an end of it, or is finished."""
        if ending:
            self._ends_due = True
        stream = self._streams.get(stream_id)  # type: ignore[arg-type]
        if stream is not None and stream.parked:
            stream.parked = False
            self._streams_queue.append(stream)

    def tell(self, event: QuicEvent) -> None:
        self._events.append(event)

    def park(self) -> None:
        """Take streams out of the queue that have nothing that may be sent; call after sending."""
        busy: list[Stream] = []
        self._ends_due = False
        for stream in self._streams_queue:
            sender = stream.sender
            if sender.reset_pending or stream.receiver.stop_pending:
                self._ends_due = True
                busy.append(stream)
            elif not stream.is_finished and (sender.buffer_is_empty or self._lacks_credit(stream)):
                stream.parked = True
            else:
                busy.append(stream)
        self._streams_queue = busy

    def limit_moved(self, stream: Stream) -> None:
        """Announce a stream's limit with the next packet."""
        self._limits_due[stream] = None

    def _on_max_stream_data_delivery(self, delivery: QuicDeliveryState, stream: QuicStream) -> None:
        super()._on_max_stream_data_delivery(delivery, stream)
        if delivery is not QuicDeliveryState.ACKED:
            assert isinstance(stream, Stream)
            self.limit_moved(stream)

    def _handle_max_stream_data_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        start = buf.tell()
        super()._handle_max_stream_data_frame(context, frame_type, buf)
        end = buf.tell()
        buf.seek(start)
        stream_id = buf.pull_uint_var()
        buf.seek(end)
        self.progress.add(stream_id)
        self.wake(stream_id)

    def _find_network_path(self, addr: Address) -> QuicNetworkPath:
        path = super()._find_network_path(addr)
        if self._retry_source_connection_id and not self._is_client and not self._network_paths:
            # RFC 9000 8.1.2: a token from this address let the first packet in.
            path.is_validated = True
        return path

    def _update_traffic_key(
        self, direction: Direction, epoch: Epoch, cipher_suite: CipherSuite, secret: bytes
    ) -> None:
        super()._update_traffic_key(direction, epoch, cipher_suite, secret)
        if epoch is Epoch.ONE_RTT and self.exporter is None:
            # On both sides the server's keys come first, made of the transcript up to its
            # Finished: what the exporter is made of, too.
            assert self.tls.key_schedule is not None
            self.exporter = Exporter(self.tls.key_schedule)
            log = self._configuration.secrets_log_file
            if log is not None and self.tls.client_random is not None:
                random, exported = self.tls.client_random.hex(), self.exporter.secret.hex()
                log.write(f"EXPORTER_SECRET {random} {exported}\n")

    def acknowledge_now(self, now: float) -> None:
        """Let acknowledgements that wait for their timer share the next packet."""
        space = self._spaces.get(Epoch.ONE_RTT)
        if space is not None and space.ack_at is not None and space.ack_at > now:
            space.ack_at = now - MOMENT  # At `now` itself aioquic would ask the pacer.

    def account(self, change: int) -> None:
        # Acknowledgements may still come in behind a close, when all was returned.
        if not self.settled:
            self.buffered += change
            self.budget.buffered += change

    def settle(self) -> None:
        """Return everything to the budget, for good."""
        self.account(-self.buffered)
        self.settled = True

    def _get_or_create_stream(self, frame_type: int, stream_id: int) -> QuicStream:
        known = len(self._streams_queue)
        stream = super()._get_or_create_stream(frame_type, stream_id)
        # Opening a stream opens all lower ones of its kind too.
        for created in self._streams_queue[known:]:
            Stream.adopt(created, self)
        return stream

    def _get_or_create_stream_for_send(self, stream_id: int) -> QuicStream:
        known = len(self._streams_queue)
        stream = super()._get_or_create_stream_for_send(stream_id)
        if len(self._streams_queue) > known:
            Stream.adopt(stream, self)
        return stream

    def _write_stream_limits(
        self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream
    ) -> None:
        limit = stream.max_stream_data_local
        if limit != stream.max_stream_data_local_sent and not stream.receiver.is_finished:
            buf = builder.start_frame(
                QuicFrameType.MAX_STREAM_DATA,
                capacity=MAX_STREAM_DATA_FRAME_CAPACITY,
                handler=self._on_max_stream_data_delivery,
                handler_args=(stream,),
            )
            buf.push_uint_var(stream.stream_id or 0)
            buf.push_uint_var(limit)
            stream.max_stream_data_local_sent = limit
            if self._quic_logger is not None and builder.quic_logger_frames is not None:
                builder.quic_logger_frames.append(
                    self._quic_logger.encode_max_stream_data_frame(limit, stream.stream_id or 0)
                )
        self._limits_due.pop(stream, None)  # type: ignore[call-overload]

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        limit = self._local_max_data
        used = limit.used
        if limit.value - used < CONNECTION_WINDOW // 2:
            limit.value = used + CONNECTION_WINDOW
        # Hide what was used, so that aioquic does not double the limit by itself.
        limit.used = 0
        try:
            super()._write_connection_limits(builder, space)
        finally:
            limit.used = used
