"""gevent-websocket as a peer of the bench: its handler on gevent.pywsgi."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from gevent_peer import serve_wsgi
from geventwebsocket.handler import WebSocketHandler


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    ws = environ["wsgi.websocket"]
    while (message := ws.receive()) is not None:
        ws.send(message)
    return []


if __name__ == "__main__":
    serve_wsgi(application, "gevent-websocket", handler_class=WebSocketHandler)
