"""gwt inside of WSGI as a peer of the bench: environ["wsgi.websocket"] on gevent.pywsgi."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from gevent_peer import serve_wsgi

from gwt.integrations.pywsgi import WebSocketHandler
from gwt.protocol.wsframes import MASKER


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    ws = environ["wsgi.websocket"]
    for message in ws:
        ws.send(message)
    return []


if __name__ == "__main__":
    serve_wsgi(application, "wsproto", said={"masking": MASKER}, handler_class=WebSocketHandler)
