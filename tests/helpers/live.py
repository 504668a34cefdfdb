"""Servers and clients over loopback sockets, for tests of the floors that have them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import gevent
from gevent.pool import Group

import gwt


def url(server: gwt.Server, path: str = "/") -> str:
    host, port = server.address
    return f"https://{host}:{port}{path}"


def connect(server: gwt.Server, path: str = "/", **options: Any) -> gwt.WebTransportSession:
    options.setdefault("server_certificate_hashes", [server.certificate_hash])
    return gwt.connect(url(server, path), **options)


@contextmanager
def serving(
    handler: Callable[..., Any] | None = None, path: str = "/", **options: Any
) -> Iterator[gwt.Server]:
    """Serve one handler at `path`, or an App."""
    app = handler if isinstance(handler, gwt.App) else gwt.App()
    if handler is not None and handler is not app:
        app.webtransport(path)(handler)
    server = gwt.Server(app, "127.0.0.1:0", **options)
    server.start()
    try:
        yield server
    finally:
        server.stop(timeout=1.0)


def echo(session: gwt.WebTransportSession) -> None:
    """Echo bidirectional streams, return unidirectional ones on new ones, echo datagrams."""

    def one(stream: Any) -> None:
        if isinstance(stream, gwt.WebTransportStream):
            for chunk in stream:
                stream.write(chunk)
            stream.finish()
        else:
            data = stream.read_all()
            session.create_unidirectional_stream().write_all(data)

    def quietly(function: Callable[..., Any], *args: Any) -> None:
        with suppress(gwt.SessionError, gwt.StreamError):
            function(*args)

    def datagrams() -> None:
        for data in session.incoming_datagrams():
            session.send_datagram(data)

    children = Group()
    children.spawn(quietly, datagrams)
    try:
        for stream in session:
            children.spawn(quietly, one, stream)
    finally:
        children.kill()


@contextmanager
def pair(**options: Any) -> Iterator[tuple[gwt.WebTransportSession, gwt.WebTransportSession]]:
    """A session's two ends: the client's, and the server's, whose handler waits for the end."""
    accepted: gevent.event.AsyncResult = gevent.event.AsyncResult()
    client_options = options.pop("client", {})

    def handler(session: gwt.WebTransportSession) -> None:
        accepted.set(session)
        session.wait_closed()

    with serving(handler, **options) as server:
        session = connect(server, options.get("path", "/"), **client_options)
        try:
            yield session, accepted.get(timeout=5)
        finally:
            session.abort()
