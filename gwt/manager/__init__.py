"""
Managers: who is alive, who is idle, who hears whom. Duck-typed, without wire knowledge.

Imports nothing above floor 0 but clocks and waiting. What a member must offer stands in
registry.py, and for rooms in members.py.
"""

from __future__ import annotations

from .connection import ConnectionManager
from .rooms import BroadcastResult
from .session import SessionManager
from .stream import StreamManager
from .websocket import WebSocketManager

__all__ = [
    "BroadcastResult",
    "ConnectionManager",
    "SessionManager",
    "StreamManager",
    "WebSocketManager",
]
