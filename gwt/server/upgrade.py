"""
From an HTTP/1.1 request to a WebSocket of a route: who is admitted, the handler's greenlet.

``Door`` decides and counts; ``Handler`` asks it. Once a request is upgraded its connection keeps
nothing of pywsgi: the socket is taken out, what came behind the request goes along, and pywsgi's
greenlet ends. Requests without a route are lazy.py's affair: they are offered to the WSGI
application. How long requests may take, and how they may look, is http.py's.
"""

from __future__ import annotations

import _socket
import logging
from dataclasses import dataclass
from typing import Any

import gevent
from gevent import Greenlet
from gevent.pool import Group

from ..config import ServerConfig
from ..errors import GwtError, Reject
from ..manager import ConnectionManager
from ..net.tcp import TcpConnection
from ..observe import Counters
from ..protocol.wshandshake import Agreement, Refusal, UpgradeRequest, accept_upgrade
from ..request import Request
from ..websocket import WebSocket
from ..websocket_lazy import phrase, refusal
from .app import App, Route
from .gate import INTERNAL_ERROR, Gate
from .http import LimitedHandler
from .lazy import LazyHandler
from .peers import Peers
from .quick import read_upgrade

__all__ = ["Door", "Handler"]

logger = logging.getLogger("gwt.server")


class _HandlerGreenlet(Greenlet):  # type: ignore[misc]
    """A greenlet that does not keep ten frames of who spawned it: it is always this module."""

    __slots__ = ()
    spawning_stack_limit = 1


@dataclass(frozen=True, slots=True)
class _Admitted:
    """A request that becomes a WebSocket as soon as its socket is free."""

    request: Request
    route: Route
    params: dict[str, Any]
    config: ServerConfig
    answer: bytes
    agreement: Agreement


class Door(Gate):
    """Who may open a WebSocket on a server, and the handlers of those that are open."""

    def __init__(
        self,
        app: App,
        config: ServerConfig,
        connections: ConnectionManager,
        handlers: Group,
        counters: Counters,
        peers: Peers,
    ) -> None:
        super().__init__(config, counters)
        self.app = app
        self.peers = peers
        self._connections = connections
        self._handlers = handlers

        # Whether any request can be for a route.
        self.has_routes = app.serves("websocket")

        # Of each route, its options with the server's.
        self._configs: dict[Route, ServerConfig] = {}

    def knock(self, asked: UpgradeRequest, request: Request) -> _Admitted | Refusal | None:
        """
        Decide about a request that asks for an upgrade; None leaves it to the WSGI application.

        Runs middleware, in the greenlet of the request.
        """
        try:
            route, params = self.app.match(request)
        except Reject as exc:
            return None if self.app.wsgi is not None else refusal(exc)
        try:
            if self.stopping or len(self._handlers) >= self.config.max_handlers:
                self.counters["websockets_refused"] += 1
                raise Reject(503)
            config = self._configs.get(route)
            if config is None:
                config = self._configs[route] = route.config(self.config)
            self.admit(request, config)
            self.app.admit(request)
            subprotocol = next((s for s in config.subprotocols if s in request.subprotocols), None)
            answer, agreement = accept_upgrade(
                asked, subprotocol=subprotocol, compression=config.compression
            )
        except Reject as exc:
            self.counters["websockets_rejected"] += 1
            return refusal(exc)
        except (Exception, SystemExit, gevent.Timeout):
            # Boundary to user code: middleware.
            logger.exception("Middleware failed for %s.", request.path)
            return refusal(Reject(500))
        return _Admitted(request, route, params, config, answer, agreement)

    def open_at_once(self, first: bytes, sock: Any, peer: Any) -> bool | Refusal:
        """
        Open a WebSocket if the first bytes of a connection are a whole request for one of a route.

        Takes the socket, then. False says that nothing was done; a Refusal, that middleware was
        asked, and how the request is to be answered.
        """
        quick = read_upgrade(first)
        if quick is None:
            return False
        target, headers, early = quick
        verdict = self.read("GET", "HTTP/1.1", target, headers.items(), peer)
        if isinstance(verdict, Refusal):
            return False
        admitted = self.knock(*verdict)
        if isinstance(admitted, _Admitted):
            self.let_in(admitted, own(sock), early)
            return True
        return admitted or False

    def enter(self, websocket: WebSocket) -> None:
        super().enter(websocket)
        try:
            self._connections.add_connection(websocket)
        except GwtError:
            # Too many, or the server has stopped meanwhile.
            self.open.discard(websocket)
            self.counters["websockets_refused"] += 1
            raise Reject(503) from None

    def let_in(self, admitted: _Admitted, sock: Any, early: bytes) -> None:
        """Open a WebSocket on a socket, in a greenlet of its own. Never waits."""
        connection = TcpConnection(sock, peer=admitted.request.remote_address)
        websocket = WebSocket.over(
            connection, admitted.agreement, admitted.request, admitted.config, is_client=False
        )
        try:
            self.enter(websocket)
        except Reject as exc:
            connection.write([_response(refusal(exc))])
            connection.close()
            return
        self.peers.hold(websocket, websocket.remote_address)
        connection.write([admitted.answer])
        websocket.start(early)
        greenlet = _HandlerGreenlet(self._run, websocket, admitted.route, admitted.params)
        greenlet.name = f"gwt-{websocket.id} {websocket.path[:64]}"
        self._handlers.add(greenlet)
        greenlet.start()

    def _run(self, websocket: WebSocket, route: Route, params: dict[str, Any]) -> None:
        logger.info("WebSocket %s opened: %s", websocket.id, websocket.path)
        try:
            # Not by ** where there is nothing: an idle greenlet keeps the C stack that this takes.
            if params:
                route.handler(websocket, **params)
            else:
                route.handler(websocket)
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


def own(sock: Any) -> Any:
    """Return a socket with the descriptor of one that the server closes; TLS is its own already."""
    if hasattr(sock, "pending"):
        return sock
    # Not gevent's: its sockets have watchers of their own, which nothing here needs.
    return _socket.socket(sock.family, sock.type, sock.proto, sock.detach())


def _response(answer: Refusal) -> bytes:
    """Return a whole answer as bytes, for where pywsgi has gone already."""
    head = f"HTTP/1.1 {answer.status} {phrase(answer.status)}\r\n"
    head += f"Content-Length: {len(answer.body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + answer.body


class _NoInput:
    """The body of a request that has none, as pywsgi asks for it when it is done."""

    @staticmethod
    def _discard() -> None:
        pass


class Handler(LazyHandler, LimitedHandler):
    """One HTTP/1.1 connection, until it ends or becomes a WebSocket."""

    # What was decided about the first request already.
    verdict: Refusal | None = None

    def limits(self) -> tuple[ServerConfig, Counters]:
        return self.gate.config, self.gate.counters

    @property
    def gate(self) -> Door:  # type: ignore[override]
        door: Door = self.server.door
        return door

    def get_environ(self) -> Any:
        if self.asks_for_websocket():
            # Made if the application is to have it: a route has no use for one.
            self.wsgi_input = _NoInput
            return {}
        return super().get_environ()

    def log_request(self) -> None:
        # pywsgi would make a line of each request, for a log that the server has not.
        pass

    def run_request(self, asked: UpgradeRequest, request: Request) -> None:
        verdict = self.verdict or self.gate.knock(asked, request)
        if verdict is None:
            self.environ = super().get_environ()
            super().run_request(asked, request)
        elif isinstance(verdict, Refusal):
            self.refuse(verdict)
        else:
            sock, early = self.take()
            self.environ = None
            self.gate.let_in(verdict, own(sock), early)
