"""
ReconnectingClient: one session, or WebSocket, that comes back whenever it is lost.

A greenlet, the keeper, connects and waits for the end, again and again; when is backoff.py's to
say. It runs no user code: who wants to know waits in get_session(), or reads events().
"""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from weakref import WeakSet

import gevent

from ..config import ClientConfig, client_config
from ..errors import (
    ClientError,
    ConfigError,
    SessionError,
    SessionRejected,
    WebSocketClosed,
    anew,
)
from ..net.waiting import Deadline, Signal, check_thread, native_thread
from ..observe import Counters
from ..websocket import WebSocket
from .backoff import Backoff
from .client import WebTransportClient
from .target import Target, parse_url
from .websocket import SCHEMES

__all__ = ["ConnectionEvent", "ReconnectingClient"]

logger = logging.getLogger("gwt.client")

# Events that wait for one reader: some minutes of a server that comes and goes.
_MAX_EVENTS = 256


@dataclass(frozen=True, slots=True)
class ConnectionEvent:
    """What became of a ReconnectingClient's connection."""

    kind: str
    """"established", "lost", or "failed": no further attempt will be made."""

    session: Any = None
    """The session or WebSocket that is there now, or that has ended."""

    attempt: int = 0
    """Which attempt it was since the last session that was stable, from 1."""

    error: ClientError | None = None
    """Why: what ended the session, or what the last attempt met."""

    delay: float | None = None
    """Seconds until the next attempt, where there will be one."""

    def __str__(self) -> str:
        match self.kind:
            case "established":
                return f"established: {self.session!r}, attempt {self.attempt}"
            case "lost" if self.delay is not None:
                return f"lost: {self.error} The next attempt is in {self.delay:.1f} s."
        return f"{self.kind}: {self.error}"


class ReconnectingClient:
    """
    Keep one session, or WebSocket, connected.

    Begins to connect when it is made, which does not wait. Lost sessions are replaced, whoever
    ended them. As a context manager it closes; one that is dropped instead connects no more.
    """

    def __init__(self, url: str, *, config: ClientConfig | None = None) -> None:
        """Raises ConfigError for a URL that cannot be connected to."""
        self._url = url
        self._keeper = _Keeper(url, client_config(config))

    @classmethod
    def create(cls, url: str, *, config: ClientConfig | None = None) -> Self:
        """Make one; the same as the constructor."""
        return cls(url, config=config)

    def __repr__(self) -> str:
        keeper = self._keeper
        return f"<ReconnectingClient {keeper.target.url} {keeper.state} {keeper.session!r}>"

    def __del__(self) -> None:
        # Not there if the constructor raised.
        if (keeper := self.__dict__.get("_keeper")) is not None:
            keeper.abandon()

    @property
    def url(self) -> str:
        """Where it connects to."""
        return self._url

    @property
    def config(self) -> ClientConfig:
        """The client's configuration."""
        return self._keeper.config

    @property
    def session(self) -> Any:
        """The session or WebSocket that is ready now, or None. Does not wait."""
        return self._keeper.give()

    @property
    def is_connected(self) -> bool:
        """Whether there is a session that is ready."""
        return self._keeper.ready() is not None

    @property
    def is_closed(self) -> bool:
        """Whether the client has been closed."""
        return self._keeper.closed

    @property
    def last_error(self) -> ClientError | None:
        """Why the last attempt failed, or the last session ended; None if neither did so far."""
        return self._keeper.error

    @property
    def stats(self) -> dict[str, Any]:
        """Statistics of all attempts, as WebTransportClient's, and of what became of sessions."""
        keeper = self._keeper
        return {
            **keeper.client.stats,
            "reconnecting": {
                "state": keeper.state,
                "failures_in_a_row": keeper.backoff.failures,
                **keeper.counters,
            },
        }

    def get_session(self, wait_timeout: float | None = 5.0) -> Any:
        """
        Return the session or WebSocket that is ready, or None after `wait_timeout` seconds.

        Waits for one while there is none; None is no limit. Raises ClientError, the last one with
        its cause, when retries are exhausted, and when the client is closed.
        """
        keeper = self._keeper
        keeper.check_thread()
        deadline = Deadline(wait_timeout)
        while (session := keeper.give()) is None:
            if keeper.closed:
                raise ClientError("The client is closed.", target_url=self._url)
            if keeper.failed is not None:
                raise anew(keeper.failed)
            try:
                keeper.changed.wait(deadline)
            except TimeoutError:
                return None
        return session

    def events(self, timeout: float | None = None) -> Iterator[ConnectionEvent]:
        """
        Return an iterator over events: established, lost, failed.

        The first tells the present state, if it is established or failed; then come those from now
        on. It ends behind "failed", and when the client is closed. Each step waits at most
        `timeout` seconds and raises TimeoutError, after which one can go on. Who does not read
        keeps the last 256. Any number may be in use.
        """
        self._keeper.check_thread()
        return _Events(self, self._keeper, timeout)

    def close(self) -> None:
        """
        Connect no more, and close the session; waits as its close() does. Idempotent.

        Who waits in get_session() gets a ClientError; iterators of events end.
        """
        keeper = self._keeper
        keeper.check_thread()
        keeper.stop()
        keeper.client.close()
        keeper.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


class _Events:
    """One reader's events."""

    def __init__(self, client: ReconnectingClient, keeper: _Keeper, timeout: float | None) -> None:
        # While somebody listens the client is in use.
        self._client = client
        self._keeper = keeper
        self._timeout = timeout
        self._waiting: deque[ConnectionEvent] = deque()
        if keeper.present is not None:
            keeper.given = True
            self._waiting.append(keeper.present)
        keeper.readers.add(self)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ConnectionEvent:
        keeper = self._keeper
        keeper.check_thread()
        deadline = Deadline(self._timeout)
        while not self._waiting:
            if keeper.over:
                raise StopIteration
            keeper.happened.wait(deadline)
        return self._waiting.popleft()

    def feed(self, event: ConnectionEvent) -> bool:
        """Take an event; returns whether one was dropped for it."""
        self._waiting.append(event)
        if len(self._waiting) > _MAX_EVENTS:
            self._waiting.popleft()
            return True
        return False


class _Keeper:
    """
    What the greenlet does, and what is known meanwhile.

    It does not know its ReconnectingClient, so that one which nobody has any more is freed, and
    ends it.
    """

    def __init__(self, url: str, config: ClientConfig) -> None:
        self.url = url
        self.target = _parse(url)
        self.config = config
        self.client = WebTransportClient(config=config)
        self.backoff = Backoff(config)
        self.counters = Counters("established", "lost", "events_dropped")

        # The session from its beginning to its end.
        self.session: Any = None

        # Whether anybody has it, or has been told of it.
        self.given = False

        # Of the last attempt or session; of the end of all attempts.
        self.error: ClientError | None = None
        self.failed: ClientError | None = None
        self.closed = False

        # What those who come later have to know: established while it is, or failed.
        self.present: ConnectionEvent | None = None

        # Notified when get_session() may have something to return; at each event.
        self.changed = Signal()
        self.happened = Signal()
        self.readers: WeakSet[_Events] = WeakSet()

        self._thread = native_thread()
        self._hub = gevent.get_hub()
        self._greenlet = gevent.Greenlet(self._run)
        self._greenlet.name = f"gwt-keeper {self.target.url}"
        self._greenlet.link(self._ended)
        self._greenlet.start()

    @property
    def state(self) -> str:
        if self.closed:
            return "closed"
        if self.failed is not None:
            return "failed"
        return "connected" if self.ready() is not None else "connecting"

    @property
    def over(self) -> bool:
        """Whether nothing will happen any more."""
        return self.closed or self.failed is not None

    def check_thread(self) -> None:
        check_thread(self._thread, "client")

    def ready(self) -> Any:
        """Return the session if it can be used, else None."""
        session = self.session
        usable = session is not None and session.is_ready and not self.closed
        return session if usable else None

    def give(self) -> Any:
        """Return the same for somebody to use."""
        self.given = True
        return self.ready()

    def stop(self) -> None:
        """Begin nothing any more. Idempotent."""
        self._end()
        self._greenlet.kill(block=False)

    def join(self) -> None:
        """Wait until the greenlet has left what it is at."""
        self._greenlet.join()

    def abandon(self) -> None:
        """Do as stop(), wherever a finalizer runs. The session is its user's, if it has one."""
        loop = self._hub.loop
        if not self.over and loop is not None and not sys.is_finalizing():
            loop.run_callback_threadsafe(self._greenlet.kill, gevent.GreenletExit, False)

    def _end(self) -> None:
        self.closed = True
        self.present = None
        self.changed.notify()
        self.happened.notify()

    def _ended(self, _: object) -> None:
        # By stop(); because it has failed; or killed by somebody else, and nobody may wait for it.
        if not self.over:
            self._end()

    def _run(self) -> None:
        try:
            while (delay := self._attempt()) is not None:
                gevent.sleep(delay)
        except Exception as exc:
            # Safety net: who waits is to hear of it.
            logger.exception("A reconnecting client gave up on %s.", self.target.url)
            self._give_up(exc)

    def _attempt(self) -> float | None:
        """Connect, and wait for the session's end; returns when to do so again, None for never."""
        attempt = self.backoff.failures + 1
        try:
            session = self.client.connect(self.url)
        except ClientError as exc:
            cause = exc.__cause__
            self.error = _without_frames(exc)
            # Which no server can heal, unlike a certificate, or a 404.
            hopeless = isinstance(cause, ConfigError)
            delay = None if hopeless else self.backoff.failed(_retry_after(cause))
        else:
            lived = self._hold(session, attempt)
            delay = self.backoff.lost(lived)
            self.error = self._loss(session, lived)
            self.counters["lost"] += 1
            self.present = None
            self._tell(ConnectionEvent("lost", session, attempt, self.error, delay))
        if delay is None:
            self._give_up(self.error)
        return delay

    def _hold(self, session: Any, attempt: int) -> float:
        """Let a session be the one that is ready, until it has ended; returns how long it lived."""
        ended = Signal()
        began = time.monotonic()
        self.session = session
        self.given = False
        self.counters["established"] += 1
        self.present = ConnectionEvent("established", session, attempt)
        self._tell(self.present)
        self.changed.notify()
        try:
            session.on_end(lambda _: ended.notify())
            while not session.is_closed:
                ended.wait()
        except gevent.GreenletExit:
            # By close(), which ends it in order; or nobody has the client any more.
            if not (self.closed or self.given):
                session.abort()
            raise
        finally:
            self.session = None
        return time.monotonic() - began

    def _loss(self, session: Any, lived: float) -> ClientError:
        cause = _end_of(session)
        error = ClientError(
            f"The session with {self.target.url} ended after {lived:.1f} s. {cause}",
            target_url=self.url,
        )
        error.__cause__ = cause
        return _without_frames(error)

    def _give_up(self, last: Exception) -> None:
        attempts = max(1, self.backoff.failures)
        number = f"{attempts} attempts" if attempts > 1 else "one attempt"
        self.failed = ClientError(f"Gave up after {number}. {last}", target_url=self.url)
        self.failed.__cause__ = last.__cause__ if isinstance(last, ClientError) else last
        self.present = ConnectionEvent("failed", None, attempts, self.failed)
        self._tell(self.present)
        self.changed.notify()

    def _tell(self, event: ConnectionEvent) -> None:
        for reader in self.readers:
            self.given = True
            self.counters["events_dropped"] += reader.feed(event)
        self.happened.notify()


def _parse(url: str) -> Target:
    """Check a URL before anything waits for it; raises ConfigError."""
    if isinstance(url, str) and url.partition(":")[0].lower() in SCHEMES:
        return parse_url(url, SCHEMES, users=True)
    return parse_url(url, {"https": 443, **SCHEMES})


def _end_of(session: Any) -> Exception | None:
    """Return the error with which a session, or a WebSocket, has ended: what using it raises."""
    try:
        if isinstance(session, WebSocket):
            session.ping()
        else:
            session.send_datagram(b"")
    except (SessionError, WebSocketClosed) as exc:
        return exc
    return None


def _retry_after(error: BaseException | None) -> float:
    """Return the seconds that a refusal asks to wait (RFC 9110 10.2.3); dates are left aside."""
    text = error.headers.get("retry-after", "") if isinstance(error, SessionRejected) else ""
    return float(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0.0


def _without_frames(error: ClientError) -> ClientError:
    """Return an error that is kept for long without what its tracebacks hold."""
    each: BaseException | None = error
    while each is not None:
        each.__traceback__ = None
        each = each.__cause__ or each.__context__
    return error
