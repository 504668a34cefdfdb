"""
What a connection does by itself, and when: pings, giving up, and being forgotten.

All of it runs in the quiet zone, from one timer. connection.py has the connection.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sized

from .config import TransportConfig
from .errors import ConnectionClosed
from .net.timers import Timer
from .net.udp import UdpEndpoint
from .observe import Counters
from .protocol import codes, events
from .protocol.webtransport import WebTransport
from .states import ConnectionState

__all__ = ["Lifetime"]

# A timer that is later than this was late because the hub was blocked: what waits in the socket
# is read first, and for at most this long, before time-outs count.
_STALL = 0.05
_MAX_STALL_READING = 1.0

# How long a peer has to answer after a stall that was longer than its idle timeout.
_GRACE = 1.0

# How long a closed connection still takes its peer's packets. RFC 9000 10.2 says three PTOs, which
# are many seconds after a stall; what comes later is answered by a server's listener.
_CLOSING_PERIOD = 0.25


class Lifetime:
    """The timer of one connection, and the deadlines that it serves."""

    # What the connection has.
    protocol: WebTransport
    endpoint: UdpEndpoint
    state: ConnectionState
    counters: Counters
    closed: ConnectionClosed | None
    _sessions: Sized
    _tunnels: Sized

    def __init__(
        self,
        config: TransportConfig,
        *,
        keep_alive: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config

        # The peer's last packet, on the monotonic clock.
        self.last_active = clock()

        # How long a connection may be without a session. A client's is there for its sessions, and
        # goes when their end is acknowledged, or could have been.
        self.unused_timeout = config.close_timeout

        # When a handshake that is not completed is given up (None leaves it to the caller), a
        # connection without sessions, and when a closed one is forgotten.
        self.handshake_deadline: float | None = None
        self._unused_deadline: float | None = None
        self._gone_deadline: float | None = None

        self._clock = clock
        self._keep_alive = keep_alive
        self._pinged_at = 0.0
        self._timer = Timer(self._on_timer, clock=clock)

        # When the timer is due, and until when reading goes before it after a stall.
        self._due = 0.0
        self._catch_up_until: float | None = None
        # How many packets had been heard when the peer was last asked after a stall.
        self._asked_at = -1

    def note_unused(self) -> None:
        """Give the connection up in a while, unless it has a session or a tunnel by then."""
        self._unused_deadline = self._clock() + self.unused_timeout

    def _arm(self) -> None:
        deadline = self.protocol.next_timer()
        now = self._clock()
        if self.closed is not None and self._gone_deadline is None:
            self._gone_deadline = now + _CLOSING_PERIOD
        if deadline is None or (self._gone_deadline is not None and now >= self._gone_deadline):
            self._gone()
            return
        for other in (self._ping_due(), self._give_up_at(), self._gone_deadline):
            if other is not None and other < deadline:
                deadline = other
        self._due = deadline
        self._timer.arm(deadline)

    def _give_up_at(self) -> float | None:
        if self.state is ConnectionState.CONNECTING:
            return self.handshake_deadline if self.closed is None else None
        used = self._sessions or self._tunnels or self.closed is not None
        return None if used else self._unused_deadline

    def _ping_due(self) -> float | None:
        if not self._keep_alive or self.state is not ConnectionState.CONNECTED:
            return None
        interval = min(self.config.keep_alive_interval, self.protocol.quic.idle_timeout / 3)
        return max(self.last_active, self._pinged_at) + interval

    def _on_timer(self) -> None:
        now, due = self._clock(), self._due
        if now - due > _STALL or self.endpoint.behind:
            # The hub was blocked, or is behind: the peer's packets may be waiting in the socket,
            # and they go before any time-out.
            self.endpoint.catch_up()
            if self._catch_up_until is None:
                self._catch_up_until = now + _MAX_STALL_READING
                self._outlast_stall(now)
            if self.endpoint.behind and now < self._catch_up_until:
                # Not a callback: those of one turn run before the loop reads again.
                self._timer.arm(None)
                self._timer.arm(due)
                return
        self._catch_up_until = None
        try:
            ping, give_up = self._ping_due(), self._give_up_at()
            if ping is not None and now >= ping:
                self._pinged_at = now
                self.protocol.quic.ping()
            if give_up is not None and now >= give_up:
                if self.state is ConnectionState.CONNECTED:
                    self.protocol.close(codes.H3_NO_ERROR)
                else:
                    self.counters.note("handshakes_timed_out")
                    self.protocol.quic.close(
                        codes.QUIC_CONNECTION_REFUSED, "handshake timeout", application=False
                    )
            self._dispatch_all(self.protocol.on_timer(now))
        except Exception:
            # Safety net, as in receive().
            self._broken()
        self.send_now()

    def _outlast_stall(self, now: float) -> None:
        # A peer of this same hub, or one that had nothing to say, is as silent as a dead one: it is
        # asked, once until it is heard.
        quic = self.protocol.quic
        if self.state is ConnectionState.CONNECTED and quic.heard != self._asked_at:
            self._asked_at = quic.heard
            quic.outlast(now + _GRACE)

    # The connection's own

    def send_now(self) -> None:
        """Send, and set the timer."""
        raise NotImplementedError

    def _dispatch_all(self, happened: list[events.Event]) -> None:
        raise NotImplementedError

    def _broken(self) -> None:
        raise NotImplementedError

    def _gone(self) -> None:
        raise NotImplementedError
