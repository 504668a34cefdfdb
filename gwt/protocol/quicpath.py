"""
aioquic's connection, with packets of the size that the path carries: path MTU discovery.

Part of the seam of quic.py, which has the theory of operation and is the only one who uses it.

Every path carries BASE bytes (RFC 9000 14), so a connection starts with them. Once the handshake
is confirmed a probe, PING and PADDING of a whole size that is wanted, finds out about more; when
it is acknowledged that size is used (RFC 9000 14.3, RFC 8899). Sizes go from the largest down;
three probes of one may be lost. A path that ceases to carry large packets, and a new path, is
given packets of BASE bytes at once. Neither probes nor their loss concern congestion control.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aioquic.buffer import Buffer  # type: ignore[attr-defined]
from aioquic.quic.congestion.cubic import CubicCongestionControl
from aioquic.quic.congestion.reno import RenoCongestionControl
from aioquic.quic.packet import (
    QuicFrameType,
    QuicPacketType,
    pull_quic_transport_parameters,
)
from aioquic.quic.packet_builder import (
    QuicDeliveryState,
    QuicPacketBuilder,
    QuicSentPacket,
)
from aioquic.tls import Epoch

from .quicconnection import Connection
from .seam import Address, QuicOptions, SendBudget

__all__ = ["BASE", "PathConnection", "Search"]

# RFC 9000 14.1: what every path of QUIC carries, in bytes of UDP payload.
BASE = 1200

# What is tried below the size that is wanted: Ethernet's, by IPv6; and what tunnels leave of it.
_STEPS = (1452, 1350)

# RFC 8899 5.1.2: probes of one size, and seconds until a search that ended early begins again.
TRIES = 3
RAISE = 600.0

# Times in a row, a round trip or more apart, that large packets were lost while a small one came
# through: the path has ceased to carry them (RFC 8899 4.3).
_LOSSES = 3


@dataclass(eq=False, slots=True)
class _Probe:
    """A probe under way, on one path."""

    path: Any
    size: int
    sent: float
    deadline: float


class Search:
    """Which size is to be probed, and when."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        # The probe under way; how many of its size were lost before.
        self.probe: _Probe | None = None
        self._lost = 0
        # The sizes still to be tried, and not before when. None are left at the end.
        self.sizes: list[int] = []
        self.at = 0.0
        self.restart(BASE, 0.0)

    def limit(self, size: int) -> None:
        """Want at most `size`: the peer takes no more."""
        self.wanted = min(self.wanted, size)
        self.restart(BASE, self.at)

    def restart(self, above: int, at: float, below: float = math.inf) -> None:
        """Search again at `at`, above the size in use and below one that is known not to fit."""
        sizes = {self.wanted, *(step for step in _STEPS if step < self.wanted)}
        self.sizes = sorted((size for size in sizes if above < size < below), reverse=True)
        self.at = at
        self.probe = None
        self._lost = 0

    def failed(self, in_use: int) -> None:
        """Count the probe under way as lost."""
        if self.probe is None:
            return
        sent = self.probe.sent
        self.probe = None
        self._lost += 1
        if self._lost == TRIES:
            self._lost = 0
            del self.sizes[0]
            if not self.sizes:
                self.restart(in_use, sent + RAISE)


if TYPE_CHECKING:
    # What is below the mixin: either controller, and they have the same methods.
    _Base = RenoCongestionControl
else:
    _Base = object


class _Watch(_Base):
    """A congestion controller that notices when large packets get lost for their size."""

    black_hole: Callable[[float], None]
    congestion_window: int

    # The smallest of the large packets that were lost since as large a one arrived; 0 for none.
    _suspect = 0
    # How often in a row that was, and when last; what the slow start threshold was before.
    _losses = 0
    _lost_at = 0.0
    _threshold: int | None = None
    # When a large packet was sent that a timer gave up: nobody knows yet whether it was lost.
    _given_up = math.inf

    def resize(self, size: int) -> None:
        """Count in packets of another size from now on."""
        self._acquit()
        self._max_datagram_size = size
        # RFC 9002 7.2: never less than two packets.
        self.congestion_window = max(self.congestion_window, 2 * size)

    def on_packet_acked(self, *, now: float, packet: QuicSentPacket) -> None:
        super().on_packet_acked(now=now, packet=packet)
        if self._suspect:
            if packet.sent_bytes >= self._suspect:
                self._acquit()
            elif (packet.sent_time or 0.0) > self._given_up:
                self._count(now)

    def on_packets_expired(self, *, packets: Iterable[QuicSentPacket]) -> None:
        packets = list(packets)
        super().on_packets_expired(packets=packets)
        for packet in self._large(packets):
            # It was lost for its size if a smaller one arrives that was sent later.
            self._given_up = packet.sent_time or 0.0

    def on_packets_lost(self, *, now: float, packets: Iterable[QuicSentPacket]) -> None:
        packets = list(packets)
        if any((packet.sent_time or 0.0) > self._lost_at for packet in self._large(packets)):
            self._count(now)
        # RFC 9000 14.4: what is larger than what is used now was lost for its size.
        size = self._max_datagram_size
        super().on_packets_expired(packets=[p for p in packets if p.sent_bytes > size])
        if fitting := [p for p in packets if p.sent_bytes <= size]:
            super().on_packets_lost(now=now, packets=fitting)

    def _large(self, packets: list[QuicSentPacket]) -> list[QuicSentPacket]:
        """Return the suspects among packets that were not acknowledged, and remember their size."""
        if self._max_datagram_size == BASE:
            return []
        large = [packet for packet in packets if packet.sent_bytes > BASE]
        for packet in large:
            self._suspect = min(self._suspect or packet.sent_bytes, packet.sent_bytes)
        return large

    def _acquit(self) -> None:
        self._suspect = self._losses = 0
        self._given_up = math.inf

    def _count(self, now: float) -> None:
        self._given_up = math.inf
        self._lost_at = now
        if not self._losses:
            self._threshold = self.ssthresh
        self._losses += 1
        if self._losses == _LOSSES:
            # It was no congestion: the window may grow again as fast as it did before.
            self.ssthresh = self._threshold
            self.black_hole(now)


class _Reno(_Watch, RenoCongestionControl):
    pass


class _Cubic(_Watch, CubicCongestionControl):
    def resize(self, size: int) -> None:
        super().resize(size)
        self.additive_increase_factor = size


_CONTROLS: dict[str, type[_Watch]] = {"reno": _Reno, "cubic": _Cubic}


class PathConnection(Connection):
    """The connection with packets as large as its path carries, up to what is wanted."""

    def __init__(self, options: QuicOptions, budget: SendBudget, **kwargs: Any) -> None:
        super().__init__(options, budget, **kwargs)
        self.search = Search(options.max_udp_payload)
        self.path: Any = None
        if self.search.sizes:
            control = _CONTROLS[options.congestion_control](max_datagram_size=BASE)
            control.black_hole = self._on_black_hole
            self._loss._cc = self._control = control

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:
        super()._parse_transport_parameters(data, from_session_ticket)
        if self.search.sizes:
            limit = pull_quic_transport_parameters(Buffer(data=data)).max_udp_payload_size
            if limit is not None:
                self.search.limit(limit)

    # What the path says

    def follow_path(self, now: float) -> None:
        """Start anew where the path has changed, before anything is sent on it."""
        path = self._network_paths[0]
        if path is self.path or not (self.search.sizes or self._max_datagram_size > BASE):
            return
        if self.path is not None:
            # Not at once, so that a peer that moves with every packet draws no probes.
            self._use(BASE, now + self._loss.get_probe_timeout())
        self.path = path

    def _on_black_hole(self, now: float) -> None:
        size = self._max_datagram_size
        self._use(BASE, now)
        self.search.restart(BASE, now, below=size)
        if not self.search.sizes:
            self.search.restart(BASE, now + RAISE)

    def _on_probe_delivery(self, delivery: QuicDeliveryState, probe: _Probe) -> None:
        if delivery is not QuicDeliveryState.ACKED:
            if probe is self.search.probe:
                self.search.failed(self._max_datagram_size)
        elif probe.path is self.path and probe.size > self._max_datagram_size:
            # Even if it was taken for lost meanwhile.
            self._use(probe.size, probe.sent + RAISE)

    def _use(self, size: int, search_at: float) -> None:
        """Send packets of up to `size` bytes from now on."""
        self._max_datagram_size = size
        self.search.restart(size, search_at)
        loss = self._loss
        self._control.resize(size)
        loss._pacer._max_datagram_size = size
        if loss._rtt_initialized:
            loss._pacer.update_rate(loss.congestion_window, loss._rtt_smoothed)

    # Sending

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Address]]:
        # Before the rest, which may end with datagrams for another path.
        sent = self._probe_packet(now) if self.search.sizes else []
        size = self._max_datagram_size
        if self._probe_pending:
            # What is sent because nothing was acknowledged must not be lost for its size.
            self._max_datagram_size = BASE
        try:
            return sent + super().datagrams_to_send(now)
        finally:
            self._max_datagram_size = size

    def _send_probing_frames(self, network_path: Any, now: float) -> list[tuple[bytes, Address]]:
        # They are padded (RFC 9000 8.2.1), and nobody knows what another path carries.
        size, self._max_datagram_size = self._max_datagram_size, BASE
        try:
            return super()._send_probing_frames(network_path, now)
        finally:
            self._max_datagram_size = size

    def _probe_packet(self, now: float) -> list[tuple[bytes, Address]]:
        search, path = self.search, self.path
        if (
            search.probe is not None
            or now < search.at
            or not self._handshake_confirmed
            or self._close_event is not None
            or not path.is_validated
        ):
            return []
        size = search.sizes[0]
        patience = 3 * self._loss.get_probe_timeout()
        search.probe = _Probe(path, size, now, now + patience)
        builder = QuicPacketBuilder(
            host_cid=self.host_cid,
            is_client=self._is_client,
            max_datagram_size=size,
            packet_number=self._packet_number,
            peer_cid=self._peer_cid.cid,
            spin_bit=self._spin_bit,
            version=self._version or 0,
        )
        builder.start_packet(QuicPacketType.ONE_RTT, self._cryptos[Epoch.ONE_RTT])
        buffer = builder.start_frame(
            QuicFrameType.PING, handler=self._on_probe_delivery, handler_args=(search.probe,)
        )
        buffer.push_bytes(bytes(builder.remaining_buffer_space))
        # It is outside of the congestion window, and a timer of ours waits for it instead of the
        # one that resends data: its loss is no news of anything but its size (RFC 9000 14.4).
        packet = builder._packet
        assert packet is not None
        packet.in_flight = packet.is_ack_eliciting = False
        return self._flush_builder(
            builder=builder, network_path=path, peer_cid=self._peer_cid.cid, now=now
        )

    # Time

    def get_timer(self) -> float | None:
        timer: float | None = super().get_timer()
        probe = self.search.probe
        return timer if timer is None or probe is None else min(timer, probe.deadline)

    def handle_timer(self, now: float) -> None:
        super().handle_timer(now)
        probe = self.search.probe
        if probe is not None and now >= probe.deadline:
            self.search.failed(self._max_datagram_size)
