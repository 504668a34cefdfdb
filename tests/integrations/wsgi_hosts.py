"""
What the servers of test_middleware.py run: ``python wsgi_hosts.py pywsgi|werkzeug|wsgiref FD``.

gunicorn imports ``application``. The listening socket is inherited, so that no port is guessed.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
from collections.abc import Iterator
from typing import Any

import gevent
import gevent.event
import gevent.socket
import gevent.ssl
from gevent.hub import Hub

from gwt.integrations.middleware import WebSocketMiddleware


def echo(ws: Any) -> None:
    for message in ws:
        ws.send(message)


def room(ws: Any, room: str, number: int) -> None:
    ws.send(f"{room} {number} {ws.path} {ws.subprotocol} {ws.request.query}")
    ws.send(f"{ws.remote_address[1]} {ws.environ['REMOTE_PORT']} {ws.environ['REQUEST_METHOD']}")


def fail(ws: Any) -> None:
    ws.recv()
    raise KeyError("mine")


def endless(ws: Any) -> None:
    while True:
        ws.recv()


def close(ws: Any, code: int) -> None:
    ws.close(code, "why")


def spawn(ws: Any) -> None:
    """Leave greenlets behind, which wait for all kinds of things."""
    gevent.spawn(gevent.sleep, 0.001)
    gevent.spawn(gevent.sleep, 1000)
    gevent.spawn(gevent.event.Event().wait)
    gevent.spawn(gevent.spawn, gevent.sleep)
    gevent.spawn(ws.wait_closed)
    ours, theirs = gevent.socket.socketpair()
    gevent.spawn(ours.recv, 1)
    theirs.sendall(b"x")
    gevent.get_hub().threadpool.apply(int)
    ws.send(str(gevent.socket.getaddrinfo("127.0.0.1", 80)[0][4]))
    ours.close()
    theirs.close()


def abort(ws: Any) -> None:
    ws.recv()
    ws.abort()


def state() -> dict[str, int]:
    gc.collect()
    alive = [e for e in gc.get_objects() if isinstance(e, (Hub, gevent.Greenlet)) and not e.dead]
    hubs = sum(isinstance(each, Hub) for each in alive)
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "hubs": hubs,
        "greenlets": len(alive) - hubs,
    }


def generator(ws: Any, start_response: Any) -> Iterator[bytes]:
    yield b""
    ws.send(ws.recv())
    start_response("200 OK", [])
    yield b"nobody hears this"


def slow_page(start_response: Any) -> Iterator[bytes]:
    start_response("203 Fine", [("Content-Length", "4")])
    yield b""
    yield b"pa"
    yield b"ge"


def plain(environ: dict[str, Any], start_response: Any) -> Any:
    ws = environ.get("wsgi.websocket")
    path = environ["PATH_INFO"]
    if path == "/state":
        body = json.dumps(state()).encode()
    elif path == "/close_all":
        application.close_all()
        body = b"done"
    elif path == "/lazy":
        ws.accept(headers={"X-Kind": "green"})
        echo(ws)
        # As Flask does for what a view returns.
        start_response("200 OK", [("Content-Length", "7")])
        return [b"ignored"]
    elif path == "/own":
        # As flask-sock does, which speaks WebSocket by itself, on the server's socket.
        sock = environ.get("gunicorn.socket") or environ["werkzeug.socket"]
        sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        sock.sendall(sock.recv(5))
        raise StopIteration if "gunicorn.socket" in environ else ConnectionError
    elif path == "/swallow":
        ws.recv()
        # As Flask does for what a view raises.
        start_response("500 Internal Server Error", [("Content-Length", "5")])
        return [b"oops!"]
    elif path == "/generator" and ws is not None:
        return generator(ws, start_response)
    elif path == "/slow_page":
        return slow_page(start_response)
    elif path == "/401":
        start_response("401 Unauthorized", [("WWW-Authenticate", "Basic"), ("Content-Length", "4")])
        return [b"who?"]
    elif path == "/reject":
        ws.reject(403, {"X-Why": "no"}, b"go away")
        start_response("200 OK", [])
        return [b"nobody hears this"]
    elif path == "/raise":
        raise KeyError("yours")
    else:
        body = b"plain"
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


application = WebSocketMiddleware(
    plain,
    {
        "/echo": echo,
        "/rooms/<room>/<int:number>": room,
        "/fail": fail,
        "/endless": endless,
        "/close/<int:code>": close,
        "/abort": abort,
        "/spawn": spawn,
    },
    subprotocols=["tea"],
)


def main(kind: str, descriptor: int, *files: str) -> None:
    if kind == "pywsgi":
        from gevent.pywsgi import WSGIServer

        options: dict[str, Any] = {}
        if files:
            options["ssl_context"] = gevent.ssl.SSLContext(gevent.ssl.PROTOCOL_TLS_SERVER)
            options["ssl_context"].load_cert_chain(*files)
        listener = gevent.socket.socket(fileno=descriptor)
        WSGIServer(listener, application, **options).serve_forever()
    elif kind == "werkzeug":
        from werkzeug.serving import make_server

        make_server(
            "127.0.0.1",
            0,
            application,
            threaded=True,
            fd=descriptor,
            ssl_context=files or None,  # type: ignore[arg-type]
        ).serve_forever()
    else:
        from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

        server = WSGIServer(("127.0.0.1", 0), WSGIRequestHandler, bind_and_activate=False)
        server.socket.close()
        server.socket = socket.socket(fileno=descriptor)
        server.server_name, server.server_port = "localhost", server.socket.getsockname()[1]
        server.setup_environ()
        server.set_app(application)
        server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
