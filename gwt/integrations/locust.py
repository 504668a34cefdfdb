"""
Users of Locust that speak WebSocket and WebTransport, reported in Locust's own statistics.

What the two kinds share is in locust_user.py: connecting, measuring, the greenlets beside a user.
Locust monkey-patches the process when it is imported, which may come before or after gwt is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import MappingProxyType
from typing import Any

import gevent

from ..errors import GwtError
from ..net.waiting import Deadline
from ..session import WebTransportSession
from ..stream import WebTransportReceiveStream, WebTransportSendStream, WebTransportStream
from ..websocket import WebSocket
from .locust_user import ConnectedUser, Inbox, Match, RequestFailed, size_of

__all__ = ["RequestFailed", "WebSocketUser", "WebTransportUser"]

_MIB = 1024 * 1024


class WebSocketUser(ConnectedUser):
    """
    A Locust user with one WebSocket.

    ``path`` is connected to when the user starts, and again after a loss; connect() does it by
    hand. Rows in the statistics: WS connect, WSS send, WSR receive, WSC request and reply.
    """

    abstract = True

    request_type = "WS"
    schemes = MappingProxyType({"http": "ws", "https": "wss"})

    on_message: Callable[[Any], Any] | None = None
    """Define it to be given, in a greenlet beside the user's, what nobody waits for."""

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self._inbox = Inbox()

    @property
    def ws(self) -> WebSocket:
        """The WebSocket, for all else; where there is none, or it is closed, connects first."""
        websocket: WebSocket = self.ready(closed=False)
        return websocket

    def send(
        self, message: str | bytes, *, name: str | None = None, timeout: float | None = None
    ) -> None:
        """
        Send a message: str as text, bytes as binary; a WSS of the statistics.

        Waits while the server takes nothing, at most `timeout`, else the user's. The time is that
        wait, near 0 usually, the length the message's bytes. Raises RequestFailed.
        """
        ws = self.ready()
        with self.measure("WSS", name) as meta:
            ws.send(message, timeout=self.limit(timeout))
            meta["response_length"] = size_of(message)

    def receive(
        self,
        *,
        match: Match = None,
        timeout: float | None = None,
        name: str | None = None,
    ) -> str | bytes:
        """
        Return the next message, or the next for which ``match(message)`` is true; a WSR.

        Waits at most `timeout` seconds, else the user's; the time is that wait. What does not match
        goes to on_message() where there is one, and is dropped otherwise. Raises RequestFailed.
        """
        ws = self.ready()
        with self.measure("WSR", name) as meta:
            return self._next(ws, None, match, self.limit(timeout), meta)

    def request(
        self,
        message: str | bytes,
        *,
        match: Match = None,
        timeout: float | None = None,
        name: str | None = None,
    ) -> str | bytes:
        """
        Send a message, and return its reply; measured as one, a WSC.

        The reply is the next message for which ``match(message)`` is true, without `match` simply
        the next. It is waited for at most `timeout` seconds, else the user's. A request without
        `match` that timed out closes the WebSocket: its reply may still come, and would be taken
        for that of the next. Raises RequestFailed.
        """
        ws = self.ready()
        with self.measure("WSC", name) as meta:
            try:
                return self._next(ws, message, match, self.limit(timeout), meta)
            except (TimeoutError, gevent.Timeout):
                if match is None:
                    self.give_up(ws)
                raise

    def _next(
        self,
        ws: WebSocket,
        message: str | bytes | None,
        match: Match,
        limit: float,
        meta: dict[str, Any],
    ) -> str | bytes:
        deadline = Deadline(limit)
        reply: str | bytes
        if self.on_message is not None:
            send = None if message is None else partial(ws.send, message, timeout=limit)
            reply = self._inbox.wait(match, deadline, send)
        else:
            if message is not None:
                ws.send(message, timeout=limit)
            try:
                reply = ws.recv(deadline.remaining())
                while match is not None and not match(reply):
                    reply = ws.recv(deadline.remaining())
            except TimeoutError:
                raise TimeoutError(f"no message came within {limit:g} s") from None
        meta["response"] = reply
        meta["response_length"] = size_of(reply)
        return reply

    def listen(self, connection: WebSocket) -> None:
        if self.on_message is not None:
            self.children.spawn(self._read, connection)

    def _read(self, ws: WebSocket) -> None:
        try:
            while True:
                message = ws.recv()
                if not self._inbox.take(message):
                    self.call_hook(self.on_message, message)
        except GwtError as closed:
            self._inbox.fail(closed)
            self.lost(ws, closed, good=ws.close_code == 1000)

    def give_up(self, connection: WebSocket) -> None:
        self.forget(connection)
        connection.begin_close(within=1.0)


class WebTransportUser(ConnectedUser):
    """
    A Locust user with one WebTransport session.

    ``path`` is connected to when the user starts, and again after a loss; connect() does it by
    hand. Rows in the statistics: WT connect; of streams WTC request and reply, WTU upload, WTS
    send, WTR receive; of datagrams WTDC request and reply, WTDS send, WTDR receive.
    """

    abstract = True

    request_type = "WT"
    schemes = MappingProxyType({"http": "https", "ws": "https", "wss": "https"})

    on_stream: Callable[[Any], Any] | None = None
    """Define it to be given each stream that the server opens, in a greenlet of the stream's."""

    on_datagram: Callable[[Any], Any] | None = None
    """Define it to be given, in a greenlet beside the user's, datagrams nobody waits for."""

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self._datagrams = Inbox()

        # Whether the answer to a datagram may still come that nobody waits for any more.
        self._late = False

    @property
    def session(self) -> WebTransportSession:
        """The session, for all else; where there is none, or it is closed, connects first."""
        session: WebTransportSession = self.ready(closed=False)
        return session

    # Streams

    def request(
        self,
        data: bytes,
        *,
        timeout: float | None = None,
        name: str | None = None,
        max_size: int | None = 64 * _MIB,
    ) -> bytes:
        """
        Send `data` and the end on a stream of its own, and return all that comes back; a WTC.

        At most `timeout` seconds in all, else the user's, for at most `max_size` bytes. The length
        is that of the reply. Raises RequestFailed.
        """
        session = self.ready()
        with self.measure("WTC", name) as meta:
            reply = self._exchange(session, data, self.limit(timeout), max_size)
            meta["response"], meta["response_length"] = reply, len(reply)
            return reply

    def upload(
        self,
        data: bytes | Iterable[bytes],
        *,
        timeout: float | None = None,
        name: str | None = None,
        max_size: int | None = 64 * _MIB,
    ) -> bytes:
        """
        Send bytes, or pieces as they are made, as request() does; a WTU of the statistics.

        The length is that of what was sent.
        """
        session = self.ready()
        with self.measure("WTU", name) as meta:
            sent = [0]

            def pieces() -> Iterable[bytes]:
                for piece in (data,) if isinstance(data, bytes) else data:
                    sent[0] += len(piece)
                    yield piece

            reply = self._exchange(session, pieces(), self.limit(timeout), max_size)
            meta["response"], meta["response_length"] = reply, sent[0]
            return reply

    def send(self, data: bytes, *, timeout: float | None = None, name: str | None = None) -> None:
        """
        Send `data` on a unidirectional stream of its own; a WTS of the statistics.

        The time is that until the server has acknowledged all. Raises RequestFailed.
        """
        session = self.ready()
        with self.measure("WTS", name) as meta:
            deadline = Deadline(self.limit(timeout))
            try:
                stream = session.create_unidirectional_stream(timeout=deadline.remaining())
                with _ending(stream):
                    stream.write_all(data, timeout=deadline.remaining())
                    stream.flush(timeout=deadline.remaining())
            except TimeoutError:
                raise TimeoutError(f"not acknowledged within {deadline.timeout:g} s") from None
            meta["response_length"] = len(data)

    def receive(
        self,
        *,
        timeout: float | None = None,
        name: str | None = None,
        max_size: int | None = 64 * _MIB,
    ) -> bytes:
        """
        Return all of the next stream that the server opens; a WTR.

        Waits at most `timeout` seconds, else the user's. Not for a user with on_stream(), which has
        those streams. Raises RequestFailed.
        """
        session = self.ready()
        with self.measure("WTR", name) as meta:
            deadline = Deadline(self.limit(timeout))
            try:
                stream = session.accept_stream(timeout=deadline.remaining())
                with _ending(stream):
                    data: bytes = stream.read_all(max_size, timeout=deadline.remaining())
            except TimeoutError:
                raise TimeoutError(f"no stream came within {deadline.timeout:g} s") from None
            meta["response"], meta["response_length"] = data, len(data)
            return data

    def _exchange(
        self,
        session: WebTransportSession,
        data: bytes | Iterable[bytes],
        limit: float,
        max_size: int | None,
    ) -> bytes:
        deadline = Deadline(limit)
        try:
            stream = session.create_bidirectional_stream(timeout=limit)
            with _ending(stream):
                if isinstance(data, bytes) and stream.try_write(data, end=True):
                    return stream.read_all(max_size, timeout=deadline.remaining())
                # Beside the reading: a server may answer meanwhile, and wait for its reader.
                pieces = (data,) if isinstance(data, bytes) else data
                writer = self.children.spawn(_write, stream, pieces)
                try:
                    reply = stream.read_all(max_size, timeout=deadline.remaining())
                    writer.join(deadline.remaining())
                except GwtError:
                    if not writer.value:
                        raise
                finally:
                    writer.kill(block=False)
                if writer.value:
                    raise writer.value
                return reply
        except TimeoutError:
            raise TimeoutError(f"no reply came within {limit:g} s") from None

    # Datagrams

    def send_datagram(self, data: bytes, *, name: str | None = None) -> None:
        """Send a datagram, and wait for nothing; a WTDS. Raises RequestFailed."""
        session = self.ready()
        with self.measure("WTDS", name) as meta:
            session.send_datagram(data)
            meta["response_length"] = len(data)

    def receive_datagram(
        self, *, match: Match = None, timeout: float | None = None, name: str | None = None
    ) -> bytes:
        """
        Return the next datagram, or the next for which ``match(data)`` is true; a WTDR.

        Waits at most `timeout` seconds, else the user's; the time is that wait. Raises
        RequestFailed.
        """
        session = self.ready()
        with self.measure("WTDR", name) as meta:
            return self._next_datagram(session, None, match, self.limit(timeout), meta)

    def request_datagram(
        self,
        data: bytes,
        *,
        match: Match = None,
        timeout: float | None = None,
        name: str | None = None,
    ) -> bytes:
        """
        Send a datagram, and return the one that answers it; a WTDC.

        The answer is the next for which ``match(data)`` is true, without `match` simply the next.
        One that does not come within `timeout` seconds, else the user's, is lost, and a failure:
        RequestFailed. What came late is dropped before the next is asked for.
        """
        session = self.ready()
        with self.measure("WTDC", name) as meta:
            return self._next_datagram(session, data, match, self.limit(timeout), meta)

    def _next_datagram(
        self,
        session: WebTransportSession,
        data: bytes | None,
        match: Match,
        limit: float,
        meta: dict[str, Any],
    ) -> bytes:
        deadline = Deadline(limit)
        reply: bytes
        try:
            if self.on_datagram is not None:
                send = None if data is None else partial(session.send_datagram, data)
                reply = self._datagrams.wait(match, deadline, send)
            else:
                if data is not None:
                    self._drop_late(session)
                    session.send_datagram(data)
                reply = session.receive_datagram(deadline.remaining())
                while match is not None and not match(reply):
                    reply = session.receive_datagram(deadline.remaining())
        except (TimeoutError, gevent.Timeout) as exc:
            self._late = data is not None and match is None
            if isinstance(exc, gevent.Timeout):
                raise
            raise TimeoutError(f"no datagram came within {limit:g} s") from None
        meta["response"], meta["response_length"] = reply, len(reply)
        return reply

    def _drop_late(self, session: WebTransportSession) -> None:
        late, self._late = self._late, False
        with suppress(TimeoutError):
            while late:
                session.receive_datagram(0)

    # The server's own

    def listen(self, connection: WebTransportSession) -> None:
        if self.on_stream is not None:
            self.children.spawn(self._read, connection, self._accept)
        if self.on_datagram is not None:
            self.children.spawn(self._read, connection, self._take)

    def _read(
        self, session: WebTransportSession, one: Callable[[WebTransportSession], None]
    ) -> None:
        try:
            while True:
                one(session)
        except GwtError as closed:
            self._datagrams.fail(closed)
            self.lost(session, closed, good=session.close_code == 0)

    def _accept(self, session: WebTransportSession) -> None:
        self.children.spawn(self._serve, session.accept_stream())

    def _serve(self, stream: WebTransportReceiveStream) -> None:
        with _ending(stream):
            self.call_hook(self.on_stream, stream)

    def _take(self, session: WebTransportSession) -> None:
        data = session.receive_datagram()
        if not self._datagrams.take(data):
            self.call_hook(self.on_datagram, data)

    def give_up(self, connection: WebTransportSession) -> None:
        self.forget(connection)
        connection.abort()


@contextmanager
def _ending(stream: WebTransportSendStream | WebTransportReceiveStream) -> Iterator[None]:
    """Finish a stream at the end of the block without waiting, or give it up for an exception."""
    try:
        yield
    except BaseException:
        stream.abort()
        raise
    if isinstance(stream, WebTransportSendStream):
        stream.finish()
    if isinstance(stream, WebTransportReceiveStream):
        stream.stop()


def _write(stream: WebTransportStream, pieces: Iterable[bytes]) -> Exception | None:
    """Write pieces and the end; return what went wrong."""
    try:
        for piece in pieces:
            stream.write(piece)
        stream.finish()
    except Exception as exc:
        # Boundary to user code: whoever makes the pieces.
        stream.abort()
        return exc
    return None
