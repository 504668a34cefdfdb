"""
Where a WSGI server keeps the socket of a request, and how it is told that the socket was used up.

``find`` knows gunicorn's workers, gevent.pywsgi and Werkzeug's server. A socket is lent, never
given away: its server closes it as ever, when the application has returned. Until then it may not
notice anything, so that what it would still send must go nowhere, and be no error to it.
"""

from __future__ import annotations

import errno
import socket as _stdlib_socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import gevent.socket

from ..server.lend import read_ahead

__all__ = ["ADVICE", "Lent", "find"]

ADVICE = (
    "This WSGI server cannot open WebSockets. Those that can: "
    "`python -m gwt serve MODULE:APPLICATION`, gunicorn with the worker "
    "gwt.integrations.gunicorn.Worker, gevent, gevent_pywsgi or gthread, gevent.pywsgi, and "
    "Werkzeug's server with threads."
)


class Lent:
    """
    A server's socket, which the server closes: for everybody else closing it ends it, both ways.

    What a server sends on it afterwards fails with EPIPE, as if the peer had gone.
    """

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self.recv = sock.recv
        self.send = sock.send

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def close(self) -> None:
        """End the connection."""
        # Reading, too: no server is to take what a peer still says for its next request.
        with suppress(OSError):
            self._sock.shutdown(_stdlib_socket.SHUT_RDWR)


class _Gone:
    """What an application returns to a server that looks whether its peer is still there."""

    def __iter__(self) -> Iterator[bytes]:
        raise BrokenPipeError(errno.EPIPE, "The WebSocket of this connection has ended")


# The socket, a function that takes what was read behind the request, which is called once and
# makes the socket non-blocking, and what the application returns when the WebSocket has ended.
Found = tuple[Lent, Callable[[], bytes], Iterable[bytes]]


def find(environ: dict[str, Any]) -> Found | None:
    """Return the socket of a request, or None on a server that has none to lend."""
    if environ.get("SERVER_PROTOCOL") != "HTTP/1.1":
        # On HTTP/2 gunicorn has a socket there, too, but it is that of all requests.
        return None
    file = environ.get("wsgi.input")
    for name, ahead in (("gunicorn.socket", _unread), ("werkzeug.socket", read_ahead)):
        sock = environ.get(name)
        if sock is not None:
            # Otherwise it serves one request at a time, and gunicorn kills a worker that does
            # nothing else for half a minute.
            if not environ.get("wsgi.multithread"):
                return None
            # Both log the status, and find the peer gone when they send it.
            return Lent(sock), partial(ahead, sock, file), ()
    # pywsgi gives its file away where an upgrade is asked for. gunicorn's gevent_pywsgi, too.
    file = getattr(file, "rfile", file)
    sock = getattr(getattr(file, "raw", None), "_sock", None)
    if isinstance(sock, gevent.socket.socket):
        # It would log the error of sending, as the status, on gunicorn.
        return Lent(sock), partial(read_ahead, sock, file), _Gone()
    return None


def _unread(sock: Any, body: Any) -> bytes:
    """Return what gunicorn's parser has read behind a request. Never waits."""
    sock.setblocking(False)
    unreader = getattr(getattr(body, "reader", None), "unreader", None)
    # None if the application's own middleware has put something else there. A client that waits
    # for its answer, which it must (RFC 6455 4.1), has sent nothing yet.
    return b"" if unreader is None else bytes(unreader.buf.getvalue())
