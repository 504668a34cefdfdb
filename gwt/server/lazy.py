"""
gevent.pywsgi's handler with a WebSocket in the environ of each request that asks for one.

``LazyHandler`` offers it to the WSGI application as ``environ["wsgi.websocket"]``, lends it the
socket while the application runs, and closes it when that returns. It goes into whatever handler a
server has: gwt's own, pywsgi's, gunicorn's.
"""

from __future__ import annotations

import socket as _stdlib_socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import gevent
from gevent.pywsgi import WSGIHandler

from ..errors import Reject
from ..protocol.wshandshake import Refusal, UpgradeRequest
from ..request import Request
from ..websocket import WebSocket
from ..websocket_lazy import LazyWebSocket, phrase, refusal
from .gate import Gate
from .lend import read_ahead, run_with
from .rawsocket import Loan

__all__ = ["GuestHandler", "LazyHandler"]

_REQUEST_TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

# What of a refusal's header is not for middleware to say.
_OURS = ("connection", "content-length", "transfer-encoding")


class LazyHandler(WSGIHandler):  # type: ignore[misc]
    """One HTTP/1.1 connection, until it ends or becomes a WebSocket."""

    # Who may open one; set by whoever uses the class.
    gate: Gate

    websocket_class: type[LazyWebSocket] = LazyWebSocket

    # The socket is a WebSocket's, and not pywsgi's any more.
    upgraded = False

    # The request was answered past pywsgi: what the application still says goes nowhere.
    answered = False

    # A framework has caught what the application raised, logged it, and answered with a 500.
    failed = False

    socket: Any
    environ: Any
    status: bytes | None
    headers_sent: bool

    def run_application(self) -> None:
        if self.asks_for_websocket():
            self.run_upgrade()
        else:
            super().run_application()

    def asks_for_websocket(self) -> bool:
        """Return whether the request asks for one, however malformed it is."""
        return "websocket" in self.headers.get("Upgrade", "").lower()

    def run_upgrade(self) -> None:
        """Answer a request that asks for a WebSocket."""
        verdict = self.gate.read(
            self.command,
            self.request_version,
            self.path,
            list(self.headers.items()),
            self.client_address,
        )
        if isinstance(verdict, Refusal):
            self.refuse(verdict)
        else:
            self.run_request(*verdict)

    def run_request(self, asked: UpgradeRequest, request: Request) -> None:
        """Offer a WebSocket to the application."""
        gate = self.gate
        try:
            gate.admit(request, gate.config)
        except Reject as exc:
            gate.counters["websockets_rejected"] += 1
            self.refuse(refusal(exc))
            return
        websocket = self.websocket_class(self, asked, request, gate.config, self.environ)
        self.environ["wsgi.websocket"] = websocket
        self.environ["wsgi.websocket_version"] = websocket.version
        loan = Loan(self.socket, self.rfile, self.lend, self.drain)
        self.environ["wsgi.input"] = loan
        try:
            self.run_for(websocket)
            loan.linger()
        finally:
            loan.end()
            # The environ holds the WebSocket, and is held by it.
            self.environ.pop("wsgi.websocket", None)

    def run_for(self, websocket: LazyWebSocket) -> None:
        """Run the application, and end the WebSocket with it."""
        run_with(websocket, super().run_application, self.gate.counters, failed=lambda: self.failed)
        if not websocket.accepted and not self.status:
            # The application has answered by itself, on the socket: this is not HTTP any more.
            self.close_connection = True

    # The socket, and who answers on it

    def enter(self, websocket: WebSocket) -> None:
        if self.headers_sent:
            raise RuntimeError("The application has begun to answer with HTTP.")
        self.gate.enter(websocket)

    def take(self) -> tuple[Any, bytes]:
        sock = self.socket
        early = read_ahead(sock, self.rfile)
        self.rfile.close()
        self.leave("101 Switching Protocols")
        self.upgraded = True
        self.socket = None
        return sock, early

    def drain(self) -> bytes:
        """Return what was read behind the request, without waiting."""
        self.check_lendable()
        try:
            return read_ahead(self.socket, self.rfile)
        finally:
            self.socket.setblocking(True)

    def lend(self, data: Any) -> None:
        """Leave the socket to the application, which answers the request on it with `data`."""
        self.check_lendable()
        head = bytes(memoryview(data).cast("B")[:12])
        status = head[9:].decode() if head.startswith(b"HTTP/1.1 ") and head[9:].isdigit() else ""
        self.leave(f"{status or '101'} on the application's socket")
        interval, timeout = self.gate.config.ping_interval, self.gate.config.ping_timeout
        if interval and timeout:
            # A peer that takes nothing is given up when unanswered pings would have shown it.
            limit = min(int((interval + timeout) * 1000), 2**31 - 1)
            with suppress(OSError):
                self.socket.setsockopt(
                    _stdlib_socket.IPPROTO_TCP, _stdlib_socket.TCP_USER_TIMEOUT, limit
                )

    def check_lendable(self) -> None:
        if self.upgraded:
            raise RuntimeError("The WebSocket was accepted: its socket cannot be used beside it.")

    def leave(self, status: str) -> None:
        """For pywsgi the response is done, and the connection is over."""
        if not self.headers_sent:
            self._orig_status, self.code = status, int(status[:3])
            self.status = status[:3].encode()
        self.headers_sent = self.answered = self.close_connection = True
        self.response_use_chunked = False

    def refuse(self, answer: Refusal) -> None:
        headers = [each for each in answer.headers if each[0].lower() not in _OURS]
        headers += [("Connection", "close"), ("Content-Length", str(len(answer.body)))]
        # What was sent behind the request is not another request.
        self.close_connection = True
        self.start_response(f"{answer.status} {phrase(answer.status)}", headers)
        with suppress(OSError):
            # Raises if the peer has gone.
            super().write(answer.body)
        self.answered = True

    def start_response(
        self, status: str, headers: Iterable[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], object]:
        if self.answered:
            self.failed = self.failed or status.startswith("5")
            return self.write
        write: Callable[[bytes], object] = super().start_response(status, headers, exc_info)
        return write

    def write(self, data: bytes) -> None:
        if not self.answered:
            super().write(data)


class GuestHandler(LazyHandler):
    """
    A LazyHandler on a server of others, which waits for its peers as it does.

    Only a header that has begun has to come: half a handshake is not kept (`request_timeout`).
    """

    _limit: Any

    def handle_one_request(self) -> Any:
        # What is logged of a request that cannot be read is not the last one's.
        self.environ = None
        self._limit = gevent.Timeout(self.gate.config.request_timeout)
        try:
            return super().handle_one_request()
        except gevent.Timeout as exc:
            if exc is not self._limit:
                raise
            self.gate.counters["requests_timed_out"] += 1
            return "408", _REQUEST_TIMEOUT
        finally:
            self._limit.close()

    def read_requestline(self) -> str:
        # Before a request a peer may be silent.
        self.rfile.peek(1)
        self._limit.start()
        return str(super().read_requestline())

    def read_request(self, raw_requestline: str) -> Any:
        try:
            return super().read_request(raw_requestline)
        finally:
            self._limit.close()
