"""
The socket of a request, for applications that speak WebSocket on it by themselves.

simple-websocket does, and so do flask-sock and python-socketio by it: they look for the socket in
``environ["wsgi.input"]``. What ``Loan`` puts there behaves as they take a socket to behave: send()
sends everything, the frames of several greenlets do not interleave, and what came behind the
request is received first. What else gwt does for its own WebSockets does not reach them.
"""

from __future__ import annotations

import errno
import socket as _socket
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import gevent.socket
from gevent.event import Event

__all__ = ["Loan", "RawSocket"]

# Seconds that the end of the application waits for whoever still reads, in another greenlet, the
# peer's answer to a close frame.
_LINGER = 1.0


class RawSocket:
    """A socket whose send() sends all; everything else is the socket's own."""

    def __init__(self, sock: Any, loan: Loan) -> None:
        self._sock = sock
        self._loan = loan

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def send(self, data: Any, flags: int = 0) -> int:
        """Send all of `data` and return its length; waits as sendall() does."""
        self.sendall(data, flags)
        return memoryview(data).nbytes

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send all of `data` behind what others are sending. Waits, and raises OSError."""
        with self._loan.turn(data):
            self._sock.sendall(data, flags)

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Return up to `size` bytes, first those that came with the request."""
        data: bytes = self._loan.early(size) or self._sock.recv(size, flags)
        return data

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Receive into a buffer, first what came with the request; return how many bytes."""
        view = memoryview(buffer).cast("B")
        size = min(nbytes, view.nbytes) if nbytes else view.nbytes
        if early := self._loan.early(size):
            view[: len(early)] = early
            return len(early)
        count: int = self._sock.recv_into(buffer, nbytes, flags)
        return count

    def dup(self) -> RawSocket:
        """Return the same connection as another socket; NotImplementedError for TLS."""
        copy = RawSocket(self._sock.dup(), self._loan)
        self._loan.copies.append(copy)
        return copy

    def close(self) -> None:
        """Close a copy; of the first one only say so, since it is the server's to close."""
        if self in self._loan.copies:
            self._loan.copies.remove(self)
            self._sock.close()
        if not self._loan.copies:
            self._loan.returned.set()


class _Turn:
    """Who sends now, in the order of asking: compressed frames depend on the one before."""

    def __init__(self, loan: Loan, data: Any) -> None:
        self._loan = loan
        self._data = data
        self._due = Event()

    def __enter__(self) -> None:
        queue = self._loan.senders
        queue.append(self)
        try:
            if queue[0] is not self:
                self._due.wait()
            self._loan.begin(self._data)
        except BaseException:
            self._leave()
            raise

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None:
            # Half a frame may have gone, and cannot be taken back.
            self._loan.shutdown()
        self._leave()

    def _leave(self) -> None:
        queue = self._loan.senders
        queue.remove(self)
        if queue:
            queue[0].wake()

    def wake(self) -> None:
        self._due.set()


class Loan:
    """
    The socket of one request while an application has it. A file, as ``environ["wsgi.input"]`` is.

    `begin` is called with the first bytes that are sent, which answer the request; `drain` returns
    what the file has read beyond it, and does not wait.
    """

    def __init__(
        self, sock: Any, file: Any, begin: Callable[[Any], None], drain: Callable[[], bytes]
    ) -> None:
        self._socket = sock
        self._file = file
        self._begin = begin
        self._drain: Callable[[], bytes] | None = drain
        self._early = b""
        self.senders: deque[_Turn] = deque()
        self.copies: list[RawSocket] = []

        # Whether the application has answered on the socket.
        self.used = False

        # Set when nobody has the socket any more.
        self.returned = Event()
        self._over = False

    # Where simple-websocket looks: ``environ["wsgi.input"].raw._sock``.

    @property
    def raw(self) -> Loan:
        return self

    @property
    def _sock(self) -> RawSocket:
        return RawSocket(self._socket, self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    # A request for a WebSocket has no body: to wait for one would be to wait for the peer's end.

    def read(self, size: int | None = -1) -> bytes:
        """Return the body: nothing."""
        return b""

    read1 = readline = read

    def readlines(self, hint: int | None = -1) -> list[bytes]:
        """Return the lines of the body: none."""
        return []

    def __iter__(self) -> Iterator[bytes]:
        return iter(())

    def turn(self, data: Any) -> _Turn:
        """Return a context in which nobody else sends."""
        return _Turn(self, data)

    def begin(self, data: Any) -> None:
        """Note what is about to be sent; raises RuntimeError if a WebSocket has the socket."""
        if self._over:
            raise OSError(errno.EBADF, "The request is over, and its socket was taken back")
        if not self.used:
            self._begin(data)
            self.used = True

    def early(self, size: int) -> bytes:
        """Return what came behind the request and was not received yet."""
        if self._drain is not None:
            drain, self._drain = self._drain, None
            self._early = drain()
        data, self._early = self._early[:size], self._early[size:]
        return data

    def linger(self) -> None:
        """End our side, and wait a little until nobody reads any more."""
        if self.used:
            self._shut(_socket.SHUT_WR)
            self.returned.wait(_LINGER)

    def shutdown(self) -> None:
        """End the connection if it was used: whoever still reads gets the end."""
        if self.used:
            self._shut(_socket.SHUT_RDWR)

    def end(self) -> None:
        """Take the socket back, from a greenlet that still uses it too."""
        self.shutdown()
        self._over = True
        # Both refer to the request, which refers to this.
        del self._begin
        self._drain = None

    def _shut(self, how: int) -> None:
        # Below TLS, whose own shutdown() would let a reader take ciphertext for its data.
        with suppress(OSError):
            gevent.socket.socket.shutdown(self._socket, how)
