"""
LimitedHandler: gevent.pywsgi's handler of one HTTP/1.1 connection, with the limits that it lacks.

How long a peer may take (for a header, between requests, for a body, to read a response), how long
a header may be, and which requests are not read because two parsers could read them differently.
It knows no WebSocket, and needs of its server only what pywsgi's has.
"""

from __future__ import annotations

import errno
import fcntl
import io
import logging
import re
import ssl as _stdlib_ssl
import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import gevent
from gevent.pywsgi import WSGIHandler

from ..config import ServerConfig
from ..net.timers import now
from ..observe import Counters
from .headers import Headers, read_headers

__all__ = ["LimitedHandler"]

logger = logging.getLogger("gwt.server")

# RFC 9112 3: what the first line may be.
_REQUEST_LINE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [\x21-\x7e\x80-\xff]+ HTTP/1\.[0-9]\r\n")

_REQUEST_TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

_DEFAULTS = ServerConfig()


class _Inflow(io.RawIOBase):
    """
    What a peer sends. While a body is read, waiting for it uses up an allowance of seconds.

    What comes earns it back, up to the grace. Only the time in here counts: an application that
    reads slowly costs its peer nothing. What the peer breaks off is a reset, also where it is said
    in another way: pywsgi would take it for a failure, and log it.
    """

    def __init__(self, raw: Any, sock: Any, first: bytes) -> None:
        self._raw = raw
        # What was read before.
        self._first = first
        # Where those look for it who take a connection over from pywsgi.
        self._sock = sock
        self._allowance: float | None = None
        self._dry = self._in_body = False
        self._grace = self._rate = 0.0
        self._late: Callable[[], None] | None = None

    def begin_body(self) -> None:
        """The peer has announced more, and is not to end before it has sent that."""
        self._in_body = True

    def expect(self, rate: int, grace: float, late: Callable[[], None]) -> None:
        """From here on `rate` bytes a second are due; `late` is called once if they do not come."""
        self._allowance, self._grace, self._rate, self._late = grace, grace, rate, late

    def relax(self) -> None:
        """Expect nothing more."""
        self._allowance = self._late = None
        self._in_body = False

    def dry_up(self) -> None:
        """Read no more: what is in the buffer before this is all that there is."""
        self._dry = True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._first:
            count: int | None = min(len(buffer), len(self._first))
            buffer[:count], self._first = self._first[:count], self._first[count:]
            return count
        if self._dry:
            return None
        if self._allowance is None:
            return self._take(buffer)
        if not self._allowance:
            # Its end was told; the rest is not to be read.
            raise self._error()
        began = now()
        limit = gevent.Timeout.start_new(self._allowance)
        try:
            count = self._take(buffer)
        except gevent.Timeout as exc:
            if exc is not limit:
                raise
            # After a stall of the hub the time was up before anybody looked what had come.
            count = self._read_waiting(buffer)
        finally:
            limit.close()
        if count is None:
            self._allowance = 0.0
            if self._late is not None:
                self._late()
            raise self._error()
        left = max(0.0, self._allowance - (now() - began))
        self._allowance = min(self._grace, left + count / self._rate)
        return count

    def _take(self, buffer: Any) -> int | None:
        try:
            count: int | None = self._raw.readinto(buffer)
        except (_stdlib_ssl.SSLWantReadError, _stdlib_ssl.SSLWantWriteError):
            raise
        except _stdlib_ssl.SSLError as exc:
            raise ConnectionResetError(errno.ECONNRESET, f"TLS was broken: {exc}") from exc
        if count == 0 and self._in_body:
            raise ConnectionResetError(errno.ECONNRESET, "The body of the request is cut off")
        return count

    @staticmethod
    def _error() -> OSError:
        return OSError(errno.ETIMEDOUT, "The body of the request comes too slowly")

    def _read_waiting(self, buffer: Any) -> int | None:
        timeout = self._sock.gettimeout()
        self._sock.settimeout(0)
        try:
            return self._take(buffer)
        except _stdlib_ssl.SSLWantReadError:
            return None
        finally:
            self._sock.settimeout(timeout)

    def fileno(self) -> int:
        number: int = self._raw.fileno()
        return number

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


class LimitedHandler(WSGIHandler):  # type: ignore[misc]
    """One HTTP/1.1 connection, whose peer has limits. Subclasses say by limits() which."""

    # Also a peer whose connection timed out, or that let one of our limits pass, is no failure.
    ignored_socket_errors = (*WSGIHandler.ignored_socket_errors, errno.ETIMEDOUT)

    socket: Any
    rfile: Any
    environ: Any
    headers: Any
    status: Any
    code: Any
    _first = True
    _timeout: Any = None

    # 408 was sent: what the application still says goes nowhere.
    _given_up = False

    def __init__(
        self,
        sock: Any,
        address: Any,
        server: Any,
        rfile: Any = None,
        *,
        first: bytes = b"",
        spent: float = 0.0,
    ) -> None:
        raw = sock.makefile("rb", 0) if rfile is None else rfile.detach()
        super().__init__(sock, address, server, io.BufferedReader(_Inflow(raw, sock, first)))
        # Seconds that the first bytes took.
        self._spent = spent
        self.config, self.counters = self.limits()

    def limits(self) -> tuple[ServerConfig, Counters]:
        """Return the options of this connection, and where to count what they refuse."""
        return _DEFAULTS, Counters()

    def handle(self) -> None:
        # pywsgi lets go of errors from its answers to malformed requests: the peer has gone.
        with suppress(OSError):
            super().handle()

    # The header

    def handle_one_request(self) -> Any:
        # Between requests nothing is kept of the last one.
        self.environ = None
        # The first request has the time of a header only: the peer connected to say something.
        self._first = self.requestline is None
        self._timeout = gevent.Timeout.start_new(
            max(0.0, self.config.request_timeout - self._spent)
            if self._first
            else self.config.http_keep_alive_timeout
        )
        try:
            return super().handle_one_request()
        except gevent.Timeout as exc:
            if exc is not self._timeout:
                raise
            self.counters["requests_timed_out"] += 1
            return None
        finally:
            self._timeout.close()

    def read_requestline(self) -> str:
        line: str = super().read_requestline()
        # RFC 9112 2.2: some clients end a body with a line too many.
        return line if line != "\r\n" else str(super().read_requestline())

    def read_request(self, raw_requestline: str) -> Any:
        if not _REQUEST_LINE.fullmatch(raw_requestline):
            raise ValueError("the request line is malformed")
        done = super().read_request(raw_requestline)
        # RFC 9112 3.2.
        hosts = self.headers.get_all("host")
        if len(hosts) > 1 or (not hosts and self.request_version != "HTTP/1.0"):
            raise ValueError("Host must be there once")
        if self.server.full():
            # Others wait to be accepted.
            self.close_connection = True
        return done

    def MessageClass(self, file: Any, *_: Any) -> Headers:
        if not self._first:
            # Between two requests other limits hold than within one.
            self._timeout.close()
            self._timeout = gevent.Timeout.start_new(self.config.request_timeout)
        # pywsgi's parser ends a header silently at a line that it does not understand, and takes a
        # CR for the end of one. And it is the standard library's for mail, which takes its time.
        headers = read_headers(file)
        self._timeout.close()
        lengths = headers.get_all("content-length")
        codings = headers.get_all("transfer-encoding")
        # A request that two parsers could end in two places is how one is smuggled through a
        # proxy (RFC 9112 6.1, 6.3).
        if codings and (
            lengths
            or [each.strip().lower() for each in codings] != ["chunked"]
            or self.request_version == "HTTP/1.0"
        ):
            raise ValueError("the length of the body is ambiguous")
        if len(lengths) > 1 or not all(each.isascii() and each.isdigit() for each in lengths):
            raise ValueError("Content-Length is malformed")
        return headers

    def _handle_client_error(self, ex: Exception) -> Any:
        # pywsgi's own writes a line, or a traceback, to stderr: as many as a peer likes.
        if isinstance(ex, OSError) and self.environ is None:
            # The connection broke within a header.
            return None
        self.counters["requests_malformed"] += 1
        logger.debug("A request of %s is refused: %s", self.client_address, ex)
        return "400", b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

    # The body

    @property
    def _has_body(self) -> bool:
        return bool(self.content_length) or "transfer-encoding" in self.headers

    def get_environ(self) -> Any:
        environ = super().get_environ()
        if self._has_body and environ["wsgi.input"] is not self.wsgi_input:
            # pywsgi bares the connection to whoever asks for an upgrade; but a body ends somewhere,
            # and behind it may be another request.
            environ["wsgi.input"] = self.wsgi_input
            environ["wsgi.input_terminated"] = True
        return environ

    def handle_one_response(self) -> None:
        inflow, rate = self.rfile.raw, self.config.min_body_rate
        if self._has_body:
            inflow.begin_body()
            if rate is not None:
                inflow.expect(rate, self.config.body_grace, self._give_up)
        try:
            super().handle_one_response()
        finally:
            inflow.relax()

    def _give_up(self) -> None:
        """The body comes too slowly: answer, unless the application has begun to."""
        self.counters["bodies_too_slow"] += 1
        self.close_connection = True
        if not self.headers_sent:
            self._given_up = True
            with suppress(OSError):
                self.socket.sendall(_REQUEST_TIMEOUT)

    # The response

    def write(self, data: bytes) -> None:
        if self._given_up:
            raise BrokenPipeError(errno.EPIPE, "The request has been answered with 408")
        super().write(data)

    def _sendall(self, data: Any) -> None:
        """Send, as long as the peer reads: pywsgi would wait for ever."""
        try:
            self._send(data)
        except OSError as exc:
            self.status = f"socket error: {exc}"
            self.code = -abs(self.code)
            if isinstance(exc, _stdlib_ssl.SSLError):
                # The peer has gone, or broken TLS: to pywsgi that would be a failure of ours.
                raise BrokenPipeError(errno.EPIPE, str(exc)) from exc
            raise
        self.response_length += len(data)

    def _send(self, data: Any) -> None:
        if self.config.response_timeout is None:
            self.socket.sendall(data)
            return
        view = memoryview(data)
        left = -1
        while view:
            # Twice in the time that a response may stand still: is anything of it leaving?
            limit = gevent.Timeout.start_new(self.config.response_timeout / 2)
            try:
                view = view[self.socket.send(view) :]
                left = -1
            except gevent.Timeout as exc:
                if exc is not limit:
                    raise
                before, left = left, _unacknowledged(self.socket.fileno())
                if left == before:
                    self.counters["responses_stalled"] += 1
                    raise OSError(errno.ETIMEDOUT, "The response is not read") from None
            finally:
                limit.close()


def _unacknowledged(descriptor: int) -> int:
    """
    Return how many bytes the kernel still holds for a peer.

    Only by this a slow reader can be told from none: a full socket is writable again when a third
    of its buffer is free, and that may be megabytes.
    """
    answer = fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4))
    return int.from_bytes(answer, sys.byteorder)
