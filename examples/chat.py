"""A chat: a room of WebSockets and WebTransport sessions, in which everybody hears everybody."""

import gevent

import gwt

app = gwt.App()
server = gwt.Server(app, "127.0.0.1:0")


def messages(peer):
    """Yield what a peer says: on a WebSocket, or on the first stream that a session opens."""
    if isinstance(peer, gwt.WebSocket):
        return peer
    return gwt.read_messages(peer.accept_unidirectional_stream())


def who(room):
    return "here: " + ", ".join(sorted(server.rooms.get_room_connections(room)))


@app.websocket("/chat/<room>/<name>")
@app.webtransport("/chat/<room>/<name>")
def chat(peer, room, name):
    server.rooms.join_room(server.rooms.add(peer, name, replace=True), room)
    server.rooms.broadcast_to_room(room, who(room))
    try:
        for text in messages(peer):
            server.rooms.broadcast_to_room(room, f"{name}: {text}")
    finally:
        server.rooms.remove(peer)
        server.rooms.broadcast_to_room(room, who(room))


def ann(address):
    friend = None
    with gwt.connect(f"ws://{address}/chat/lobby/ann") as ws:
        for text in ws:
            print("ann hears", text)
            if text == "here: ann, bob":
                ws.send("hello, bob")
            elif text == "here: ann" and friend is None:
                friend = gevent.spawn(bob, address)
            elif text == "here: ann":
                break


def bob(address):
    url = f"https://{address}/chat/lobby/bob"
    with gwt.connect(url, server_certificate_hashes=[server.certificate_hash]) as session:
        speaking = session.create_unidirectional_stream()
        for text in gwt.read_messages(session.accept_unidirectional_stream()):
            if text == "ann: hello, bob":
                speaking.write(gwt.encode_message("hello, ann, by WebTransport"))
            elif text.startswith("bob:"):
                return


with server:
    ann("{}:{}".format(*server.address))
