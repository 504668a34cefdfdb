"""gwt as a peer of the bench: a route of its own server, as an application would have it."""

from __future__ import annotations

from typing import Any

from control import arguments, ready
from gevent_peer import answering
from profiler import Profiler

import gwt

app = gwt.App()
profiler = Profiler()


@app.websocket("/echo")
def echo(ws: gwt.WebSocket) -> None:
    for message in ws:
        ws.send(message)


def profile(command: dict[str, Any]) -> None:
    profiler.command(command["file"])


if __name__ == "__main__":
    certificate = arguments().certificate
    with gwt.Server(app, "127.0.0.1:0", certfile=certificate, http3=False) as server:
        watcher = answering(profile)
        ready(server.address[1], "gevent", "wsproto")
        server.serve_forever()
