"""
The TCP half of a server: HTTP/1.1 by gevent.pywsgi, for the WSGI application and for WebSockets.

Only what gwt adds to pywsgi's server stands here: where the certificate comes from, who closes a
socket, and what is said when there is no application. Requests are upgrade.py's affair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import gevent
from gevent import ssl
from gevent.pool import Pool
from gevent.pywsgi import WSGIServer

from .. import tracing
from ..config import ServerConfig
from ..errors import CertificateError
from ..net.udpsocket import Address, shown
from .app import App
from .upgrade import Door, Handler

__all__ = ["HttpListener"]


def _nothing(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("404 Not Found", [("Content-Type", "text/plain"), ("Content-Length", "10")])
    return [b"Not found\n"]


class _Server(WSGIServer):  # type: ignore[misc]
    """A WSGIServer whose connections may leave it, when they become WebSockets."""

    handler_class = Handler

    def __init__(self, *args: Any, door: Door, **options: Any) -> None:
        super().__init__(*args, **options)
        self.door = door

    def handle(self, sock: Any, address: Address) -> None:
        # Applications are told plain addresses, as sessions have them.
        self.handler_class(sock, shown(address), self).handle()

    def wrap_socket_and_handle(self, client_socket: Any, address: Address) -> None:
        # Empties `client_socket`; the descriptor is the new one's.
        sock = self.wrap_socket(client_socket, do_handshake_on_connect=False, **self.ssl_args)
        limit = gevent.Timeout(self.door.config.request_timeout)
        handler = None
        try:
            with limit:
                sock.do_handshake()
            handler = self.handler_class(sock, shown(address), self)
            handler.handle()
        except (OSError, gevent.Timeout) as exc:
            if handler is not None or (isinstance(exc, gevent.Timeout) and exc is not limit):
                raise
            # Whoever connected does not speak TLS, or none that we do.
            self.door.counters["tls_handshakes_failed"] += 1
        finally:
            # Not if it was handed over.
            if handler is None or not handler.upgraded:
                sock.close()


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
            tracing.log_secrets(context)
            options["ssl_context"] = context
        # A pool, or stopping would not know of the connections that are open. The access log is
        # the application's affair.
        self._server = _Server(
            sock,
            app.wsgi or _nothing,
            log=None,
            spawn=Pool(config.max_connections),
            door=door,
            **options,
        )

    def start(self) -> None:
        """Begin to accept."""
        self._server.start()

    def stop(self) -> None:
        """Accept no more, give requests under way a second, and end every HTTP connection."""
        self._server.stop(timeout=1)
