"""
The demo app: a chat, endpoints that echo, swallow, send and close, and a page for the chat.

It is what ``gwt serve`` serves when it is given nothing else, and a model of how handlers are
written: one greenlet for each stream, in a group that ends with the session.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from importlib import resources
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from gevent.pool import Group
from werkzeug.wrappers import Request, Response

import gwt

from ..config import KIB
from .chat import MAX_MESSAGE, Chat

__all__ = ["Demo", "make_app"]

# A download is made as it is sent, so that its size costs nothing but time.
LONGEST_DOWNLOAD = 2**40

# What one write of a download hands over.
_BLOCK = bytes(range(256)) * (64 * KIB // 256)

# How long a download's reader has to close the session before the server does: browsers drop what
# they have not yet shown to the page when the session ends.
_READER_GRACE = 2.0

# W3C WebTransport, "custom certificate requirements".
_LONGEST_PINNED = timedelta(days=14)

_CHAT = "/chat/<string(maxlength=64):room>"


def make_app() -> Demo:
    """Return a new demo app; `attach` tells it the server, for the page and /health."""
    app = Demo()
    app.webtransport("/echo")(echo)
    app.webtransport("/upload")(upload)
    app.webtransport(f"/download/<int(max={LONGEST_DOWNLOAD}):size>")(download)
    app.webtransport(f"/close/<int(max={2**32 - 1}):code>")(close)
    app.webtransport(f"/close/<int(max={2**32 - 1}):code>/<path:reason>")(close)
    app.webtransport(_CHAT)(app.chat)
    app.websocket(_CHAT, max_size=MAX_MESSAGE, compression="deflate")(app.chat)
    app.websocket("/echo", compression="deflate")(echo_messages)
    app.websocket("/close/<int(min=1000, max=4999):code>")(close_websocket)
    app.websocket("/close/<int(min=1000, max=4999):code>/<path:reason>")(close_websocket)
    return app


# WebTransport


def echo(session: gwt.WebTransportSession) -> None:
    """Send back what comes, while it comes: streams on streams, datagrams as datagrams."""
    # Whatever the session needs beside its handler lives in this group, and not longer than it.
    children = Group()
    try:
        children.spawn(_echo_datagrams, session)
        for stream in session:
            if isinstance(stream, gwt.WebTransportStream):
                children.spawn(_echo_stream, stream)
            else:
                children.spawn(_echo_back, session, stream)
    finally:
        children.kill()


def _echo_stream(stream: gwt.WebTransportStream) -> None:
    # That the peer gives a stream up, or the session ends, is no failure. Leaving `with` normally
    # finishes the stream; leaving it by an exception resets it.
    with suppress(gwt.StreamError, gwt.SessionError), stream:
        for chunk in stream:
            stream.write(chunk)


def _echo_back(session: gwt.WebTransportSession, stream: gwt.WebTransportReceiveStream) -> None:
    # TimeoutError: the peer lets us open no stream.
    with (
        suppress(gwt.StreamError, gwt.SessionError, TimeoutError),
        stream,
        session.create_unidirectional_stream() as back,
    ):
        for chunk in stream:
            back.write(chunk)


def _echo_datagrams(session: gwt.WebTransportSession) -> None:
    with suppress(gwt.SessionError):
        for data in session.incoming_datagrams():
            # The peer's packets may be larger than ours: such a datagram is lost, as any may be.
            with suppress(gwt.DatagramTooLarge):
                session.send_datagram(data)


def upload(session: gwt.WebTransportSession) -> None:
    """Read each bidirectional stream to its end, and answer how many bytes it had."""
    children = Group()
    try:
        for stream in session:
            if isinstance(stream, gwt.WebTransportStream):
                children.spawn(_count, stream)
            else:
                # There is no way to answer on it.
                stream.stop()
    finally:
        children.kill()


def _count(stream: gwt.WebTransportStream) -> None:
    with suppress(gwt.StreamError, gwt.SessionError), stream:
        total = sum(len(chunk) for chunk in stream)
        stream.write(str(total).encode())


def download(session: gwt.WebTransportSession, size: int) -> None:
    """Send `size` bytes on a unidirectional stream."""
    stream = session.create_unidirectional_stream()
    with suppress(gwt.StreamStopped), stream:
        # write() waits while too much is under way: this holds one block and the send buffer.
        for position in range(0, size, len(_BLOCK)):
            stream.write(_BLOCK[: size - position])
        stream.finish()
        # Leaving `with` would wait for a slow reader too, but not longer than close_timeout.
        stream.flush()
    with suppress(TimeoutError):
        session.wait_closed(timeout=_READER_GRACE)


def close(session: gwt.WebTransportSession, code: int, reason: str = "") -> None:
    """Close with this code and reason; what is too long of the reason is cut off."""
    session.close(code, reason.encode()[:1024].decode(errors="ignore"))


# WebSocket


def echo_messages(ws: gwt.WebSocket) -> None:
    """Send back what comes, as what it came: text or binary."""
    for message in ws:
        ws.send(message)


def close_websocket(ws: gwt.WebSocket, code: int, reason: str = "") -> None:
    """Close with this code and reason; a code that may not be sent closes with 1011."""
    try:
        ws.close(code, reason)
    except gwt.LocalProtocolError:
        ws.close(1011, f"code {code} is none to close with")


# HTTP


class Demo(gwt.App):
    """The demo app: an App whose WSGI half shows the server that it is attached to."""

    def __init__(self) -> None:
        super().__init__(wsgi=self._http)
        self.chat = Chat()
        self._server: gwt.Server | None = None
        self._started_at = time.monotonic()

    def attach(self, server: gwt.Server) -> None:
        """Show this server in the page and in /health, and chat in its rooms."""
        self._server = server
        self.chat.rooms = server.rooms

    def _http(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        request = Request(environ)
        match request.path:
            case "/":
                response = Response(_page(), mimetype="text/html")
            case "/health":
                response = Response(json.dumps(self.health()), mimetype="application/json")
            case _:
                response = Response("Not found\n", status=404)
        if request.method not in ("GET", "HEAD"):
            response = Response("Method not allowed\n", 405, {"Allow": "GET, HEAD"})
        response.headers["Cache-Control"] = "no-store"
        return response(environ, start_response)

    def health(self) -> dict[str, Any]:
        """Return what /health says."""
        server = self._server
        answer: dict[str, Any] = {
            "status": "ok",
            "version": gwt.__version__,
            "uptime": round(time.monotonic() - self._started_at, 3),
        }
        if server is not None:
            answer["webtransport"] = server.config.http3
            answer["certificate_hash"] = server.certificate_hash if _pinnable(server) else None
            answer["stats"] = server.stats()
        return answer


def _page() -> str:
    return (resources.files(__package__) / "page.html").read_text(encoding="utf-8")


def _pinnable(server: gwt.Server) -> bool:
    """Whether browsers accept the server's certificate by its hash; else it must be trusted."""
    if server.certificate is None:
        return False
    made = server.certificate.certificate
    lifetime = made.not_valid_after_utc - made.not_valid_before_utc
    return lifetime <= _LONGEST_PINNED and isinstance(made.public_key(), ec.EllipticCurvePublicKey)
