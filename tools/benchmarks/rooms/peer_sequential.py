"""What does without rooms, as a peer of the bench: each member's send(), one after the other."""

from __future__ import annotations

from contextlib import suppress

from gwt_peer import serve

import gwt

app = gwt.App()
members: dict[str, gwt.WebSocket] = {}


@app.websocket("/room")
def room(ws: gwt.WebSocket) -> None:
    members[ws.id] = ws
    ws.send("joined")
    try:
        for message in ws:
            for member in list(members.values()):
                with suppress(gwt.WebSocketClosed):
                    member.send(message)
    finally:
        del members[ws.id]


if __name__ == "__main__":
    serve(app)
