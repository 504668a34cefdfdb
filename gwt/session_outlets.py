"""
What a room sends to a WebTransport session by, without waiting: a stream, many, or datagrams.

Rooms call them outlets (manager/outlets.py). What fits into a stream's send buffer goes there, the
first of a turn at once, the rest together; what does not waits here, in order, for a greenlet that
writes as any other and ends when all is written. So a session's flow control rules what waits, and
only a slow one costs a greenlet. The streams are the manager's: they do not count to the session's
own ``max_streams``.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import gevent

from .errors import GwtError, StreamError
from .net.waiting import Deadline, Signal
from .protocol.messages import encode_message, payload_of
from .stream_send import WebTransportSendStream

if TYPE_CHECKING:
    from .session import WebTransportSession

__all__ = ["DatagramOutlet", "MessageOutlet", "SessionOutlet", "StreamOutlet", "outlet_for"]

# What becomes of what is offered: rooms compare these words.
SENT, QUEUED, FULL, DROPPED, CLOSED = "sent", "queued", "full", "dropped", "closed"

# How much a writer hands to a stream at once, of messages that wait.
_BLOCK = 64 * 1024

# What a message that waits costs beside its own bytes.
_OVERHEAD = 64

# With a stream for each message: how many may be open, and what may be unacknowledged on them.
_MOST_STREAMS = 64
_MOST_UNACKNOWLEDGED = 256 * 1024


def outlet_for(session: Any, framing: str) -> SessionOutlet:
    """Return an outlet: "messages" for one stream of messages, "stream" for a stream each."""
    return (StreamOutlet if framing == "stream" else MessageOutlet)(session)


class SessionOutlet:
    """A queue in front of streams, and a greenlet while something waits in it."""

    __slots__ = ("_queue", "_queued", "_session", "_taken", "_writer", "is_closed")

    # What encode_for() depends on.
    kind: str

    def __init__(self, session: WebTransportSession) -> None:
        self._session = session

        # Whether nothing will be taken any more: the session has ended, its peer wants no
        # messages, or it has left the manager.
        self.is_closed = False

        # What waits, and how many bytes of it; those that the writer is at count until it is done.
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._writer: gevent.Greenlet | None = None
        self._taken = Signal()

    @staticmethod
    def encode_for(kind: str, message: str | bytes) -> bytes:
        """Encode a message for all outlets of a kind."""
        return encode_message(message) if kind == "messages" else payload_of(message)

    @property
    def unreliable(self) -> DatagramOutlet:
        """What sends to the same session by datagrams."""
        return DatagramOutlet(self._session)

    def offer(self, frame: bytes, limit: int) -> str:
        """
        Send a message that encode_for() made; never waits.

        Returns "sent" if QUIC took it, "queued" if it waits, "full" if more than `limit` bytes
        would, "closed" if nothing is taken any more. A larger one goes where nothing else waits.
        """
        if self._queue or self._writer is not None:
            return self.offer_later(frame, limit)
        if self.is_closed or not self._session.is_ready:
            return CLOSED
        try:
            if self._send_now(frame):
                return SENT
        except GwtError:
            self.is_closed = True
            return CLOSED
        self._append(frame)
        self._start_writer()
        return QUEUED

    def offer_later(self, frame: bytes, limit: int) -> str:
        """Like offer(), but keep it until the caller calls send_offered(), with what comes then."""
        if self.is_closed or not self._session.is_ready:
            return CLOSED
        if self._queued and self._queued + len(frame) > limit:
            if self._writer is not None:
                return FULL
            # They may not have been sent only because the loop has not come to it.
            self.send_offered()
            return FULL if self._writer is not None else self.offer(frame, limit)
        self._append(frame)
        return QUEUED

    def send_offered(self) -> None:
        """Send what offer_later() kept, by one write if it fits; else the writer does."""
        if not self._queue or self._writer is not None:
            return
        try:
            self._send_queue()
        except GwtError:
            self.is_closed = True
            self._forget()
        if self._queue:
            self._start_writer()

    def _append(self, frame: bytes) -> None:
        self._queue.append(frame)
        self._queued += len(frame) + _OVERHEAD

    def _start_writer(self) -> None:
        self._writer = gevent.spawn(self._write)
        self._writer.name = f"gwt-room-writer {self._session.id}"

    def wait_room(self, deadline: Deadline) -> None:
        """Wait until something that waited was taken, or the end; raises TimeoutError."""
        if self._writer is not None:
            self._taken.wait(deadline)

    def wait_sent(self, deadline: Deadline) -> None:
        """Wait until nothing waits here any more; raises TimeoutError."""
        self.send_offered()
        while self._writer is not None:
            self._taken.wait(deadline)

    def stop(self) -> None:
        """Send nothing more: the session has left. Gives up what waits; never waits, or raises."""
        self.send_offered()
        writer, self._writer = self._writer, None
        self.is_closed = True
        if writer is not None:
            writer.kill(block=False)
        self._forget()
        for stream in self._streams_left():
            if writer is None:
                stream.finish()
            else:
                # It was slow: what it has not read yet is not to be held any longer.
                stream.reset()

    def _forget(self) -> None:
        self._queue.clear()
        self._queued = 0
        self._taken.notify()

    def _write(self) -> None:
        try:
            while self._queue:
                self._write_next()
                self._taken.notify()
        except GwtError:
            # The session has ended, or the peer has stopped the stream.
            self.is_closed = True
        finally:
            if self._writer is gevent.getcurrent():
                self._writer = None
                self._forget()

    def _open(self) -> WebTransportSendStream | None:
        stream = self._session.open_now(True)
        if stream is not None:
            self._session.streams.add_stream(stream)
        return stream

    def _wait_open(self) -> WebTransportSendStream:
        while (stream := self._open()) is None:
            self._session.wait_credit(None)
        return stream

    # Of each kind

    def _send_now(self, frame: bytes) -> bool:
        """Send a message if it can be without waiting; tells whether. Raises GwtError."""
        raise NotImplementedError

    def _send_queue(self) -> None:
        """Send of what waits what can be without waiting. Raises GwtError."""
        raise NotImplementedError

    def _write_next(self) -> None:
        """Send what waits first; may wait. Raises GwtError if nothing is taken any more."""
        raise NotImplementedError

    def _streams_left(self) -> list[WebTransportSendStream]:
        """Return the streams that are not over, which may be left to themselves now."""
        raise NotImplementedError


class MessageOutlet(SessionOutlet):
    """All messages in order on one stream, opened by the first."""

    __slots__ = ("_stream",)

    kind = "messages"

    def __init__(self, session: WebTransportSession) -> None:
        super().__init__(session)
        self._stream: WebTransportSendStream | None = None

    def _send_now(self, frame: bytes) -> bool:
        stream = self._stream
        if stream is None:
            stream = self._stream = self._open()
        return stream is not None and stream.try_write(frame)

    def _send_queue(self) -> None:
        if self._send_now(b"".join(self._queue)):
            self._forget()

    def _write_next(self) -> None:
        if self._stream is None:
            self._stream = self._wait_open()
        queue = self._queue
        block = [queue.popleft()]
        size = len(block[0])
        while queue and size < _BLOCK:
            block.append(queue.popleft())
            size += len(block[-1])
        self._stream.write(b"".join(block))
        self._queued -= size + len(block) * _OVERHEAD

    def _streams_left(self) -> list[WebTransportSendStream]:
        return [] if self._stream is None else [self._stream]


class StreamOutlet(SessionOutlet):
    """A stream for each message, with nothing but its payload; they may overtake each other."""

    __slots__ = ("_sent", "_spare", "_unacknowledged")

    kind = "payload"

    def __init__(self, session: WebTransportSession) -> None:
        super().__init__(session)

        # Streams with a message each until it is acknowledged, and its bytes; a stream that was
        # opened, and had no room for its message.
        self._sent: set[WebTransportSendStream] = set()
        self._unacknowledged = 0
        self._spare: WebTransportSendStream | None = None

    def _may_send(self, size: int) -> bool:
        return not self._sent or (
            len(self._sent) < _MOST_STREAMS and self._unacknowledged + size <= _MOST_UNACKNOWLEDGED
        )

    def _send_now(self, frame: bytes) -> bool:
        if not self._may_send(len(frame)):
            return False
        stream = self._open()
        if stream is None:
            return False
        if not stream.try_write(frame, end=True):
            # For the writer, which comes next.
            self._spare = stream
            return False
        self._remember(stream)
        return True

    def _send_queue(self) -> None:
        # An open stream without a message is the writer's.
        while self._queue and self._spare is None and self._send_now(self._queue[0]):
            self._queued -= len(self._queue.popleft()) + _OVERHEAD

    def _write_next(self) -> None:
        size = len(self._queue[0])
        while not self._may_send(size):
            self._taken.wait()
        if self._spare is None:
            self._spare = self._wait_open()
        try:
            self._spare.write_all(self._queue.popleft())
        except StreamError:
            # The peer did not want this one; there may be others.
            if self._session.is_closed:
                raise
        stream, self._spare = self._spare, None
        self._remember(stream)
        self._queued -= size + _OVERHEAD

    def _remember(self, stream: WebTransportSendStream) -> None:
        self._sent.add(stream)
        self._unacknowledged += stream.bytes_sent
        stream.on_end(self._over)

    def _over(self, stream: WebTransportSendStream) -> None:
        # In the quiet zone.
        self._sent.discard(stream)
        self._unacknowledged -= stream.bytes_sent
        self._taken.notify()

    def _streams_left(self) -> list[WebTransportSendStream]:
        return [*self._sent, *([] if self._spare is None else [self._spare])]


class DatagramOutlet:
    """A datagram for each message, with nothing but its payload; what is too large is dropped."""

    __slots__ = ("_session",)

    kind = "payload"

    encode_for = staticmethod(SessionOutlet.encode_for)

    def __init__(self, session: WebTransportSession) -> None:
        self._session = session

    def offer(self, frame: bytes, limit: int) -> str:
        """Send a message; returns "sent", "dropped" if it is too large, or "closed"."""
        session = self._session
        if not session.is_ready:
            return CLOSED
        if len(frame) > session.max_datagram_size:
            return DROPPED
        session.send_datagram(frame)
        return SENT

    offer_later = offer

    def send_offered(self) -> None:
        """Nothing: the connection does it at the end of the turn."""

    def wait_room(self, deadline: Deadline) -> None:
        """Nothing: there is always room, and the oldest that waits goes."""
