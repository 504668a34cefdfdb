"""
When a client that lost its server tries again: exponential, with full jitter and a cap.

Pure: no clock, no waiting. reconnecting.py asks after each end, and does what it is told.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from ..config import ClientConfig

__all__ = ["Backoff", "longest_delay"]


def longest_delay(failures: int, config: ClientConfig) -> float:
    """Return the longest time to wait after so many failures in a row; 0 and 1 are the same."""
    try:
        grown = config.retry_delay * float(config.retry_backoff) ** max(0, failures - 1)
    except OverflowError:
        # After some thousand failures.
        return config.max_retry_delay
    return min(grown, config.max_retry_delay)


class Backoff:
    """
    How often it has failed, and how long to wait for the next attempt.

    A session that ended before `stable_period` is a failure like one that never came about:
    otherwise a server that accepts and closes would be asked without a pause. Delays are drawn
    from 0 to the longest, so that the thousands whom one server has lost do not come back at once.
    """

    def __init__(
        self, config: ClientConfig, *, uniform: Callable[[float, float], float] = random.uniform
    ) -> None:
        self._config = config
        self._uniform = uniform

        # In a row: since the beginning, or since a session was stable.
        self.failures = 0

    def failed(self, retry_after: float = 0.0) -> float | None:
        """
        Count a failure; return the seconds until the next attempt, or None: no more.

        `retry_after` is what the server asked for: as much more, but not beyond the cap.
        """
        self.failures += 1
        limit = self._config.max_retries
        if limit is not None and self.failures > limit:
            return None
        return min(retry_after, self._config.max_retry_delay) + self._drawn()

    def lost(self, lived: float) -> float | None:
        """Count a session that ended after `lived` seconds; return as failed() does."""
        if lived < self._config.stable_period:
            return self.failed()
        self.failures = 0
        return self._drawn()

    def _drawn(self) -> float:
        return self._uniform(0.0, longest_delay(self.failures, self._config))
