"""gwt as a peer of the bench: a route of its own server, as an application would have it."""

from __future__ import annotations

from control import arguments, ready
from gevent_peer import answering

import gwt
from gwt.protocol.wsframes import MASKER

app = gwt.App()


@app.websocket("/echo")
def echo(ws: gwt.WebSocket) -> None:
    for message in ws:
        ws.send(message)


if __name__ == "__main__":
    certificate = arguments().certificate
    with gwt.Server(app, "127.0.0.1:0", certfile=certificate, http3=False) as server:
        watcher = answering()
        ready(server.address[1], "gevent", "wsproto", masking=MASKER)
        server.serve_forever()
