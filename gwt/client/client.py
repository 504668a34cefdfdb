"""
connect(): from a URL to a session, and WebTransportClient, which counts and remembers headers.

Runs in the caller's greenlet. Each step is bounded by the one deadline of the call, and each
failure has a stage: resolve, connect, tls, http3, webtransport. The way to a connection is dial.py.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Self

from gevent.lock import BoundedSemaphore
from gevent.pool import Group

from .. import certificates
from ..config import ClientConfig
from ..connection import WebTransportConnection
from ..errors import ClientError, ConfigError, GwtError, HandshakeError
from ..net.waiting import Deadline
from ..protocol import requests
from ..session import WebTransportSession
from ..stream_common import CONFIGURED
from ..version import VERSION
from .dial import Progress, dial
from .sockets import ClientHub
from .target import Headers, Target, pairs, parse_url
from .websocket import SCHEMES, connect_websocket

__all__ = ["ClientStats", "WebTransportClient", "connect"]


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
    return _connect_session(url, (config or ClientConfig()).update(**options))


def _connect_session(url: str, config: ClientConfig) -> WebTransportSession:
    if config.proxy is not None and not isinstance(config.proxy, bool):
        raise ConfigError(
            "A WebTransport session cannot go through a proxy yet.",
            field="proxy",
            value=config.proxy,
        )
    return _Connecting(parse_url(url), config).run()


class _Connecting:
    """One call of connect(): its deadline, and how far it has come."""

    def __init__(self, target: Target, config: ClientConfig) -> None:
        self.target = target
        self.config = config
        self.progress = Progress(Deadline(config.connect_timeout))
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
        try:
            session = self._request(connection)
            if session is None:
                raise HandshakeError(
                    "The server allows no stream for a session.", stage="webtransport"
                )
            return session
        except BaseException:
            if not connection.sessions:
                connection.close()
            raise

    def _request(self, connection: WebTransportConnection) -> WebTransportSession | None:
        """Ask for a session; returns it when it is accepted, None if no stream is allowed."""
        config, target = self.config, self.target
        self.progress.stage = "waiting for the server to accept the session"
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
                    f"The connection ended before the session was accepted: {exc}",
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

                connection.on_end(forget)
        finally:
            lock.release()
            if not hub.shared.get(key):
                hub.sharing.pop(key, None)
        session = self._request(connection)
        return session if session is not None else self._open(self._dial())


def _request_headers(config: ClientConfig) -> list[tuple[bytes, bytes]]:
    try:
        items = pairs(config.headers)
        if not any(name.lower() == "user-agent" for name, _ in items):
            items.append(("user-agent", config.user_agent or f"gwt/{VERSION}"))
        return requests.encode_headers(items)
    except (ValueError, AttributeError, TypeError) as exc:
        raise ConfigError(f"headers: {exc}", field="headers", value=config.headers) from exc


@dataclass
class ClientStats:
    """What a client has done; times in seconds."""

    created_at: float = field(default_factory=time.time)
    connections_attempted: int = 0
    connections_successful: int = 0
    connections_failed: int = 0
    total_connect_time: float = 0.0
    min_connect_time: float = float("inf")
    max_connect_time: float = 0.0

    @property
    def avg_connect_time(self) -> float:
        """The mean time of the successful connects; 0.0 before the first."""
        done = self.connections_successful
        return self.total_connect_time / done if done else 0.0

    @property
    def success_rate(self) -> float:
        """Successful connects of those attempted; 1.0 before the first."""
        tried = self.connections_attempted
        return self.connections_successful / tried if tried else 1.0

    def count(self, connect_time: float) -> None:
        """Count a successful connect."""
        self.connections_successful += 1
        self.total_connect_time += connect_time
        self.min_connect_time = min(self.min_connect_time, connect_time)
        self.max_connect_time = max(self.max_connect_time, connect_time)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, grouped as ``WebTransportClient.stats`` shows them."""
        values = asdict(self)
        fastest = values["min_connect_time"]
        return {
            "created_at": self.created_at,
            "uptime": time.time() - self.created_at,
            "connections": {
                "attempted": self.connections_attempted,
                "successful": self.connections_successful,
                "failed": self.connections_failed,
                "success_rate": self.success_rate,
            },
            "performance": {
                "avg_connect_time": self.avg_connect_time,
                "min_connect_time": 0.0 if fastest == float("inf") else fastest,
                "max_connect_time": self.max_connect_time,
            },
        }


class WebTransportClient:
    """Connect with one configuration, default headers and statistics; closes its sessions."""

    def __init__(self, *, config: ClientConfig | None = None) -> None:
        self._config = config or ClientConfig()
        self._default_headers: dict[str, str] = {}
        self._sessions: set[WebTransportSession] = set()
        self._stats = ClientStats()
        self._is_closed = False

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open"
        return f"<WebTransportClient {state} sessions={len(self._sessions)}>"

    @property
    def config(self) -> ClientConfig:
        """The client's configuration."""
        return self._config

    @property
    def is_closed(self) -> bool:
        """Whether the client has been closed."""
        return self._is_closed

    @property
    def stats(self) -> dict[str, Any]:
        """Statistics of all connects so far."""
        return self._stats.to_dict()

    def connect(
        self, url: str, *, timeout: float | None = CONFIGURED, headers: Headers | None = None
    ) -> WebTransportSession:
        """
        Connect and return the session; headers override the defaults, which override the config's.

        Waits at most `timeout` in all: connect_timeout unless given, None is no limit. Raises
        ClientError with the cause
        chained, whatever it was.
        """
        if self._is_closed:
            raise ClientError("The client is closed.", target_url=url)
        merged = {name.lower(): value for name, value in pairs(self._config.headers)}
        merged.update(self._default_headers)
        merged.update((name.lower(), value) for name, value in pairs(headers or {}))
        config = self._config.update(headers=merged)
        if timeout is not CONFIGURED:
            config = config.update(connect_timeout=timeout)
        self._stats.connections_attempted += 1
        began = time.monotonic()
        try:
            session = _connect_session(url, config)
        except (GwtError, OSError) as exc:
            self._stats.connections_failed += 1
            raise ClientError(f"Connecting to {url} failed: {exc}", target_url=url) from exc
        except BaseException:
            self._stats.connections_failed += 1
            raise
        self._stats.count(time.monotonic() - began)
        self._sessions.add(session)
        session.on_end(self._sessions.discard)
        if self._is_closed:
            session.abort()
            raise ClientError("The client was closed meanwhile.", target_url=url)
        return session

    def close(self) -> None:
        """Close all sessions that came from here, at once; waits as their close() does."""
        self._is_closed = True
        closers = Group()
        try:
            for session in list(self._sessions):
                closers.spawn(session.close)
            closers.join()
        finally:
            # Interrupted: nobody else would end them.
            closers.kill(block=False)
            for session in list(self._sessions):
                session.abort()

    def set_default_headers(self, headers: Headers) -> None:
        """Send these headers with every connect() from now on."""
        self._default_headers = {name.lower(): value for name, value in pairs(headers)}

    def debug_state(self) -> dict[str, Any]:
        """Return a snapshot of the client: its state, its configuration, its statistics."""
        return {
            "client": {
                "closed": self._is_closed,
                "default_headers": dict(self._default_headers),
                "sessions": len(self._sessions),
            },
            "config": self._config.to_dict(),
            "statistics": self.stats,
        }

    def diagnose_issues(self) -> list[str]:
        """Return what looks wrong in the statistics, in sentences."""
        issues = []
        if self._is_closed:
            issues.append("Client is closed.")
        rate = self._stats.success_rate
        if self._stats.connections_attempted > 10 and rate < 0.9:
            issues.append(f"Low connection success rate: {rate:.2%}")
        average = self._stats.avg_connect_time
        if average > 5.0:
            issues.append(f"Slow average connection time: {average:.2f}s")
        return issues

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()
