"""
connect(): from a URL to a session, and WebTransportClient, which counts and remembers headers.

Runs in the caller's greenlet. Each step is bounded by the one deadline of the call, and each
failure has a stage: resolve, connect, tls, http3, webtransport.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Self

from gevent.lock import BoundedSemaphore
from gevent.pool import Group

from .. import certificates
from ..config import ClientConfig, certificate_hash
from ..connection import ConnectionState, WebTransportConnection
from ..errors import (
    CertificateError,
    ClientError,
    ConfigError,
    GwtError,
    HandshakeError,
    RequirementsNotMet,
)
from ..net.waiting import Deadline
from ..protocol import codes, requests
from ..protocol.seam import QuicOptions
from ..session import WebTransportSession
from ..stream_common import CONFIGURED
from ..version import VERSION
from .sockets import ClientHub
from .target import Target, parse_url, resolve

__all__ = ["ClientStats", "WebTransportClient", "connect"]

Headers = Mapping[str, str] | Iterable[tuple[str, str]]

# TLS alerts that speak of the certificate (RFC 8446 6.2).
_CERTIFICATE_ALERTS = frozenset((42, 43, 44, 45, 46, 48, 113, 116))


def connect(url: str, *, config: ClientConfig | None = None, **options: Any) -> WebTransportSession:
    """
    Connect to a WebTransport server and return the session.

    Waits until the server has accepted it, at most `timeout` (10 seconds unless given) in all.
    Options are the fields of ClientConfig. Raises SessionRejected with the HTTP status,
    CertificateError, RequirementsNotMet, HandshakeError with its stage, ConfigError, or
    TimeoutError, which says what was being waited for.
    """
    config = (config or ClientConfig()).update(**options)
    return _Connecting(parse_url(url), config).run()


class _Connecting:
    """One call of connect(): its deadline, and how far it has come."""

    def __init__(self, target: Target, config: ClientConfig) -> None:
        self.target = target
        self.config = config
        self.deadline = Deadline(config.connect_timeout)
        self.hub = ClientHub.current()
        # For the message of a timeout.
        self.stage = "waiting for a free handshake slot"
        self.queued = 0.0
        self.headers = _request_headers(config)

    def run(self) -> WebTransportSession:
        try:
            if self.config.share_connection:
                return self._shared_session()
            return self._open(self._dial())
        except TimeoutError as exc:
            queued = f", {self.queued:.1f} s of them queued" if self.queued >= 0.05 else ""
            raise TimeoutError(
                f"Connecting to {self.target.url} timed out after {self.deadline.timeout:g} s"
                f"{queued}, while {self.stage}."
            ) from exc

    # The connection

    def _dial(self) -> WebTransportConnection:
        """Return a connection that is ready for sessions."""
        slots = self.hub.slots(self.config.max_connecting)
        began = time.monotonic()
        if not slots.acquire(timeout=self.deadline.remaining()):
            self.queued = time.monotonic() - began
            raise TimeoutError
        self.queued = time.monotonic() - began
        try:
            self.stage = f"resolving {self.target.host!r}"
            failure: HandshakeError | None = None
            for family, address in resolve(self.target, self.deadline):
                try:
                    return self._dial_address(family, address)
                except HandshakeError as exc:
                    # What another address of the same server could not do better ends it here.
                    if exc.stage != "connect":
                        raise
                    failure = failure or exc
            assert failure is not None
            raise failure
        finally:
            slots.release()

    def _dial_address(self, family: int, address: Any) -> WebTransportConnection:
        config, where = self.config, f"{address[0]} port {address[1]}"
        self.stage = f"shaking hands with {where}"
        hashes = [certificate_hash(value) for value in config.server_certificate_hashes]
        options = QuicOptions.of(
            config,
            is_client=True,
            verify=config.verify and not hashes,
            cafile=None if config.cafile is None else str(config.cafile),
            server_name=config.server_name or self.target.host,
        )
        try:
            connection = self.hub.dial(family, address, options, config)
        except OSError as exc:
            raise HandshakeError(
                f"No packet can be sent to {where}: {exc.strerror or exc}.", stage="connect"
            ) from exc
        try:
            while connection.state is ConnectionState.CONNECTING:
                connection.wait_change(self.deadline)
            self._check_alive(connection, where)
            if hashes:
                self._check_pinned(connection, hashes)
            self.stage = f"waiting for the HTTP/3 settings of {where}"
            while not connection.protocol.ready and connection.closed is None:
                connection.wait_change(self.deadline)
            self._check_alive(connection, where)
            missing = connection.protocol.missing_requirement()
            if missing is not None:
                connection.close(codes.WT_REQUIREMENTS_NOT_MET, "WebTransport is not supported")
                raise RequirementsNotMet(missing)
        except BaseException:
            # Also when the greenlet is killed: nobody else knows of the connection.
            connection.close()
            raise
        return connection

    def _check_pinned(self, connection: WebTransportConnection, hashes: list[bytes]) -> None:
        try:
            certificates.check_pinned(connection.protocol.quic.peer_certificate, hashes)
        except CertificateError:
            connection.close(codes.QUIC_CRYPTO_ERROR + 42, "certificate hash mismatch")
            raise

    def _check_alive(self, connection: WebTransportConnection, where: str) -> None:
        closed = connection.closed
        if closed is None:
            return
        if connection.network_error is not None:
            error = connection.network_error
            raise HandshakeError(
                f"Nobody answers on UDP {where}: {error.strerror or error}.", stage="connect"
            ) from error
        code, text = closed.code or 0, closed.reason or "no reason given"
        alert = code - codes.QUIC_CRYPTO_ERROR
        by = "The server" if closed.remote else "The client"
        if 0 < alert < 256 and not closed.application:
            if alert in _CERTIFICATE_ALERTS and not closed.remote:
                raise CertificateError(
                    f"The certificate of {self.target.host!r} was not accepted: {text}."
                ) from closed
            raise HandshakeError(
                f"{by} ended the TLS handshake with alert {alert}: {text}.", stage="tls"
            ) from closed
        if code == codes.QUIC_CONNECTION_REFUSED and closed.remote and not closed.application:
            raise HandshakeError(
                f"The server at {where} refused the connection: {text}.", stage="connect"
            ) from closed
        if text == "Idle timeout":
            raise HandshakeError(f"The server at {where} fell silent.", stage="connect") from closed
        raise HandshakeError(
            f"{by} closed the connection with code {code:#x}: {text}.", stage="http3"
        ) from closed

    # The session

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
        self.stage = "waiting for the server to accept the session"
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
            session.wait_ready(self.deadline)
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
        config, hub = self.config, self.hub
        key = (self.target.host, self.target.port, config.update(headers={}, origin=None).key())
        lock = hub.sharing.setdefault(key, BoundedSemaphore(1))
        if not lock.acquire(timeout=self.deadline.remaining()):
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
        items = _pairs(config.headers)
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
        merged = {name.lower(): value for name, value in _pairs(self._config.headers)}
        merged.update(self._default_headers)
        merged.update((name.lower(), value) for name, value in _pairs(headers or {}))
        config = self._config.update(headers=merged)
        if timeout is not CONFIGURED:
            config = config.update(connect_timeout=timeout)
        self._stats.connections_attempted += 1
        began = time.monotonic()
        try:
            session = connect(url, config=config)
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
        self._default_headers = {name.lower(): value for name, value in _pairs(headers)}

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


def _pairs(headers: Headers) -> list[tuple[str, str]]:
    return list(headers.items() if isinstance(headers, Mapping) else headers)
