"""
Who may open a WebSocket, decided from an HTTP/1.1 request, and which ones are open.

``Gate`` is what every host of WebSockets needs: gwt's own server, and the integrations with others.
It looks at values only; sockets and answers are the hosts'.
"""

from __future__ import annotations

from typing import Any

from ..config import ServerConfig
from ..errors import Reject
from ..observe import Counters
from ..protocol.wshandshake import Refusal, UpgradeRequest, check_upgrade
from ..request import Request
from ..websocket import WebSocket
from .access import host_allowed, origin_allowed

__all__ = ["GOING_AWAY", "INTERNAL_ERROR", "Gate"]

GOING_AWAY = 1001
INTERNAL_ERROR = 1011


class Gate:
    """Admits requests for WebSockets by a config, and can close all that are open."""

    def __init__(self, config: ServerConfig, counters: Counters | None = None) -> None:
        self.config = config
        self.counters = Counters() if counters is None else counters
        self.open: set[WebSocket] = set()
        self.stopping = False

    def read(
        self, method: str, version: str, target: str, headers: list[tuple[str, str]], address: Any
    ) -> tuple[UpgradeRequest, Request] | Refusal:
        """Return what is asked for, or how a malformed request is answered (RFC 6455 4.2.1)."""
        asked = check_upgrade(method, version, target, headers)
        return asked if isinstance(asked, Refusal) else (asked, _request(asked, address))

    def admit(self, request: Request, config: ServerConfig) -> None:
        """Raise Reject if a request is for another host, or of a page that may not ask."""
        if self.stopping:
            raise Reject(503)
        if not host_allowed(request.authority, config.allowed_hosts):
            raise Reject(421)
        if not origin_allowed(request.origin, request.authority, config.origins):
            raise Reject(403)

    def enter(self, websocket: WebSocket) -> None:
        """Count one in until its end; raises Reject if there is no room."""
        if self.stopping or len(self.open) >= self.config.max_connections:
            self.counters["websockets_refused"] += 1
            raise Reject(503)
        self.open.add(websocket)
        websocket.on_end(self.open.discard)

    def close_all(self, code: int = GOING_AWAY, reason: str = "The server is stopping") -> None:
        """Admit nobody more, and send a close frame to all; does not wait for their answers."""
        self.stopping = True
        for websocket in list(self.open):
            websocket.begin_close(code, reason)


def _request(asked: UpgradeRequest, address: Any) -> Request:
    headers: dict[str, str] = {}
    for name, value in asked.headers:
        name = name.lower()
        joint = "; " if name == "cookie" else ", "
        headers[name] = f"{headers[name]}{joint}{value}" if name in headers else value
    return Request.at(
        asked.path,
        method="GET",
        protocol="websocket",
        authority=asked.host,
        origin=asked.origin,
        headers=headers,
        subprotocols=asked.subprotocols,
        remote_address=address,
    )
