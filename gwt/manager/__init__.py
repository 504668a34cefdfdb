"""
Managers: who is alive, who is idle, who hears whom, which application serves whom. Duck-typed,
without wire knowledge; beyond floor 0 they know a few tools of net/ only.

What a member must offer stands in registry.py, and for rooms in members.py. Names are imported when
they are first used: who manages connections has no use for applications.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .connection import ConnectionManager
    from .datagram import DatagramApplicationServer
    from .rooms import BroadcastResult
    from .session import SessionManager
    from .stateless import StatelessServer
    from .stream import StreamManager
    from .websocket import WebSocketManager

_HOME = {
    "BroadcastResult": "rooms",
    "ConnectionManager": "connection",
    "DatagramApplicationServer": "datagram",
    "SessionManager": "session",
    "StatelessServer": "stateless",
    "StreamManager": "stream",
    "WebSocketManager": "websocket",
}

__all__ = [
    "BroadcastResult",
    "ConnectionManager",
    "DatagramApplicationServer",
    "SessionManager",
    "StatelessServer",
    "StreamManager",
    "WebSocketManager",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
