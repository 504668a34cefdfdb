"""
connect(): from a URL to a session, or a WebSocket.

Runs in the caller's greenlet. Each step is bounded by the one deadline of the call, and each
failure has a stage: resolve, connect, tls, http3, webtransport. The way to a connection is dial.py.
"""

from __future__ import annotations

import time
from typing import Any

from gevent.lock import BoundedSemaphore

from .. import certificates
from ..config import ClientConfig, client_config
from ..connection import WebTransportConnection
from ..errors import ConfigError, GwtError, HandshakeError
from ..net.waiting import Deadline
from ..protocol import requests
from ..session import WebTransportSession
from ..version import VERSION
from .dial import Progress, dial
from .sockets import ClientHub
from .target import Target, pairs, parse_url
from .websocket import SCHEMES, connect_websocket

__all__ = ["connect", "connect_session"]


def connect(url: str, *, config: ClientConfig | None = None, **options: Any) -> Any:
    """
    Connect, and return a WebTransportSession for https://, a WebSocket for ws:// and wss://.

    Waits until the server has accepted it, at most `timeout` (10 seconds unless given) in all.
    Options are the fields of ClientConfig; for a WebSocket also `sock`, a connected socket, `unix`,
    the path of a Unix socket, `ssl`, an SSLContext, `cookies`, a mapping or a CookieJar, and
    `max_redirects`. Raises SessionRejected with the HTTP status, CertificateError,
    RequirementsNotMet, HandshakeError with its stage, ConfigError, or TimeoutError, which says what
    was being waited for.
    """
    scheme = url.partition(":")[0].lower() if isinstance(url, str) else ""
    if scheme in SCHEMES:
        return connect_websocket(url, config=config, **options)
    if scheme != "https":
        # It says which would do.
        parse_url(url, {"https": 443, **SCHEMES})
    return connect_session(url, client_config(config).update(**options))


def connect_session(
    url: str, config: ClientConfig, progress: Progress | None = None
) -> WebTransportSession:
    """Connect to an https:// URL as connect() does; `progress` is told how far it comes."""
    if config.proxy is not None and not isinstance(config.proxy, bool):
        raise ConfigError(
            "A WebTransport session cannot go through a proxy yet.",
            field="proxy",
            value=config.proxy,
        )
    return _Connecting(
        parse_url(url), config, progress or Progress(Deadline(config.connect_timeout))
    ).run()


class _Connecting:
    """One call of connect(): its deadline, and how far it has come."""

    def __init__(self, target: Target, config: ClientConfig, progress: Progress) -> None:
        self.target = target
        self.config = config
        self.progress = progress
        self.headers = _request_headers(config)
        if config.cafile is not None:
            certificates.check_authorities(config.cafile)

    def run(self) -> WebTransportSession:
        try:
            if self.config.share_connection:
                return self._shared_session()
            return self._open(self._dial())
        except TimeoutError as exc:
            progress = self.progress
            queued = f", {progress.queued:.1f} s of them queued" if progress.queued >= 0.05 else ""
            raise TimeoutError(
                f"Connecting to {self.target.url} timed out after {progress.deadline.timeout:g} s"
                f"{queued}, while {progress.stage}."
            ) from exc

    def _dial(self) -> WebTransportConnection:
        return dial(self.target, self.config, self.progress)

    def _open(self, connection: WebTransportConnection) -> WebTransportSession:
        """Return an accepted session on a connection that was made for it."""
        session = self._try(connection)
        if session is None:
            connection.close()
            raise HandshakeError("The server allows no stream for a session.", stage="webtransport")
        return session

    def _try(self, connection: WebTransportConnection) -> WebTransportSession | None:
        """Ask for a session; a connection that has none when this fails is closed."""
        try:
            return self._request(connection)
        except BaseException:
            # Another one that has ended, and waits for the peer to confirm it, closes it then.
            if not connection.sessions and len(connection.protocol.sessions) <= 1:
                connection.close()
            raise

    def _request(self, connection: WebTransportConnection) -> WebTransportSession | None:
        """Ask for a session; returns it when it is accepted, None if no stream is allowed."""
        config, target = self.config, self.target
        self.progress.enter("webtransport", "waiting for the server to accept the session")
        stream_id = connection.protocol.open_session(
            target.authority,
            target.path,
            origin=config.origin,
            subprotocols=config.subprotocols,
            headers=self.headers,
        )
        if stream_id is None:
            return None
        session = WebTransportSession(
            connection, stream_id, path=target.path, headers={}, config=config
        )
        connection.add_session(session)
        connection.flush_soon()
        try:
            session.wait_ready(self.progress.deadline)
        except GwtError as exc:
            if connection.closed is not None and not isinstance(exc, HandshakeError):
                raise HandshakeError(
                    f"The connection ended before the session was accepted: {connection.closed}",
                    stage="webtransport",
                ) from exc
            raise
        except BaseException:
            session.abort()
            raise
        return session

    def _shared_session(self) -> WebTransportSession:
        config, hub, target = self.config, ClientHub.current(), self.target
        key = (target.host, target.zone, target.port, config.update(headers={}, origin=None).key())
        lock = hub.sharing.setdefault(key, BoundedSemaphore(1))
        self.progress.stage = "waiting for a connection that another greenlet makes"
        began = time.monotonic()
        acquired = lock.acquire(timeout=self.progress.deadline.remaining())
        self.progress.queued += time.monotonic() - began
        if not acquired:
            raise TimeoutError
        try:
            connection = hub.shared.get(key)
            if connection is None or not connection.protocol.may_open_session():
                connection = self._dial()
                hub.shared[key] = connection
                made = connection

                def forget(_: object) -> None:
                    if hub.shared.get(key) is made:
                        del hub.shared[key]
                        if not lock.locked():
                            hub.sharing.pop(key, None)

                connection.on_end(forget)
        finally:
            lock.release()
            if not hub.shared.get(key):
                hub.sharing.pop(key, None)
        session = self._try(connection)
        return session if session is not None else self._open(self._dial())


def _request_headers(config: ClientConfig) -> list[tuple[bytes, bytes]]:
    try:
        items = pairs(config.headers)
        if not any(name.lower() == "user-agent" for name, _ in items):
            items.append(("user-agent", config.user_agent or f"gwt/{VERSION}"))
        return requests.encode_headers(items)
    except (ValueError, AttributeError, TypeError) as exc:
        raise ConfigError(f"headers: {exc}", field="headers", value=config.headers) from exc
