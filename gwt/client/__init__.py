"""
The client side: connect(), and the classes on top of it. Floor 4.

Never imports gwt.server.
"""

from __future__ import annotations

from .client import ClientStats, WebTransportClient, connect

__all__ = ["ClientStats", "WebTransportClient", "connect"]
