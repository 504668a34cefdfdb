"""What does without rooms, as a peer of the bench: each member's send(), one after the other."""

from __future__ import annotations

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
                try:
                    member.send(message)
                except gwt.WebSocketClosed:
                    members.pop(member.id, None)
    finally:
        members.pop(ws.id, None)


if __name__ == "__main__":
    serve(app)
