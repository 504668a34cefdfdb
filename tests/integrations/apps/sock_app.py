"""flask-sock as its documentation has it; many greenlets may send."""

import os

import gevent
from flask import Flask
from flask_sock import Sock

app = Flask(__name__)
sock = Sock(app)


@app.route("/")
def page():
    return "a page"


@sock.route("/ws")
def echo(ws):
    while True:
        ws.send(ws.receive())


@sock.route("/bye")
def bye(ws):
    ws.send("bye")


@sock.route("/many")
def many(ws):
    """Each of eight greenlets sends a message of two equal halves, of a size that has to wait."""
    ws.receive()
    halves = [bytes([n]) + os.urandom(999_999) for n in range(8)]
    greenlets = [gevent.spawn(ws.send, half * 2) for half in halves]
    gevent.joinall(greenlets, raise_error=True)


@sock.route("/broken")
def broken(ws):
    raise KeyError("mine")
