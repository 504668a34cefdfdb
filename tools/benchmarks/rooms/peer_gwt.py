"""Rooms as a peer of the bench: what a member says, the room hears."""

from __future__ import annotations

from gwt_peer import serve

import gwt

app = gwt.App()
rooms = gwt.WebSocketManager()


@app.websocket("/room")
def room(ws: gwt.WebSocket) -> None:
    rooms.join_room(rooms.add(ws), "room")
    ws.send("joined")
    for message in ws:
        rooms.broadcast_to_room("room", message)


@app.webtransport("/room")
def session_room(session: gwt.WebTransportSession) -> None:
    rooms.join_room(rooms.add(session), "room")
    session.send_datagram(b"joined")
    for message in session.incoming_datagrams():
        rooms.broadcast_to_room("room", message)


if __name__ == "__main__":
    serve(app)
