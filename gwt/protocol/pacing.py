"""
Pacing: how many packets may leave in one burst.

The rate is aioquic's (RFC 9002 7.7); only the burst is ours.
"""

from __future__ import annotations

from aioquic.quic.recovery import QuicPacketPacer

__all__ = ["Pacer"]

# A burst is at most this many packets, and at most this many seconds' worth of them.
_BURST_PACKETS = 64
_BURST_SECONDS = 0.002


class Pacer(QuicPacketPacer):
    """
    Paces at aioquic's rate, in bursts of up to 64 packets or 2 ms.

    aioquic's own burst is 16 packets' time, but it counts a packet as a microsecond at least: with
    a large window over a short path that is one or two packets a pass, and a timer for each.
    """

    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        """Take a new window and round-trip time."""
        super().update_rate(congestion_window, smoothed_rtt)
        if self.packet_time is not None:
            burst = min(_BURST_SECONDS, _BURST_PACKETS * self.packet_time)
            self.bucket_max = max(self.bucket_max, burst)
