"""
How often a peer may do what costs us more than it: an allowance that comes back with time.

Pure arithmetic; the clock is the caller's.
"""

from __future__ import annotations

__all__ = ["Allowance"]


class Allowance:
    """So many at once, and so many a second in the long run."""

    __slots__ = ("_at", "_left", "_most", "_rate")

    def __init__(self, most: int, rate: float) -> None:
        self._most = most
        self._rate = rate
        self._left = float(most)
        self._at = 0.0

    def spend(self, now: float) -> bool:
        """Take one; returns False if there was none."""
        self._left = min(self._most, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
