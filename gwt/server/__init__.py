"""
The server side: one server for TCP and UDP, its application, and who may talk to it. Floor 4.

Never imports gwt.client.
"""

from __future__ import annotations

from .app import App
from .server import Server, serve

__all__ = ["App", "Server", "serve"]
