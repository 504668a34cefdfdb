"""
WebSockets on whatever server a WSGI application runs already: wrap it in WebSocketMiddleware.

The middleware is WSGI's; where a server keeps its sockets is hosts.py's affair. On servers with
native threads a WebSocket lives in the hub of its thread, which is made for it and goes with it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import chain
from typing import Any
from urllib.parse import quote

from gevent import GreenletExit, get_hub, monkey
from gevent._hub_local import get_hub_if_exists

from ..config import ServerConfig
from ..errors import ConfigError, Reject
from ..protocol.wshandshake import Refusal
from ..server.app import App
from ..server.gate import FAREWELL, GOING_AWAY, Gate
from ..server.lend import run_with
from ..websocket import WebSocket
from ..websocket_lazy import LazyWebSocket, phrase, refusal
from .hosts import ADVICE, find

__all__ = ["WebSocketMiddleware"]

logger = logging.getLogger("gwt.server")

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]
WSGIApplication = Callable[[Environ, StartResponse], Iterable[bytes]]

# What may stand in a path as it is.
_SAFE = "/:@!$&'()*+,;=~-._"


class WebSocketMiddleware:
    """
    A WSGI application with WebSockets: ``app = WebSocketMiddleware(app, {"/ws": handler})``.

    A route's ``handler(ws, **params)`` is called where a request asks for a WebSocket, which is
    open then, and closed when it returns: with 1000, or 1011 if it raises. Paths are Werkzeug's
    rules, ``/chat/<room>``. Everything else is the application's; a request for a WebSocket without
    a route has a lazy one in ``environ["wsgi.websocket"]``, which the application may refuse.
    Options are those of ServerConfig: origins, subprotocols, max_size, compression, ...
    Raises UnknownOption, and ConfigError for a bad value or path.
    """

    def __init__(
        self,
        app: WSGIApplication,
        routes: Mapping[str, Callable[..., object]] | None = None,
        **options: Any,
    ) -> None:
        self.app = app
        self._options = options
        self._gate = _Gate(ServerConfig().update(**options))
        self._routes = App()
        for path, handler in (routes or {}).items():
            if not callable(handler):
                raise ConfigError(
                    f"The handler of {path!r} cannot be called: {handler!r}.",
                    field="routes",
                    value=handler,
                )
            self._routes.websocket(path)(handler)

        # Whether it was said that the server has no sockets to lend.
        self._said = False

    def __repr__(self) -> str:
        return f"<WebSocketMiddleware {self._routes!r} open={len(self._gate.open)}>"

    def close_all(self, code: int = GOING_AWAY, reason: str = "The server is stopping") -> None:
        """Close all WebSockets, and admit no more; never waits. May be called in any thread."""
        self._gate.close_all(code, reason)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if "websocket" not in environ.get("HTTP_UPGRADE", "").lower():
            return self.app(environ, start_response)
        offered = environ.get("wsgi.websocket")
        if offered is not None:
            return self._on_ours(offered, environ, start_response)
        exchange = _Exchange(environ, start_response, self._gate)
        verdict = self._gate.read(*_handshake(environ))
        if isinstance(verdict, Refusal):
            exchange.refuse(verdict)
            return ()
        asked, request = verdict
        try:
            self._gate.admit(request, self._gate.config)
        except Reject as exc:
            self._gate.counters["websockets_rejected"] += 1
            exchange.refuse(refusal(exc))
            return ()
        websocket = LazyWebSocket(exchange, asked, request, self._gate.config, environ)
        run = self._handler(websocket, environ)
        if run is None:
            environ["wsgi.websocket"] = websocket
            environ["wsgi.websocket_version"] = websocket.version
            run = partial(self._ask, environ, exchange)
        result = self._run(websocket, run, exchange, environ)
        if exchange.unable and not self._said:
            self._said = True
            logger.error("A WebSocket was refused. %s", ADVICE)
        return exchange.end(result)

    def _handler(self, websocket: LazyWebSocket, environ: Environ) -> Callable[[], Any] | None:
        """Return what a route does with a WebSocket, None if there is no route."""
        # Not the path that was asked for: the application may be mounted somewhere.
        path = environ.get("PATH_INFO", "").encode("latin-1", "replace").decode(errors="replace")
        try:
            route, params = self._routes.match(dataclasses.replace(websocket.request, path=path))
        except Reject:
            return None

        def run() -> None:
            websocket.accept()
            route.handler(websocket, **params)

        return run

    def _run(
        self,
        websocket: LazyWebSocket,
        run: Callable[[], Any],
        exchange: _Exchange,
        environ: Environ,
    ) -> Any:
        stranger = get_hub_if_exists() is None
        try:
            return run_with(websocket, run, self._gate.counters, failed=lambda: exchange.failed)
        finally:
            # The environ holds the WebSocket, and is held by it.
            environ.pop("wsgi.websocket", None)
            hub = get_hub_if_exists()
            if stranger and hub is not None:
                self._gate.destroy(hub)

    def _ask(self, environ: Environ, exchange: _Exchange) -> Iterable[bytes]:
        """Run the application until it has answered, or done with the WebSocket."""
        result = self.app(environ, exchange.start_response)
        if isinstance(result, (list, tuple)):
            return result
        with ExitStack() as stack:
            if hasattr(result, "close"):
                stack.callback(result.close)
            chunks = iter(result)
            for chunk in chunks:
                # A generator does all of its work here.
                if chunk and not exchange.answered:
                    exchange.begin()
                    return _Rest(chain((chunk,), chunks), stack.pop_all().close)
        return ()

    def _on_ours(
        self, websocket: Any, environ: Environ, start_response: StartResponse
    ) -> Iterable[bytes]:
        """Use the WebSocket that the server has put into the environ, and ends."""
        run = self._handler(websocket, environ) if isinstance(websocket, LazyWebSocket) else None
        if run is None:
            return self.app(environ, start_response)
        try:
            if self._options:
                self._gate.admit(websocket.request, self._gate.config)
                websocket.configure(self._gate.config)
            self._gate.enter(websocket)
        except Reject as exc:
            websocket.reject(exc.status, exc.headers, exc.body)
        else:
            run()
        return ()


class _Rest:
    """What is left of an application's result."""

    def __init__(self, chunks: Iterator[bytes], close: Callable[[], None]) -> None:
        self._chunks = chunks
        self.close = close

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks


class _Gate(Gate):
    """A gate for the WebSockets of many threads."""

    def __init__(self, config: ServerConfig) -> None:
        super().__init__(config)
        self._loops: dict[WebSocket, Any] = {}
        # So that no loop is told anything while it is destroyed.
        self._lock = monkey.get_original("_thread", "allocate_lock")()

    def enter(self, websocket: WebSocket) -> None:
        super().enter(websocket)
        self._loops[websocket] = get_hub().loop
        websocket.on_end(self._leave)

    def _leave(self, websocket: WebSocket) -> None:
        self._loops.pop(websocket, None)

    def close_all(self, code: int = GOING_AWAY, reason: str = "The server is stopping") -> None:
        self.stopping = True
        with self._lock:
            for websocket, loop in list(self._loops.items()):
                loop.run_callback_threadsafe(websocket.begin_close, code, reason, FAREWELL)

    def destroy(self, hub: Any) -> None:
        """Free this thread's hub, with its loop and descriptors."""
        with self._lock:
            hub.destroy(destroy_loop=True)
            if not hub.dead:
                # It has left its loop, and would stay where it wants to tell of that for ever.
                hub.throw(GreenletExit)


class _Exchange:
    """One request that asks for a WebSocket, until it is answered: LazyWebSocket's host."""

    def __init__(self, environ: Environ, start_response: StartResponse, gate: Gate) -> None:
        self._found = find(environ)
        self._start_response = start_response
        self._gate = gate

        # What the application gave to start_response; the server is told when it is certain that
        # nothing else will be the answer.
        self._response: tuple[str, Any] | None = None
        self._write: Callable[[bytes], object] | None = None

        # The application's answer is on its way.
        self._begun = False

        # The WebSocket was accepted or refused: what the application says goes nowhere.
        self.answered = False
        self._taken = False

        # A framework has caught what the application raised, logged it, and answered with a 500.
        self.failed = False

        # Refused because the server has no socket to lend.
        self.unable = False

    # What the LazyWebSocket asks for

    def enter(self, websocket: WebSocket) -> None:
        if self._begun:
            raise RuntimeError("The application has begun to answer with HTTP.")
        if self._found is None:
            self.unable = True
            raise Reject(501, body=f"{ADVICE}\n".encode())
        self._gate.enter(websocket)

    def take(self) -> tuple[Any, bytes]:
        assert self._found is not None
        sock, ahead, _ = self._found
        self.answered = self._taken = True
        return sock, ahead()

    def refuse(self, answer: Refusal) -> None:
        if self._begun:
            return
        self.answered = True
        # The server's own affair (PEP 3333); and what it does not speak it cannot offer.
        ours = ["connection", "content-length", "transfer-encoding"]
        ours += ["upgrade"] if self._found is None else []
        headers = [(name, value) for name, value in answer.headers if name.lower() not in ours]
        headers.append(("Content-Length", str(len(answer.body))))
        status = f"{answer.status} {phrase(answer.status)}"
        self._start_response(status, headers)(answer.body)

    # What the application asks for

    def start_response(
        self, status: str, headers: Any, exc_info: Any = None
    ) -> Callable[[bytes], object]:
        if self._begun:
            return self._start_response(status, headers, exc_info)
        self.failed = self.failed or (self._taken and status.startswith("5"))
        self._response = status, headers
        return self.write

    def write(self, data: bytes) -> None:
        if not self.answered:
            self.begin()
            assert self._write is not None
            self._write(data)

    def begin(self) -> None:
        """Let the application's answer be the answer."""
        if not self._begun:
            self._begun = True
            if self._response is not None:
                self._write = self._start_response(*self._response)

    def end(self, result: Iterable[bytes] | None) -> Iterable[bytes]:
        """Return what the server is given by the middleware."""
        if self._taken:
            assert self._found is not None
            # For its log: nobody is there to get it.
            self._start_response("101 Switching Protocols", [])
            return self._found[2]
        if self.answered:
            return ()
        self.begin()
        return () if result is None else result


def _handshake(environ: Environ) -> tuple[str, str, str, list[tuple[str, str]], Any]:
    """Return method, version, target, headers and the peer's address from an environ."""
    target = environ.get("RAW_URI") or environ.get("REQUEST_URI")
    if not target:
        path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        query = environ.get("QUERY_STRING", "")
        target = quote(path.encode("latin-1", "replace"), safe=_SAFE) + (
            f"?{query}" if query else ""
        )
    headers = [
        (name[5:].replace("_", "-").title(), value)
        for name, value in environ.items()
        if name.startswith("HTTP_") and isinstance(value, str)
    ]
    if environ.get("CONTENT_LENGTH"):
        headers.append(("Content-Length", environ["CONTENT_LENGTH"]))
    address: Any = environ.get("REMOTE_ADDR") or None
    port = str(environ.get("REMOTE_PORT", ""))
    if address is not None and port.isascii() and port.isdigit():
        address = address, int(port)
    version = environ.get("SERVER_PROTOCOL", "")
    return environ.get("REQUEST_METHOD", ""), version, target, headers, address
