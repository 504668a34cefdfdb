"""
Lending a connection to a WebSocket for as long as an application runs.

What every host of a LazyWebSocket has in common, whoever owns the socket: how an application's end
becomes the WebSocket's, and what of the connection has been read already.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import gevent

from ..errors import GwtError
from ..observe import Counters
from ..states import WebSocketState
from ..websocket_lazy import LazyWebSocket
from .gate import GOING_AWAY, INTERNAL_ERROR

__all__ = ["read_ahead", "run_with"]

logger = logging.getLogger("gwt.server")

T = TypeVar("T")


def run_with(
    websocket: LazyWebSocket,
    application: Callable[[], T],
    counters: Counters,
    *,
    failed: Callable[[], bool] = bool,
) -> T | None:
    """
    Run an application, and end its WebSocket with it: 1000, or 1011 if it raises, which is logged.

    `failed` is asked whether a framework has caught what it raised, and logged it.

    Waits until the socket is free again. Returns what the application returns, None if it raised.
    Raises what it raised if the WebSocket was neither accepted nor refused: HTTP has an answer.
    """
    try:
        result = application()
    except (Exception, SystemExit, gevent.Timeout) as exc:
        # Boundary to user code: the application. That the WebSocket ended under it is no error.
        if websocket.state is WebSocketState.CONNECTING:
            raise
        if isinstance(exc, GwtError) and websocket.state is not WebSocketState.OPEN:
            logger.debug("WebSocket %s ended: %s", websocket.id, exc)
            websocket.close()
        else:
            counters["handler_errors"] += 1
            logger.exception("The application failed for %s.", websocket.path)
            websocket.close(INTERNAL_ERROR, "internal error")
        return None
    else:
        if websocket.accepted:
            if failed():
                websocket.close(INTERNAL_ERROR, "internal error")
            else:
                websocket.close()
        return result
    finally:
        websocket.expire()
        if websocket.accepted and not websocket.closed:
            # Killed: the server stops.
            websocket.begin_close(GOING_AWAY, "The server is stopping")
            websocket.abort()
        # The server closes a socket when its handler returns, and this one is being watched.
        websocket.wait_gone()


def read_ahead(sock: Any, file: Any) -> bytes:
    """
    Return what a socket's buffered file holds behind a request. Never waits.

    The socket does not wait either from then on, and the file must not be read any more. What TLS
    has deciphered beyond the file stays in it: TcpConnection asks for that when it begins to read.
    """
    sock.setblocking(False)
    early = b""
    if hasattr(getattr(file, "raw", None), "dry_up"):
        # The rest is left to whoever takes the socket, without asking for it in vain.
        file.raw.dry_up()
    with suppress(OSError):
        # Raises if nothing is there yet.
        early = file.read(len(file.peek())) or b""
    return early
