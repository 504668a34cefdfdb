"""simple-websocket as a peer of the bench: on gevent.pywsgi, as flask-sock runs it there."""

# ruff: noqa: E402
from __future__ import annotations

from gevent import monkey

monkey.patch_all()

from collections.abc import Callable, Iterable
from typing import Any

from gevent_peer import serve_wsgi
from simple_websocket import ConnectionClosed, Server


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    ws = Server.accept(environ)
    try:
        while True:
            ws.send(ws.receive())
    except ConnectionClosed:
        return []


if __name__ == "__main__":
    serve_wsgi(application, "simple-websocket", "wsproto")
