"""
aioquic's connection, with bounds on what a peer's packets can make it keep, do, or trip over.

Part of the seam of quic.py. Streams and their windows are bounded in quicconnection.py; here is
what flow control does not cover: the handshake's bytes, holes between bytes that arrived,
acknowledgements of what was never sent, and connection ids.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Any

from aioquic.buffer import Buffer  # type: ignore[attr-defined]
from aioquic.quic.connection import (
    NetworkAddress,
    QuicConnection,
    QuicConnectionError,
    QuicReceiveContext,
)
from aioquic.quic.packet import QuicErrorCode, QuicFrameType
from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.tls import Group

from . import codes

__all__ = ["MAX_CRYPTO", "Guard", "Ranges"]

# Bytes of the handshake that are held until they can be read: out of order, or of a TLS message
# that is not complete. RFC 9000 7.5 wants 4096 at least; aioquic would hold half a megabyte for
# the first packet of anybody. A chain of certificates is the longest message.
MAX_CRYPTO = 32 * 1024

# Nobody is kept alive who wants to be forgotten sooner: keep-alives come three times as often.
_LEAST_IDLE = 0.6

# How many packets of ours that held acknowledgements only are remembered, in case that the peer
# acknowledges them, which it need not do; and how many connection ids that it gave us.
_REMEMBERED_PACKETS = 256
_REMEMBERED_IDS = 64

# The key exchange that a client offers: the one that every server must know (RFC 8446 9.1). aioquic
# makes a key pair for every group that is offered, which is a tenth of a handshake.
_KEY_GROUPS = [Group.SECP256R1]

# How many separate ranges may wait for what is missing between them, whatever the window.
_LEAST_RANGES = 128


class Ranges:
    """
    Bytes of a stream that arrived before what comes ahead of them; what QuicStreamReceiver needs
    of a RangeSet, found by bisection, and bounded (RFC 9000 21.6).

    A packet can hold hundreds of frames of one byte with holes between them, and aioquic's walks
    over all ranges for each.
    """

    __slots__ = ("_starts", "_stops", "limit")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        self.limit = _LEAST_RANGES

    def set_window(self, window: int) -> None:
        """Allow one range for every KiB of a window, and some more."""
        self.limit = _LEAST_RANGES + window // 1024

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> range:
        return range(self._starts[index], self._stops[index])

    def add(self, start: int, stop: int) -> None:
        """Add a range, and merge it with those that it touches."""
        starts, stops = self._starts, self._stops
        first = bisect_left(stops, start)
        last = bisect_right(starts, stop)
        if first < last:
            start = min(start, starts[first])
            stop = max(stop, stops[last - 1])
        elif len(starts) >= self.limit:
            raise QuicConnectionError(
                codes.H3_EXCESSIVE_LOAD,
                None,  # type: ignore[arg-type]  # None makes it a close of HTTP/3 (RFC 9000 19.19).
                "Too many holes in what was sent",
            )
        starts[first:last] = [start]
        stops[first:last] = [stop]

    def shift(self) -> range:
        """Remove and return the first range."""
        return range(self._starts.pop(0), self._stops.pop(0))


class Guard(QuicConnection):
    """QuicConnection that ends what a peer should not do."""

    # The number of the next packet, when acknowledgements were forgotten last.
    _forgot_at = 0

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, NetworkAddress]]:
        datagrams = super().datagrams_to_send(now)
        if self._packet_number - self._forgot_at >= _REMEMBERED_PACKETS:
            self._forgot_at = self._packet_number
            self._forget_acknowledgements()
        return datagrams

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:
        super()._parse_transport_parameters(data, from_session_ticket)
        timeout = self._remote_max_idle_timeout
        if timeout is not None:
            # RFC 9000 18.2: 0 is none. To aioquic it is the shortest.
            self._remote_max_idle_timeout = max(timeout, _LEAST_IDLE) if timeout else None

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        for stream in self._crypto_streams.values():
            stream.receiver._ranges = Ranges()  # type: ignore[assignment]
        if self._is_client:
            self.tls._supported_groups = _KEY_GROUPS

    def _handle_crypto_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        begin = buf.tell()
        end = buf.pull_uint_var() + buf.pull_uint_var()
        buf.seek(begin)
        tls: Any = self.tls
        ahead = end - self._crypto_streams[context.epoch].receiver.starting_offset()
        if ahead + len(tls._receive_buffer) > MAX_CRYPTO:
            raise QuicConnectionError(
                QuicErrorCode.CRYPTO_BUFFER_EXCEEDED, frame_type, "Too much of a handshake"
            )
        super()._handle_crypto_frame(context, frame_type, buf)

    def _handle_ack_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        super()._handle_ack_frame(context, frame_type, buf)
        # RFC 9000 13.1. aioquic would take every packet from then on for lost.
        if self._spaces[context.epoch].largest_acked_packet >= self._packet_number:
            raise QuicConnectionError(
                QuicErrorCode.PROTOCOL_VIOLATION, frame_type, "A packet that was never sent"
            )

    def outlast(self, until: float) -> bool:
        """Let the idle timeout come no sooner than `until`; returns whether it would have."""
        if self._close_at is None or self._close_at >= until:
            return False
        self._close_at = until
        # Or what is sent next would begin the whole timeout anew (RFC 9000 10.1).
        self._ack_eliciting_sent_since_receipt = True
        return True

    def _forget_acknowledgements(self) -> None:
        """
        Forget old packets that held nothing but acknowledgements.

        aioquic waits for their acknowledgement, which never comes from a peer to whom we send
        nothing else, be it honest or not.
        """
        oldest = self._packet_number - _REMEMBERED_PACKETS
        for space in self._loss.spaces:
            sent = space.sent_packets
            for number in [n for n, packet in sent.items() if n < oldest and self._is_ack(packet)]:
                del sent[number]

    def _is_ack(self, packet: QuicSentPacket) -> bool:
        # Probes of a path's size are out of flight, too, and their fate matters.
        return not packet.in_flight and all(
            handler == self._on_ack_delivery for handler, _ in packet.delivery_handlers
        )

    def _handle_new_connection_id_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        super()._handle_new_connection_id_frame(context, frame_type, buf)
        if len(self._peer_cid_sequence_numbers) <= _REMEMBERED_IDS:
            return
        # aioquic remembers every id, used up or not, until it is asked to retire it. Ids are
        # numbered in the order in which they are given (RFC 9000 5.1.1), so that those before all
        # that are left will not come again.
        left = [self._peer_cid, *self._peer_cid_available]
        left += [path.peer_cid for path in self._network_paths if path.peer_cid is not None]
        oldest = min(cid.sequence_number or 0 for cid in left)
        self._peer_retire_prior_to = max(oldest, self._peer_retire_prior_to)
        self._peer_cid_sequence_numbers = {
            number for number in self._peer_cid_sequence_numbers if number >= oldest
        }
        if len(self._peer_cid_sequence_numbers) > _REMEMBERED_IDS:
            raise QuicConnectionError(
                QuicErrorCode.PROTOCOL_VIOLATION, frame_type, "Connection ids in no order"
            )

    def _consume_peer_cid(self) -> None:
        # A peer that asks us to retire all that we have, without another one, is an IndexError
        # of aioquic's.
        if not self._peer_cid_available:
            raise QuicConnectionError(
                QuicErrorCode.PROTOCOL_VIOLATION,
                QuicFrameType.NEW_CONNECTION_ID,
                "No connection id is left",
            )
        super()._consume_peer_cid()
