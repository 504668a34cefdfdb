"""
WebSockets for applications on gevent.pywsgi: give WebSocketHandler to WSGIServer, as handler_class.

Only the class that users name stands here; what it does is server/lazy.py's.
"""

from __future__ import annotations

from typing import Any, Self

from ..config import ServerConfig
from ..server.gate import GOING_AWAY, Gate
from ..server.lazy import GuestHandler

__all__ = ["WebSocketHandler"]


class WebSocketHandler(GuestHandler):
    """
    A pywsgi handler that puts a lazy WebSocket into ``environ["wsgi.websocket"]``.

    ``WSGIServer(address, application, handler_class=WebSocketHandler)``. The application accepts by
    using it, refuses by answering as usual (401, say), and the WebSocket is closed when the
    application returns. Whom it admits, and its limits, are fields of ServerConfig: with_options().
    The header of a request has `request_timeout`, 10 s, from its first byte; all other waiting for
    peers is pywsgi's, which has no limits.
    """

    gate = Gate(ServerConfig())

    @classmethod
    def with_options(cls, **options: Any) -> type[Self]:
        """
        Return a handler class with options of ServerConfig: origins, max_size, compression, ...

        It counts its own WebSockets. Raises UnknownOption, and ConfigError for a bad value.
        """
        config = cls.gate.config.update(**options)
        return type(cls.__name__, (cls,), {"gate": Gate(config), "__module__": cls.__module__})

    @classmethod
    def close_all(cls, code: int = GOING_AWAY, reason: str = "The server is stopping") -> None:
        """Close the WebSockets of all servers with this class, and admit no more; never waits."""
        cls.gate.close_all(code, reason)
