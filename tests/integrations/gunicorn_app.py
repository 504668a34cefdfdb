"""What the tests of the gunicorn worker serve, on Flask: an application as users have it."""

from __future__ import annotations

import os
from typing import Any

import gevent
import gevent.event
import gevent.socket
from flask import Flask, abort, jsonify, request
from flask_sock import Sock

import gwt
from gwt.integrations.gunicorn import Worker

__all__ = ["Small", "app"]

app = Flask(__name__)

sock = Sock(app)

ended = gevent.event.Event()

Small = Worker.with_options(max_connections=2, max_size=10, subprotocols=["tea"])


@app.errorhandler(gwt.WebSocketClosed)
def gone(exc: gwt.WebSocketClosed) -> str:
    """The client has gone, which is no error; without this Flask logs one."""
    return ""


@app.get("/")
def plain() -> str:
    return f"{os.getpid()}"


@app.get("/patched")
def patched() -> str:
    import socket

    return str(socket.socket is gevent.socket.socket)


@app.get("/hang")
def hang() -> str:
    """Never answers."""
    print("/hang", flush=True)
    gevent.event.Event().wait()
    return ""


@app.get("/busy")
def busy() -> str:
    """Answers once a WebSocket at /pid has ended."""
    print("/busy", flush=True)
    ended.wait()
    return f"{os.getpid()}"


@app.get("/environ")
def environ() -> Any:
    return jsonify({key: str(value) for key, value in request.environ.items()})


@app.route("/echo", websocket=True)
def echo() -> str:
    ws = request.environ["wsgi.websocket"]
    for message in ws:
        ws.send(message)
    return ""


@app.route("/pid", websocket=True)
def pid() -> str:
    ws = request.environ["wsgi.websocket"]
    ws.send(str(os.getpid()))
    ws.wait_closed()
    ended.set()
    return ""


@app.route("/keys", websocket=True)
def keys() -> str:
    request.environ["wsgi.websocket"].send(" ".join(request.environ))
    return ""


@app.route("/from-another-greenlet", websocket=True)
def from_another_greenlet() -> str:
    ws = request.environ["wsgi.websocket"]
    gevent.spawn(ws.send, "hello").join()
    ws.wait_closed()
    return ""


@sock.route("/own")
def own(ws: Any) -> None:
    """Speaks WebSocket by itself, on the socket."""
    ws.send(str(os.getpid()))
    ws.receive()


@app.route("/guarded", websocket=True)
def guarded() -> str:
    abort(401)


@app.route("/raise", websocket=True)
def fail() -> str:
    request.environ["wsgi.websocket"].recv()
    raise KeyError("mine")


@app.route("/stuck", websocket=True)
def stuck() -> str:
    """Does not notice the end of its WebSocket."""
    request.environ["wsgi.websocket"].send("stuck")
    gevent.event.Event().wait()
    return ""
