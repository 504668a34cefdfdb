"""Servers that answer as a test wants, proxies, and WebSocket servers, on loopback sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import gevent
import gevent.server
import gevent.socket
from gevent import ssl
from gevent.pool import Pool

import gwt
from gwt.protocol.wshandshake import accept_key

__all__ = ["answering", "deaf", "echo", "proxying", "redirect", "serving", "switched", "url"]


def echo(ws: gwt.WebSocket) -> None:
    for message in ws:
        ws.send(message)


@contextmanager
def serving(**options: Any) -> Iterator[gwt.Server]:
    app = options.pop("app", None) or gwt.App()
    app.websocket("/ws")(echo)
    with gwt.Server(app, "127.0.0.1:0", http3=False, **options) as server:
        yield server


def url(server: gwt.Server, path: str = "/ws", scheme: str = "ws") -> str:
    return "{}://{}:{}{}".format(scheme, *server.address, path)


@contextmanager
def answering(*answers: Any) -> Iterator[tuple[str, list[str]]]:
    """A server that gives one answer a connection; its URL, and the requests that came."""
    asked: list[str] = []
    waiting = list(answers)

    def handle(sock: Any, _: object) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            more = sock.recv(65536)
            if not more:
                return
            data += more
        asked.append(data.decode())
        answer = waiting.pop(0)
        if callable(answer):
            answer = answer(asked[-1])
        if answer is None:
            sock.recv(1)
        else:
            sock.sendall(answer)

    server = gevent.server.StreamServer(("127.0.0.1", 0), handle)
    server.start()
    try:
        yield f"ws://127.0.0.1:{server.address[1]}", asked
    finally:
        server.stop()


@contextmanager
def deaf() -> Iterator[Any]:
    """The address of a socket whose backlog is full: whoever knocks hears nothing."""
    with gevent.socket.socket() as sock, gevent.socket.socket() as filler:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        filler.connect(sock.getsockname())
        # What the filler knows, its peer does not yet.
        gevent.socket.wait_read(sock.fileno(), timeout=5)
        yield sock.getsockname()


def switched(request: str) -> bytes:
    key = next(line[19:] for line in request.split("\r\n") if line.startswith("Sec-WebSocket-Key"))
    head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    head += f"Sec-WebSocket-Accept: {accept_key(key)}\r\n\r\n"
    return head.encode() + b"\x81\x05early\x88\x02\x03\xe8"


def redirect(location: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


@contextmanager
def proxying(
    *,
    answer: bytes | None = b"HTTP/1.1 200 OK\r\n\r\n",
    leads_to: Any = None,
    files: Any = None,
) -> Iterator[tuple[str, list[str]]]:
    """
    A proxy that opens tunnels; its host and port, and the requests that came.

    Each tunnel leads to the address `leads_to`, or to the one that is asked for. `answer` is what
    the proxy says, None for nothing; `files` its certificate and key, if it speaks TLS.
    """
    asked: list[str] = []
    context: Any = None
    if files is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*files)

    def carry(source: Any, sink: Any) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with suppress(OSError):
            # Of a TLS socket only the whole can be closed.
            if not isinstance(sink, ssl.SSLSocket):
                sink.shutdown(socket.SHUT_WR)

    def handle(sock: Any, _: object) -> None:
        if context is None:
            serve(sock)
            return
        with suppress(OSError), context.wrap_socket(sock, server_side=True) as secured:
            serve(secured)

    def serve(sock: Any) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            more = sock.recv(65536)
            if not more:
                return
            data += more
        asked.append(data.decode())
        if answer is None:
            sock.recv(1)
            return
        sock.sendall(answer)
        if b" 200 " not in answer:
            return
        host, port = data.split()[1].decode().rsplit(":", 1)
        with gevent.socket.create_connection(leads_to or (host, int(port))) as there:
            back = gevent.spawn(carry, there, sock)
            carry(sock, there)
            back.join()

    server = gevent.server.StreamServer(("127.0.0.1", 0), handle, spawn=Pool())
    server.start()
    try:
        yield f"127.0.0.1:{server.address[1]}", asked
    finally:
        server.stop(timeout=1)
