"""
What a WebSocket hands out beside messages: the event of a ping, errors, the environ of old code.

Nothing here waits but Acknowledgement.wait().
"""

from __future__ import annotations

from typing import Any

from gevent.event import Event

from .errors import WebSocketClosed
from .protocol.websocket import WebSocketProtocol
from .request import Request

__all__ = ["Acknowledgement", "closing_error", "old_environ"]


class Acknowledgement(Event):  # type: ignore[misc]
    """The event of one ping, which its pong sets; `latency` is then in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.latency: float | None = None
        self._error: WebSocketClosed | None = None

    def answered(self, latency: float | None) -> None:
        """Fed from the WebSocket: the pong is there."""
        self.latency = latency
        self.set()

    def failed(self, error: WebSocketClosed) -> None:
        """Fed from the WebSocket: it will never come."""
        self._error = error
        self.set()

    def is_set(self) -> bool:
        """Whether the pong has come."""
        return self._error is None and bool(super().is_set())

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the pong; False after `timeout`. Raises WebSocketClosed if the end came."""
        done = bool(super().wait(timeout))
        if self._error is not None:
            raise self._error.again()
        return done


def closing_error(protocol: WebSocketProtocol) -> WebSocketClosed:
    """Return the error of one who sends while the WebSocket is being closed."""
    rcvd, sent = protocol.close_rcvd, protocol.close_sent
    # As if the other side had agreed already.
    return WebSocketClosed.of(rcvd or sent, sent or rcvd, remote=sent is None)


def old_environ(request: Request) -> dict[str, Any]:
    """Return a request as WSGI (PEP 3333) has it, without what only a WSGI server knows."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": request.path.encode("utf-8", "surrogateescape").decode("latin-1"),
        "QUERY_STRING": request.query_string,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": request.authority,
    }
    if isinstance(request.remote_address, tuple):
        environ["REMOTE_ADDR"], port = request.remote_address[:2]
        environ["REMOTE_PORT"] = str(port)
    for name, value in request.headers.items():
        environ["HTTP_" + name.upper().replace("-", "_")] = value
    return environ
