"""
PooledClient: sessions and WebSockets that are used by one greenlet after the other.

It connects by a WebTransportClient; slots.py knows whose turn it is. The ends of sessions are told
in the quiet zone: what they call only hands slots on.
"""

from __future__ import annotations

import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace, TracebackType
from typing import Any, Self

import gevent
from gevent.pool import Group

from ..config import ClientConfig
from ..errors import ClientError, ConfigError, GwtError, PoolExhausted
from ..net.waiting import Deadline, check_thread, native_thread
from ..options import check
from ..stream_common import CONFIGURED, StreamDirection
from .client import WebTransportClient
from .slots import CLOSED, SLOT, Key, Place, key_of

__all__ = ["PooledClient"]

# URLs whose keys are remembered.
_MAX_URLS = 1024


class PooledClient:
    """
    Connect, and reuse what was connected: for each origin and path, query included.

    It can be used at once, by any number of greenlets of one thread, with and without ``with``;
    leaving the block closes it.
    """

    def __init__(
        self,
        *,
        config: ClientConfig | None = None,
        pool_size: int = 10,
        cleanup_interval: float = 60.0,
        idle_timeout: float | None = 60.0,
        max_idle: int | None = 1000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Make a pool; connects nobody.

        At most `pool_size` sessions to one origin and path live at a time. Every
        `cleanup_interval` seconds those that have been idle for `idle_timeout` are closed; None
        keeps them. Of more than `max_idle` in all, the one idle longest is closed. Raises
        ConfigError, which is a ValueError.
        """
        check(
            SimpleNamespace(
                pool_size=pool_size,
                cleanup_interval=cleanup_interval,
                idle_timeout=idle_timeout,
                max_idle=max_idle,
            ),
            positive=("cleanup_interval", "idle_timeout"),
            at_least={"pool_size": 1, "max_idle": 0},
            optional=("idle_timeout", "max_idle"),
        )
        self._client = WebTransportClient(config=config)
        self._pool_size = pool_size
        self._cleanup_interval = cleanup_interval
        self._idle_timeout = idle_timeout
        self._max_idle = max_idle
        self._clock = clock
        self._thread = native_thread()

        # Keys by URL; places by key, while they have slots that are taken, or somebody waits;
        # places by session, of those that live; and of idle ones, the one that is longest first.
        self._keys: dict[str, Key] = {}
        self._places: dict[Key, Place] = {}
        self._homes: dict[Any, Place] = {}
        self._idle: OrderedDict[Any, Place] = OrderedDict()

        # Both are there only while there is something to do.
        self._cleaner: gevent.Greenlet | None = None
        self._closers = Group()

        self._reused = self._returned = self._discarded = self._expired = 0
        self._waits = self._exhausted = 0

    @classmethod
    def create(
        cls,
        *,
        config: ClientConfig | None = None,
        pool_size: int = 10,
        cleanup_interval: float = 60.0,
        **options: Any,
    ) -> Self:
        """Return a pool: the same as calling the class."""
        return cls(config=config, pool_size=pool_size, cleanup_interval=cleanup_interval, **options)

    def __repr__(self) -> str:
        state = "closed" if self.is_closed else "open"
        return (
            f"<PooledClient {state} out={len(self._homes) - len(self._idle)} "
            f"idle={len(self._idle)}>"
        )

    @property
    def config(self) -> ClientConfig:
        """The configuration that it connects with."""
        return self._client.config

    @property
    def is_closed(self) -> bool:
        """Whether it has been closed."""
        return self._client.is_closed

    @property
    def stats(self) -> dict[str, Any]:
        """Statistics of all connects, as a WebTransportClient has them, and of the pool."""
        places = self._places.values()
        return {
            **self._client.stats,
            "pool": {
                "out": len(self._homes) - len(self._idle),
                "idle": len(self._idle),
                "connecting": sum(place.connecting for place in places),
                "waiting": sum(len(place.waiting) for place in places),
                "reused": self._reused,
                "returned": self._returned,
                "discarded": self._discarded,
                "expired": self._expired,
                "waits": self._waits,
                "exhausted": self._exhausted,
            },
        }

    def debug_state(self) -> dict[str, Any]:
        """Return a snapshot: the client's own, the statistics, and the slots of each key."""
        return {
            **self._client.debug_state(),
            "statistics": self.stats,
            "places": [place.debug_state() for place in self._places.values()],
        }

    # Getting

    def get_session(self, url: str, *, timeout: float | None = CONFIGURED) -> Any:
        """
        Return a session, or a WebSocket, that nobody else uses: the last that came back, or new.

        Waits, first come, first served, while `pool_size` are out, and for the connect; at most
        `timeout` in all, the configuration's connect_timeout unless given, None is no limit. Raises
        PoolExhausted if none came free in time, ClientTimeout if the connect took too long, which
        are TimeoutErrors; else ClientError with the cause chained if connecting failed, if the URL
        is no URL, or the pool is closed.
        """
        place = self._place(url)
        given = self._take_idle(place)
        if given is not None:
            self._reused += 1
            return given
        deadline = Deadline(self.config.connect_timeout if timeout is CONFIGURED else timeout)
        given = self._take_slot(place)
        if given is None:
            self._waits += 1
            given = self._wait(place, deadline)
        while given is not SLOT:
            if given is not CLOSED and given.is_reusable:
                self._reused += 1
                return given
            # Something happened to it after it was handed over: back to the front.
            self._discard(given)
            place = self._place(url)
            given = self._take_idle(place)
            if given is None:
                given = self._take_slot(place)
            if given is None:
                given = self._wait(place, deadline, first=True)
        return self._connect(place, url, deadline)

    def _place(self, url: str) -> Place:
        self._check_thread()
        if self.is_closed:
            raise ClientError("The pool of sessions is closed.", target_url=url)
        key = self._keys.get(url)
        if key is None:
            try:
                key = key_of(url)
            except ConfigError as exc:
                raise ClientError(str(exc), target_url=url) from exc
            if len(self._keys) >= _MAX_URLS:
                self._keys.clear()
            self._keys[url] = key
        place = self._places.get(key)
        return Place(key, self._pool_size) if place is None else place

    def _take_idle(self, place: Place) -> Any:
        idle = place.idle
        while idle:
            session = idle.popitem()[0]
            del self._idle[session]
            if session.is_reusable:
                return session
            self._discard(session)
        return None

    def _take_slot(self, place: Place) -> Any:
        if not place.take_slot():
            return None
        # It may have been forgotten, with its last session.
        self._places[place.key] = place
        return SLOT

    def _connect(self, place: Place, url: str, deadline: Deadline) -> Any:
        """Connect in a slot that was taken for it."""
        remaining = deadline.remaining()
        if remaining is not None:
            # In a message's digits, and above 0: a slot may have come at the last moment.
            remaining = max(round(remaining, 3), 0.001)
        place.connecting += 1
        try:
            session = self._client.connect(url, timeout=remaining)
        except BaseException:
            place.connecting -= 1
            self._free(place)
            raise
        place.connecting -= 1
        self._homes[session] = place
        session.on_end(self._ended)
        return session

    def _wait(self, place: Place, deadline: Deadline, *, first: bool = False) -> Any:
        """Wait for a session, SLOT, or CLOSED; raises PoolExhausted."""
        waiter = place.queue(first)
        try:
            waiter.wait(deadline)
        except BaseException as exc:
            # Our own deadline, not somebody's Timeout with this class.
            expired = isinstance(exc, TimeoutError) and deadline.expired
            if waiter.given is None:
                del place.waiting[waiter]
                if not expired:
                    raise
                self._exhausted += 1
                raise self._exhaustion(place, deadline) from None
            if not expired:
                # Somebody else shall have it.
                self._hand_back(place, waiter.given)
                raise
        return waiter.given

    def _exhaustion(self, place: Place, deadline: Deadline) -> PoolExhausted:
        connecting = f", and {place.connecting} connecting" if place.connecting else ""
        return PoolExhausted(
            f"No session to {place} came free within {deadline.timeout:g} s: {place.out} of "
            f"{self._pool_size} are out{connecting}.",
            limit=self._pool_size,
        )

    def _hand_back(self, place: Place, given: Any) -> None:
        if given is SLOT:
            self._free(place)
        elif given in self._homes and not self.is_closed:
            self._take_back(given, self._homes[given])

    # Giving back

    def return_session(self, session: Any) -> None:
        """
        Give a session back; whoever does must not use it any more.

        Streams that are open are left: what was written on them arrives, and their end behind it;
        what comes is discarded. It is kept if it is as good as new then
        (``session.is_reusable``): connected and not being drained, no datagram, message or stream
        of the peer's unread, nobody waiting on it. Else it is closed, which
        waits as its close() does, while its slot is free at once; while an exception is handled,
        as in a ``finally`` that it passes, as ``with session`` would: an answer may be under way to
        who did not wait for it. One that has ended is ignored: it freed its slot by itself. Raises
        ValueError for one that lives and is not out: it came from elsewhere, or was returned
        before.
        """
        self._check_thread()
        self._return(session, sys.exception())

    def _return(self, session: Any, exc: BaseException | None) -> None:
        place = self._homes.get(session)
        if place is None or session in place.idle:
            if not getattr(session, "is_ready", True):
                return
            raise ValueError(
                f"{session!r} does not come from this pool."
                if place is None
                else f"{session!r} has been returned already."
            )
        self._returned += 1
        if exc is None:
            _leave_streams(session)
        if exc is None and session.is_reusable and not self.is_closed:
            self._take_back(session, place)
            return
        self._discarded += 1
        self._forget(session)
        if exc is None:
            self._close(session)
        else:
            session.__exit__(type(exc), exc, exc.__traceback__)

    def _take_back(self, session: Any, place: Place) -> None:
        if place.waiting:
            place.give_first(session)
            return
        place.idle[session] = self._clock()
        self._idle[session] = place
        if self._max_idle is not None and len(self._idle) > self._max_idle:
            self._expired += 1
            self._close_later(next(iter(self._idle)))
        elif self._cleaner is None:
            self._cleaner = gevent.spawn(self._clean)
            self._cleaner.name = "gwt-pool-cleaner"

    @contextmanager
    def session(self, url: str, *, timeout: float | None = CONFIGURED) -> Iterator[Any]:
        """
        Lend a session for a ``with`` block; waits and raises as get_session().

        It is returned at the end, or closed if an exception leaves the block; see return_session().
        """
        session = self.get_session(url, timeout=timeout)
        try:
            yield session
        except BaseException as exc:
            self._return(session, exc)
            raise
        # Not by return_session(): an exception that is handled around the block says nothing.
        self._return(session, None)

    # Slots

    def _ended(self, session: Any) -> None:
        """A session is over, wherever it was; called in the quiet zone."""
        self._forget(session)

    def _forget(self, session: Any) -> None:
        """Free the slot of a session; idempotent."""
        place = self._homes.pop(session, None)
        if place is not None:
            place.idle.pop(session, None)
            self._idle.pop(session, None)
            self._free(place)

    def _free(self, place: Place) -> None:
        place.free_slot()
        # A place is known while one of its slots is taken.
        if not place.taken:
            del self._places[place.key]

    # Idle ones

    def cleanup(self) -> int:
        """Close sessions that are too long idle, or not reusable; return how many. Never waits."""
        too_long = None if self._idle_timeout is None else self._clock() - self._idle_timeout
        count = 0
        for session, place in list(self._idle.items()):
            if not session.is_reusable:
                self._discard(session)
            elif too_long is not None and place.idle[session] <= too_long:
                self._expired += 1
                self._close_later(session)
            else:
                continue
            count += 1
        return count

    def _clean(self) -> None:
        try:
            while self._idle:
                gevent.sleep(self._cleanup_interval)
                self.cleanup()
        finally:
            self._cleaner = None

    def _discard(self, session: Any) -> None:
        """Close a session that came back clean, and is not clean any more, if it lives."""
        if session in self._homes:
            self._discarded += 1
            self._close_later(session)

    def _close_later(self, session: Any) -> None:
        self._forget(session)
        closer = self._closers.spawn(self._close, session)
        closer.name = "gwt-pool-closer"

    @staticmethod
    def _close(session: Any) -> None:
        # It closes all the same, or its connection is broken.
        with suppress(GwtError, OSError):
            session.close()

    # The end

    def close(self) -> None:
        """
        Close all sessions, those that are out as well; who waits gets a ClientError. Idempotent.

        Waits as the sessions' close() does, for all at the same time.
        """
        self._check_thread()
        cleaner, self._cleaner = self._cleaner, None
        if cleaner is not None:
            cleaner.kill(block=False)
        for place in list(self._places.values()):
            while place.waiting:
                place.give_first(CLOSED)
        try:
            self._client.close()
            self._closers.join()
        finally:
            # Interrupted: the client has aborted what they were closing.
            self._closers.kill(block=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def _check_thread(self) -> None:
        check_thread(self._thread, "pool of sessions")


def _leave_streams(session: Any) -> None:
    """Finish what a WebTransport session's streams send, and stop what they receive."""
    for stream in getattr(session, "streams", ()):
        if not stream.is_done:
            # What cannot be left so, as one that its peer has stopped, is in the way of reuse.
            with suppress(GwtError):
                if stream.direction is not StreamDirection.RECEIVE_ONLY:
                    stream.finish()
            with suppress(GwtError):
                if stream.direction is not StreamDirection.SEND_ONLY:
                    stream.stop()
