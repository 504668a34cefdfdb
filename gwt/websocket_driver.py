"""
The quiet zone of a WebSocket: what the connection reads goes to the protocol, and comes back up.

Driven by one watcher (net/tcp.py) and one timer: pings are sent and answered, a close is seen and
dead peers are noticed although no greenlet waits for a message. Nothing here may wait, switch, log
or raise. websocket.py has what users call.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from gevent import get_hub

from .errors import WebSocketClosed
from .net.tcp import TcpConnection
from .net.timers import Timer
from .net.waiting import ReadGuard, Signal
from .protocol.websocket import WebSocketProtocol
from .protocol.wsevents import Closed, Event, Fragment, Message, Ping, Pong
from .websocket_common import Acknowledgement

__all__ = ["Driver"]

# What one turn of the loop decodes of one connection at most: one peer with 20,000 frames in flight
# must not keep the others waiting.
_FRAMES = 64
_STEP = 16
_SECONDS = 0.002

# Up to here a list is as fast as a deque, and 700 bytes smaller.
_SHORT_QUEUE = 256

# Pings that are answered while the socket takes nothing; then it is not read any more.
_UNTAKEN_PONGS = 256

# A timer that is later than this was late because the hub was blocked: what waits in the socket is
# read first, and an answer waited for, for at most this long.
_STALL = 0.05
_MAX_STALL_READING = 1.0


class Driver:
    """One WebSocket, without what users call."""

    __slots__ = (
        "_acknowledgements",
        "_catch_up_until",
        "_cause",
        "_changed",
        "_clock",
        "_connection",
        "_deserted",
        "_discarded",
        "_due",
        "_end_callbacks",
        "_eof",
        "_error",
        "_heard",
        "_held",
        "_max_queue",
        "_more",
        "_protocol",
        "_reading",
        "_received",
        "_timer",
        "_unanswered",
        "_unread",
        "_writable",
    )

    def __init__(
        self,
        connection: TcpConnection,
        protocol: WebSocketProtocol,
        *,
        max_queue: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._protocol = protocol
        self._max_queue = max_queue
        self._clock = clock

        # When the peer was last heard.
        self._heard = clock()

        # Messages, and fragments, that nobody has received yet; who receives; who waits for one,
        # for room to send, and for the end.
        self._unread: list[str | bytes | Fragment] | deque[str | bytes | Fragment] = (
            [] if max_queue is not None and max_queue <= _SHORT_QUEUE else deque()
        )
        self._discarded = 0
        self._reading = ReadGuard("WebSocket")
        self._received = Signal()
        self._writable = Signal()
        self._changed = Signal()

        # Whether reading is held back, because nobody receives or the peer takes no pongs.
        self._held = False
        self._unanswered = 0

        # Whether the peer was found gone since then.
        self._deserted = False

        # Whether the peer has ended, and what it sent is still being decoded.
        self._eof = False

        # Decodes what one turn had no time for; made when it is needed first.
        self._more: Timer | None = None

        # Pings under way, by payload, in their order.
        self._acknowledgements: dict[bytes, Acknowledgement] = {}

        # Why it ended, and what broke the connection if that did it; who wants to know, None once
        # they have been told.
        self._cause = ""
        self._error: WebSocketClosed | None = None
        self._end_callbacks: list[Callable[[Any], None]] | None = []

        # When the timer is due, and until when reading goes before it after a stall.
        self._timer = Timer(self._on_timer, clock=clock)
        self._due = 0.0
        self._catch_up_until: float | None = None

    def start(self, early: bytes = b"") -> None:
        """Begin to read; `early` came with the handshake. Whoever made the WebSocket calls this."""
        self._connection.start(self)
        if early:
            self.data_received(early)
        else:
            self._arm()

    def on_end(self, callback: Callable[[Any], None]) -> None:
        """Call ``callback(websocket)`` once it has ended, at once if it has; it must not wait."""
        if self._end_callbacks is None:
            callback(self)
        else:
            self._end_callbacks.append(callback)

    def off_end(self, callback: Callable[[Any], None]) -> None:
        """Forget a callback that on_end() was given; idempotent."""
        if self._end_callbacks and callback in self._end_callbacks:
            self._end_callbacks.remove(callback)

    def data_received(self, data: bytes) -> None:
        """Fed from the connection."""
        # Mostly it is one message, which moves no deadline and is not answered.
        message = self._protocol.message(data) if not self._held else None
        if message is None:
            self._decode(data)
            return
        self._heard = self._clock()
        self._unread.append(message)
        self._received.notify()
        if self._max_queue is not None and len(self._unread) >= self._max_queue:
            self._hold_or_release()

    def _decode(self, data: bytes = b"") -> None:
        """Decode for one turn; what is left then waits for the next, and the socket with it."""
        protocol = self._protocol
        if self._error is not None:
            return
        now = self._clock()
        until = now + _SECONDS
        if data:
            self._heard = now
        budget = _FRAMES
        while True:
            self._pass_on(protocol.receive_data(data, now, limit=self._limit(budget)))
            if self._error is not None or not protocol.pending or self._held:
                break
            if protocol.failing:
                # Greenlets that answer what came before run ahead of the next turn.
                break
            data = b""
            budget -= _STEP
            now = self._clock()
            if budget <= 0 or now >= until:
                break
        if self._error is not None:
            return
        if protocol.pending:
            self._connection.pause()
            if not self._held:
                self._decode_soon()
        elif self._eof:
            self._finish()
        elif not self._held:
            self._connection.resume()

    def _limit(self, budget: int) -> int:
        room = _STEP if self._max_queue is None else self._max_queue - len(self._unread)
        return max(1, min(_STEP, budget, room))

    def _decode_soon(self) -> None:
        # Not a callback: those of one turn run before the loop reads again.
        if self._more is None:
            self._more = Timer(self._decode, clock=self._clock)
        self._more.arm(self._clock())

    def connection_ended(self, error: OSError | None) -> None:
        """Fed from the connection: nothing more comes."""
        self._eof = True
        self._cause = "the peer ended the connection"
        if error is not None:
            self._cause = error.strerror or str(error)
        if error is not None or not self._protocol.pending:
            self._finish()

    def _finish(self) -> None:
        """There is nothing more to decode: the end, if it was not said."""
        if self._error is None:
            if self._held:
                # Not what the queue has no room for: it may inflate to much more than was read.
                self._protocol.pending = False
            self._pass_on(self._protocol.receive_eof(self._clock()))
            self._ended(None)

    def drained(self) -> None:
        """Fed from the connection: everything was taken."""
        self._unanswered = 0
        if self._held:
            self._hold_or_release()
        self._writable.notify()

    def _pass_on(self, events: list[Event]) -> None:
        """Hand on what the protocol says, then send what it wants sent."""
        closed = None
        # Messages, which are what mostly comes, move no deadline.
        moved = not events
        for event in events:
            if isinstance(event, Message):
                self._take(event.data)
                continue
            if isinstance(event, Fragment):
                self._take(event)
                continue
            moved = True
            match event:
                case Pong():
                    self._acknowledge(event)
                case Ping():
                    self._unanswered += 1
                case Closed():
                    closed = event
        self._flush()
        if closed is not None:
            self._ended(closed)
        elif self._error is None:
            self._hold_or_release()
            if moved:
                self._arm()

    def _flush(self) -> None:
        pieces = self._protocol.data_to_send()
        if pieces:
            self._connection.write(pieces)
            if not self._connection.queued:
                self._unanswered = 0

    def _take(self, item: str | bytes | Fragment) -> None:
        if self._protocol.close_sent is not None and self._full():
            # Nobody may ever receive it, and the peer's close frame is behind it.
            self._discarded += 1
            return
        self._unread.append(item)
        self._received.notify()

    def _full(self) -> bool:
        return self._max_queue is not None and len(self._unread) >= self._max_queue

    def _hold_or_release(self) -> None:
        """Stop to read while nobody receives, or the peer takes no pongs; read again."""
        full = self._full() and self._protocol.close_sent is None
        hold = full or self._unanswered >= _UNTAKEN_PONGS
        if hold == self._held or self._error is not None:
            return
        self._held = hold
        # A peer that takes no pongs has no more time for its own than others.
        self._protocol.hold(full, self._clock())
        if hold:
            self._connection.pause()
        else:
            self._heard = self._clock()
            self._deserted = False
            if self._protocol.pending or self._eof:
                self._decode_soon()
            else:
                self._connection.resume()
        self._arm()

    def _acknowledge(self, pong: Pong) -> None:
        if pong.payload not in self._acknowledgements:
            return
        # A pong answers all pings before it, too (RFC 6455 5.5.3).
        for payload in list(self._acknowledgements):
            self._acknowledgements.pop(payload).answered(pong.latency)
            if payload == pong.payload:
                return

    def _ended(self, event: Closed | None) -> None:
        """It is over, for a reason; without an event the connection is just gone."""
        if self._error is not None:
            return
        rcvd, sent = (event.rcvd, event.sent) if event is not None else (None, None)
        first = event is None or event.rcvd_then_sent
        self._error = WebSocketClosed.of(rcvd, sent, remote=first, cause=self._cause)
        self._timer.close()
        if self._more is not None:
            self._more.close()
        # Both have said so: a server ends TCP, too, and a client lets it (RFC 6455 7.1.1).
        both = rcvd is not None and sent is not None
        self._connection.close(done=both and not self._protocol.is_client)
        for acknowledgement in self._acknowledgements.values():
            acknowledgement.failed(self._error)
        self._acknowledgements.clear()
        for signal in (self._received, self._writable, self._changed):
            signal.notify()
        self._tell_end()

    def _tell_end(self) -> None:
        callbacks, self._end_callbacks = self._end_callbacks, None
        for callback in callbacks or ():
            try:
                callback(self)
            except Exception as exc:
                # Boundary to user code: a callback of on_end.
                get_hub().handle_error(self, type(exc), exc, exc.__traceback__)

    def _arm(self) -> None:
        if self._error is None:
            due = self._protocol.next_timer()
            if due is not None:
                self._due = due
            self._timer.arm(due)

    def _on_timer(self) -> None:
        now = self._clock()
        if now - self._due > _STALL and not self._held:
            # The hub was blocked: what the peer sent meanwhile goes before any time-out. One that
            # was blocked as well, as in the same process, may not have sent it yet.
            if self._catch_up_until is None:
                self._catch_up_until = now + _MAX_STALL_READING
            waiting = self._protocol.pending or self._connection.read_waiting()
            if now < self._catch_up_until and (waiting or self._protocol.waits_for_peer):
                if self._error is None:
                    self._timer.arm(None)
                    self._timer.arm(self._due if waiting else self._catch_up_until)
                return
        self._catch_up_until = None
        if self._error is None:
            if self._held and self._connection.deserted:
                if self._deserted:
                    # Nobody has received, and nobody was there, for a whole interval of pings.
                    self._cause = "the peer is gone"
                    self._finish()
                    return
                self._deserted = True
            self._pass_on(self._protocol.on_timer(now))
