"""
ClientStats: what a client has done, in figures. Knows no client.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ClientStats"]


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

    @classmethod
    def total(cls, several: Iterable[ClientStats]) -> ClientStats:
        """Return the figures of several clients as if they were one's."""
        total = cls()
        for each in several:
            total.created_at = min(total.created_at, each.created_at)
            total.connections_attempted += each.connections_attempted
            total.connections_successful += each.connections_successful
            total.connections_failed += each.connections_failed
            total.total_connect_time += each.total_connect_time
            total.min_connect_time = min(total.min_connect_time, each.min_connect_time)
            total.max_connect_time = max(total.max_connect_time, each.max_connect_time)
        return total

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
        fastest = self.min_connect_time
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
