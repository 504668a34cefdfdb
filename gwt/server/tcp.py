"""
The TCP half of a server: HTTP/1.1 by gevent.pywsgi, for the WSGI application.

Only what gwt adds to pywsgi stands here: where the certificate comes from, and what is said when
there is no application.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from gevent import ssl
from gevent.pool import Pool
from gevent.pywsgi import WSGIServer

from .. import tracing
from ..config import ServerConfig
from ..errors import CertificateError
from ..net.udpsocket import Address, shown
from .app import App

__all__ = ["HttpListener"]


def _nothing(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("404 Not Found", [("Content-Type", "text/plain"), ("Content-Length", "10")])
    return [b"Not found\n"]


class _Server(WSGIServer):  # type: ignore[misc]
    """A WSGIServer that tells applications plain addresses, as sessions have them."""

    def handle(self, sock: Any, address: Address) -> None:
        super().handle(sock, shown(address))


class HttpListener:
    """HTTP/1.1 on one listening socket."""

    def __init__(self, sock: Any, app: App, config: ServerConfig) -> None:
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
            sock, app.wsgi or _nothing, log=None, spawn=Pool(config.max_connections), **options
        )

    def start(self) -> None:
        """Begin to accept."""
        self._server.start()

    def stop(self) -> None:
        """Accept no more, give requests under way a second, and end every connection."""
        self._server.stop(timeout=1)
