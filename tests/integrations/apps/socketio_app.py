"""A Flask-SocketIO application: events, acks, binary, rooms, and who has left."""

from flask import Flask, request
from flask_socketio import SocketIO, disconnect, emit, join_room

app = Flask(__name__)
socketio = SocketIO(app, async_mode="gevent", ping_interval=5)


@app.route("/")
def page():
    return "a page"


@socketio.on("connect")
def connected(auth):
    if auth == {"password": "wrong"}:
        return False


@socketio.on("echo")
def echo(data):
    emit("echo", data)
    return "acknowledged", data


@socketio.on("ask")
def ask():
    sid = request.sid
    emit("question", callback=lambda answer: socketio.emit("answered", answer, to=sid))


@socketio.on("join")
def join(room):
    join_room(room)


@socketio.on("say")
def say(room, what):
    emit("said", what, to=room)


@socketio.on("leave")
def leave():
    disconnect()


@socketio.on("disconnect")
def gone(reason):
    print("gone:", reason, flush=True)
