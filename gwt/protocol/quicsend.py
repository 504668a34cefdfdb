"""
The way out of aioquic's connection, made short for what nearly all packets carry.

Part of the seam of quic.py. Acknowledgements, datagrams and stream data of a confirmed connection
on a validated path are written here; whatever else is to be sent (limits, resets, pings, connection
ids, probes of paths, a close) sends the whole pass through aioquic's own `datagrams_to_send`, which
remains the rule. What goes out, and what is remembered of it, is the same.
"""

from __future__ import annotations

from typing import Any

from aioquic.buffer import Buffer, encode_uint_var, size_uint_var  # type: ignore[attr-defined]
from aioquic.quic.connection import (
    NetworkAddress,
    QuicConnectionState,
    stream_is_client_initiated,
)
from aioquic.quic.packet import QuicPacketType, push_ack_frame
from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.tls import Epoch

from .quiccrypto import seal_packet
from .quicreceive import Receiving
from .quicstream import Stream
from .seam import CONNECTION_WINDOW

__all__ = ["Sending"]

# RFC 9000 17.3.1: the fixed bit, and packet numbers of two bytes, which aioquic uses throughout.
_FIRST_BYTE = 0x40 | 1
_PACKET_NUMBER = 2
_TAG = 16

# Below this a packet has no room for a frame that is worth it.
_LEAST_ROOM = 32

_ACK, _PING, _STREAM, _LIMIT, _DATAGRAM = 0x02, b"\x01", 0x0A, 0x11, b"\x31"
_OFFSET, _FIN = 0x04, 0x01
# With fewer bytes aioquic leaves the oldest ranges out; a packet of ours has more room than this.
_ACK_CAPACITY = 1 + 4 * 8 + 2 * 64 * 4
_LIMIT_CAPACITY = 1 + 8 + 8


class Sending(Receiving):
    """QuicConnection with a short way out."""

    _streams_queue: list[Stream]  # type: ignore[assignment]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Streams whose limit is to be announced.
        self._limits_due: dict[Stream, None] = {}
        # Whether a stream has a reset or a stop to send.
        self._ends_due = False
        # The peer's limit of the connection for which streams are parked, if there are any.
        self._starved_at: int | None = None

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, NetworkAddress]]:
        if self._starved_at is not None and self._starved_at < self._remote_max_data:
            self._starved_at = None
            for stream in dict.values(self._streams):
                if stream.parked and stream.sender.has_bytes:
                    stream.parked = False
                    self._streams_queue.append(stream)
        if self._short_keys is None or self._something_else_to_send():
            return super().datagrams_to_send(now)
        return self._send_short(now)

    def get_timer(self) -> float | None:
        space, loss = self._short_space, self._loss
        if space is None or self._state is not QuicConnectionState.CONNECTED:
            return super().get_timer()
        if not self._network_paths[0].is_validated:
            return super().get_timer()
        # The other spaces are gone since the handshake is confirmed.
        timer = self._close_at
        loss_at = space.loss_time
        if loss_at is None and space.ack_eliciting_in_flight:
            loss_at = loss._time_of_last_sent_ack_eliciting_packet + (
                loss.get_probe_timeout() * 2**loss._pto_count
            )
        self._loss_at = loss_at
        for other in (space.ack_at, loss_at, self._pacing_at):
            if other is not None and (timer is None or other < timer):
                timer = other
        return timer

    def stream_credit_due(self) -> bool:
        # The condition under which aioquic sends MAX_STREAMS. It is only looked at before the
        # pass that forgets finished streams, so the credit of the last one would stay behind.
        bidi, uni = self._local_max_streams_bidi, self._local_max_streams_uni
        return (
            bidi.sent - bidi.used < bidi.value - bidi.sent
            or uni.sent - uni.used < uni.value - uni.sent
        )

    def _something_else_to_send(self) -> Any:
        for own in self._host_cids:
            if not own.was_sent:
                return True
        for other in self._network_paths[1:]:
            # One that the peer has left for good needs nothing.
            if (
                other.remote_challenges or not (other.is_validated or other.local_challenge_sent)
            ) and (other.peer_cid is not None or self._peer_cid_available):
                return True
        path = self._network_paths[0]
        data = self._local_max_data
        return (
            self._state is not QuicConnectionState.CONNECTED
            or self._close_pending
            or self._ends_due
            or self._probe_pending
            or self._ping_pending
            or self._handshake_done_pending
            or self._retire_connection_ids
            or self._streams_blocked_pending
            or path.remote_challenges
            or not path.is_validated
            or self._remote_preferred_address
            or data.value != data.sent
            or data.value - data.used < CONNECTION_WINDOW // 2
            or self.stream_credit_due()
            or not self._crypto_streams[Epoch.ONE_RTT].sender.buffer_is_empty
        )

    def _send_short(self, now: float) -> list[tuple[bytes, NetworkAddress]]:
        space, crypto = self._short_space, self._short_keys
        assert space is not None and crypto is not None
        self._pacing_at = None
        loss = self._loss
        pacer = loss._pacer
        path = self._network_paths[0]
        cid = self._peer_cid.cid
        overhead = 1 + len(cid) + _PACKET_NUMBER + _TAG
        size = self._max_datagram_size - overhead
        # How many bytes more may be in flight.
        window = loss.congestion_window - loss.bytes_in_flight
        datagrams: list[tuple[bytes, NetworkAddress]] = []
        while (
            self._streams_queue
            or self._datagrams_pending
            or self._limits_due
            or (space.ack_at is not None and space.ack_at <= now)
        ):
            if space.ack_at is None or space.ack_at >= now:
                self._pacing_at = pacer.next_send_time(now=now)
                if self._pacing_at is not None:
                    break
            number = self._packet_number
            packet = QuicSentPacket(
                epoch=Epoch.ONE_RTT,
                in_flight=False,
                is_ack_eliciting=False,
                is_crypto_packet=False,
                packet_number=number,
                packet_type=QuicPacketType.ONE_RTT,
                sent_time=now,
            )
            payload: list[bytes] = []
            room = size
            if space.ack_at is not None and space.ack_at <= now:
                room -= self._add_ack(payload, packet, space, window - overhead, now)
            self._add_data(payload, packet, min(room, window - overhead - size + room))
            if not payload:
                break
            first = _FIRST_BYTE | (self._spin_bit << 5) | (crypto.key_phase << 2)
            data = seal_packet(crypto, first, cid, number, b"".join(payload))
            packet.sent_bytes = len(data)
            self._packet_number = number + 1
            loss.on_packet_sent(packet=packet, space=space)
            if packet.in_flight:
                window -= len(data)
                if not self._ack_eliciting_sent_since_receipt:
                    # RFC 9000 10.1.
                    self._close_at = now + self._idle_timeout()
                    self._ack_eliciting_sent_since_receipt = True
            path.bytes_sent += len(data)
            datagrams.append((data, path.addr))
            pacer.update_after_send(now=now)
        return datagrams

    def _add_ack(
        self,
        payload: list[bytes],
        packet: QuicSentPacket,
        space: QuicPacketSpace,
        window: int,
        now: float,
    ) -> int:
        """Append an ACK frame (RFC 9000 19.3), which needs no window; returns its size."""
        assert space.largest_received_time is not None
        delay = int((now - space.largest_received_time) * 1e6) >> self._local_ack_delay_exponent
        ranges = space.ack_queue
        buf = Buffer(capacity=_ACK_CAPACITY)
        buf.push_uint_var(_ACK)
        written = push_ack_frame(buf, ranges, delay, _ACK_CAPACITY - 1)
        packet.delivery_handlers.append(
            (self._on_ack_delivery, (space, space.largest_received_packet))
        )
        space.ack_at = None
        frame = buf.data
        if written > 1 and packet.packet_number % 8 == 0 and len(frame) < window:
            # Something that the peer must acknowledge, so that old ranges can be forgotten.
            frame += _PING
            packet.is_ack_eliciting = packet.in_flight = True
        payload.append(frame)
        return len(frame)

    def _add_data(self, payload: list[bytes], packet: QuicSentPacket, room: int) -> None:
        """Append limits, datagrams and stream frames."""
        before = len(payload)
        for stream in list(self._limits_due):
            if room < _LIMIT_CAPACITY:
                break
            frame = self._limit_frame(stream, packet)
            if frame:
                payload.append(frame)
                room -= len(frame)
        pending = self._datagrams_pending
        while pending:
            data = pending[0]
            frame = _DATAGRAM + encode_uint_var(len(data)) + data
            if len(frame) > room:
                break
            room -= len(frame)
            payload.append(frame)
            pending.popleft()
        queue = self._streams_queue
        handlers = packet.delivery_handlers
        again: list[Stream] = []
        seen = 0
        for stream in queue:
            if room < _LEAST_ROOM:
                break
            seen += 1
            sender = stream.sender
            if stream.is_finished:
                self._forget(stream)
                continue
            if sender.buffer_is_empty:
                # Nothing is left, or nothing more may be sent since it was reset.
                stream.parked = True
                continue
            if stream.is_blocked:
                again.append(stream)
                continue
            stream_id = stream.stream_id
            assert stream_id is not None
            used = sender.highest_offset
            offset = sender.next_offset
            overhead = 3 + size_uint_var(stream_id) + (size_uint_var(offset) if offset else 0)
            taken = sender.take(
                room - overhead,
                min(
                    used + self._remote_max_data - self._remote_max_data_used,
                    stream.max_stream_data_remote,
                ),
            )
            if taken is not None:
                data, fin = taken
                end = offset + len(data)
                kind = _STREAM | (_OFFSET if offset else 0) | (_FIN if fin else 0)
                payload.append(
                    b"%c%b%b%b"
                    % (
                        kind,
                        encode_uint_var(stream_id),
                        encode_uint_var(offset) if offset else b"",
                        (len(data) | 0x4000).to_bytes(2, "big"),
                    )
                )
                payload.append(data)
                room -= overhead + len(data)
                self._remote_max_data_used += sender.highest_offset - used
                handlers.append((sender.on_data_delivery, (offset, end, fin)))
            if sender.buffer_is_empty or (taken is None and self._lacks_credit(stream)):
                stream.parked = True
            else:
                again.append(stream)
        # Who was served stands behind those who were not.
        self._streams_queue = queue[seen:] + again
        if len(payload) > before:
            packet.is_ack_eliciting = packet.in_flight = True

    def _lacks_credit(self, stream: Stream) -> bool:
        """Return whether the next bytes are beyond a limit of the peer, whose move wakes it."""
        sender = stream.sender
        if stream.is_blocked or not sender.has_bytes:
            return False
        start = sender.next_offset
        if start >= stream.max_stream_data_remote:
            return True
        credit = self._remote_max_data - self._remote_max_data_used
        if start >= sender.highest_offset + credit:
            self._starved_at = self._remote_max_data
            return True
        return False

    def _limit_frame(self, stream: Stream, packet: QuicSentPacket) -> bytes:
        """Return MAX_STREAM_DATA, or nothing if it is of no use any more (RFC 9000 19.10)."""
        del self._limits_due[stream]
        limit = stream.max_stream_data_local
        if stream.receiver.is_finished or limit == stream.max_stream_data_local_sent:
            return b""
        assert stream.stream_id is not None
        stream.max_stream_data_local_sent = limit
        packet.delivery_handlers.append((self._on_max_stream_data_delivery, (stream,)))
        return b"%c%b%b" % (_LIMIT, encode_uint_var(stream.stream_id), encode_uint_var(limit))

    def _forget(self, stream: Stream) -> None:
        stream_id = stream.stream_id
        assert stream_id is not None
        self._streams.pop(stream_id, None)
        if stream_is_client_initiated(stream_id) != self._is_client:
            # RFC 9000 4.6: the peer may open another one.
            self._stream_limit(stream_id).value += 1
