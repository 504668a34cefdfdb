"""
WebTransport sessions as a greenlet sees them: streams opened and accepted, datagrams, closing.

Calls from above run in the caller's greenlet and may wait; methods named feed_* are fed from the
connection, run in the quiet zone, and only store and notify. Streams of our own are opened by
session_streams.py.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from .config import TransportConfig
from .errors import DatagramTooLarge, GwtError, SessionClosed, SessionError, anew
from .manager.stream import StreamManager
from .net.waiting import Deadline, Signal
from .protocol import events
from .protocol.requests import decode_headers, refusal
from .session_streams import OwnStreams
from .states import SessionState
from .stream import WebTransportReceiveStream, WebTransportSendStream, WebTransportStream
from .stream_common import CONFIGURED, check_code
from .stream_send import flush_or_reset

if TYPE_CHECKING:
    from .connection import WebTransportConnection

__all__ = ["SessionState", "WebTransportSession"]

_ids = itertools.count(1)


class WebTransportSession(OwnStreams):
    """
    One WebTransport session.

    Iterating it yields the peer's streams until it closes. As a context manager it closes: with
    code 0, or at once if an exception left the block.
    """

    def __init__(
        self,
        connection: WebTransportConnection,
        stream_id: int,
        *,
        path: str,
        headers: dict[str, str],
        config: TransportConfig | None = None,
    ) -> None:
        self.connection = connection
        self.config = config or connection.config
        self.stream_id = stream_id  # On the wire: that of the CONNECT request.
        self.session_id = f"session-{next(_ids)}"
        self.path = path
        self.headers = headers  # Of the request on a server, of the response on a client.
        self.subprotocol: str | None = None
        self.state = SessionState.CONNECTING
        self.created_at = time.monotonic()

        # How it ended; no code if nobody gave one.
        self.close_code: int | None = None
        self.close_reason: str | None = None
        self._error: GwtError | None = None

        # The streams, ours and the peer's, until they are over.
        self.streams = StreamManager(
            stream_factory=self._open_stream,
            session_factory=lambda: self,
            max_streams=self.config.max_streams,
            stream_cleanup_interval=None,
        )
        self.streams.start()

        # The peer's streams that nobody accepted, in order; datagrams that nobody received.
        self.incoming: deque[WebTransportReceiveStream] = deque()
        self._datagrams: deque[bytes] = deque()
        self._accepting = Signal()
        self._receiving = Signal()
        self._credit = Signal()
        self._changed = Signal()
        self._local_drain = self._accepted = False
        self._end_callbacks: list[Callable[[Any], None]] | None = []

        self.datagrams_sent = self.datagrams_received = self.datagrams_dropped = 0
        self.streams_opened = self.streams_accepted = 0

    def __repr__(self) -> str:
        return (
            f"<WebTransportSession {self.session_id} {self.state.value} {self.path} "
            f"streams={len(self.streams)}>"
        )

    def configure(self, config: TransportConfig) -> None:
        """Let a route's options rule from now on."""
        self.config = config
        self.streams.set_limit(config.max_streams)

    # State

    @property
    def id(self) -> str:
        """The session's name in this process; the same as ``session_id``."""
        return self.session_id

    @property
    def is_ready(self) -> bool:
        """Whether streams can be opened and datagrams sent."""
        return self.state in (SessionState.CONNECTED, SessionState.DRAINING)

    @property
    def is_reusable(self) -> bool:
        """
        Whether somebody else may go on with the session as if it were new.

        It is connected, and nobody asked for its end; no stream is open, but for ends that are not
        acknowledged yet; nothing that came is unread, and no greenlet waits for more.
        """
        return (
            self.state is SessionState.CONNECTED
            and not (self.incoming or self._datagrams)
            and not (self._accepting.awaited or self._receiving.awaited or self._credit.awaited)
            and (not len(self.streams) or all(stream.is_done for stream in self.streams))
        )

    @property
    def is_closed(self) -> bool:
        """Whether the session has ended."""
        return self.state is SessionState.CLOSED

    @property
    def remote_address(self) -> Any:
        """The peer's address as (host, port)."""
        return self.connection.remote_address

    @property
    def local_address(self) -> Any:
        """Our address as (host, port)."""
        return self.connection.local_address

    @property
    def last_active(self) -> float:
        """When the peer's last packet came, on the monotonic clock."""
        return self.connection.last_active

    @property
    def max_datagram_size(self) -> int:
        """The largest datagram that fits now, in bytes; 0 if the peer takes none."""
        return self.connection.protocol.max_datagram_size(self.stream_id)

    def stats(self) -> dict[str, Any]:
        """Return counters of the session, its streams by state, and its connection's figures."""
        return {
            "state": self.state.value,
            "uptime": time.monotonic() - self.created_at,
            "streams_opened": self.streams_opened,
            "streams_accepted": self.streams_accepted,
            "streams_waiting": len(self.incoming),
            "datagrams_sent": self.datagrams_sent,
            "datagrams_received": self.datagrams_received,
            "datagrams_dropped": self.datagrams_dropped,
            "streams": self.streams.get_stats(),
            "connection": self.connection.stats(),
        }

    def export_keying_material(
        self, label: str | bytes, length: int, context: bytes = b""
    ) -> bytes:
        """
        Return `length` secret bytes that both ends of this session, and nobody else, can make.

        They depend on `label` (1 to 255 bytes) and `context` (up to 255; webtrans-http3-16 4.8).
        Never waits. Raises SessionError, or ValueError: no more than 255 hashes, 8160 or 12240.
        """
        self._check_open()
        return self.connection.protocol.export(self.stream_id, label, length, context)

    def on_end(self, callback: Callable[[Any], None]) -> None:
        """Call ``callback(session)`` once it has ended, at once if it has; it must not wait."""
        if self._end_callbacks is None:
            callback(self)
        else:
            self._end_callbacks.append(callback)

    def off_end(self, callback: Callable[[Any], None]) -> None:
        """Forget a callback of on_end(), if there is such a one."""
        if self._end_callbacks and callback in self._end_callbacks:
            self._end_callbacks.remove(callback)

    def _check_open(self) -> None:
        self.connection.check_thread()
        if self._error is not None:
            raise anew(self._error)
        if not self.is_ready:
            raise SessionError(
                f"The session is {self.state.value}: it carries nothing now.",
                session_id=self.session_id,
            )

    # Streams of the peer's

    def accept_stream(
        self, *, timeout: float | None = None
    ) -> WebTransportStream | WebTransportReceiveStream:
        """
        Return the next stream that the peer opened.

        Waits for one; raises SessionClosed when the session has ended, or TimeoutError.
        """
        stream: WebTransportReceiveStream = self._accept(WebTransportReceiveStream, timeout)
        return stream

    def accept_bidirectional_stream(self, *, timeout: float | None = None) -> WebTransportStream:
        """Return the next bidirectional stream that the peer opened; as accept_stream()."""
        stream: WebTransportStream = self._accept(WebTransportStream, timeout)
        return stream

    def accept_unidirectional_stream(
        self, *, timeout: float | None = None
    ) -> WebTransportReceiveStream:
        """Return the next unidirectional stream that the peer opened; as accept_stream()."""
        return self._accept(None, timeout)  # type: ignore[no-any-return]

    def _accept(self, kind: type | None, timeout: float | None) -> Any:
        """Take the first waiting stream of a kind; None is the unidirectional one."""
        self.connection.check_thread()
        deadline = Deadline(timeout)
        while True:
            for index, stream in enumerate(self.incoming):
                if isinstance(stream, kind) if kind else not isinstance(stream, WebTransportStream):
                    del self.incoming[index]
                    self.connection.protocol.accept_stream(stream.stream_id)
                    self.connection.flush_soon()
                    self.streams_accepted += 1
                    return stream
            if self._error is not None:
                raise anew(self._error)
            self._accepting.wait(deadline)

    def incoming_streams(self) -> Iterator[WebTransportStream | WebTransportReceiveStream]:
        """Yield the peer's streams until the session ends."""
        while True:
            try:
                yield self.accept_stream()
            except SessionError:
                return

    __iter__ = incoming_streams

    # Datagrams

    def send_datagram(self, data: bytes | bytearray | memoryview) -> None:
        """
        Send one datagram, unreliably. Never waits.

        Raises DatagramTooLarge at once if it cannot fit into a packet, or SessionClosed. When
        more wait for the network than ``datagram_send_queue``, the oldest is dropped.
        """
        self._check_open()
        limit = self.max_datagram_size
        payload = data if isinstance(data, bytes) else bytes(memoryview(data))
        if len(payload) > limit:
            raise DatagramTooLarge(len(payload), limit)
        self.connection.protocol.send_datagram(self.stream_id, payload)
        self.connection.flush_soon()
        self.datagrams_sent += 1

    def receive_datagram(self, timeout: float | None = None) -> bytes:
        """Return the next datagram; waits for one, raises SessionClosed or TimeoutError."""
        self.connection.check_thread()
        if not self._datagrams:
            deadline = Deadline(timeout)
            while not self._datagrams:
                if self._error is not None:
                    raise anew(self._error)
                self._receiving.wait(deadline)
        return self._datagrams.popleft()

    def incoming_datagrams(self) -> Iterator[bytes]:
        """Yield datagrams until the session ends."""
        while True:
            try:
                yield self.receive_datagram()
            except SessionError:
                return

    # The end

    def close(self, code: int = 0, reason: str = "", *, timeout: float | None = CONFIGURED) -> None:
        """
        Close the session; everything that was written arrives before. Idempotent.

        Finishes the send streams that are open, waits until all is acknowledged, at most `timeout`
        or close_timeout, then sends `code` (32 bits) and `reason` (up to 1024 bytes of UTF-8) and
        waits for that too. What was not acknowledged by then is reset, counted and logged.
        """
        check_code(code)
        if len(reason.encode()) > 1024:
            raise ValueError("A reason may have at most 1024 bytes of UTF-8.")
        self.connection.check_thread()
        deadline = Deadline(self.close_timeout(timeout))
        protocol = self.connection.protocol
        with suppress(TimeoutError):
            if self.state is SessionState.CLOSING:
                # Another greenlet is at it.
                self.wait_closed(deadline.remaining())
            elif not self.is_closed:
                self._close(code, reason, deadline)
            # The process may end right after this call. Before, the peer has our close, or our
            # answer to its, and a client's connection has sent its own.
            while self.stream_id in protocol.sessions and not self.connection.is_closed:
                self.connection.wait_change(deadline)
            self.connection.send_now()
            return
        if self.connection.is_client and not self.connection.sessions:
            self.connection.close()

    def _close(self, code: int, reason: str, deadline: Deadline) -> None:
        if self.state is not SessionState.CONNECTING:
            self.state = SessionState.CLOSING
            try:
                sending = [s for s in self.streams if isinstance(s, WebTransportSendStream)]
                for stream in sending:
                    stream.finish()
                flush_or_reset(self.session_id, sending, deadline)
            except BaseException:
                # Killed, or timed out from outside: nobody else would finish what was begun.
                self.abort(code)
                raise
        self.connection.protocol.close_session(self.stream_id, code, reason)
        self.connection.pump()

    def close_timeout(self, timeout: float | None) -> float | None:
        """Return a timeout of close(), or the configured one if it was left out."""
        return self.config.close_timeout if timeout is CONFIGURED else timeout

    def abort(self, code: int = 0) -> None:
        """Close at once with `code`: what was not acknowledged is lost. Does not wait."""
        check_code(code)
        self.connection.check_thread()
        if not self.is_closed:
            self.connection.protocol.close_session(self.stream_id, code)
            self.connection.pump()

    def drain(self) -> None:
        """Ask the peer to bring the session to an end; no new streams from us. Does not wait."""
        self._check_open()
        self._local_drain = True
        self.state = SessionState.DRAINING
        self.connection.protocol.drain_session(self.stream_id)
        self.connection.flush_soon()

    def wait_closed(self, timeout: float | None = None) -> None:
        """Wait until the session has ended, by whomever; raises TimeoutError."""
        self.connection.check_thread()
        deadline = Deadline(timeout)
        while not self.is_closed:
            self._changed.wait(deadline)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    # Fed from the connection

    def feed_stream(self, stream_id: int) -> None:
        """The peer opened a stream."""
        kind = WebTransportReceiveStream if stream_id & 2 else WebTransportStream
        stream = kind(self, stream_id)
        self.connection.add_stream(stream)
        self.streams.add_stream(stream)
        self.incoming.append(stream)
        self._accepting.notify()

    def feed_datagram(self, data: bytes) -> None:
        """A datagram arrived; when nobody receives, the oldest goes."""
        self.datagrams_received += 1
        if len(self._datagrams) >= self.config.datagram_queue:
            self._datagrams.popleft()
            self.datagrams_dropped += 1
        self._datagrams.append(data)
        self._receiving.notify()

    def feed_accepted(self, subprotocol: str | None, headers: events.Headers) -> None:
        """The session is open."""
        self._accepted = True
        self.subprotocol = subprotocol
        self.headers = decode_headers(headers)
        self.state = SessionState.CONNECTED
        self._changed.notify()

    def feed_refused(self, status: int | None, code: int | None, headers: events.Headers) -> None:
        """The server did not want the session."""
        self._end(refusal(status, code, headers))

    def feed_draining(self) -> None:
        """The peer asks to bring the session to an end."""
        if self.state is SessionState.CONNECTED:
            self.state = SessionState.DRAINING
            self._changed.notify()

    def feed_ended(self, code: int | None, reason: str, remote: bool) -> None:
        """The session is over, in both directions."""
        if self._error is not None:
            return
        self.close_code = code
        self.close_reason = reason
        error = SessionClosed(code, reason, remote, session_id=self.session_id)
        # Where the connection took the session along, it is the reason.
        error.__cause__ = self.connection.closed
        self._end(error)

    def _end(self, error: GwtError) -> None:
        self._error = error
        self.state = SessionState.CLOSED
        self.streams.stop()
        for stream in self.streams:
            stream.session_over(error)
        for signal in (self._accepting, self._receiving, self._credit, self._changed):
            signal.notify()
        callbacks, self._end_callbacks = self._end_callbacks or [], None
        for callback in callbacks:
            callback(self)

    def accept(self, subprotocol: str | None = None) -> bool:
        """Answer the request on a server; returns False if the client is gone meanwhile."""
        if not self.connection.protocol.accept_session(self.stream_id, subprotocol=subprotocol):
            return False
        self.subprotocol = subprotocol
        self.state = SessionState.CONNECTED
        # The 200 shares packets with what the handler writes first.
        self.connection.flush_soon()
        return not self.is_closed

    def wait_ready(self, deadline: Deadline) -> None:
        """Wait until the peer accepted the session; raises what ended it instead."""
        while self.state is SessionState.CONNECTING:
            self._changed.wait(deadline)
        # One that was accepted and has ended since is still a session: it may have brought data.
        if self._error is not None and not self._accepted:
            raise anew(self._error)
