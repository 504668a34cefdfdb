"""
The client side: connect(), and the classes on top of it. Floor 4.

Never imports gwt.server.
"""

from __future__ import annotations

from .benchmark import benchmark_client_performance
from .browser import WebTransportBrowser
from .client import WebTransportClient
from .connecting import connect
from .connectivity import test_client_connectivity
from .legacy import create_connection
from .monitor import ClientMonitor
from .pool import ClientPool
from .pooled import PooledClient
from .reconnecting import ConnectionEvent, ReconnectingClient
from .stats import ClientStats
from .tunnel import WebTransportProxy

__all__ = [
    "ClientMonitor",
    "ClientPool",
    "ClientStats",
    "ConnectionEvent",
    "PooledClient",
    "ReconnectingClient",
    "WebTransportBrowser",
    "WebTransportClient",
    "WebTransportProxy",
    "benchmark_client_performance",
    "connect",
    "create_connection",
    "test_client_connectivity",
]
