"""
A WebSocket that a WSGI application may still refuse: ``environ["wsgi.websocket"]``.

It answers the client's request when it is first used, or when accept() or reject() says so. How the
socket is taken from the server that has it is that server's affair, behind ``Host``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Protocol

from gevent.event import Event

from .config import ServerConfig
from .errors import Reject, WebSocketClosedError
from .net.tcp import TcpConnection
from .net.waiting import ReadGuard, native_thread
from .protocol.wshandshake import Refusal, UpgradeRequest, accept_upgrade
from .request import Request
from .states import WebSocketState
from .websocket import WebSocket
from .websocket_common import Acknowledgement, Data, new_id, protocol_on

__all__ = ["Host", "LazyWebSocket", "phrase", "refusal"]


class Host(Protocol):
    """Who has the socket until it is a WebSocket's: one request of a WSGI server."""

    def enter(self, websocket: WebSocket) -> None:
        """Count one that is about to open; raises Reject if it may not."""

    def take(self) -> tuple[Any, bytes]:
        """Give the socket away, and what was read behind the request; never waits."""

    def refuse(self, refusal: Refusal) -> None:
        """Answer the request with an error."""


class LazyWebSocket(WebSocket):
    """
    A WebSocket whose request has not been answered yet.

    accept() opens it, and so do receiving, sending, ping(), iteration and wait_closed(); reject()
    refuses it, and so do close() and abort(). Until then its state is CONNECTING.
    """

    __slots__ = ("_asked", "_config", "_environ", "_gone", "_host")

    def __init__(
        self,
        host: Host,
        asked: UpgradeRequest,
        request: Request,
        config: ServerConfig,
        environ: dict[str, Any] | None = None,
    ) -> None:
        # What a WebSocket has beside its connection, which is made by accept().
        self.id = new_id()
        self.request = request
        self.subprotocol = None
        self.remote_address = request.remote_address
        self.local_address = None
        self._thread = native_thread()
        self._reading = ReadGuard("WebSocket")
        self._clock = time.monotonic
        self._heard = self._clock()
        self._held = False
        self._error = None
        self._end_callbacks = []
        self._told = False

        # None once the request has been answered.
        self._host: Host | None = host
        self._asked = asked
        self._config = config
        self._environ = environ

        # Set when the socket is closed, which whoever lent it waits for.
        self._gone: Event | None = None

    def configure(self, config: ServerConfig) -> None:
        """Have other options than the server's; without effect once it is accepted."""
        self._config = config

    # The answer

    @property
    def accepted(self) -> bool:
        """Whether it was opened; it may have ended since."""
        return self._gone is not None

    @property
    def is_reusable(self) -> bool:
        """As that of a WebSocket; before it is accepted there is nothing to go on with."""
        return self._gone is not None and super().is_reusable

    def accept(
        self,
        subprotocol: str | None = None,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    ) -> None:
        """
        Open the WebSocket: answer 101, with a subprotocol that the client offers, and headers.

        Without `subprotocol` it is the first of the server's that the client offers, if any. Does
        not wait. Raises LocalProtocolError for a subprotocol that was not offered, or a header that
        cannot be sent; RuntimeError if it is open already; WebSocketClosedError if it was refused.
        """
        self._check_thread()
        if self._error is not None:
            raise self._error.again()
        if self._host is None:
            raise RuntimeError("The WebSocket has been accepted already.")
        if subprotocol is None:
            offered = self._asked.subprotocols
            subprotocol = next((s for s in self._config.subprotocols if s in offered), None)
        answer, agreement = accept_upgrade(
            self._asked,
            subprotocol=subprotocol,
            compression=self._config.compression,
            headers=_pairs(headers),
        )
        host = self._host
        try:
            host.enter(self)
        except Reject as exc:
            self._host = None
            self._refused(host, refusal(exc))
            assert self._error is not None
            raise self._error.again() from exc
        self._host = None
        sock, early = host.take()
        connection = TcpConnection(sock)
        self._gone = Event()
        connection.when_closed = self._gone.set
        ident, callbacks = self.id, self._end_callbacks
        protocol = protocol_on(connection, agreement, self._config, is_client=False)
        super().__init__(connection, protocol, self.request, max_queue=self._config.max_queue)
        self.id, self._end_callbacks = ident, callbacks
        connection.write([answer])
        self.start(early)

    def reject(
        self,
        status: int,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        body: bytes = b"",
    ) -> None:
        """
        Refuse the WebSocket with an HTTP status of 300 to 599, headers and a body.

        Waits until the network has taken the answer. What is done with it afterwards raises
        WebSocketClosedError. Raises ConfigError for a status below 300 or above 599, or a header
        that cannot be sent, before anything is; RuntimeError if it was accepted or refused before.
        """
        self._check_thread()
        answer = refusal(Reject(status, headers, body))
        host, self._host = self._host, None
        if host is None:
            raise RuntimeError("The request for the WebSocket has been answered already.")
        self._refused(host, answer)

    def _refused(self, host: Host, answer: Refusal) -> None:
        self._never(f"refused with HTTP status {answer.status}")
        host.refuse(answer)

    def expire(self) -> None:
        """The request is over. Whoever still has the WebSocket must not take the next one's."""
        if self._host is not None:
            self._host = None
            self._never("its request was answered without it")

    def _never(self, reason: str) -> None:
        self._error = WebSocketClosedError(1006, reason, remote=False)
        self._tell_end()

    def _open(self) -> None:
        if self._host is not None:
            self.accept()
        elif self._gone is None:
            assert self._error is not None
            raise self._error.again()

    # What opens it

    def recv(self, timeout: float | None = None) -> str | bytes:
        self._open()
        return super().recv(timeout)

    def recv_streaming(self) -> Iterator[str | bytes]:
        self._open()
        return super().recv_streaming()

    def send(
        self,
        message: Data | Iterable[Data],
        binary: bool | None = None,
        *,
        text: bool | None = None,
        timeout: float | None = None,
    ) -> None:
        self._open()
        super().send(message, binary, text=text, timeout=timeout)

    def ping(self, data: Data | None = None) -> Acknowledgement:
        self._open()
        return super().ping(data)

    def wait_closed(self, timeout: float | None = None) -> None:
        if self._error is None:
            self._open()
            super().wait_closed(timeout)

    # What refuses it

    def close(self, code: int = 1000, reason: str = "", *, timeout: float | None = None) -> None:
        if self._host is not None:
            self.reject(403)
        elif self._gone is not None:
            super().close(code, reason, timeout=timeout)

    def begin_close(self, code: int = 1000, reason: str = "", within: float | None = None) -> None:
        if self._host is not None:
            self.reject(403)
        elif self._gone is not None:
            super().begin_close(code, reason, within)

    def abort(self) -> None:
        if self._host is not None:
            self.reject(403)
        elif self._gone is not None:
            super().abort()

    def wait_gone(self) -> None:
        """Wait until the socket is closed, which it is a second after the end at the latest."""
        if self._gone is not None:
            self._gone.wait()

    # What can be asked before there is a connection

    @property
    def state(self) -> WebSocketState:
        return WebSocketState.CONNECTING if self._host is not None else super().state

    @property
    def latency(self) -> float:
        return super().latency if self._gone is not None else 0.0

    @property
    def environ(self) -> dict[str, Any]:
        return self._environ if self._environ is not None else super().environ

    def stats(self) -> dict[str, Any]:
        return super().stats() if self._gone is not None else {}


def _pairs(headers: Mapping[str, str] | Iterable[tuple[str, str]]) -> Sequence[tuple[str, str]]:
    return list(headers.items() if isinstance(headers, Mapping) else headers)


def refusal(reject: Reject) -> Refusal:
    """Return the answer to a request that was rejected; its status line's words if no body."""
    body = reject.body or f"{phrase(reject.status)}\n".encode()
    return Refusal(reject.status, [(str(name), str(value)) for name, value in reject.headers], body)


def phrase(status: int) -> str:
    """Return the words of a status line."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Refused"
