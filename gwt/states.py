"""
The states of connections, sessions and WebSockets: where each is in its life.

Names only; what changes a state stands in connection.py, session.py and websocket.py.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["ConnectionState", "SessionState", "WebSocketState"]


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


class WebSocketState(Enum):
    """Where a WebSocket is in its life."""

    CONNECTING = "connecting"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"
