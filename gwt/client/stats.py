"""
ClientStats: what a client has done, in figures, and what is wrong with such. Knows no client.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ClientStats", "find_issues"]

# Fewer connects say nothing about the rate.
_LEAST_ATTEMPTS = 10
_LEAST_RATE = 0.9
_LONGEST_AVERAGE = 5.0


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


def find_issues(figures: Mapping[str, Any]) -> dict[str, str]:
    """
    Return what looks wrong in figures as to_dict() has them: sentences, by type.

    Types are low_success_rate and slow_connections. Parts may be missing.
    """
    found = {}
    rate = _number(figures, "connections", "success_rate", 1.0)
    if _number(figures, "connections", "attempted") > _LEAST_ATTEMPTS and rate < _LEAST_RATE:
        found["low_success_rate"] = f"Low connection success rate: {rate:.2%}"
    average = _number(figures, "performance", "avg_connect_time")
    if average > _LONGEST_AVERAGE:
        found["slow_connections"] = f"Slow average connection time: {average:.2f}s"
    return found


def _number(figures: Mapping[str, Any], part: str, name: str, otherwise: float = 0.0) -> float:
    group = figures.get(part)
    value = group.get(name) if isinstance(group, Mapping) else None
    return value if isinstance(value, (int, float)) else otherwise
