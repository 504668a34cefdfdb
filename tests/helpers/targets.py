"""TCP services on loopback for tunnels to lead to, and servers that lead there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from gevent.server import StreamServer

import gwt

from .live import serving


def place(address: Any) -> str:
    """Return an address as "host:port"."""
    return f"{address[0]}:{address[1]}"


def echo(sock: Any) -> None:
    """Send back what comes, and the end behind it."""
    while data := sock.recv(65536):
        sock.sendall(data)


@contextmanager
def service(handler: Callable[[Any], object] = echo) -> Iterator[str]:
    """Run `handler(socket)` for each TCP connection; yields "host:port"."""

    def handle(sock: Any, _: Any) -> None:
        with suppress(OSError):
            handler(sock)

    server = StreamServer(("127.0.0.1", 0), handle)
    server.start()
    try:
        yield place(server.address)
    finally:
        server.stop(timeout=1)


@contextmanager
def proxying(*targets: str, app: Any = None, **options: Any) -> Iterator[gwt.Server]:
    """Serve tunnels to these targets."""
    with serving(app or gwt.App(), connect_targets=targets, **options) as server:
        yield server


@contextmanager
def reaching(
    *targets: str, client: dict[str, Any] | None = None, **options: Any
) -> Iterator[tuple[gwt.Server, gwt.WebTransportProxy]]:
    """Serve tunnels to these targets, and reach them; `client` has the client's options."""
    with proxying(*targets, **options) as server, through(server, **(client or {})) as proxy:
        yield server, proxy


@contextmanager
def through(server: gwt.Server, **options: Any) -> Iterator[gwt.WebTransportProxy]:
    """Reach a server's tunnels."""
    options.setdefault("server_certificate_hashes", [server.certificate_hash])
    url = f"https://{place(server.address)}"
    with gwt.WebTransportProxy(url, config=gwt.ClientConfig(**options)) as proxy:
        yield proxy
