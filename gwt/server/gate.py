"""
Who may open a WebSocket, decided from an HTTP/1.1 request, and which ones are open.

``Gate`` is what every host of WebSockets needs: gwt's own server, and the integrations with others.
It looks at values only; sockets and answers are the hosts'.
"""

from __future__ import annotations

import logging
from typing import Any, NoReturn

from ..config import ServerConfig
from ..errors import Reject
from ..net.timers import now
from ..observe import Counters
from ..protocol.rates import Allowance
from ..protocol.wshandshake import Refusal, UpgradeRequest, check_upgrade
from ..request import Request
from ..websocket import WebSocket
from .access import host_allowed, origin_allowed

__all__ = ["FAREWELL", "GOING_AWAY", "INTERNAL_ERROR", "Gate"]

logger = logging.getLogger("gwt.server")

# How long clients have to answer the close of a server that stops.
FAREWELL = 3.0

GOING_AWAY = 1001
INTERNAL_ERROR = 1011


class Gate:
    """Admits requests for WebSockets by a config, and can close all that are open."""

    def __init__(self, config: ServerConfig, counters: Counters | None = None) -> None:
        self.config = config
        self.counters = Counters() if counters is None else counters
        self.open: set[WebSocket] = set()
        self.stopping = False

        # Whom a proxy's Host keeps out has to find it in the log, which nobody may fill.
        self._lines = Allowance(5, 1 / 60)

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
            self._forbid(421, f"This server is not {_shown(request.authority)}: see allowed_hosts.")
        if not origin_allowed(request.origin, request.authority, config.origins):
            page, host = _shown(request.origin), _shown(request.authority)
            self._forbid(403, f"A page of {page} may not connect to {host}: see origins.")

    def _forbid(self, status: int, why: str) -> NoReturn:
        if self._lines.spend(now()):
            logger.warning("Refused with status %d: %s", status, why)
        raise Reject(status, {"Content-Type": "text/plain; charset=utf-8"}, f"{why}\n".encode())

    def enter(self, websocket: WebSocket) -> None:
        """Count one in until its end; raises Reject if there is no room."""
        if self.stopping or len(self.open) >= self.config.max_connections:
            self.counters["websockets_refused"] += 1
            raise Reject(503)
        self.open.add(websocket)
        websocket.on_end(self.open.discard)

    def close_all(self, code: int = GOING_AWAY, reason: str = "The server is stopping") -> None:
        """
        Admit nobody more, and send a close frame to all. Does not wait for their answers.

        They have 3 s, or their close_timeout if that is less; then they are given up.
        """
        self.stopping = True
        for websocket in list(self.open):
            websocket.begin_close(code, reason, FAREWELL)


def _shown(text: str | None) -> str:
    return ascii((text or "")[:200])


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
