"""
Managers: who is alive, who is idle. Duck-typed, without wire knowledge.

Imports nothing above floor 0. What a member must offer stands in registry.py.
"""

from __future__ import annotations

from .connection import ConnectionManager
from .session import SessionManager
from .stream import StreamManager

__all__ = ["ConnectionManager", "SessionManager", "StreamManager"]
