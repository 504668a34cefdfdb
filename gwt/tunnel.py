"""
A tunnel as the floor above sees it: asked for, answered, and then a stream.

Both ends have one of these for each CONNECT request (RFC 9114 4.4); who connects it to TCP is the
server's affair. Methods named feed_* are fed from the connection, run in the quiet zone, and only
store and notify.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import (
    GwtError,
    HandshakeError,
    SessionRejected,
    StreamReset,
    StreamStopped,
    anew,
)
from .net.waiting import Deadline, Signal
from .protocol import codes, events
from .protocol.requests import decode_headers
from .stream import WebTransportStream
from .stream_common import CONFIGURED

if TYPE_CHECKING:
    from .connection import WebTransportConnection

__all__ = ["Tunnel"]


# What HTTP/3's codes (RFC 9114 8.1) mean for a tunnel, of those that its other end sends.
_MEANINGS = {
    codes.H3_NO_ERROR: "there was no error",
    codes.H3_REQUEST_REJECTED: "the proxy had not begun with it",
    codes.H3_REQUEST_CANCELLED: "it was given up",
    codes.H3_MESSAGE_ERROR: "it was found malformed",
    codes.H3_CONNECT_ERROR: "its TCP connection broke, or was silent for too long",
}


# How much of a Proxy-Status is shown in a message.
_MOST_SAID = 200


class _TunnelStream(WebTransportStream):
    """A stream whose errors say what HTTP/3's codes mean."""

    def __init__(self, tunnel: Tunnel) -> None:
        super().__init__(tunnel, tunnel.stream_id)  # type: ignore[arg-type]
        self._target = tunnel.target

    def feed_reset(self, code: int | None, reliable: int = 0) -> None:
        super().feed_reset(code, reliable)
        self._explain(self._read_error, code)

    def feed_stopped(self, code: int | None) -> None:
        super().feed_stopped(code)
        self._explain(self._write_error, code)

    def _explain(self, error: GwtError | None, code: int | None) -> None:
        if isinstance(error, (StreamReset, StreamStopped)) and error.code == code is not None:
            what = "was reset" if isinstance(error, StreamReset) else "takes nothing any more"
            meaning = f": {_MEANINGS[code]}" if code in _MEANINGS else ""
            error.args = (f"The tunnel to {self._target} {what}, with code {code:#x}{meaning}.",)


class Tunnel:
    """
    One CONNECT request and what became of it; ``stream.session`` of its stream.

    `target` is "host:port". `headers` are those of the request on a server, of the answer on a
    client.
    """

    def __init__(
        self,
        connection: WebTransportConnection,
        stream_id: int,
        target: str,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.connection = connection
        self.stream_id = stream_id
        self.target = target
        self.headers = headers or {}

        # Whether the answer was 2xx, and why there is no tunnel (any more).
        self.accepted = False
        # Whether the proxy did not even begin with the request: another connection may take it.
        self.unprocessed = False
        self._error: GwtError | None = None
        self._changed = Signal()
        self.stream: WebTransportStream = _TunnelStream(self)
        connection.add_tunnel(self)
        self.stream.on_end(self._over)

    def __repr__(self) -> str:
        return f"<Tunnel {self.stream_id} to {self.target} {self.stream.state.value}>"

    @property
    def remote_address(self) -> Any:
        """The peer's address as (host, port)."""
        return self.connection.remote_address

    def close_timeout(self, timeout: float | None) -> float | None:
        """Return a timeout of close(), or the configured one if it was left out."""
        return self.connection.config.close_timeout if timeout is CONFIGURED else timeout

    def _over(self, _: object) -> None:
        self.connection.forget_tunnel(self.stream_id)

    def cancel(self) -> None:
        """Give up both ways, whether it was answered or not. Does not wait."""
        self.connection.protocol.cancel_tunnel(self.stream_id)
        self.feed_refused(None, codes.H3_REQUEST_CANCELLED, [])
        self.connection.flush_soon()

    # Server

    def accept(self) -> bool:
        """Answer with 200; returns False if the client is gone meanwhile."""
        self.accepted = self.connection.protocol.accept_tunnel(self.stream_id)
        self.connection.flush_soon()
        return self.accepted

    def reject(self, status: int, headers: events.Headers | None = None, body: bytes = b"") -> None:
        """Answer with another status."""
        self.connection.protocol.reject_tunnel(self.stream_id, status, headers, body)
        self.feed_refused(status, None, headers or [])
        self.connection.flush_soon()

    # Client

    def wait_ready(self, deadline: Deadline) -> None:
        """Wait for the proxy's answer; raises what came instead of 2xx, or TimeoutError."""
        try:
            while not self.accepted and self._error is None:
                self._changed.wait(deadline)
        except BaseException:
            # Timed out, or killed: nobody will ever use it.
            self.cancel()
            raise
        if not self.accepted:
            assert self._error is not None
            raise anew(self._error)

    # Fed from the connection

    def feed_accepted(self, headers: events.Headers) -> None:
        """The proxy has connected: what follows is the target's."""
        self.headers = decode_headers(headers)
        self.accepted = True
        self._changed.notify()

    def feed_refused(self, status: int | None, code: int | None, headers: events.Headers) -> None:
        """There is no tunnel."""
        self.unprocessed = code == codes.H3_REQUEST_REJECTED
        self.feed_ended(refusal(self.target, status, code, headers))

    def feed_ended(self, error: GwtError) -> None:
        """Nothing more comes or goes."""
        if self._error is None:
            self._error = error
        self.stream.session_over(error)
        self._changed.notify()


def refusal(
    target: str, status: int | None, code: int | None, headers: events.Headers
) -> HandshakeError:
    """Return the error for a request that was answered with a status, or reset with a code."""
    if status is None:
        code = code or 0
        meaning = f": {_MEANINGS[code]}" if code in _MEANINGS else ""
        return HandshakeError(
            f"The request for a tunnel to {target} was reset with code {code:#x}{meaning}.",
            stage="connect",
        )
    known = decode_headers(headers)
    # RFC 9209: what a proxy has to say beyond the status.
    said = known.get("proxy-status", "")[:_MOST_SAID]
    why = f" ({''.join(c if c.isprintable() else '?' for c in said)})" if said else ""
    error = SessionRejected(
        status, known, f"A tunnel to {target} was refused with HTTP status {status}{why}."
    )
    error.stage = "connect"
    return error
