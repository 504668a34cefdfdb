"""
The TCP half of a server: HTTP/1.1 by gevent.pywsgi, for the WSGI application and for WebSockets.

Only what gwt adds to pywsgi's server stands here: where the certificate comes from, who closes a
socket, and what is said when there is no application. Requests are upgrade.py's affair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import gevent
import gevent.socket
from gevent import ssl
from gevent.pool import Pool
from gevent.pywsgi import WSGIServer

from .. import tracing
from ..config import ServerConfig
from ..errors import CertificateError
from ..net.tcp import TcpConnection
from ..net.timers import now
from ..net.udpsocket import Address, shown
from .app import App
from .quick import FIRST
from .upgrade import Door, Handler

__all__ = ["HttpListener"]


_UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

# To tell a peer that it has too many connections takes a descriptor, and time of its choice. Beyond
# this they are closed without a word.
_MAX_REFUSING = 64


def _nothing(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("404 Not Found", [("Content-Type", "text/plain"), ("Content-Length", "10")])
    return [b"Not found\n"]


class _Server(WSGIServer):  # type: ignore[misc]
    """A WSGIServer whose connections may leave it, when they become WebSockets."""

    handler_class = Handler

    def __init__(self, *args: Any, door: Door, **options: Any) -> None:
        super().__init__(*args, **options)
        self.door = door
        # Connections over the limit of their address: TLS handshakes under way, and those that are
        # told.
        self._shaking = 0
        self._refused: list[TcpConnection] = []

    def handle(self, sock: Any, address: Address) -> None:
        # Applications are told plain addresses, as sessions have them.
        peer, peers = shown(address), self.door.peers
        if not peers.admit(peer):
            # The server closes the object that it knows.
            self._refuse(gevent.socket.socket(sock.family, sock.type, sock.proto, sock.detach()))
            return
        peers.enter(peer)
        try:
            self._serve(sock, peer)
        finally:
            peers.leave(peer)

    def _serve(self, sock: Any, peer: Address) -> bool:
        """Serve a connection; return whether its socket has become a WebSocket's."""
        handler: Handler | None = None
        if not self.door.has_routes:
            handler = self.handler_class(sock, peer, self)
        else:
            began = now()
            first = self._read_first(sock)
            if not first:
                return False
            verdict = self.door.open_at_once(first, sock, peer)
            if verdict is True:
                return True
            handler = self.handler_class(sock, peer, self, first=first, spent=now() - began)
            if verdict:
                handler.verdict = verdict
        handler.handle()
        return handler.upgraded

    def _read_first(self, sock: Any) -> bytes:
        """Return the first bytes of a connection; none if it ends, or takes too long."""
        limit = gevent.Timeout.start_new(self.door.config.request_timeout)
        try:
            return bytes(sock.recv(FIRST))
        except OSError:
            return b""
        except gevent.Timeout as exc:
            if exc is not limit:
                raise
            self.door.counters["requests_timed_out"] += 1
            return b""
        finally:
            limit.close()

    def wrap_socket_and_handle(self, client_socket: Any, address: Address) -> None:
        peer, peers = shown(address), self.door.peers
        if not peers.admit(peer):
            self._refuse_by_tls(client_socket)
            return
        peers.enter(peer)
        try:
            sock = self._shake_hands(client_socket)
            if sock is not None:
                self._handle_by_tls(sock, peer)
        finally:
            peers.leave(peer)

    def _handle_by_tls(self, sock: Any, peer: Address) -> None:
        upgraded = False
        try:
            upgraded = self._serve(sock, peer)
        finally:
            # Not if it was handed over.
            if not upgraded:
                sock.close()

    def _shake_hands(self, client_socket: Any) -> Any:
        """Return a TLS socket, which has the descriptor from now on; None if it came to nothing."""
        sock = self.wrap_socket(client_socket, do_handshake_on_connect=False, **self.ssl_args)
        limit = gevent.Timeout(self.door.config.request_timeout)
        try:
            with limit:
                sock.do_handshake()
        except BaseException as exc:
            sock.close()
            if exc is not limit and not isinstance(exc, OSError):
                raise
            # Whoever connected does not speak TLS, or none that we do.
            self.door.counters["tls_handshakes_failed"] += 1
            return None
        return sock

    def _refuse_by_tls(self, client_socket: Any) -> None:
        if self._room_to_refuse():
            self._shaking += 1
            try:
                sock = self._shake_hands(client_socket)
            finally:
                self._shaking -= 1
            if sock is not None:
                self._refuse(sock)

    def _refuse(self, sock: Any) -> None:
        """Say 503 before anything was asked, and close, if the peer lets us within a second."""
        if not self._room_to_refuse():
            sock.close()
            return
        connection = TcpConnection(sock)
        connection.write([_UNAVAILABLE])
        connection.close()
        self._refused.append(connection)

    def _room_to_refuse(self) -> bool:
        self._refused = [each for each in self._refused if not each.closed]
        return self._shaking + len(self._refused) < _MAX_REFUSING


class HttpListener:
    """HTTP/1.1 on one listening socket."""

    def __init__(self, sock: Any, app: App, config: ServerConfig, door: Door) -> None:
        options: dict[str, Any] = {}
        if config.certfile is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            try:
                context.load_cert_chain(config.certfile, config.keyfile)
            except (OSError, ssl.SSLError) as exc:
                raise CertificateError(f"The certificate cannot be used for TLS: {exc}.") from exc
            # It costs us a handshake and the peer a few bytes; TLS 1.3 has none.
            context.options |= ssl.OP_NO_RENEGOTIATION
            tracing.log_secrets(context)
            options["ssl_context"] = context
        # A pool, or stopping would not know of the connections that are open. The access log is
        # the application's affair.
        self._pool = Pool(config.max_connections)
        self._server = _Server(
            sock,
            app.wsgi or _nothing,
            log=None,
            spawn=self._pool,
            door=door,
            **options,
        )

    @property
    def connections(self) -> int:
        """How many HTTP/1.1 connections are open; WebSockets are none any more."""
        return len(self._pool)

    def start(self) -> None:
        """Begin to accept."""
        self._server.start()

    def stop(self) -> None:
        """Accept no more, give requests under way a second, and end every HTTP connection."""
        self._server.stop(timeout=1)
