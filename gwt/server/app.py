"""
App: what a server serves. Routes, middleware, and the WSGI application behind them.

Knows paths and functions, no network: a server asks it who handles a request.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import gevent
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule

from ..config import ServerConfig
from ..errors import ConfigError, Reject
from ..request import Request

__all__ = ["App", "Route"]

logger = logging.getLogger("gwt.server")

Handler = Callable[..., Any]
WSGIApplication = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


# What a route may have of its own; the rest is the connection's, or the server's.
_ROUTE_OPTIONS = frozenset(
    (
        "allowed_hosts",
        "close_timeout",
        "datagram_queue",
        "max_streams",
        "origins",
        "stream_creation_timeout",
        "subprotocols",
    )
)
_WEBSOCKET_OPTIONS = frozenset(
    (
        "allowed_hosts",
        "close_timeout",
        "compression",
        "max_queue",
        "max_size",
        "origins",
        "ping_interval",
        "ping_timeout",
        "subprotocols",
    )
)


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """One path of one protocol, its handler, and the options that override the server's."""

    path: str
    handler: Handler
    options: dict[str, Any] = field(default_factory=dict)

    def config(self, server: ServerConfig) -> ServerConfig:
        """Return the server's config with this route's options."""
        return server.update(**self.options)


class App:
    """
    Routes for WebTransport and WebSocket, middleware, and a WSGI application for all else, or none.

    Paths are Werkzeug's rules: ``/chat/<room>``, ``<int:n>``, ``<path:rest>``.
    """

    def __init__(self, wsgi: WSGIApplication | None = None) -> None:
        self.wsgi = wsgi
        self._middleware: list[Callable[[Request], object]] = []
        self._startup: list[Callable[[], object]] = []
        self._shutdown: list[Callable[[], object]] = []

        # Slashes are taken as they are: a session cannot be redirected.
        self._maps = {
            protocol: Map(strict_slashes=False, merge_slashes=False)
            for protocol in ("webtransport", "websocket")
        }
        self._paths = {protocol: paths.bind("") for protocol, paths in self._maps.items()}

        # Paths without parameters: Werkzeug gives them precedence, too.
        self._plain: dict[tuple[str, str], Route] = {}

    def __repr__(self) -> str:
        routes = sum(1 for paths in self._maps.values() for _ in paths.iter_rules())
        return f"<App routes={routes} wsgi={self.wsgi is not None}>"

    def webtransport(self, path: str, **options: Any) -> Callable[[Handler], Handler]:
        """
        Decorate ``handler(session, **params)``, which runs in a greenlet for each session.

        `options` are fields of ServerConfig that hold for this path: origins, allowed_hosts,
        subprotocols, max_streams, datagram_queue, close_timeout, stream_creation_timeout. Returning
        closes the
        session with code 0, raising with 1011. Raises ConfigError for a bad path or option.
        """
        return self._register("webtransport", path, options, _ROUTE_OPTIONS)

    def websocket(self, path: str, **options: Any) -> Callable[[Handler], Handler]:
        """
        Decorate ``handler(ws, **params)``, which runs in a greenlet for each WebSocket.

        `options` are fields of ServerConfig that hold for this path: origins, allowed_hosts,
        subprotocols, compression, max_size, max_queue, ping_interval, ping_timeout, close_timeout.
        Returning closes the WebSocket with 1000, raising with 1011. Raises ConfigError for a bad
        path or option.
        """
        return self._register("websocket", path, options, _WEBSOCKET_OPTIONS)

    def _register(
        self, protocol: str, path: str, options: dict[str, Any], allowed: frozenset[str]
    ) -> Callable[[Handler], Handler]:
        # Say now, not at the first request, what is wrong with them.
        ServerConfig().update(**options)
        for name, value in options.items():
            if name not in allowed:
                raise ConfigError(
                    f"{name} rules the whole server, not one path of {protocol}.",
                    field=name,
                    value=value,
                )
        if not isinstance(path, str):
            raise ConfigError(f"A path must be text, not {path!r}.", field="path", value=path)

        def register(handler: Handler) -> Handler:
            route = Route(path, handler, options)
            try:
                self._maps[protocol].add(Rule(path, endpoint=route))
            except (ValueError, LookupError, TypeError) as exc:
                raise ConfigError(
                    f"{path!r} is not a path for a route: {exc}", field="path", value=path
                ) from exc
            if "<" not in path:
                self._plain.setdefault((protocol, path), route)
            return handler

        return register

    def middleware(self, function: Callable[[Request], object]) -> Callable[[Request], object]:
        """Decorate ``fn(request)``, called before a handler; it may raise Reject."""
        self._middleware.append(function)
        return function

    def on_startup(self, function: Callable[[], object]) -> Callable[[], object]:
        """Decorate a function that the server calls before it listens."""
        self._startup.append(function)
        return function

    def on_shutdown(self, function: Callable[[], object]) -> Callable[[], object]:
        """Decorate a function that the server calls when it has stopped."""
        self._shutdown.append(function)
        return function

    def start(self) -> None:
        """Call the functions of on_startup, in their order."""
        for function in self._startup:
            function()

    def stop(self) -> None:
        """Call the functions of on_shutdown, in reverse order; one that raises is logged."""
        for function in reversed(self._shutdown):
            try:
                function()
            except (Exception, SystemExit, gevent.Timeout):
                # Boundary to user code: the others are called all the same.
                logger.exception("A function of on_shutdown failed.")

    def serves(self, protocol: str) -> bool:
        """Return whether there is any route for a protocol."""
        return any(True for _ in self._maps[protocol].iter_rules())

    def match(self, request: Request) -> tuple[Route, dict[str, Any]]:
        """Return who handles a request, and the path's parameters; raises Reject(404)."""
        plain = self._plain.get((request.protocol, request.path))
        if plain is not None:
            return plain, {}
        try:
            route, params = self._paths[request.protocol].match(request.path, method="GET")
        except HTTPException:
            raise Reject(404) from None
        return route, dict(params)

    def admit(self, request: Request) -> None:
        """Call the middleware, in order of registration; what it raises passes through."""
        for function in self._middleware:
            function(request)
