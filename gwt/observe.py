"""
What happened, counted: a bag of named counters and a ring of recent notes. Floor 0.

Everyone may call it, it calls nobody: no logging, no clock, no greenlet, so the quiet zone may
use it. Counter names are part of ``stats()`` and are documented in docs/architecture.md.
"""

from __future__ import annotations

from collections import deque

__all__ = ["Counters"]


class Counters(dict[str, int]):
    """A dict of integers in which a missing name is 0, with a ring of the last notes."""

    def __init__(self, *names: str, ring: int = 64) -> None:
        super().__init__((name, 0) for name in names)
        self.notes: deque[str] = deque(maxlen=ring)

    def __missing__(self, name: str) -> int:
        return 0

    def note(self, name: str, text: str = "") -> None:
        """Count one of `name`, and keep a line of text about it in the ring."""
        self[name] += 1
        if text:
            self.notes.append(f"{name}: {text}")
