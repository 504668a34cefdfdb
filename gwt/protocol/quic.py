"""
The seam: one QUIC connection as a small object, and with quic*.py beside it the only file that
knows aioquic's QuicConnection.

Theory of operation. `feed` takes datagrams, `on_timer` takes time, `drain` tells a sink what came
of it, `poll` returns what to send. Two things that aioquic 1.7.2 leaves to its driver are done
here by subclass:

- Receive credit. aioquic raises a stream's limit when bytes *arrive*; here it moves when the
  application has *consumed* them, by `consumed()`, to that position plus the stream's window.
  What a peer can make us hold is bounded by the windows, so the connection's limit only has to
  stay ahead of what has arrived.
- Send accounting. aioquic buffers without a bound and trims silently on acknowledgement; here
  each stream's sender reports progress, so that the floor above can make a writer wait.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aioquic.quic import events as quic_events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import END_STATES, QuicConnectionState
from aioquic.quic.packet import QuicFrameType
from cryptography.hazmat.primitives.serialization import Encoding

from .datagrams import DatagramQueue
from .farewell import Farewell
from .pacing import Pacer
from .quicend import release
from .quicpath import PathConnection
from .quicreceive import StreamData
from .quicreset import PartialReceiver
from .quicstream import Sender, Stream
from .seam import MOMENT, SILENT, Address, QuicOptions, QuicSink, SendBudget

__all__ = ["Quic"]

# RFC 9221 5: the frame type, and a length of at most two bytes; 3 bytes of short header without
# the connection id; 16 bytes of AEAD tag.
_DATAGRAM_OVERHEAD = 1 + 2 + 3 + 16

# Packets after which the keys are renewed: half of what AES-GCM may encrypt (RFC 9001 6.6). So many
# cannot be in flight at once, so that the last update has always been acknowledged (6.1).
KEY_UPDATE_PACKETS = 1 << 22


class _Connection(PathConnection):
    """The connection with what else of aioquic is made ours: its pacer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._loss._logger = SILENT
        self._loss._pacer = Pacer(max_datagram_size=self._max_datagram_size)


class Quic:
    """
    One QUIC connection.

    A client is made from its options, and `connect` starts it; a server also needs the
    destination connection id of the first packet, and if a Retry came before, what that told the
    client to write to: then the first packet's address counts as validated. Nothing here raises
    on what a peer sent.
    """

    def __init__(
        self,
        options: QuicOptions,
        *,
        budget: SendBudget | None = None,
        configuration: QuicConfiguration | None = None,
        original_destination_connection_id: bytes | None = None,
        retry_source_connection_id: bytes | None = None,
    ) -> None:
        self._options = options
        self._quic = _Connection(
            options,
            budget or SendBudget(),
            configuration=configuration or options.configuration(),
            original_destination_connection_id=original_destination_connection_id,
            retry_source_connection_id=retry_source_connection_id,
        )
        self.is_client = options.is_client

        self._datagrams = DatagramQueue(
            self._quic._datagrams_pending, options.datagram_send_queue, options.datagram_max_age
        )

        # What the peer allows, as last reported; whether something was written since poll().
        self._credit = (0, 0)
        self._written = False
        self._closed = False
        self._pings = 0
        # What closed the connection, once it was sent, and what of it goes out again.
        self.farewell: Farewell | None = None
        self._repeats: list[tuple[bytes, Address]] = []
        # How many packets had been sent when the keys were renewed last.
        self._keys_since = 0
        self.packets_sent = self.packets_received = 0
        self.bytes_sent = self.bytes_received = 0

    # In

    def connect(self, address: Address, now: float) -> None:
        """Start the handshake of a client."""
        self._quic.connect(address, now)

    def feed(self, datagrams: Iterable[bytes], address: Address, now: float) -> None:
        """Take datagrams from one address."""
        receive, farewell = self._quic.receive_datagram, self.farewell
        for data in datagrams:
            self.bytes_received += len(data)
            self.packets_received += 1
            if farewell is None:
                receive(data, address, now)
            elif farewell.answers(data):
                self._repeats.append((farewell.datagram, address))

    @property
    def heard(self) -> int:
        """How many packets were authentic, and new."""
        return self._quic.heard

    def deadline(self) -> float | None:
        """Return when on_timer() wants to be called; None before the start and after the end."""
        return self._quic.get_timer() if self._quic._network_paths else None

    def on_timer(self, now: float) -> None:
        """Let time pass."""
        deadline = self.deadline()
        if deadline is not None and now >= deadline:
            # A moment later: aioquic compares `now - delay` with a packet's time where its deadline
            # was that time plus the delay, and rounding can make that false for ever.
            self._quic.handle_timer(now + MOMENT)

    def drain(self, sink: QuicSink) -> None:
        """Tell `sink` everything that happened since the last call, in order."""
        quic = self._quic
        pending = quic._events
        while pending:
            event = pending.popleft()
            match event:
                case StreamData():
                    sink.quic_stream_data(event.stream_id, event.data, event.ended)
                    if event.ended:
                        quic.wake(event.stream_id)
                case quic_events.StreamDataReceived():
                    sink.quic_stream_data(event.stream_id, event.data, event.end_stream)
                    if event.end_stream:
                        quic.wake(event.stream_id)
                case quic_events.DatagramFrameReceived():
                    sink.quic_datagram(event.data)
                case quic_events.StreamReset():
                    sink.quic_stream_reset(event.stream_id, event.error_code)
                    quic.wake(event.stream_id)
                case quic_events.StopSendingReceived():
                    sink.quic_stream_stopped(event.stream_id, event.error_code)
                case quic_events.ConnectionIdIssued():
                    sink.quic_connection_id(event.connection_id, True)
                case quic_events.ConnectionIdRetired():
                    sink.quic_connection_id(event.connection_id, False)
                case quic_events.ProtocolNegotiated():
                    sink.quic_negotiated()
                case quic_events.HandshakeCompleted():
                    quic.trim()
                    sink.quic_handshake_completed()
                case quic_events.PingAcknowledged():
                    sink.quic_ping_acknowledged()
        progress = quic.progress
        while progress:
            stream_id = progress.pop()
            if stream_id is not None:
                sink.quic_stream_progress(stream_id)
        credit = (quic._remote_max_streams_bidi, quic._remote_max_streams_uni)
        if credit != self._credit:
            self._credit = credit
            sink.quic_stream_credit()
        self._report_close(sink)

    def _report_close(self, sink: QuicSink) -> None:
        # aioquic's own event comes after the closing period; users want to know at once.
        event = self._quic._close_event
        if event is None or self._closed:
            return
        self._closed = True
        self._quic.settle()
        remote = self._quic._state is QuicConnectionState.DRAINING
        sink.quic_closed(
            event.error_code, event.reason_phrase, remote, application=event.frame_type is None
        )

    # Out

    def poll(self, now: float) -> list[tuple[bytes, Address]]:
        """Return the datagrams to send now. Never raises."""
        quic = self._quic
        if not quic._network_paths or quic._state in END_STATES:
            repeats, self._repeats = self._repeats, []
            return self._count(repeats)
        quic.follow_path(now)
        path = quic._network_paths[0]
        waiting = bool(quic._datagrams_pending)
        if waiting:
            self._datagrams.before_sending(now, self.max_datagram)
        if self._written:
            self._written = False
            quic.acknowledge_now(now)
        if self.packets_sent - self._keys_since >= KEY_UPDATE_PACKETS:
            self._keys_since = self.packets_sent
            # Before the handshake is confirmed aioquic puts it off until then. It also drops its
            # old keys at once, so that it is deaf until the peer has heard of the new ones: they
            # must not depend on an acknowledgement that can be lost, and is never sent again.
            quic.request_key_update()
            self.ping()
        datagrams = quic.datagrams_to_send(now)
        if quic.stream_credit_due():
            datagrams += quic.datagrams_to_send(now)
        quic.park()
        if waiting:
            self._datagrams.after_sending()
        if datagrams and quic._state is QuicConnectionState.CLOSING:
            self.farewell = Farewell(datagrams[0][0])
            if not path.is_validated and path.bytes_sent > 3 * path.bytes_received:
                # aioquic's limit on amplification leaves the close out. Who sends more is told.
                return []
        return self._count(datagrams)

    def _count(self, datagrams: list[tuple[bytes, Address]]) -> list[tuple[bytes, Address]]:
        for data, _ in datagrams:
            self.bytes_sent += len(data)
        self.packets_sent += len(datagrams)
        return datagrams

    @property
    def closed(self) -> bool:
        """Whether the connection carries nothing any more."""
        return self._quic._close_event is not None

    def close(self, code: int, reason: str = "", *, application: bool = True) -> None:
        """Close with one CONNECTION_CLOSE; the first close wins."""
        # frame_type None makes it an application close (RFC 9000 19.19). A reason must leave
        # room for the rest of the packet, and encode when the packet is made.
        short = reason.encode("utf-8", "replace")[:512].decode("utf-8", "ignore")
        self._quic.close(code, None if application else QuicFrameType.PADDING, short)

    def release(self) -> None:
        """Free what only a living connection needs; nothing is fed or polled any more."""
        release(self._quic)

    # Streams

    def _sender(self, stream_id: int) -> Sender | None:
        stream = self._quic._streams.get(stream_id)
        return None if stream is None else stream.sender

    def open(self, unidirectional: bool, *, wait: bool = True) -> int | None:
        """
        Return the id of a new stream of ours, or None while the peer allows none.

        Without `wait` the stream is made all the same and sends once it is allowed to: HTTP/3's
        own streams are wanted before the peer has said anything.
        """
        quic = self._quic
        stream_id = quic.get_next_available_stream_id(is_unidirectional=unidirectional)
        if wait and (self.closed or stream_id // 4 >= self._credit[unidirectional]):
            return None
        quic._get_or_create_stream_for_send(stream_id)
        return stream_id

    def next_stream_id(self, unidirectional: bool) -> int:
        """Return the id that the next stream of ours will have."""
        return self._quic.get_next_available_stream_id(is_unidirectional=unidirectional)

    def write(self, stream_id: int, data: bytes, end: bool = False) -> bool:
        """Append to a stream; returns whether it took the data."""
        sender = self._sender(stream_id)
        if sender is None or not sender.takes_data or self.closed:
            return False
        sender.write(data, end)
        self._written = True
        return True

    def takes_data(self, stream_id: int) -> bool:
        """Return whether write() would take something: no end and no reset so far."""
        sender = self._sender(stream_id)
        return sender is not None and sender.takes_data and not self.closed

    def reset_code(self, stream_id: int) -> int | None:
        """Return the code with which our side was reset, by us or by STOP_SENDING, or None."""
        sender = self._sender(stream_id)
        return None if sender is None else sender.reset_code

    def buffered(self, stream_id: int) -> int:
        """Return the bytes of a stream that are unsent or unacknowledged."""
        stream = self._quic._streams.get(stream_id)
        return 0 if stream is None else stream.sender.buffered

    @property
    def buffered_total(self) -> int:
        """The bytes of all streams that are unsent or unacknowledged."""
        return self._quic.buffered

    @property
    def budget(self) -> SendBudget:
        """The account that this connection shares with others."""
        return self._quic.budget

    def acked(self, stream_id: int) -> int:
        """Return up to which offset a stream has been acknowledged; of an unknown one, -1."""
        stream = self._quic._streams.get(stream_id)
        return -1 if stream is None else stream.sender.acked

    def sending_finished(self, stream_id: int) -> bool:
        """Return whether all that we sent, end or reset, has been acknowledged."""
        stream = self._quic._streams.get(stream_id)
        return stream is None or stream.sender.is_finished

    def sent(self, stream_id: int) -> int:
        """Return up to which offset a stream has been sent at least once."""
        stream = self._quic._streams.get(stream_id)
        return 0 if stream is None else stream.sender.highest_offset

    def send_limit(self, stream_id: int) -> int:
        """Return up to which offset the peer lets a stream be sent."""
        stream = self._quic._streams.get(stream_id)
        return 0 if stream is None else stream.max_stream_data_remote

    def received(self, stream_id: int) -> int:
        """Return up to which offset a stream has arrived, or its final size if it was reset."""
        stream = self._quic._streams.get(stream_id)
        return 0 if stream is None else stream.receiver.highest_offset

    def reliable(self, stream_id: int) -> int:
        """Return how many bytes of a stream that was reset are to be read all the same."""
        stream = self._quic._streams.get(stream_id)
        receiver = None if stream is None else stream.receiver
        return receiver.reliable if isinstance(receiver, PartialReceiver) else 0

    def gone(self, stream_id: int) -> bool:
        """Return whether a stream existed and is finished and forgotten."""
        return self._quic._stream_is_discarded(stream_id)

    def sending_over(self, stream_id: int) -> bool:
        """Return whether a stream exists, or did, and nothing more can be written to it."""
        sender = self._sender(stream_id)
        return self.gone(stream_id) if sender is None else not sender.takes_data

    def may_open(self, stream_id: int) -> bool:
        """Return whether the peer is allowed to have a stream of this id."""
        return stream_id // 4 < self._quic._stream_limit(stream_id).value

    def reset(self, stream_id: int, code: int) -> None:
        """Abandon our sending side; idempotent, and nothing once it is finished."""
        stream = self._quic._streams.get(stream_id)
        if stream is not None:
            stream.sender.reset(code)

    @property
    def partial_resets(self) -> bool:
        """Whether the peer takes resets that deliver the beginning of a stream."""
        return self._quic.partial_resets

    def keep(self, stream_id: int, size: int) -> None:
        """Let a reset deliver the first bytes all the same, where the peer takes such resets."""
        stream = self._quic._streams.get(stream_id)
        if stream is not None and self._quic.partial_resets:
            stream.sender.keep = size

    def stop(self, stream_id: int, code: int) -> None:
        """Ask the peer to stop sending; idempotent, and nothing once all has arrived."""
        stream = self._quic._streams.get(stream_id)
        if stream is not None and not stream.receiver.is_finished:
            stream.receiver.stop(code)

    def hold(self, stream_id: int, held: bool) -> None:
        """Keep a stream's slot taken (the peer gets no new stream for it), or let it go."""
        stream = self._quic._streams.get(stream_id)
        if stream is not None:
            stream.held = held
            self._quic.wake(stream_id)

    def consumed(self, stream_id: int, size: int) -> bool:
        """Give back credit for bytes that were read; returns whether an update is due."""
        stream = self._quic._streams.get(stream_id)
        if stream is None:
            return False
        stream.consumed += size
        return self._move_limit(stream)

    def set_window(self, stream_id: int, window: int) -> bool:
        """Change how far the peer may be ahead of the reader; returns whether it sends sooner."""
        stream = self._quic._streams.get(stream_id)
        if stream is None:
            return False
        stream.set_window(window)
        return self._move_limit(stream)

    def _move_limit(self, stream: Stream) -> bool:
        limit = stream.consumed + stream.window
        if stream.receiver.is_finished or limit - stream.max_stream_data_local < stream.window / 2:
            return False
        stream.max_stream_data_local = limit
        self._quic.limit_moved(stream)
        return True

    # Datagrams

    @property
    def max_datagram(self) -> int:
        """The largest payload of a DATAGRAM frame; 0 if the peer takes none."""
        quic = self._quic
        accepted = quic._remote_max_datagram_frame_size
        if not accepted:
            return 0
        fits = quic._max_datagram_size - _DATAGRAM_OVERHEAD - len(quic._peer_cid.cid)
        return max(0, min(fits, accepted - 3))

    def send_datagram(self, data: bytes) -> bool:
        """
        Queue a DATAGRAM frame; when the queue is full the oldest goes, counted.

        Returns False for one that can never be sent: it would hold up all behind it.
        """
        limit = self.max_datagram
        if not limit or len(data) > limit or self.closed:
            return False
        self._written = True
        self._datagrams.push(data)
        return True

    # Life

    @property
    def trace(self) -> Any:
        """Where aioquic logs what happens, HTTP/3 included; None if nobody wants to know."""
        return self._quic._quic_logger

    def ping(self) -> None:
        """Send a PING, which the peer must acknowledge."""
        self._pings += 1
        self._quic.send_ping(self._pings)

    def outlast(self, until: float) -> None:
        """Let an idle timeout come no sooner than `until`, and ask for a sign of life."""
        if not self.closed and self._quic.outlast(until):
            self.ping()

    @property
    def connection_id(self) -> bytes:
        """The connection id that the peer first addresses us by."""
        return self._quic.host_cid

    @property
    def peer_address(self) -> Address | None:
        """Where packets are sent: a server's peer may move; None before there is a peer."""
        return self._quic.get_peer_address()

    @property
    def idle_timeout(self) -> float:
        """The effective idle timeout: the smaller of both sides'."""
        own, remote = self._options.idle_timeout, self._quic._remote_max_idle_timeout
        return min(own, remote) if remote else own

    @property
    def peer_certificate(self) -> bytes:
        """The peer's certificate in DER form; empty before there is one."""
        tls = getattr(self._quic, "tls", None)
        certificate = None if tls is None else tls._peer_certificate
        return b"" if certificate is None else certificate.public_bytes(Encoding.DER)

    def export(self, label: bytes, context: bytes, length: int) -> bytes:
        """Return keying material (RFC 8446 7.5); raises ValueError for a length out of bounds."""
        exporter = self._quic.exporter
        if exporter is None:
            raise ValueError("There is no keying material before the handshake.")
        return exporter.export(label, context, length)

    def stats(self) -> dict[str, float]:
        """Return round-trip time, window and counters."""
        loss = self._quic._loss
        return {
            "rtt": loss._rtt_smoothed,
            "min_rtt": loss._rtt_min if loss._rtt_initialized else 0.0,
            "congestion_window": loss.congestion_window,
            "bytes_in_flight": loss.bytes_in_flight,
            "max_udp_payload": self._quic._max_datagram_size,
            "bytes_buffered": self._quic.buffered,
            "frames_lost": self._quic.frames_lost,
            "packets_sent": self.packets_sent,
            "packets_received": self.packets_received,
            "packets_ignored": self._quic.packets_ignored,
            "bytes_sent": self.bytes_sent,
            "bytes_received": self.bytes_received,
            "datagrams_dropped": self._datagrams.dropped,
            "streams": len(self._quic._streams),
        }
