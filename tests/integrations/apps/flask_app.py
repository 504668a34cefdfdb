"""A Flask application with a WebSocket at /ws."""

from contextlib import suppress

from flask import Flask, abort, request

import gwt

app = Flask(__name__)


@app.route("/")
def page():
    return "a page"


@app.route("/ws", websocket=True)
def ws():
    ws = request.environ["wsgi.websocket"]
    with suppress(gwt.WebSocketClosed):
        for message in ws:
            if message == "bye":
                break
            ws.send(message)
    return ""


@app.route("/private", websocket=True)
def private():
    abort(401)


@app.route("/broken", websocket=True)
def broken():
    request.environ["wsgi.websocket"].accept()
    raise KeyError("mine")
