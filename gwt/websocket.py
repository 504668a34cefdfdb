"""
WebSocket: messages over one TCP or TLS connection, for servers and clients alike.

What a user calls stands here: it goes straight down to the protocol, and waits on a Signal. The
quiet zone, in which pings, pongs and closes are handled although nobody is in recv(), is
websocket_driver.py. How a WebSocket comes about is the affair of server/upgrade.py and
client/websocket.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

from .config import ClientConfig, ServerConfig
from .errors import WebSocketClosed, WebSocketClosedOK
from .net.tcp import TcpConnection
from .net.waiting import Deadline, native_thread
from .protocol.websocket import WebSocketProtocol
from .protocol.wsevents import Fragment
from .protocol.wshandshake import Agreement
from .request import Request
from .states import WebSocketState
from .websocket_common import (
    Acknowledgement,
    Data,
    closing_error,
    is_buffer,
    new_id,
    old_environ,
    protocol_on,
    typed,
)
from .websocket_offer import Offers

__all__ = ["WebSocket"]

# Bytes that wait for the socket above which a writer waits.
_HIGH_WATER = 64 * 1024


class WebSocket(Offers):
    """
    One WebSocket. recv() and iteration give its messages, send() sends one.

    One greenlet may receive; any number may send, and their messages never interleave. Every
    blocked call is woken by the end with WebSocketClosedOK or WebSocketClosedError. Belongs to the
    hub that made it: from another thread its methods raise RuntimeError.
    """

    __slots__ = (
        "__weakref__",
        "_skipping",
        "_thread",
        "_told",
        "id",
        "local_address",
        "remote_address",
        "request",
        "subprotocol",
    )

    def __init__(
        self,
        connection: TcpConnection,
        protocol: WebSocketProtocol,
        request: Request,
        *,
        max_queue: int | None = 16,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(connection, protocol, max_queue=max_queue, clock=clock)
        self.id = new_id()
        self.request = request
        self.subprotocol: str | None = protocol.subprotocol
        self.remote_address = connection.remote_address
        self.local_address = connection.local_address
        self._thread = native_thread()

        # Whether receive() has returned None for the end.
        self._told = False

        # Whether the rest of a message that recv_streaming() left is on its way.
        self._skipping = False

    @classmethod
    def over(
        cls,
        connection: TcpConnection,
        agreement: Agreement,
        request: Request,
        config: ClientConfig | ServerConfig,
        *,
        is_client: bool,
    ) -> Self:
        """Make one on a connection behind its handshake; start() lets it read. Does not wait."""
        protocol = protocol_on(connection, agreement, config, is_client=is_client)
        return cls(connection, protocol, request, max_queue=config.max_queue)

    def __repr__(self) -> str:
        return f"<WebSocket {self.id} {self.state.value} {self.path} {self.remote_address}>"

    # What users may ask

    @property
    def state(self) -> WebSocketState:
        """Where the WebSocket is in its life: open, closing, or closed."""
        if self._error is not None:
            return WebSocketState.CLOSED
        return WebSocketState.OPEN if self._protocol.state == "open" else WebSocketState.CLOSING

    @property
    def closed(self) -> bool:
        """Whether it has ended; what arrived before can still be received."""
        return self._error is not None

    is_closed = terminated = closed

    @property
    def is_ready(self) -> bool:
        """Whether messages can be sent: it is open, and not being closed."""
        return self.state is WebSocketState.OPEN

    @property
    def close_code(self) -> int | None:
        """The code it was closed with, 1006 if the connection broke; None while it is not."""
        return None if self._error is None else self._error.code

    @property
    def close_reason(self) -> str | None:
        """The reason it was closed with; None while it is not."""
        return None if self._error is None else self._error.reason

    @property
    def path(self) -> str:
        """The decoded path that was asked for, without the query."""
        return self.request.path

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of the request, names in lower case."""
        return self.request.headers

    @property
    def origin(self) -> str | None:
        """The Origin header of the request."""
        return self.request.origin

    @property
    def latency(self) -> float:
        """Seconds that the last ping took to be answered; 0.0 before the first."""
        return float(self._protocol.latency or 0.0)

    @property
    def last_active(self) -> float:
        """When the peer was last heard, on the monotonic clock; now, while we do not listen."""
        return self._clock() if self._held else self._heard

    @property
    def environ(self) -> dict[str, Any]:
        """The request as WSGI has it, made when it is asked for; for old code."""
        return old_environ(self.request)

    @property
    def version(self) -> str:
        """The version of the protocol, for old code: "13"."""
        return "13"

    @property
    def protocol(self) -> str | None:
        """The subprotocol, for old code."""
        return self.subprotocol

    def stats(self) -> dict[str, Any]:
        """Return counters: frames, bytes, and what waits."""
        return {
            **super().stats(),
            "messages_discarded": self._discarded,
            "messages_unread": len(self._unread),
            "bytes_unsent": self._connection.queued,
        }

    def _check_thread(self) -> None:
        if native_thread() != self._thread:
            raise RuntimeError(
                "This object belongs to the hub of another thread; use server.call() to reach it."
            )

    # Receiving

    def recv(self, timeout: float | None = None) -> str | bytes:
        """
        Return the next message: str for text, bytes for binary.

        Waits for one, at most `timeout` seconds. Messages that came before the end are still
        returned after it; then WebSocketClosedOK or WebSocketClosedError is raised. Raises
        TimeoutError, and ConcurrencyError if another greenlet is receiving.
        """
        self._check_thread()
        with self._reading:
            deadline = Deadline(timeout) if timeout is not None else None
            item = self._next(deadline)
            return self._joined(item, deadline) if isinstance(item, Fragment) else item

    def _joined(self, item: Fragment, deadline: Deadline | None) -> str | bytes:
        """Return a message that was decoded in parts, for a recv_streaming() that has ended."""
        items = [item]
        try:
            while not item.finished:
                item = self._next_fragment(deadline)
                items.append(item)
        except BaseException:
            # The next call begins with the same.
            for each in reversed(items):
                self._unread.insert(0, each)
            raise
        pieces: list[Any] = [each.data for each in items]
        return "".join(pieces) if item.text else b"".join(pieces)

    def recv_streaming(self) -> Iterator[str | bytes]:
        """
        Yield the pieces of the next message as they arrive, in a type of its own: str or bytes.

        Waits and raises as recv() does. A message that had arrived before comes in one piece. The
        rest of one that is left early is discarded.
        """
        self._check_thread()
        with self._reading:
            self._protocol.fragments = True
            item = None
            try:
                item = self._next(None)
                while isinstance(item, Fragment):
                    yield item.data
                    if item.finished:
                        return
                    item = self._next_fragment(None)
                yield item
            finally:
                self._protocol.fragments = False
                # Not by reading on: a generator may be closed by the garbage collector, anywhere.
                self._skipping = isinstance(item, Fragment) and not item.finished

    def _next_fragment(self, deadline: Deadline | None) -> Fragment:
        item = self._next(deadline)
        assert isinstance(item, Fragment)
        return item

    def _next(self, deadline: Deadline | None) -> str | bytes | Fragment:
        while True:
            while not self._unread:
                if self._error is not None:
                    raise self._error.again()
                self._received.wait(deadline)
            unread = self._unread
            item = unread.pop(0) if isinstance(unread, list) else unread.popleft()
            if self._held:
                self._hold_or_release()
            if not self._skipping:
                return item
            self._skipping = isinstance(item, Fragment) and not item.finished

    def __iter__(self) -> Iterator[str | bytes]:
        """Yield messages until a normal close; any other end raises WebSocketClosedError."""
        while True:
            try:
                message = self.recv()
            except WebSocketClosedOK:
                return
            yield message

    def receive(self, timeout: float | None = None) -> str | bytes | None:
        """
        Return the next message, or None at the end or after `timeout`; for old code.

        The end is None once, and then WebSocketClosed: a loop that overlooks it does not go on.
        """
        try:
            return self.recv(timeout)
        except TimeoutError:
            return None
        except WebSocketClosed:
            if self._told:
                raise
            self._told = True
            return None

    # Sending

    def send(
        self,
        message: Data | Iterable[Data],
        binary: bool | None = None,
        *,
        text: bool | None = None,
        timeout: float | None = None,
    ) -> None:
        """
        Send a message: str as text, bytes-like as binary, or an iterable of pieces of one.

        `text` overrides which of the two it is, `binary` does for old code. Waits while more than
        64 KiB wait for the network, at most `timeout` seconds, and then for other greenlets'
        messages in pieces; returns when the message is accepted into the send buffer. Raises
        WebSocketClosedOK or WebSocketClosedError, TimeoutError before anything was sent, TypeError,
        and UnicodeDecodeError for bytes that are to be text and are not. An iterable that raises
        closes the WebSocket with 1011: half of a message cannot be taken back.
        """
        self._check_thread()
        kind = type(message)
        if (
            (kind is str or kind is bytes)
            and text is binary is None
            and self._error is None
            and self._protocol.state == "open"
            and not self._fragmenting
            and not self._box
            and self._connection.queued <= _HIGH_WATER
        ):
            self._connection.send(self._protocol.encoded(message))  # type: ignore[arg-type]
            return
        if binary is not None:
            if text is not None:
                raise TypeError("binary and text were both given.")
            text = not binary
        if isinstance(message, (str, bytes, bytearray, memoryview)) or is_buffer(message):
            data = typed(message, text)
            self._wait_turn(Deadline(timeout) if timeout is not None else None)
            self._protocol.send(data)
            self._flush()
        elif isinstance(message, Mapping) or not isinstance(message, Iterable):
            raise TypeError(f"A message is text, bytes, or an iterable of them, not {message!r}.")
        else:
            self._send_pieces(message, text, Deadline(timeout))

    def send_text(self, text: Data, *, timeout: float | None = None) -> None:
        """Send a text message; see send()."""
        self.send(text, text=True, timeout=timeout)

    def send_bytes(self, data: Data, *, timeout: float | None = None) -> None:
        """Send a binary message; see send()."""
        self.send(data, text=False, timeout=timeout)

    def _send_pieces(self, pieces: Iterable[Data], text: bool | None, deadline: Deadline) -> None:
        self._wait_turn(deadline)
        self.send_offered()
        self._fragmenting = True
        kind: bool | None = None
        try:
            for piece in pieces:
                data = typed(piece, text)
                first = kind is None
                if kind is None:
                    kind = isinstance(data, str)
                elif kind is not isinstance(data, str):
                    raise TypeError("The pieces of a message are all text, or all bytes.")
                self._wait_room(Deadline(None))
                self._protocol.send_fragment(data, text=kind, first=first, final=False)
                self._flush()
            if kind is not None:
                self._check_open()
                empty: str | bytes = "" if kind else b""
                self._protocol.send_fragment(empty, text=kind, first=False, final=True)
                self._flush()
        except BaseException:
            # If it is being closed already, the peer still has to answer that.
            if kind is not None and self._protocol.state == "open":
                self._pass_on(
                    self._protocol.fail(1011, "a message was not finished", self._clock())
                )
            raise
        finally:
            self._end_fragments()
            self._writable.notify()

    def _check_open(self) -> None:
        if self._error is not None:
            raise self._error.again()
        if self._protocol.state != "open":
            raise closing_error(self._protocol)

    def _wait_turn(self, deadline: Deadline | None) -> None:
        """Wait until a new message may begin."""
        self._check_open()
        while self._fragmenting or self._connection.queued > _HIGH_WATER:
            self._writable.wait(deadline)
            self._check_open()

    def _wait_room(self, deadline: Deadline) -> None:
        self._check_open()
        while self._connection.queued > _HIGH_WATER:
            self._writable.wait(deadline)
            self._check_open()

    def ping(self, data: Data | None = None) -> Acknowledgement:
        """
        Send a ping, and return an event that its pong sets; its `latency` is then in seconds.

        Never waits. ``wait()`` of the event raises WebSocketClosed if the end came first. `data` is
        at most 125 bytes, and none that is under way already: ValueError.
        """
        self._check_thread()
        self._check_open()
        payload = None
        if data is not None:
            payload = data.encode() if isinstance(data, str) else bytes(memoryview(data))
            if len(payload) > 125:
                raise ValueError("The payload of a ping has at most 125 bytes.")
            if payload in self._acknowledgements:
                raise ValueError("A ping with this payload is under way.")
        payload = self._protocol.ping(payload, self._clock())
        event = self._acknowledgements[payload] = Acknowledgement()
        self._pass_on([])
        return event

    # The end

    def close(self, code: int = 1000, reason: str = "", *, timeout: float | None = None) -> None:
        """
        Close with a code and a reason of at most 123 bytes, and wait for the peer to do so, too.

        What was sent before arrives before. Waits at most the close_timeout of the WebSocket, or
        `timeout`, then gives the connection up. Idempotent. Raises LocalProtocolError for a code
        that may not be sent.
        """
        self.begin_close(code, reason)
        deadline = Deadline(timeout)
        try:
            while self._error is None:
                self._changed.wait(deadline)
        except TimeoutError:
            self.abort()

    def begin_close(self, code: int = 1000, reason: str = "", within: float | None = None) -> None:
        """
        Send the close frame and return at once; close() without the waiting.

        The peer has `within` seconds to answer, if that is less than close_timeout.
        """
        self._check_thread()
        if self._error is None and self._protocol.state == "open":
            self._protocol.close(code, reason, now=self._clock(), within=within)
            self._pass_on([])
            # Who waited for room has nothing to wait for.
            self._writable.notify()
            if self._held:
                self._hold_or_release()

    def abort(self) -> None:
        """End the connection at once, without a close frame. Does not wait."""
        self._check_thread()
        self._finish()
        self._connection.abort()

    def wait_closed(self, timeout: float | None = None) -> None:
        """Wait until the WebSocket has ended; raises TimeoutError."""
        self._check_thread()
        deadline = Deadline(timeout)
        while self._error is None:
            self._changed.wait(deadline)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif issubclass(kind, Exception):
            self.close(1011 if not issubclass(kind, WebSocketClosed) else 1000)
        else:
            self.abort()
