"""
The states of connections and sessions: where each is in its life.

Names only; what changes a state stands in connection.py and session.py.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["ConnectionState", "SessionState"]


class ConnectionState(Enum):
    """Where a connection is in its life."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    CLOSED = "closed"


class SessionState(Enum):
    """Where a session is in its life."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    DRAINING = "draining"
    CLOSING = "closing"
    CLOSED = "closed"
