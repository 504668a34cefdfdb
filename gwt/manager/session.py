"""
SessionManager: the sessions of a server, over all its connections.

Beyond what a Registry asks, members have a ``session_id``, or an ``id``. Idleness is a matter
of connections: a session is as alive as the connection that carries it.
"""

from __future__ import annotations

from collections.abc import Hashable

from ..errors import GwtError, SessionError, TooManySessions
from .registry import Member, Registry, value_of

__all__ = ["SessionManager"]


class SessionManager(Registry):
    """Sessions by ``session_id``, at most `max_sessions` (None: no limit)."""

    __slots__ = ()

    kind = "session"

    def __init__(
        self, *, max_sessions: int | None = 10000, session_cleanup_interval: float | None = 60.0
    ) -> None:
        super().__init__(limit=max_sessions, cleanup_interval=session_cleanup_interval)

    def add_session(self, session: Member) -> Hashable:
        """
        Take a session in and return its id. Never waits.

        The same session again is ignored. One that is already closed is counted, and gone at
        once. Raises TooManySessions, SessionError if the manager is not activated, or
        ValueError if another session has this id.
        """
        return self._add(session)

    def remove_session(self, session_id: Hashable) -> Member | None:
        """Take a session out, without closing it; return it, or None if it is not here."""
        return self._remove(session_id)

    def get_sessions_by_state(self, state: object) -> list[Member]:
        """Return the sessions in this state, an enum's member or its text. Scans all members."""
        if not self.active:
            return []
        wanted = value_of(state)
        return [session for session in self if self._value(session, "state") == wanted]

    def _key(self, member: Member) -> Hashable:
        key: Hashable = getattr(member, "session_id", None)
        return super()._key(member) if key is None else key

    def _inactive(self) -> GwtError:
        return SessionError(self._inactive_text())

    def _over_limit(self) -> GwtError:
        return TooManySessions(self._over_limit_text(), limit=self._limit)
