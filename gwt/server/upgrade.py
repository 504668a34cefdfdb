"""
From an HTTP/1.1 request to a WebSocket: who is admitted, the answer 101, the handler's greenlet.

``Door`` decides and counts; ``Handler`` is gevent.pywsgi's, with limits on time and size that it
lacks. Once a request is upgraded its connection keeps nothing of pywsgi: the socket is taken out,
what came behind the request goes along, and pywsgi's greenlet ends.
"""

from __future__ import annotations

import logging
import ssl as _stdlib_ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import gevent
import gevent.socket
from gevent import Greenlet
from gevent.pool import Group
from gevent.pywsgi import WSGIHandler

from ..config import ServerConfig
from ..errors import GwtError, Reject
from ..manager import ConnectionManager
from ..net.tcp import TcpConnection
from ..observe import Counters
from ..protocol.wshandshake import Agreement, Refusal, UpgradeRequest, accept_upgrade, check_upgrade
from ..request import Request
from ..websocket import WebSocket
from .access import host_allowed, origin_allowed
from .app import App, Route

__all__ = ["Door", "Handler"]

logger = logging.getLogger("gwt.server")

INTERNAL_ERROR = 1011
GOING_AWAY = 1001

# The header of a request, all lines together.
_MAX_HEADER = 64 * 1024


@dataclass(frozen=True, slots=True)
class _Admitted:
    """A request that becomes a WebSocket as soon as its socket is free."""

    request: Request
    route: Route
    params: dict[str, Any]
    config: ServerConfig
    answer: bytes
    agreement: Agreement


class Door:
    """Who may open a WebSocket on a server, and the handlers of those that are open."""

    def __init__(
        self,
        app: App,
        config: ServerConfig,
        connections: ConnectionManager,
        handlers: Group,
        counters: Counters,
    ) -> None:
        self.app = app
        self.config = config
        self.counters = counters
        self._connections = connections
        self._handlers = handlers
        self._open: set[WebSocket] = set()
        self._stopping = False

    def close_all(self) -> None:
        """Admit nobody more, and send 1001 to all; does not wait for their answers."""
        self._stopping = True
        for websocket in list(self._open):
            websocket.begin_close(GOING_AWAY, "The server is stopping")

    def knock(
        self, method: str, version: str, target: str, headers: list[tuple[str, str]], address: Any
    ) -> _Admitted | Refusal | None:
        """
        Decide about a request that asks for an upgrade; None leaves it to the WSGI application.

        Runs middleware, in the greenlet of the request.
        """
        asked = check_upgrade(method, version, target, headers)
        if isinstance(asked, Refusal):
            return asked
        request = _request(asked, address)
        try:
            route, params = self.app.match(request)
        except Reject as exc:
            return None if self.app.wsgi is not None else _refusal(exc)
        try:
            if self._stopping or len(self._handlers) >= self.config.max_handlers:
                self.counters["websockets_refused"] += 1
                raise Reject(503)
            config = route.config(self.config)
            if not host_allowed(request.authority, config.allowed_hosts):
                raise Reject(421)
            if not origin_allowed(request.origin, request.authority, config.origins):
                raise Reject(403)
            self.app.admit(request)
            subprotocol = next((s for s in config.subprotocols if s in request.subprotocols), None)
            answer, agreement = accept_upgrade(
                asked, subprotocol=subprotocol, compression=config.compression
            )
        except Reject as exc:
            self.counters["websockets_rejected"] += 1
            return _refusal(exc)
        except (Exception, SystemExit, gevent.Timeout):
            # Boundary to user code: middleware.
            logger.exception("Middleware failed for %s.", request.path)
            return _refusal(Reject(500))
        return _Admitted(request, route, params, config, answer, agreement)

    def enter(self, admitted: _Admitted, sock: Any, early: bytes) -> None:
        """Open a WebSocket on a socket, in a greenlet of its own. Never waits."""
        connection = TcpConnection(sock)
        websocket = WebSocket.over(
            connection, admitted.agreement, admitted.request, admitted.config, is_client=False
        )
        try:
            self._connections.add_connection(websocket)
        except GwtError:
            # Too many, or the server has stopped meanwhile.
            self.counters["websockets_refused"] += 1
            connection.write([_response(_refusal(Reject(503)))])
            connection.close()
            return
        self._open.add(websocket)
        websocket.on_end(self._open.discard)
        connection.write([admitted.answer])
        websocket.start(early)
        greenlet = Greenlet(self._run, websocket, admitted.route, admitted.params)
        greenlet.name = f"gwt-{websocket.id} {websocket.path[:64]}"
        self._handlers.add(greenlet)
        greenlet.start()

    def _run(self, websocket: WebSocket, route: Route, params: dict[str, Any]) -> None:
        logger.info("WebSocket %s opened: %s", websocket.id, websocket.path)
        try:
            route.handler(websocket, **params)
        except (Exception, SystemExit, gevent.Timeout) as exc:
            # Boundary to user code: a handler. That the WebSocket ended under it is no failure.
            if isinstance(exc, GwtError) and websocket.state.value != "open":
                logger.debug("WebSocket %s ended: %s", websocket.id, exc)
                websocket.close()
            else:
                self.counters["handler_errors"] += 1
                logger.exception("The handler of %s failed.", websocket.path)
                websocket.close(INTERNAL_ERROR, "internal error")
        else:
            websocket.close()
        finally:
            # Killed: the peer is not left waiting.
            if not websocket.closed:
                websocket.abort()
            logger.info(
                "WebSocket %s closed: %s, code %s",
                websocket.id,
                websocket.path,
                websocket.close_code,
            )


def _request(asked: UpgradeRequest, address: Any) -> Request:
    headers: dict[str, str] = {}
    for name, value in asked.headers:
        name = name.lower()
        joint = "; " if name == "cookie" else ", "
        headers[name] = f"{headers[name]}{joint}{value}" if name in headers else value
    return Request.at(
        asked.path,
        method="GET",
        protocol="websocket",
        authority=asked.host,
        origin=asked.origin,
        headers=headers,
        subprotocols=asked.subprotocols,
        remote_address=address,
    )


def _refusal(reject: Reject) -> Refusal:
    body = reject.body or f"{_phrase(reject.status)}\n".encode()
    return Refusal(reject.status, [(str(name), str(value)) for name, value in reject.headers], body)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Refused"


def _response(refusal: Refusal) -> bytes:
    """Return a whole answer as bytes, for where pywsgi has gone already."""
    head = f"HTTP/1.1 {refusal.status} {_phrase(refusal.status)}\r\n"
    head += f"Content-Length: {len(refusal.body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + refusal.body


class _Bounded:
    """The lines of one request's header, up to a limit in all."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._left = _MAX_HEADER

    def readline(self, limit: int = -1) -> bytes:
        line: bytes = self._file.readline(limit)
        self._left -= len(line)
        if self._left < 0:
            raise ValueError("the header is too long")
        return line


class Handler(WSGIHandler):  # type: ignore[misc]
    """One HTTP/1.1 connection, until it ends or becomes a WebSocket."""

    # Set when the connection has become one: the socket is not pywsgi's any more.
    upgraded = False
    socket: Any
    environ: Any
    _timeout: Any = None
    _first = True

    def handle_one_request(self) -> Any:
        config = self.server.door.config
        # The first request has the time of a header only: the peer connected to say something.
        self._first = self.requestline is None
        self._timeout = gevent.Timeout.start_new(
            config.request_timeout if self._first else config.http_keep_alive_timeout
        )
        try:
            return super().handle_one_request()
        except gevent.Timeout as exc:
            if exc is not self._timeout:
                raise
            self.server.door.counters["requests_timed_out"] += 1
            return None
        finally:
            self._timeout.close()

    def MessageClass(self, file: Any, *args: Any) -> Any:
        if not self._first:
            # Between two requests other limits hold than within one.
            self._timeout.close()
            self._timeout = gevent.Timeout.start_new(self.server.door.config.request_timeout)
        headers = super().MessageClass(_Bounded(file), *args)
        self._timeout.close()
        lengths = headers.get_all("content-length") or []
        codings = headers.get_all("transfer-encoding") or []
        # A request that two parsers could end in two places is how one is smuggled through a
        # proxy (RFC 9112 6.3).
        if codings and (lengths or [each.strip().lower() for each in codings] != ["chunked"]):
            raise ValueError("the length of the body is ambiguous")
        if len(lengths) > 1 or not all(each.isascii() and each.isdigit() for each in lengths):
            raise ValueError("Content-Length is malformed")
        return headers

    def run_application(self) -> None:
        if "websocket" in self.headers.get("Upgrade", "").lower() and self._upgrade():
            return
        super().run_application()

    def _upgrade(self) -> bool:
        """Answer a request for a WebSocket; False leaves it to the application."""
        verdict = self.server.door.knock(
            self.command,
            self.request_version,
            self.path,
            list(self.headers.items()),
            self.client_address,
        )
        if verdict is None:
            return False
        if isinstance(verdict, Refusal):
            self._refuse(verdict)
        else:
            self._hand_over(verdict)
        return True

    def _refuse(self, refusal: Refusal) -> None:
        def answer(_: object, start_response: Callable[..., Any]) -> Iterable[bytes]:
            headers = [
                (name, value) for name, value in refusal.headers if name.lower() != "connection"
            ]
            headers.append(("Connection", "close"))
            start_response(f"{refusal.status} {_phrase(refusal.status)}", headers)
            return [refusal.body]

        # What was sent behind the request is not another request.
        self.close_connection = True
        self.application = answer
        super().run_application()

    def _hand_over(self, admitted: _Admitted) -> None:
        sock, file = self.socket, self.rfile
        sock.setblocking(False)
        try:
            early = file.read(len(file.peek()))
        except (OSError, _stdlib_ssl.SSLError):
            # Nothing is there yet.
            early = b""
        # For pywsgi the response is done, and the connection is over.
        self.status, self.code, self.headers_sent = b"101 Switching Protocols", 101, True
        self.close_connection = self.upgraded = True
        self.socket = None
        file.close()
        self.environ = None
        if not self.server.ssl_enabled:
            # The server closes the object that it knows.
            sock = gevent.socket.socket(sock.family, sock.type, sock.proto, sock.detach())
        self.server.door.enter(admitted, sock, early or b"")
