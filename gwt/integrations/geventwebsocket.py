"""
The names of gevent-websocket, for programs that were written for it; see docs/wsgi.md.

They import them from here, or unchanged once install() has been called. What is underneath is
gwt's: pings, limits, close codes, and no answer to a request before somebody wants a WebSocket.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, cast

from gevent.pywsgi import WSGIServer

from ..errors import WebSocketClosedError, WebSocketError
from ..server.lazy import LazyHandler
from ..websocket import WebSocket
from ..websocket_lazy import LazyWebSocket
from . import pywsgi

__all__ = [
    "MSG_ALREADY_CLOSED",
    "MSG_CLOSED",
    "MSG_SOCKET_DEAD",
    "BaseProtocol",
    "Client",
    "FrameTooLargeException",
    "OldHandler",
    "OldWebSocket",
    "ProtocolError",
    "Resource",
    "WebSocket",
    "WebSocketApplication",
    "WebSocketError",
    "WebSocketHandler",
    "WebSocketServer",
    "install",
]

MSG_SOCKET_DEAD = "Socket is dead"
MSG_ALREADY_CLOSED = "Connection is already closed"
MSG_CLOSED = "Connection closed"

# What a peer does wrong, sizes included, ends a WebSocket with this.
ProtocolError = FrameTooLargeException = WebSocketClosedError

StartResponse = Callable[..., Any]


class OldWebSocket(LazyWebSocket):
    """A WebSocket that knows the handler of its request, and closes with a `message`."""

    __slots__ = ("handler",)

    handler: Any

    def close(
        self,
        code: int = 1000,
        reason: str | bytes = "",
        *,
        message: str | bytes = "",
        timeout: float | None = None,
    ) -> None:
        """Close with a code and a reason, or `message`, which may be bytes; see WebSocket."""
        text = message or reason
        super().close(code, text.decode() if isinstance(text, bytes) else text, timeout=timeout)


class Client:
    """Who has a WebSocket open, in the server's `clients`; programs put attributes of theirs in."""

    def __init__(self, address: Any, ws: WebSocket) -> None:
        self.address = address
        self.ws = ws


class OldHandler(LazyHandler):
    """What gevent-websocket's handlers had beside the WebSocket: `active_client`, `clients`."""

    websocket_class = OldWebSocket

    websocket: OldWebSocket

    def run_application(self) -> None:
        hook = getattr(self.server, "pre_start_hook", None)
        if hook is not None and hook(self):
            # It wants the request answered as any other.
            super(LazyHandler, self).run_application()
        else:
            super().run_application()

    def run_for(self, websocket: LazyWebSocket) -> None:
        self.websocket = cast(OldWebSocket, websocket)
        self.websocket.handler = self
        try:
            super().run_for(websocket)
        finally:
            clients_of(self.server).pop(self.client_address, None)
            # The WebSocket has this one.
            del self.websocket

    def enter(self, websocket: WebSocket) -> None:
        super().enter(websocket)
        clients_of(self.server)[self.client_address] = Client(self.client_address, websocket)

    @property
    def active_client(self) -> Client:
        """The client of this request."""
        return clients_of(self.server)[self.client_address]


def clients_of(server: Any) -> dict[Any, Client]:
    """Return who has a WebSocket open on a server, by address."""
    if not hasattr(server, "clients"):
        server.clients = {}
    clients: dict[Any, Client] = server.clients
    return clients


class WebSocketHandler(OldHandler, pywsgi.WebSocketHandler):
    """A pywsgi handler with WebSockets: ``WSGIServer(..., handler_class=WebSocketHandler)``."""


class WebSocketServer(WSGIServer):  # type: ignore[misc]
    """A WSGIServer with WebSocketHandler; `pre_start_hook(handler)` may keep a request as HTTP."""

    handler_class = WebSocketHandler

    def __init__(
        self,
        *args: Any,
        debug: bool = False,
        pre_start_hook: Callable[[WebSocketHandler], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.debug = debug
        self.pre_start_hook = pre_start_hook
        self.clients: dict[Any, Client] = {}
        self.logger = logging.getLogger("gwt.server")
        super().__init__(*args, **kwargs)


class BaseProtocol:
    """What stands between a WebSocketApplication and its WebSocket: passes everything on."""

    # The subprotocol that is agreed upon with clients that offer it.
    PROTOCOL_NAME = ""

    def __init__(self, app: WebSocketApplication) -> None:
        self.app = app

    def on_open(self) -> None:
        self.app.on_open()

    def on_message(self, message: str | bytes) -> None:
        self.app.on_message(message)

    def on_close(self, reason: str | None = None) -> None:
        self.app.on_close(reason)

    @property
    def handler(self) -> Any:
        return self.app.ws.handler

    @property
    def server(self) -> Any:
        return self.handler.server


class WebSocketApplication:
    """
    One WebSocket's application, for a Resource: on_open(), on_message() and on_close() are its own.

    They run in the request's greenlet, one after the other. on_close() is called once, however it
    ends; no message of None comes before it.
    """

    protocol_class: type[BaseProtocol] = BaseProtocol

    def __init__(self, ws: Any) -> None:
        self.protocol = self.protocol_class(self)
        self.ws = ws

    @classmethod
    def protocol_name(cls) -> str:
        """Return the subprotocol it speaks, "" for none."""
        return cls.protocol_class.PROTOCOL_NAME

    def handle(self) -> None:
        """Call the other methods until the WebSocket ends."""
        self.protocol.on_open()
        try:
            while (message := self.ws.receive()) is not None:
                self.protocol.on_message(message)
        finally:
            self.protocol.on_close(self.ws.close_reason or MSG_CLOSED)

    def on_open(self, *args: Any, **kwargs: Any) -> None:
        """The WebSocket is open."""

    def on_message(self, message: Any, *args: Any, **kwargs: Any) -> None:
        """A message came; this one sends it back."""
        self.ws.send(message, **kwargs)

    def on_close(self, reason: str | None, *args: Any, **kwargs: Any) -> None:
        """It has ended."""


class Resource:
    """
    A WSGI application out of several: pairs, or a mapping, of a regular expression and an app.

    The first whose expression matches the beginning of the path and that is of the right kind is
    taken: a subclass of WebSocketApplication for WebSockets, any WSGI application for the rest.
    Where there is none the answer is 404.
    """

    def __init__(self, apps: Mapping[str, Any] | Iterable[tuple[str, Any]] | None = None) -> None:
        if isinstance(apps, Mapping):
            apps = apps.items()
        self.apps = list(apps or ())

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        ws = environ.get("wsgi.websocket")
        app = self._app_by_path(environ["PATH_INFO"], ws is not None)
        if app is None:
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"Not found\n"]
        if ws is None:
            answer: Iterable[bytes] = app(environ, start_response)
            return answer
        name = app.protocol_name() if hasattr(app, "protocol_name") else ""
        if not getattr(ws, "accepted", True):
            ws.accept(name if name in ws.request.subprotocols else None)
        app = app(ws)
        app.ws = ws
        app.handle()
        return []

    def app_protocol(self, path: str) -> str:
        """Return the subprotocol of the WebSocketApplication at a path, "" for none."""
        app = self._app_by_path(path, True)
        return app.protocol_name() if hasattr(app, "protocol_name") else ""

    def _is_websocket_app(self, app: Any) -> bool:
        # Subclasses may think differently.
        return isinstance(app, type) and issubclass(app, WebSocketApplication)

    def _app_by_path(self, path: str, is_websocket: bool) -> Any:
        for pattern, app in self.apps:
            if re.match(pattern, path) and self._is_websocket_app(app) == is_websocket:
                return app
        return None


def __getattr__(name: str) -> Any:
    if name != "GeventWebSocketWorker":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Only who asks for the worker has gunicorn.
    from .gunicorn import Handler, Worker

    handler = type("Handler", (OldHandler, Handler), {})
    worker = type(name, (Worker,), {"wsgi_handler": handler, "__module__": __name__})
    globals()[name] = worker
    return worker


# Where gevent-websocket has which names.
_LAYOUT = {
    "": ("Resource", "WebSocketApplication", "WebSocketError", "WebSocketServer"),
    "exceptions": ("FrameTooLargeException", "ProtocolError", "WebSocketError"),
    "gunicorn": (),
    "gunicorn.workers": ("WebSocketHandler",),
    "handler": ("Client", "WebSocketHandler"),
    "protocols": (),
    "protocols.base": ("BaseProtocol",),
    "resource": ("Resource", "WebSocketApplication", "WebSocketError"),
    "server": ("WebSocketHandler", "WebSocketServer"),
    "websocket": (
        "MSG_ALREADY_CLOSED",
        "MSG_CLOSED",
        "MSG_SOCKET_DEAD",
        "ProtocolError",
        "WebSocket",
        "WebSocketError",
    ),
}


def install() -> None:
    """
    Let ``import geventwebsocket`` find these names, in this process, from now on.

    To be called before anything imports it: python-engineio, and Flask-SocketIO with it, decide
    when they are imported what they use, and then take gwt's WebSockets. Raises RuntimeError if
    gevent-websocket itself has been imported.
    """
    present = sys.modules.get("geventwebsocket")
    if present is not None and not hasattr(present, "__gwt__"):
        raise RuntimeError("gevent-websocket has been imported already: call install() earlier.")
    for path, names in _LAYOUT.items():
        full = f"geventwebsocket.{path}" if path else "geventwebsocket"
        module = ModuleType(full, "gwt, by the names of gevent-websocket.")
        module.__spec__ = ModuleSpec(full, None, is_package=True)
        module.__path__ = []
        module.__dict__.update({"__gwt__": True, "__getattr__": _missing(full)})
        module.__dict__.update({name: globals()[name] for name in names})
        sys.modules[full] = module
        above, _, last = full.rpartition(".")
        if above:
            setattr(sys.modules[above], last, module)


def _missing(module: str) -> Callable[[str], Any]:
    def missing(name: str) -> Any:
        if module.endswith(".workers") and name == "GeventWebSocketWorker":
            return __getattr__(name)
        raise AttributeError(f"module {module!r} has no attribute {name!r}; gwt made it")

    return missing
