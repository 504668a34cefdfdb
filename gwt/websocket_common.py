"""
What a WebSocket is made of, and what it hands out beside messages: pings, errors, old environs.

Nothing here waits but Acknowledgement.wait().
"""

from __future__ import annotations

import itertools
import time
from typing import Any

from gevent.event import Event

from .config import ClientConfig, ServerConfig
from .errors import WebSocketClosed
from .net.tcp import TcpConnection
from .protocol.websocket import WebSocketProtocol
from .protocol.wshandshake import Agreement
from .request import Request

__all__ = [
    "Acknowledgement",
    "Data",
    "closing_error",
    "is_buffer",
    "new_id",
    "old_environ",
    "protocol_on",
    "typed",
]

Data = str | bytes | bytearray | memoryview

_ids = itertools.count(1)


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


def new_id() -> str:
    """Return an id that no other WebSocket of the process has."""
    return f"websocket-{next(_ids)}"


def protocol_on(
    connection: TcpConnection,
    agreement: Agreement,
    config: ClientConfig | ServerConfig,
    *,
    is_client: bool,
) -> WebSocketProtocol:
    """Return the state machine of a WebSocket whose handshake is done on a connection."""
    if config.ping_interval is not None and config.ping_timeout is not None:
        # A peer that is held back, or dead, while we do not look for its pongs.
        connection.give_up_after(config.ping_interval + config.ping_timeout)
    return WebSocketProtocol(
        is_client,
        agreement=agreement,
        max_size=config.max_size,
        ping_interval=config.ping_interval,
        ping_timeout=config.ping_timeout,
        close_timeout=config.websocket_close_timeout,
        compression=config.compression,
        now=time.monotonic(),
    )


def typed(message: Any, text: bool | None) -> str | bytes:
    """Return a message as str, which goes as text, or bytes, which go as binary."""
    if isinstance(message, str):
        return message.encode() if text is False else message
    if not isinstance(message, (bytes, bytearray, memoryview)) and not is_buffer(message):
        raise TypeError(f"A message is text or bytes, not {type(message).__name__}.")
    data = message if type(message) is bytes else bytes(message)
    return data.decode() if text else data


def is_buffer(message: object) -> bool:
    """Whether something is bytes-like though it is none of the usual types: an array, a map."""
    try:
        memoryview(message)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True
