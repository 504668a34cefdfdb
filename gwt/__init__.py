"""
WebTransport, HTTP/3 and WebSocket for programs made of greenlets.

The public names, and nothing else; each is imported when it is first used, so that
``import gwt`` costs nothing and never monkey-patches.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import VERSION

if TYPE_CHECKING:
    from .client import (
        ClientMonitor,
        ClientPool,
        ClientStats,
        ConnectionEvent,
        PooledClient,
        ReconnectingClient,
        WebTransportBrowser,
        WebTransportClient,
        WebTransportProxy,
        benchmark_client_performance,
        connect,
        create_connection,
        test_client_connectivity,
    )
    from .config import ClientConfig, ServerConfig
    from .connection import WebTransportConnection
    from .errors import (
        ApplicationClosed,
        CertificateError,
        ClientError,
        ClientTimeout,
        CloseFrame,
        ConcurrencyError,
        ConfigError,
        ConfigurationError,
        ConnectionClosed,
        DatagramTooLarge,
        GwtError,
        HandshakeError,
        IncompleteRead,
        LimitExceeded,
        LocalProtocolError,
        MessageTooLarge,
        PoolExhausted,
        ProtocolError,
        Reject,
        RemoteProtocolError,
        RequirementsNotMet,
        SessionClosed,
        SessionError,
        SessionRejected,
        StreamError,
        StreamReset,
        StreamStopped,
        TooManyConnections,
        TooManySessions,
        TooManyStreams,
        UnknownOption,
        WebSocketClosed,
        WebSocketClosedError,
        WebSocketClosedOK,
        WebSocketError,
    )
    from .manager import (
        BroadcastResult,
        DatagramApplicationServer,
        StatelessServer,
        WebSocketManager,
    )
    from .messages import encode_message, read_messages
    from .net.descriptors import raise_descriptor_limit
    from .protocol.deflate import Compression
    from .request import Request
    from .server import App, Server, serve
    from .session import SessionState, WebTransportSession
    from .stream import (
        StreamDirection,
        StreamState,
        WebTransportReceiveStream,
        WebTransportSendStream,
        WebTransportStream,
    )
    from .websocket import WebSocket

__version__ = VERSION

_HOMES = {
    "client": [
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
    ],
    "config": ["ClientConfig", "ServerConfig"],
    "connection": ["WebTransportConnection"],
    "errors": [
        "ApplicationClosed",
        "CertificateError",
        "ClientError",
        "ClientTimeout",
        "CloseFrame",
        "ConcurrencyError",
        "ConfigError",
        "ConfigurationError",
        "ConnectionClosed",
        "DatagramTooLarge",
        "GwtError",
        "HandshakeError",
        "IncompleteRead",
        "LimitExceeded",
        "LocalProtocolError",
        "MessageTooLarge",
        "PoolExhausted",
        "ProtocolError",
        "Reject",
        "RemoteProtocolError",
        "RequirementsNotMet",
        "SessionClosed",
        "SessionError",
        "SessionRejected",
        "StreamError",
        "StreamReset",
        "StreamStopped",
        "TooManyConnections",
        "TooManySessions",
        "TooManyStreams",
        "UnknownOption",
        "WebSocketClosed",
        "WebSocketClosedError",
        "WebSocketClosedOK",
        "WebSocketError",
    ],
    "manager": [
        "BroadcastResult",
        "DatagramApplicationServer",
        "StatelessServer",
        "WebSocketManager",
    ],
    "messages": ["encode_message", "read_messages"],
    "net.descriptors": ["raise_descriptor_limit"],
    "protocol.deflate": ["Compression"],
    "request": ["Request"],
    "server": ["App", "Server", "serve"],
    "session": ["SessionState", "WebTransportSession"],
    "stream": [
        "StreamDirection",
        "StreamState",
        "WebTransportReceiveStream",
        "WebTransportSendStream",
        "WebTransportStream",
    ],
    "websocket": ["WebSocket"],
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "App",
    "ApplicationClosed",
    "BroadcastResult",
    "CertificateError",
    "ClientConfig",
    "ClientError",
    "ClientMonitor",
    "ClientPool",
    "ClientStats",
    "ClientTimeout",
    "CloseFrame",
    "Compression",
    "ConcurrencyError",
    "ConfigError",
    "ConfigurationError",
    "ConnectionClosed",
    "ConnectionEvent",
    "DatagramApplicationServer",
    "DatagramTooLarge",
    "GwtError",
    "HandshakeError",
    "IncompleteRead",
    "LimitExceeded",
    "LocalProtocolError",
    "MessageTooLarge",
    "PoolExhausted",
    "PooledClient",
    "ProtocolError",
    "ReconnectingClient",
    "Reject",
    "RemoteProtocolError",
    "Request",
    "RequirementsNotMet",
    "Server",
    "ServerConfig",
    "SessionClosed",
    "SessionError",
    "SessionRejected",
    "SessionState",
    "StatelessServer",
    "StreamDirection",
    "StreamError",
    "StreamReset",
    "StreamState",
    "StreamStopped",
    "TooManyConnections",
    "TooManySessions",
    "TooManyStreams",
    "UnknownOption",
    "WebSocket",
    "WebSocketClosed",
    "WebSocketClosedError",
    "WebSocketClosedOK",
    "WebSocketError",
    "WebSocketManager",
    "WebTransportBrowser",
    "WebTransportClient",
    "WebTransportConnection",
    "WebTransportProxy",
    "WebTransportReceiveStream",
    "WebTransportSendStream",
    "WebTransportSession",
    "WebTransportStream",
    "__version__",
    "benchmark_client_performance",
    "connect",
    "create_connection",
    "encode_message",
    "raise_descriptor_limit",
    "read_messages",
    "serve",
    "test_client_connectivity",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'gwt' has no attribute {name!r}")
    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
