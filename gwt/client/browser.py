"""
WebTransportBrowser: one session at a time, and the URLs that it went through.

What it opens and closes is client.py's. Nothing here runs user code.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from gevent.lock import BoundedSemaphore
from gevent.pool import Group

from ..config import ClientConfig
from ..errors import ClientError, ClientTimeout
from ..net.waiting import Deadline, check_thread, native_thread
from ..stream_common import CONFIGURED
from .client import WebTransportClient

__all__ = ["WebTransportBrowser"]

# URLs that are remembered: more than anybody goes back.
_MAX_HISTORY = 100


class WebTransportBrowser:
    """
    Go from URL to URL, with a history: one session, or WebSocket, at a time.

    A navigation connects first, then closes the session it leaves, in the background; one that
    fails changes nothing. Navigations of several greenlets take place one after the other. Each
    waits at most `timeout` in all, connect_timeout unless given, and raises ClientError with its
    cause, or ClientTimeout. As a context manager it closes.
    """

    def __init__(self, *, config: ClientConfig | None = None) -> None:
        self._client = WebTransportClient(config=config)
        self._session: Any = None
        self._history: list[str] = []

        # Of the session's URL in the history; -1 while there is none.
        self._index = -1

        self._thread = native_thread()

        # Held by who navigates.
        self._turn = BoundedSemaphore(1)

        # They close sessions that were left.
        self._closing = Group()

    @classmethod
    def create(cls, *, config: ClientConfig | None = None) -> Self:
        """Make one; the same as the constructor."""
        return cls(config=config)

    def __repr__(self) -> str:
        state = "closed" if self.is_closed else "open"
        position = f"{self._index + 1}/{len(self._history)}"
        return f"<WebTransportBrowser {state} at {position} {self.current_session!r}>"

    @property
    def config(self) -> ClientConfig:
        """The browser's configuration."""
        return self._client.config

    @property
    def is_closed(self) -> bool:
        """Whether the browser has been closed."""
        return self._client.is_closed

    @property
    def stats(self) -> dict[str, Any]:
        """Statistics of all connects, as WebTransportClient's."""
        return self._client.stats

    @property
    def current_session(self) -> Any:
        """The session or WebSocket that is open now, or None. Does not wait."""
        session = self._session
        return None if session is None or session.is_closed else session

    @property
    def current_url(self) -> str | None:
        """Where the last successful navigation led; None before the first."""
        return self._history[self._index] if self._history else None

    def get_history(self) -> list[str]:
        """Return the URLs, the oldest first; at most 100 are kept."""
        return list(self._history)

    def navigate(self, url: str, *, timeout: float | None = CONFIGURED) -> Any:
        """
        Go to a URL, and return its session; the present one if it is of this URL, and ready.

        Forgets what forward() would have led to.
        """
        deadline = self._begin(url, timeout)
        try:
            session = self._session
            if url != self.current_url:
                session = self._connect(url, deadline)
                self._history[self._index + 1 :] = [url]
                del self._history[:-_MAX_HISTORY]
                self._index = len(self._history) - 1
            elif session is None or not session.is_ready:
                session = self._connect(url, deadline)
            return session
        finally:
            self._turn.release()

    def back(self, *, timeout: float | None = CONFIGURED) -> Any:
        """Go to the URL before, and return its session; None if there is none."""
        return self._step(-1, timeout)

    def forward(self, *, timeout: float | None = CONFIGURED) -> Any:
        """Go to the URL that back() came from, and return its session; None if there is none."""
        return self._step(1, timeout)

    def refresh(self, *, timeout: float | None = CONFIGURED) -> Any:
        """Connect to the present URL anew, and return the session; None before the first."""
        return self._step(0, timeout)

    def close(self) -> None:
        """
        Close every session, and forget the history; waits as close() of a session does.

        Who is navigating gets a ClientError. Idempotent.
        """
        self._check_thread()
        self._session = None
        self._history.clear()
        self._index = -1
        try:
            self._client.close()
        finally:
            self._closing.kill()

    def _check_thread(self) -> None:
        check_thread(self._thread, "client")

    def _step(self, step: int, timeout: float | None) -> Any:
        deadline = self._begin(self.current_url, timeout)
        try:
            index = self._index + step
            if not 0 <= index < len(self._history):
                return None
            session = self._connect(self._history[index], deadline)
            self._index = index
            return session
        finally:
            self._turn.release()

    def _begin(self, url: str | None, timeout: float | None) -> Deadline:
        """Wait for one's turn; returns until when the rest may take."""
        self._check_thread()
        deadline = Deadline(self.config.connect_timeout if timeout is CONFIGURED else timeout)
        if not self._turn.acquire(timeout=deadline.remaining()):
            raise ClientTimeout(
                f"Another navigation took all of the {deadline.timeout:g} s that this one had.",
                target_url=url,
            ) from TimeoutError(f"timed out after {deadline.timeout:g} s")
        if self.is_closed:
            self._turn.release()
            raise ClientError("The browser is closed.", target_url=url)
        return deadline

    def _connect(self, url: str, deadline: Deadline) -> Any:
        """Replace the session by one of a URL; if that fails everything stays as it is."""
        remaining = deadline.remaining()
        if remaining is not None:
            # In a message's digits, and above 0: it may have been our turn in the last moment.
            remaining = max(round(remaining, 3), 0.001)
        try:
            session = self._client.connect(url, timeout=remaining)
        except ClientError as exc:
            if not self.is_closed:
                raise
            raise ClientError("The browser was closed meanwhile.", target_url=url) from exc
        left, self._session = self._session, session
        if left is not None and not left.is_closed:
            self._closing.spawn(left.close).name = "gwt-browser-close"
        return session

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()
