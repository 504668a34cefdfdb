"""
The way in of aioquic's connection, made short for what nearly all packets are.

Part of the seam of quic.py. A 1-RTT packet to the connection id in use, from the address in use,
needs none of the questions that aioquic asks of each datagram: which header, which path, which
version, which keys. What is different in any way goes to aioquic's own methods, which remain the
rule: `receive_datagram` and `_handle_stream_frame` here do what those do, in this case only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from aioquic._crypto import CryptoError
from aioquic.buffer import Buffer, BufferReadError  # type: ignore[attr-defined]
from aioquic.quic.connection import (
    NetworkAddress,
    QuicConnection,
    QuicConnectionError,
    QuicConnectionState,
    QuicReceiveContext,
)
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import (
    NON_ACK_ELICITING_FRAME_TYPES,
    PROBING_FRAME_TYPES,
    QuicErrorCode,
    QuicFrameType,
)
from aioquic.quic.recovery import MAX_ACK_RANGES, QuicPacketSpace
from aioquic.quic.stream import StreamFinishedError
from aioquic.tls import Epoch

from .quiccrypto import open_packet
from .seam import CONNECTION_ID_LENGTH

if TYPE_CHECKING:
    from .quicstream import Stream

__all__ = ["MAX_DATAGRAM", "Receiving", "StreamData"]

# RFC 9000 17.3.1: the form bit of a short header is 0, the fixed bit is 1.
_FORM_AND_FIXED = 0xC0
_SHORT = 0x40
_SPIN = 0x20
_RESERVED = 0x18
_HEADER = 1 + CONNECTION_ID_LENGTH

# The largest UDP payload that is looked at: a packet's work grows with its size, and no path but a
# loopback carries more (config.py has the limit of ours).
MAX_DATAGRAM = 16 * 1024

_Handler = Callable[[Any, QuicReceiveContext, int, Buffer], None]


class StreamData:
    """Bytes of a stream that arrived in order, in as many pieces as there were frames."""

    __slots__ = ("ended", "pieces", "stream_id")

    def __init__(self, stream_id: int, data: bytes, ended: bool) -> None:
        self.stream_id = stream_id
        self.pieces = [data]
        self.ended = ended

    @property
    def data(self) -> bytes:
        return self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)


class Receiving(QuicConnection):
    """QuicConnection with a short way in, and one table of frame handlers for all connections."""

    _streams: dict[int, Stream]  # type: ignore[assignment]
    _events: Any

    # Frame types to handlers and the epochs they are allowed in; filled by the first connection.
    _frame_table: ClassVar[dict[int, tuple[_Handler, frozenset[Epoch]]]] = {}

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        bound = self._QuicConnection__frame_handlers  # type: ignore[attr-defined]
        if not self._frame_table:
            self._frame_table.update(
                (kind, (handler.__func__, epochs)) for kind, (handler, epochs) in bound.items()
            )
        # A table for each connection would be 8 KiB of bound methods.
        del self._QuicConnection__frame_handlers  # type: ignore[attr-defined]
        # Packets that were authentic and new: only these say that the peer lives. And datagrams
        # without one: garbage, duplicates, what no key fits. Anybody may have sent them.
        self.heard = 0
        self.packets_ignored = 0
        # What 1-RTT packets need, from the confirmation of the handshake on.
        self._short_keys: CryptoPair | None = None
        self._short_space: QuicPacketSpace | None = None
        self._short_context: QuicReceiveContext | None = None

    def receive_datagram(self, data: bytes, addr: NetworkAddress, now: float) -> None:
        if (
            self._short_keys is None
            or not _HEADER < len(data) <= MAX_DATAGRAM
            or data[0] & _FORM_AND_FIXED != _SHORT
            or data[1:_HEADER] != self.host_cid
            or self._state is not QuicConnectionState.CONNECTED
        ):
            self._receive_any(data, addr, now)
            return
        path = self._network_paths[0]
        if path.addr != addr or not path.is_validated:
            self._receive_any(data, addr, now)
            return
        space = self._short_space
        assert space is not None
        try:
            first, payload, number = open_packet(
                self._short_keys, data, _HEADER, space.expected_packet_number
            )
        except CryptoError:
            self.packets_ignored += 1
            return
        received = space.received_packets
        if number in received:
            self.packets_ignored += 1
            return
        if first & _RESERVED:
            self.close(
                error_code=QuicErrorCode.PROTOCOL_VIOLATION,
                frame_type=QuicFrameType.PADDING,
                reason_phrase="Reserved bits must be zero",
            )
            return
        if number > space.expected_packet_number:
            space.expected_packet_number = number + 1
        if number > self._spin_highest_pn:
            # RFC 9000 17.4: a server reflects the bit, and a client inverts it.
            self._spin_highest_pn = number
            self._spin_bit = bool(first & _SPIN) is not self._is_client
        context = self._short_context
        if context is None or context.time != now or context.network_path is not path:
            # Once for all datagrams of a wake-up, which share `now`.
            self._close_at = now + self._idle_timeout()
            context = self._short_context = QuicReceiveContext(
                epoch=Epoch.ONE_RTT,
                host_cid=self.host_cid,
                network_path=path,
                quic_logger_frames=None,
                time=now,
                version=None,
            )
        try:
            eliciting, _ = self._payload_received(context, payload)
        except QuicConnectionError as exc:
            self.close(
                error_code=exc.error_code,
                frame_type=exc.frame_type,
                reason_phrase=exc.reason_phrase,
            )
            return
        if self._state is not QuicConnectionState.CONNECTED or self._close_pending:
            return
        self._ack_eliciting_sent_since_receipt = False
        if number > space.largest_received_packet:
            space.largest_received_packet = number
            space.largest_received_time = now
        space.ack_queue.add(number)
        received.add(number)
        if len(space.ack_queue) > MAX_ACK_RANGES:
            space.ack_queue.shift()
        if eliciting and space.ack_at is None:
            space.ack_at = now + self._ack_delay

    def _receive_any(self, data: bytes, addr: NetworkAddress, now: float) -> None:
        heard = self.heard
        if len(data) <= MAX_DATAGRAM:
            super().receive_datagram(data, addr, now)
        self.packets_ignored += self.heard == heard
        self._short_context = None
        if (
            self._handshake_confirmed
            and self._short_keys is None
            and self._quic_logger is None
            and self._state is QuicConnectionState.CONNECTED
        ):
            self._short_keys = self._cryptos[Epoch.ONE_RTT]
            self._short_space = self._spaces[Epoch.ONE_RTT]

    def _payload_received(
        self, context: QuicReceiveContext, plain: bytes, crypto_frame_required: bool = False
    ) -> tuple[bool, bool]:
        self.heard += 1
        if not plain:
            raise _violation("Packet contains no frames", QuicFrameType.PADDING)
        buf = Buffer(data=plain)
        table = self._frame_table
        # Everything is allowed in 1-RTT packets, and hashing an Enum is slow.
        epoch = None if context.epoch is Epoch.ONE_RTT else context.epoch
        eliciting = crypto = False
        probing = True
        while not buf.eof():
            try:
                kind = buf.pull_uint_var()
            except BufferReadError:
                raise _malformed("Malformed frame type", QuicFrameType.PADDING) from None
            entry = table.get(kind)
            if entry is None:
                raise _malformed("Unknown frame type", kind)
            if epoch is not None and epoch not in entry[1]:
                raise _violation("Unexpected frame type", kind)
            try:
                entry[0](self, context, kind, buf)
            except BufferReadError:
                raise _malformed("Failed to parse frame", kind) from None
            except StreamFinishedError:
                # The stream is over and forgotten.
                pass
            if kind == QuicFrameType.CRYPTO:
                crypto = True
            if kind not in NON_ACK_ELICITING_FRAME_TYPES:
                eliciting = True
            if kind not in PROBING_FRAME_TYPES:
                probing = False
        if crypto_frame_required and not crypto:
            # RFC 9000 17.2.2: a client's first packet always has one.
            raise _violation("Packet contains no CRYPTO frame", QuicFrameType.PADDING)
        return eliciting, probing

    def _handle_stream_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        start = buf.tell()
        stream_id = buf.pull_uint_var()
        stream = self._streams.get(stream_id)
        if stream is not None:
            offset = buf.pull_uint_var() if frame_type & 4 else 0
            length = buf.pull_uint_var() if frame_type & 2 else buf.capacity - buf.tell()
            end = offset + length
            receiver = stream.receiver
            limit = self._local_max_data
            if (
                # The next bytes, with nothing behind them yet, and within every limit.
                offset == receiver._buffer_start == receiver.highest_offset
                and length
                and not receiver._buffer
                and receiver._final_size is None
                and not receiver.is_finished
                and end <= stream.max_stream_data_local
                and limit.used + length <= limit.value
                and self._quic_logger is None
            ):
                data = buf.pull_bytes(length)
                receiver._buffer_start = receiver.highest_offset = end
                limit.used += length
                ended = bool(frame_type & 1)
                if ended:
                    receiver._final_size = end
                    receiver.is_finished = True
                events = self._events
                if events:
                    last = events[-1]
                    if type(last) is StreamData and last.stream_id == stream_id:
                        last.pieces.append(data)
                        last.ended = ended
                        return
                events.append(StreamData(stream_id, data, ended))
                return
        buf.seek(start)
        super()._handle_stream_frame(context, frame_type, buf)


def _malformed(reason: str, kind: int) -> QuicConnectionError:
    return QuicConnectionError(
        error_code=QuicErrorCode.FRAME_ENCODING_ERROR, frame_type=kind, reason_phrase=reason
    )


def _violation(reason: str, kind: int) -> QuicConnectionError:
    return QuicConnectionError(
        error_code=QuicErrorCode.PROTOCOL_VIOLATION, frame_type=kind, reason_phrase=reason
    )
