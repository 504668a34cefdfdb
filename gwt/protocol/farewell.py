"""
What is left of a connection that we closed: its last packet, for a peer that has missed it.

RFC 9000 10.2.1: whoever still sends is told again, but ever more rarely, and never at more than
three times the size of what was asked with.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

__all__ = ["Farewell", "Farewells"]

# How many closed connections are remembered, each in less than 1 KiB.
_LIMIT = 1024


class Farewell:
    """The datagram that closed a connection."""

    __slots__ = ("_asked", "datagram")

    def __init__(self, datagram: bytes) -> None:
        self.datagram = datagram
        self._asked = 0

    def answers(self, data: bytes) -> bool:
        """Return whether to send it again for `data`: for the 1st, 2nd, 4th, 8th ... packet."""
        if len(self.datagram) > 3 * len(data):
            return False
        self._asked += 1
        return not self._asked & (self._asked - 1)


class Farewells:
    """
    The farewells of connections that are gone, by all their connection ids.

    Each stays for `lifetime` seconds: as long as its peer may believe that it is connected.
    """

    def __init__(self, lifetime: float) -> None:
        self._lifetime = lifetime
        self._known: dict[bytes, Farewell] = {}
        self._oldest: deque[tuple[float, tuple[bytes, ...]]] = deque()

    def __len__(self) -> int:
        return len(self._oldest)

    def add(self, connection_ids: Iterable[bytes], farewell: Farewell, now: float) -> None:
        """Remember one; the oldest goes if there are too many."""
        ids = tuple(connection_ids)
        self._oldest.append((now + self._lifetime, ids))
        self._known.update(dict.fromkeys(ids, farewell))
        self._forget(now)

    def find(self, connection_id: bytes, now: float) -> Farewell | None:
        """Return the farewell of a connection, or None."""
        self._forget(now)
        return self._known.get(connection_id)

    def _forget(self, now: float) -> None:
        oldest = self._oldest
        while oldest and (len(oldest) > _LIMIT or oldest[0][0] <= now):
            for connection_id in oldest.popleft()[1]:
                self._known.pop(connection_id, None)
