"""
WebTransportProxy: TCP services reached through an HTTP/3 proxy, by CONNECT (RFC 9114 4.4).

One QUIC connection to the proxy carries all tunnels, and is made anew when it is gone. What a
tunnel is while it lives is a stream: stream.py has that.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from gevent.lock import BoundedSemaphore
from gevent.pool import Group

from .. import certificates
from ..config import ClientConfig, client_config
from ..connection import WebTransportConnection
from ..errors import (
    ClientError,
    ClientTimeout,
    ConfigError,
    ConnectionClosed,
    GwtError,
    HandshakeError,
    SessionRejected,
    anew,
)
from ..net.waiting import Deadline, check_thread, native_thread
from ..protocol import requests
from ..stream import WebTransportStream
from ..tunnel import Tunnel
from ..version import VERSION
from .dial import Progress, dial
from .interrupts import Calls, Interrupted
from .stats import ClientStats
from .target import Headers, Target, pairs, parse_url

__all__ = ["WebTransportProxy"]

# What a target may be written as; 0: its port has to be said.
_SCHEMES = {"tcp": 0, "https": 443, "http": 80, "wss": 443, "ws": 80}


class _Unprocessed(Exception):
    """The proxy has not begun with a request (H3_REQUEST_REJECTED), or wants none (GOAWAY)."""


class WebTransportProxy:
    """
    An HTTP/3 proxy, "https://host:port"; connect_through_proxy() opens tunnels through it.

    A user and a password in the URL are sent as Proxy-Authorization (RFC 7617). Of the proxy
    nothing is wanted but HTTP/3. As a context manager it closes.
    """

    def __init__(self, proxy_url: str, *, config: ClientConfig | None = None) -> None:
        self._proxy = parse_url(proxy_url, name="proxy_url", users=True)
        self._config = client_config(config)
        # The one that takes new tunnels, and those that still have some.
        self._connection: WebTransportConnection | None = None
        self._connections: set[WebTransportConnection] = set()
        # Who makes the connection, while the others wait for it.
        self._dialling = BoundedSemaphore(1)
        self._calls = Calls()
        self._tunnels: set[Tunnel] = set()
        self._stats = ClientStats()
        self._is_closed = False
        self._thread = native_thread()

    @classmethod
    def create(cls, proxy_url: str, *, config: ClientConfig | None = None) -> Self:
        """Return a proxy client; nothing is connected before the first tunnel."""
        return cls(proxy_url, config=config)

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open"
        return f"<WebTransportProxy {state} {self._proxy.authority} tunnels={len(self._tunnels)}>"

    @property
    def is_closed(self) -> bool:
        """Whether close() was called."""
        return self._is_closed

    @property
    def stats(self) -> dict[str, Any]:
        """Statistics of all tunnels so far, as WebTransportClient's of its sessions."""
        return self._stats.to_dict()

    @property
    def connection(self) -> WebTransportConnection | None:
        """The connection to the proxy; None before the first tunnel."""
        return self._connection

    def connect_through_proxy(
        self,
        target_url: str,
        *,
        proxy_headers: Headers | None = None,
        timeout: float | None = 10.0,
    ) -> WebTransportStream:
        """
        Return a tunnel to a TCP service, as a stream: what is written is the service's to read.

        `target_url` is "host:port", or a URL, whose path means nothing here; the proxy resolves the
        name. `proxy_headers` go to the proxy. Waits at most `timeout` in all, for a connection and
        for the proxy's answer. Codes of the stream are HTTP/3's (RFC 9114 8.1): 0x10f is a TCP
        connection that broke. Raises ClientError with the cause chained: SessionRejected if the
        proxy answered with a status, else HandshakeError or CertificateError; or ClientTimeout,
        which is a TimeoutError as well.
        """
        self._check_thread()
        if self._is_closed:
            raise ClientError("The proxy client is closed.", target_url=target_url)
        self._stats.connections_attempted += 1
        began = time.monotonic()
        try:
            stream = self._calls.run(self._through, target_url, proxy_headers, timeout)
        except Interrupted:
            self._stats.connections_failed += 1
            raise ClientError(
                "The proxy client was closed meanwhile.", target_url=target_url
            ) from None
        except BaseException:
            self._stats.connections_failed += 1
            raise
        self._stats.count(time.monotonic() - began)
        return stream

    def _through(
        self, target_url: str, proxy_headers: Headers | None, timeout: float | None
    ) -> WebTransportStream:
        progress = Progress(Deadline(timeout))
        shown = "the target"
        try:
            if self._config.cafile is not None:
                certificates.check_authorities(self._config.cafile)
            target = shown = _place(target_url)
            headers = self._headers(proxy_headers)
            stream = self._open(target, headers, progress)
        except TimeoutError as exc:
            raise ClientTimeout(
                f"No tunnel to {shown} through the proxy {self._proxy.authority} within "
                f"{timeout:g} s, while {progress.stage}.",
                target_url=target_url,
            ) from exc
        except SessionRejected as exc:
            raise ClientError(
                f"The proxy {self._proxy.authority}: {exc}{_advice(exc.status, headers)}",
                target_url=target_url,
            ) from exc
        except (GwtError, OSError) as exc:
            why = "The proxy client was closed meanwhile." if self._is_closed else exc
            raise ClientError(
                f"No tunnel to {shown} through the proxy {self._proxy.authority}: {why}",
                target_url=target_url,
            ) from exc
        if self._is_closed:
            stream.abort()
            raise ClientError("The proxy client was closed meanwhile.", target_url=target_url)
        return stream

    def _headers(self, proxy_headers: Headers | None) -> list[tuple[bytes, bytes]]:
        merged = {"user-agent": self._config.user_agent or f"gwt/{VERSION}"}
        if self._proxy.authorization is not None:
            merged["proxy-authorization"] = self._proxy.authorization
        try:
            for name, value in [*pairs(self._config.headers), *pairs(proxy_headers or {})]:
                merged[name.lower()] = value
            return requests.encode_headers(merged)
        except (ValueError, AttributeError, TypeError) as exc:
            raise ConfigError(
                f"proxy_headers: {exc}", field="proxy_headers", value=proxy_headers
            ) from exc

    def _open(
        self, target: str, headers: list[tuple[bytes, bytes]], progress: Progress
    ) -> WebTransportStream:
        while True:
            connection, fresh = self._connected(progress)
            try:
                return self._ask(connection, target, headers, progress)
            except ConnectionClosed as exc:
                # One that was not used for a while may have ended when we asked: of the tunnel
                # nothing has come about.
                if fresh or self._is_closed:
                    raise HandshakeError(
                        f"The connection ended before the proxy answered: {exc}", stage="http3"
                    ) from exc
            except _Unprocessed as exc:
                # RFC 9114 5.2: a proxy that lets a connection run out takes nothing new on it.
                if fresh or self._is_closed:
                    assert exc.__cause__ is not None
                    raise exc.__cause__ from None
                if self._connection is connection:
                    self._connection = None

    def _connected(self, progress: Progress) -> tuple[WebTransportConnection, bool]:
        """Return the connection, and whether it was made just now."""
        progress.stage = "waiting for a connection that another greenlet makes"
        if not self._dialling.acquire(timeout=progress.deadline.remaining()):
            raise TimeoutError
        try:
            connection = self._connection
            if connection is not None and not connection.is_closed:
                return connection, False
            if self._is_closed:
                raise HandshakeError("The proxy client was closed meanwhile.", stage="connect")
            connection = dial(self._proxy, self._config, progress, sessions=False)
            if self._is_closed:
                connection.close()
            self._connection = connection
            self._connections.add(connection)
            connection.on_end(self._connections.discard)
            # What is not used is not kept alive for long.
            connection.unused_timeout = self._config.idle_timeout
            connection.note_unused()
            return connection, True
        finally:
            self._dialling.release()

    def _ask(
        self,
        connection: WebTransportConnection,
        target: str,
        headers: list[tuple[bytes, bytes]],
        progress: Progress,
    ) -> WebTransportStream:
        protocol = connection.protocol
        progress.stage = "the proxy allowed no more tunnels at a time"
        while True:
            if connection.closed is not None:
                raise anew(connection.closed)
            if protocol.going_away:
                raise _Unprocessed from HandshakeError(
                    "The proxy takes no new tunnels on its connections (GOAWAY).", stage="connect"
                )
            try:
                stream_id = protocol.open_tunnel(target, headers)
            except ValueError as exc:
                raise ConfigError(
                    f"proxy_headers: {exc}", field="proxy_headers", value=headers
                ) from None
            if stream_id is not None:
                break
            protocol.want_tunnel()
            connection.wait_change(progress.deadline)
        progress.stage = "waiting for the proxy's answer"
        tunnel = Tunnel(connection, stream_id, target)
        self._tunnels.add(tunnel)
        tunnel.stream.on_end(lambda _: self._tunnels.discard(tunnel))
        connection.flush_soon()
        try:
            tunnel.wait_ready(progress.deadline)
        except HandshakeError as exc:
            if tunnel.unprocessed:
                raise _Unprocessed from exc
            raise
        return tunnel.stream

    def close(self) -> None:
        """
        Close all tunnels and the connection; waits as the streams' close() does. Idempotent.

        What was written arrives at the proxy before; greenlets that read get what has come, those
        that wait for a tunnel a ClientError.
        """
        self._check_thread()
        self._is_closed = True
        self._calls.interrupt()
        closers = Group()
        try:
            for tunnel in list(self._tunnels):
                if tunnel.accepted:
                    closers.spawn(tunnel.stream.close)
                else:
                    tunnel.cancel()
            closers.join()
        finally:
            # Interrupted: nobody else would end them.
            closers.kill(block=False)
            for tunnel in list(self._tunnels):
                if tunnel.accepted:
                    tunnel.stream.abort()
                else:
                    tunnel.cancel()
            for connection in list(self._connections):
                connection.close()

    def _check_thread(self) -> None:
        check_thread(self._thread, "proxy client")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


def _advice(status: int, headers: list[tuple[bytes, bytes]]) -> str:
    if status != 407:
        return ""
    if any(name == b"proxy-authorization" for name, _ in headers):
        return " User and password were not accepted."
    return " User and password are missing from its URL."


def _place(url: Any) -> str:
    """Return the "host:port" that a URL, or such a pair, leads to; raises ConfigError."""
    if isinstance(url, str) and "://" not in url:
        url = f"tcp://{url}"
    target: Target = parse_url(url, _SCHEMES, name="target_url")
    if not target.port or target.zone:
        why = "it has no port" if not target.port else "a zone means nothing to the proxy"
        raise ConfigError(
            f"{url!r} is not a target for a tunnel: {why}.", field="target_url", value=url
        )
    host = f"[{target.host}]" if ":" in target.host else target.host
    place = f"{host}:{target.port}"
    if isinstance(requests.parse_tunnel([(b":authority", place.encode("ascii"))]), str):
        raise ConfigError(
            f"{url!r} is not a target for a tunnel: its host is neither a name nor an address.",
            field="target_url",
            value=url,
        )
    return place
