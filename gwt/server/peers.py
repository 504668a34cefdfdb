"""
Peers: how many connections each address has, over TCP and QUIC together.

Whoever has connections to count asks, enters and leaves; nothing here waits.
"""

from __future__ import annotations

import socket as _stdlib_socket
from collections import Counter
from typing import Any

from ..observe import Counters

__all__ = ["Peers"]

# What a provider gives one customer (RFC 6177): counting single IPv6 addresses would limit nobody.
_IPV6_PREFIX = 8


class Peers:
    """
    Connections by address, at most `limit` each; None: they are not even counted.

    An address is (host, port, ...) as it is shown to users; what is no tuple, a Unix socket's,
    has no limit. IPv6 addresses count by their /64.
    """

    def __init__(self, limit: int | None, counters: Counters) -> None:
        self.limit = limit
        self._counters = counters
        self._connections: Counter[Any] = Counter()

    def __len__(self) -> int:
        return len(self._connections)

    def admit(self, address: Any) -> bool:
        """Return whether one more may come from there; counts it if not."""
        if self.limit is None or self._connections[_key(address)] < self.limit:
            return True
        self._counters["addresses_refused"] += 1
        return False

    def crowded(self, address: Any) -> bool:
        """Return whether half of what an address may have is used: from now on it has to prove it.

        Whoever forges somebody's address must not use up all that is his.
        """
        return self.limit is not None and 2 * self._connections[_key(address)] >= self.limit

    def enter(self, address: Any) -> None:
        """Count a connection, whatever the limit; leave() must follow."""
        if self.limit is not None and isinstance(address, tuple):
            self._connections[_key(address)] += 1

    def hold(self, member: Any, address: Any) -> None:
        """Count a member, which has on_end(), until its end."""
        if self.limit is not None:
            self.enter(address)
            member.on_end(lambda _: self.leave(address))

    def leave(self, address: Any) -> None:
        """Count a connection no more."""
        key = _key(address)
        if self._connections[key] > 1:
            self._connections[key] -= 1
        else:
            self._connections.pop(key, None)


def _key(address: Any) -> Any:
    host = address[0] if isinstance(address, tuple) else None
    if host is None or ":" not in host:
        return host
    packed = _stdlib_socket.inet_pton(_stdlib_socket.AF_INET6, host.partition("%")[0])
    return packed[:_IPV6_PREFIX]
