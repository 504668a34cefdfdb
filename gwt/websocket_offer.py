"""
What a WebSocket offers to rooms: taking frames that were encoded once for many, without waiting.

offer() tries the socket at once; offer_later() keeps frames together until send_offered(), which
sends them by one write. Both keep the order of everything that is sent here: whatever else is sent
goes behind what was offered before, and what is offered within a message in fragments waits for its
end. Nothing here may wait, switch or run user code, but wait_room(), which is for who has to.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from .net.tcp import TcpConnection
from .net.waiting import Deadline
from .protocol.websocket import WebSocketProtocol, encode_for
from .websocket_driver import Driver

__all__ = ["Offers"]

# What becomes of what is offered: rooms compare these words.
SENT, QUEUED, FULL, CLOSED = "sent", "queued", "full", "closed"


class Offers(Driver):
    """One WebSocket, as rooms use it."""

    __slots__ = ("_box", "_boxed", "_fragmenting", "_relayed", "_relayed_bytes", "kind")

    def __init__(
        self,
        connection: TcpConnection,
        protocol: WebSocketProtocol,
        *,
        max_queue: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(connection, protocol, max_queue=max_queue, clock=clock)

        # What encode_for() makes of a message depends on; None: offer messages, not frames.
        self.kind = protocol.kind

        # Whether a message in fragments is being sent.
        self._fragmenting = False

        # What was offered and is not the connection's yet, and how much waits with it. Frames; but
        # within fragments messages where there is no kind, as they are encoded in their turn.
        self._box: list[Any] | tuple[()] = ()
        self._boxed = 0

        # Messages, and bytes, that were encoded elsewhere and sent.
        self._relayed = self._relayed_bytes = 0

    @property
    def is_reusable(self) -> bool:
        """
        Whether somebody else may go on with the WebSocket as if it were new.

        It is open, nothing of a message is unread or half sent, and no greenlet waits to receive,
        or to send.
        """
        return (
            self._error is None
            and self._protocol.state == "open"
            and not (self._unread or self._reading.busy or self._protocol.receiving)
            and not (self._fragmenting or self._box or self._writable.awaited)
        )

    def stats(self) -> dict[str, Any]:
        """Return counters of messages and bytes."""
        counts = self._protocol.stats()
        counts["messages_sent"] += self._relayed
        counts["bytes_sent"] += self._relayed_bytes
        return counts

    @staticmethod
    def encode_for(kind: tuple[int, ...], message: str | bytes) -> bytes:
        """Encode a message for all WebSockets of a kind."""
        return encode_for(kind, message)

    def offer(self, frame: Any, limit: int) -> str:
        """
        Send a message, encoded for our kind; the message itself where we have none. Never waits.

        Returns "sent" if the kernel took it, "queued" if it waits, "full" if more than `limit`
        bytes would wait, and "closed". What is larger than that goes where nothing else waits.
        """
        if self._box or self._fragmenting:
            return self.offer_later(frame, limit)
        connection = self._connection
        # The protocol is not open either, once there is an error.
        if self._protocol.state != "open":
            return CLOSED
        if connection.queued and not self._has_room(len(frame), limit):
            return CLOSED if connection.broken else FULL
        if self.kind is None:
            frame = self._protocol.encoded(frame)
        else:
            self._relayed += 1
            self._relayed_bytes += len(frame)
        if not connection.send(frame):
            return CLOSED
        return QUEUED if connection.queued else SENT

    def offer_later(self, frame: Any, limit: int) -> str:
        """Like offer(), but keep it until the caller calls send_offered(), with what comes then."""
        size = len(frame)
        box = self._box
        if not box:
            if self._protocol.state != "open":
                return CLOSED
            queued = self._connection.queued
            if queued and not self._has_room(size, limit):
                return CLOSED if self._connection.broken else FULL
            box = self._box = []
            self._boxed = self._connection.queued
        elif self._boxed + size > limit:
            # They may not have been sent only because the loop has not come to it.
            if self._fragmenting:
                return FULL
            self.send_offered()
            return self.offer(frame, limit)
        if self.kind is None and not self._fragmenting:
            frame = self._protocol.encoded(frame)
        box.append(frame)
        self._boxed += size
        return QUEUED

    def _has_room(self, size: int, limit: int) -> bool:
        connection = self._connection
        if connection.queued + size <= limit:
            return True
        # Who offers without a pause keeps the loop from finding that the socket has room.
        connection.push()
        return not connection.queued or connection.queued + size <= limit

    def send_offered(self) -> None:
        """Send what offer_later() kept, by one write; not within a message in fragments."""
        box = self._box
        if not box or self._fragmenting:
            return
        self._box = ()
        data = box[0] if len(box) == 1 else b"".join(box)
        if self.kind is not None:
            self._relayed += len(box)
            self._relayed_bytes += len(data)
        self._connection.send(data)

    def _end_fragments(self) -> None:
        """A message in fragments is finished, or the WebSocket is: what waited for that goes."""
        self._fragmenting = False
        if self._box and self._protocol.state == "open":
            if self.kind is None:
                self._box = [self._protocol.encoded(message) for message in self._box]
            self.send_offered()
        self._box = ()

    def _flush(self) -> None:
        # Nothing that is sent goes ahead of it, a close frame above all.
        if self._box:
            self.send_offered()
        super()._flush()

    def wait_room(self, deadline: Deadline) -> None:
        """Wait until what waits was taken, or the end; raises TimeoutError."""
        if self._error is None and (self._connection.queued or self._fragmenting):
            self._writable.wait(deadline)
