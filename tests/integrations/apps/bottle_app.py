"""A Bottle application with a WebSocket at /ws."""

from contextlib import suppress

from bottle import Bottle, abort, request

import gwt

app = Bottle()


@app.route("/")
def page():
    return "a page"


@app.route("/ws")
def ws():
    ws = request.environ["wsgi.websocket"]
    with suppress(gwt.WebSocketClosed):
        for message in ws:
            if message == "bye":
                break
            ws.send(message)


@app.route("/private")
def private():
    abort(401)


@app.route("/broken")
def broken():
    request.environ["wsgi.websocket"].accept()
    raise KeyError("mine")
