"""
ConnectionManager: the connections of a server, how many, and which have fallen silent.

Members are whatever stands for a connection: WebTransport connections and WebSockets alike.
Beyond what a Registry asks they have ``id`` and ``last_active``, in seconds of the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable

import gevent

from ..errors import GwtError, TooManyConnections
from .reaper import Job
from .registry import CLOSE_TIMEOUT, CLOSERS, GRACE, Member, Registry, every

__all__ = ["ConnectionManager", "ManagerInactive", "pick_idle"]


class ManagerInactive(GwtError, ConnectionError):
    """A connection was added to a manager that is not activated."""


def pick_idle(
    members: Iterable[Member],
    now: float,
    timeout: float,
    broken: list[Exception] | None = None,
) -> list[Member]:
    """
    Choose the open members that were last active `timeout` seconds before `now`, or earlier.

    A timeout of 0 or less chooses nobody. A member whose properties raise is not chosen; the
    error goes to `broken`.
    """
    if timeout <= 0:
        return []
    idle = []
    for member in members:
        try:
            if now - member.last_active >= timeout and not member.is_closed:
                idle.append(member)
        except Exception as exc:
            # Boundary to user code: a property of a member.
            if broken is not None:
                broken.append(exc)
    return idle


class ConnectionManager(Registry):
    """
    Connections by ``id``, at most `max_connections` (None: no limit).

    Every `connection_idle_check_interval` seconds those without activity for
    `connection_idle_timeout` seconds are closed with the reason "Idle timeout"; <= 0 is off.
    """

    __slots__ = ("_checked_at", "_clock", "_idle_check_interval", "_idle_closers", "_idle_timeout")

    kind = "connection"

    def __init__(
        self,
        *,
        max_connections: int | None = 3000,
        connection_cleanup_interval: float | None = 30.0,
        connection_idle_check_interval: float = 5.0,
        connection_idle_timeout: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(limit=max_connections, cleanup_interval=connection_cleanup_interval)
        self._idle_check_interval = connection_idle_check_interval
        self._idle_timeout = connection_idle_timeout
        self._clock = clock
        self._checked_at = 0.0

        # The greenlets that close idle members, by the id() of the member that each holds.
        self._idle_closers: dict[int, gevent.Greenlet] = {}

    def add_connection(self, connection: Member) -> Hashable:
        """
        Take a connection in and return its id. Never waits.

        The same connection again is ignored. One that is already closed is counted, and gone
        at once. Raises TooManyConnections, ManagerInactive, or ValueError if another
        connection has this id.
        """
        return self._add(connection)

    def remove_connection(self, connection_id: Hashable) -> Member | None:
        """Take a connection out, without closing it; return it, or None if it is not here."""
        return self._remove(connection_id)

    def close_idle(self, now: float | None = None) -> int:
        """
        Begin to close the idle connections, and return how many. Scans all members.

        Never waits: each close() has a greenlet of its own, in which it has CLOSE_TIMEOUT
        seconds until the connection is aborted. At most CLOSERS are closed at a time; the
        others are left to the next pass.
        """
        when = self._clock() if now is None else now
        broken: list[Exception] = []
        idle = pick_idle(self, when, self._idle_timeout, broken)
        for exc in broken:
            self._failed("last_active or is_closed", exc)
        closers = {key: closer for key, closer in self._idle_closers.items() if not closer.dead}
        self._idle_closers = closers
        before = len(closers)
        deadline = time.monotonic() + CLOSE_TIMEOUT
        for member in idle:
            if len(closers) >= CLOSERS:
                break
            if id(member) not in closers:
                closer = gevent.spawn(self._close_by, member, "Idle timeout", deadline)
                closer.name = "gwt-idle-closer"
                closers[id(member)] = closer
        return len(closers) - before

    def shutdown(self, *, timeout: float = CLOSE_TIMEOUT) -> None:
        """Stop, and close all connections at the same time; see Registry.shutdown()."""
        try:
            super().shutdown(timeout=timeout)
        finally:
            # All members are closed or aborted by now, so that what is left is stuck. If one
            # of these greenlets is calling us, it ends by itself.
            closers = set(self._idle_closers.values()) - {gevent.getcurrent()}
            with gevent.Timeout(GRACE, False):
                gevent.killall(closers)

    def _periodic(self) -> list[tuple[float, Job]]:
        work = super()._periodic()
        if self._idle_timeout > 0:
            self._checked_at = self._clock()
            work += every(self._idle_check_interval, self._check_idle)
        return work

    def _check_idle(self) -> None:
        # A hub that was blocked for long has not read yet what its connections' peers have sent
        # meanwhile: such a pass would close the living, and the next one is soon.
        now = self._clock()
        late = now - self._checked_at - self._idle_check_interval
        self._checked_at = now
        if late < self._idle_timeout / 4:
            self.close_idle(now)

    def _inactive(self) -> GwtError:
        return ManagerInactive(self._inactive_text())

    def _over_limit(self) -> GwtError:
        return TooManyConnections(self._over_limit_text(), limit=self._limit)
