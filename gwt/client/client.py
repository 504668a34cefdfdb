"""
WebTransportClient: connects with one configuration, counts, and closes what it has opened.

The rest of the client suite stands on it.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from gevent.pool import Group

from ..config import ClientConfig, client_config
from ..errors import ClientError, ClientTimeout, GwtError
from ..net.waiting import check_thread, native_thread
from ..options import bad
from ..stream_common import CONFIGURED
from .connecting import connect
from .interrupts import Calls, Interrupted
from .stats import ClientStats, find_issues
from .target import Headers, pairs, without_user

__all__ = ["WebTransportClient"]


class WebTransportClient:
    """Connect with one configuration, default headers and statistics; closes its sessions."""

    def __init__(self, *, config: ClientConfig | None = None) -> None:
        self._config = client_config(config)
        # Of the config, and set_default_headers().
        self._headers = _named(self._config.headers)
        self._default_headers: dict[str, str] = {}
        # What connect() has returned and has not ended: sessions and WebSockets.
        self._sessions: set[Any] = set()
        self._calls = Calls()
        self._stats = ClientStats()
        self._is_closed = False
        self._thread = native_thread()

    @classmethod
    def create(cls, url: str, *, config: ClientConfig | None = None) -> Any:
        """
        Return a WebTransportClient, or for a config with `auto_reconnect` a ReconnectingClient.

        That one is for `url`, and begins to connect at once; the other connects where it is told
        to. Does not wait.
        """
        if client_config(config).auto_reconnect:
            from .reconnecting import ReconnectingClient

            return ReconnectingClient(url, config=config)
        return cls(config=config)

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

    @property
    def figures(self) -> ClientStats:
        """The same as an object, which goes on counting."""
        return self._stats

    def connect(
        self, url: str, *, timeout: float | None = CONFIGURED, headers: Headers | None = None
    ) -> Any:
        """
        Connect, as gwt.connect() does, and return the WebTransportSession or WebSocket.

        The headers override the defaults, which override the config's. Waits at most `timeout` in
        all: connect_timeout unless given, None is no limit. Raises ClientError with the cause
        chained, whatever it was, also when the client is closed meanwhile; ClientTimeout, which is
        a TimeoutError as well, when the time is up.
        """
        self._check_thread()
        if self._is_closed:
            raise ClientError("The client is closed.", target_url=url)
        merged = {**self._headers, **self._default_headers, **_named(headers or {})}
        config = self._config.update(headers=merged)
        if timeout is not CONFIGURED:
            config = config.update(connect_timeout=timeout)
        self._stats.connections_attempted += 1
        began = time.monotonic()
        try:
            session = self._calls.run(connect, url, config=config)
        except (GwtError, OSError) as exc:
            self._stats.connections_failed += 1
            raise _failure(exc, url) from exc
        except Interrupted:
            self._stats.connections_failed += 1
            raise ClientError("The client was closed meanwhile.", target_url=url) from None
        except BaseException:
            self._stats.connections_failed += 1
            raise
        if self._is_closed:
            # It had come about before it could be interrupted.
            self._stats.connections_failed += 1
            session.abort()
            raise ClientError("The client was closed meanwhile.", target_url=url)
        self._stats.count(time.monotonic() - began)
        self._sessions.add(session)
        session.on_end(self._sessions.discard)
        return session

    def close(self) -> None:
        """
        End connects under way, and close all sessions that came from here, at the same time.

        Waits as the sessions' close() does. Idempotent.
        """
        self._check_thread()
        self._refuse()
        closers = Group()
        try:
            for session in list(self._sessions):
                closers.spawn(session.close)
            closers.join()
        finally:
            # Interrupted: nobody else would end them.
            closers.kill(block=False)
            self.abort()

    def abort(self) -> None:
        """Close, and abort the sessions that are left: what they sent may be lost. Never waits."""
        self._check_thread()
        self._refuse()
        for session in list(self._sessions):
            session.abort()

    def _refuse(self) -> None:
        """Let nobody connect any more. Idempotent."""
        self._is_closed = True
        self._calls.interrupt()

    def _check_thread(self) -> None:
        check_thread(self._thread, "client")

    def set_default_headers(self, headers: Headers) -> None:
        """Send these headers with every connect() from now on, instead of those set before."""
        self._default_headers = _named(headers)

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
        return [*issues, *find_issues(self.stats).values()]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


def _named(headers: Headers) -> dict[str, str]:
    """Return headers by their names in lower case; raises ConfigError for what are none."""
    try:
        return {name.lower(): value for name, value in pairs(headers)}
    except (AttributeError, TypeError, ValueError):
        raise bad("headers", headers, "a mapping of texts, or pairs of them") from None


def _failure(exc: Exception, url: str) -> ClientError:
    if isinstance(exc, TimeoutError):
        # It names the URL itself.
        return ClientTimeout(str(exc), target_url=url)
    return ClientError(f"Connecting to {without_user(url)} failed: {exc}", target_url=url)
