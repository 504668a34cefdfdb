"""
Every exception that gwt raises, and how one is raised again. Floor 0: imports nothing of gwt.

    GwtError
     +-- ConfigError (ValueError)               alias ConfigurationError
     |    `-- UnknownOption (TypeError)
     +-- ProtocolError
     |    +-- LocalProtocolError                we, or our caller, broke a rule
     |    `-- RemoteProtocolError               the peer broke a rule
     +-- ConnectionClosed (ConnectionError)
     +-- HandshakeError (ConnectionError)
     |    +-- SessionRejected                   the server answered CONNECT with a status
     |    +-- RequirementsNotMet                the peer lacks what WebTransport needs
     |    `-- CertificateError
     +-- SessionError (OSError)
     |    `-- SessionClosed
     +-- StreamError (OSError)
     |    +-- StreamReset                       the sender gave up: raised by reads
     |    +-- StreamStopped                     the receiver lost interest: raised by writes
     |    `-- IncompleteRead (EOFError)
     +-- WebSocketClosed (OSError)              alias WebSocketError
     |    +-- WebSocketClosedOK
     |    `-- WebSocketClosedError
     +-- LimitExceeded
     |    +-- DatagramTooLarge
     |    +-- MessageTooLarge
     |    +-- ApplicationClosed                 the application instance behind a queue is gone
     |    +-- TooManyConnections (ConnectionError)
     |    +-- TooManySessions (SessionError)
     |    +-- TooManyStreams (StreamError)
     |    `-- PoolExhausted (TimeoutError)
     +-- ConcurrencyError (RuntimeError)
     +-- ClientError
     |    `-- ClientTimeout (TimeoutError)
     `-- Reject                                 raised by middleware to refuse a peer

``str()`` of each is a sentence: what happened, who did it, code and reason. Timeouts are the
builtin TimeoutError. No class here shadows a builtin.
"""

from __future__ import annotations

import builtins
import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

__all__ = [
    "ApplicationClosed",
    "CertificateError",
    "ClientError",
    "ClientTimeout",
    "CloseFrame",
    "ConcurrencyError",
    "ConfigError",
    "ConfigurationError",
    "ConnectionClosed",
    "DatagramTooLarge",
    "GwtError",
    "HandshakeError",
    "IncompleteRead",
    "LimitExceeded",
    "LocalProtocolError",
    "MessageTooLarge",
    "PoolExhausted",
    "ProtocolError",
    "Reject",
    "RemoteProtocolError",
    "RequirementsNotMet",
    "SessionClosed",
    "SessionError",
    "SessionRejected",
    "StreamError",
    "StreamReset",
    "StreamStopped",
    "TooManyConnections",
    "TooManySessions",
    "TooManyStreams",
    "UnknownOption",
    "WebSocketClosed",
    "WebSocketClosedError",
    "WebSocketClosedOK",
    "WebSocketError",
]


def _who(remote: bool) -> str:
    return "by the peer" if remote else "locally"


def _code(code: int | None) -> str:
    if code is None:
        return "without a code"
    # Application codes are read in decimal, HTTP/3's and WebTransport's own in hex.
    return f"with code {code}" if code < 0x100000 else f"with code {code:#x}"


def _restore(kind: type[GwtError], args: tuple[Any, ...], state: dict[str, Any]) -> GwtError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class GwtError(Exception):
    """The root of everything gwt raises on purpose. Can be copied and pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Not by calling the class with `args`, as exceptions do otherwise: they hold the sentence,
        # which is no argument of most constructors here, and none that a subclass may have.
        return _restore, (type(self), self.args, dict(self.__dict__))


_Error = TypeVar("_Error", bound=GwtError)


def anew(error: _Error) -> _Error:
    """
    Return a copy to raise, with the same cause and no traceback.

    What ended a session is raised to everybody who waits for it, and to everybody who comes
    later. Each raise of one object would lengthen its traceback, and hold on to the frames.
    """
    again = copy.copy(error)
    if error.__cause__ is not None:
        again.__cause__ = error.__cause__
    return again


class ConfigError(GwtError, ValueError):
    """An option has a value that it cannot have; ``field`` names it."""

    def __init__(self, message: str, *, field: str = "", value: Any = None) -> None:
        super().__init__(message)
        self.field = field
        self.value = value


ConfigurationError = ConfigError


class UnknownOption(ConfigError, TypeError):
    """An option was given that does not exist; ``field`` names it."""


class ProtocolError(GwtError):
    """A rule of the protocol was broken; ``code`` is the wire code, where there is one."""

    def __init__(self, message: str, *, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


class LocalProtocolError(ProtocolError):
    """Our side tried what the protocol forbids."""


class RemoteProtocolError(ProtocolError):
    """The peer did what the protocol forbids."""


class ConnectionClosed(GwtError, builtins.ConnectionError):
    """The connection ended; ``remote`` tells whether the peer ended it."""

    def __init__(
        self,
        code: int | None = None,
        reason: str = "",
        remote: bool = False,
        *,
        application: bool = True,
    ) -> None:
        self.code = code
        self.reason = reason
        self.remote = remote
        # Whether the code is HTTP/3's; otherwise it is QUIC's own.
        self.application = application
        because = f": {reason}" if reason else ""
        super().__init__(f"The connection was closed {_who(remote)} {_code(code)}{because}.")


class HandshakeError(GwtError, builtins.ConnectionError):
    """
    No session, or no WebSocket, came about.

    ``stage`` is resolve, connect, tls, http3, webtransport, or websocket.
    """

    def __init__(self, message: str, *, stage: str = "connect") -> None:
        super().__init__(message)
        self.stage = stage


class SessionRejected(HandshakeError):
    """The server answered the request for a session with a status other than 2xx."""

    def __init__(
        self, status: int, headers: Mapping[str, str] | None = None, message: str = ""
    ) -> None:
        super().__init__(
            message or f"The server rejected the session with HTTP status {status}.",
            stage="webtransport",
        )
        self.status = status
        self.headers = dict(headers or {})
        # The beginning of the answer's body, where there was one.
        self.body = b""


class RequirementsNotMet(HandshakeError):
    """The peer does not offer what a WebTransport session needs."""

    def __init__(self, message: str, *, stage: str = "http3") -> None:
        super().__init__(message, stage=stage)


class CertificateError(HandshakeError):
    """The peer's certificate was not accepted, or ours cannot be used."""

    def __init__(self, message: str, *, stage: str = "tls") -> None:
        super().__init__(message, stage=stage)


class SessionError(GwtError, OSError):
    """Something a session cannot do in its state; ``session_id`` names it."""

    def __init__(self, message: str, *, session_id: str | None = None) -> None:
        super().__init__(message)
        self.session_id = session_id


class SessionClosed(SessionError):
    """The session ended; raised to every call that was waiting on it."""

    def __init__(
        self,
        code: int | None = 0,
        reason: str = "",
        remote: bool = False,
        *,
        session_id: str | None = None,
    ) -> None:
        self.code = code
        self.reason = reason
        self.remote = remote
        because = f": {reason}" if reason else ""
        super().__init__(
            f"The session was closed {_who(remote)} {_code(code)}{because}.",
            session_id=session_id,
        )


class StreamError(GwtError, OSError):
    """Something a stream cannot do in its state; ``stream_id`` names it."""

    def __init__(self, message: str, *, stream_id: int | None = None) -> None:
        super().__init__(message)
        self.stream_id = stream_id


class StreamReset(StreamError):
    """The sending side abandoned the stream; ``code`` is None if it was no application code."""

    def __init__(
        self, code: int | None = 0, remote: bool = True, *, stream_id: int | None = None
    ) -> None:
        self.code = code
        self.remote = remote
        super().__init__(f"The stream was reset {_who(remote)} {_code(code)}.", stream_id=stream_id)


class StreamStopped(StreamError):
    """The peer asked us to stop sending; ``code`` is None if it was no application code."""

    def __init__(self, code: int | None = 0, *, stream_id: int | None = None) -> None:
        self.code = code
        super().__init__(f"The peer stopped reading the stream {_code(code)}.", stream_id=stream_id)


class IncompleteRead(StreamError, EOFError):
    """The stream ended before what was asked for had arrived; ``partial`` is what had."""

    def __init__(self, partial: bytes, message: str = "", *, stream_id: int | None = None) -> None:
        self.partial = partial
        super().__init__(
            message or f"The stream ended after {len(partial)} bytes of an unfinished read.",
            stream_id=stream_id,
        )


class CloseFrame(NamedTuple):
    """What a close frame says; 1005 stands for one without a code."""

    code: int
    reason: str


class WebSocketClosed(GwtError, OSError):
    """
    The WebSocket is closed. ``rcvd`` and ``sent`` are the CloseFrame that came and that went.

    ``code`` and ``reason`` are the peer's, else those with which we gave it up, else 1006.
    """

    def __init__(
        self,
        code: int = 1006,
        reason: str = "",
        rcvd: CloseFrame | bool | None = False,
        sent: CloseFrame | bool | None = False,
        *,
        remote: bool | None = None,
    ) -> None:
        self.code = code
        self.reason = reason
        self.rcvd = rcvd
        self.sent = sent
        # Who began, where both sent one.
        self.remote = bool(rcvd) if remote is None else remote
        who = _who(self.remote) if rcvd or sent else "without a close frame"
        because = f": {reason}" if reason else ""
        super().__init__(f"The WebSocket was closed {who} {_code(code)}{because}.")

    @staticmethod
    def of(
        rcvd: tuple[int, str] | None,
        sent: tuple[int, str] | None,
        *,
        remote: bool = True,
        cause: str = "",
    ) -> WebSocketClosed:
        """
        Return the error for an end with these close frames; `remote`: the peer's was first.

        `cause` says what broke the connection, if neither came.
        """
        code, reason = rcvd or sent or (1006, cause)
        if rcvd is None and code in _GOOD_CODES:
            # Asked for, but the peer never agreed.
            code, reason = 1006, "no close frame came back"
        good = rcvd is not None and sent is not None and code in _GOOD_CODES
        return (WebSocketClosedOK if good else WebSocketClosedError)(
            code,
            reason,
            CloseFrame(*rcvd) if rcvd is not None else None,
            CloseFrame(*sent) if sent is not None else None,
            remote=remote and rcvd is not None,
        )

    def again(self) -> WebSocketClosed:
        """Return a copy to raise: each greenlet's has a traceback of its own."""
        # As copy.copy() would, in a tenth of the time.
        twin = type(self).__new__(type(self))
        twin.args = self.args
        twin.__dict__.update(self.__dict__)
        return twin


# Normal, going away, and no code at all.
_GOOD_CODES = (1000, 1001, 1005)


class WebSocketClosedOK(WebSocketClosed):
    """The WebSocket was closed in good order (1000 or 1001)."""


class WebSocketClosedError(WebSocketClosed):
    """The WebSocket was closed by an error, or vanished."""


WebSocketError = WebSocketClosed


class LimitExceeded(GwtError):
    """A bound was reached; ``limit`` is its value."""

    def __init__(self, message: str, *, limit: float | None = None) -> None:
        super().__init__(message)
        self.limit = limit


class DatagramTooLarge(LimitExceeded):
    """A datagram does not fit into one packet of this connection."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"A datagram of {size} bytes is too large: at most {limit} bytes fit.", limit=limit
        )
        self.size = size


class MessageTooLarge(LimitExceeded):
    """A message is longer than the limit for messages."""


class ApplicationClosed(LimitExceeded):
    """The application instance that would have read a message is gone, evicted or finished."""


class TooManyConnections(LimitExceeded, builtins.ConnectionError):
    """The limit on connections is reached."""


class TooManySessions(LimitExceeded, SessionError):
    """The limit on sessions is reached."""


class TooManyStreams(LimitExceeded, StreamError):
    """The limit on streams is reached."""


class PoolExhausted(LimitExceeded, TimeoutError):
    """Everything in a pool is in use, and nothing came back in time."""


class ConcurrencyError(GwtError, RuntimeError):
    """Two greenlets did at once what only one may do."""


class ClientError(GwtError):
    """What a class of the client suite reports; the cause is chained."""

    def __init__(self, message: str, *, target_url: str | None = None) -> None:
        super().__init__(message)
        self.target_url = target_url


class ClientTimeout(ClientError, TimeoutError):
    """The time was up that a class of the client suite had been given."""


# RFC 9110 5.1 and 5.5.
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTENT = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


class Reject(GwtError):
    """
    Raised by middleware to refuse a request with an HTTP status.

    Raises ConfigError itself for a status below 300 or above 599, and headers that cannot be sent.
    """

    def __init__(
        self,
        status: int,
        headers: Iterable[tuple[str, str]] | Mapping[str, str] = (),
        body: bytes = b"",
    ) -> None:
        if isinstance(status, bool) or not isinstance(status, int) or not 300 <= status <= 599:
            raise ConfigError(
                f"status must be an integer from 300 to 599, not {status!r}.",
                field="status",
                value=status,
            )
        if not isinstance(body, (bytes, bytearray, memoryview)):
            raise ConfigError(f"body must be bytes, not {body!r}.", field="body", value=body)
        super().__init__(f"The request was rejected with HTTP status {status}.")
        self.status = status
        self.headers = list(headers.items() if isinstance(headers, Mapping) else headers)
        for name, content in self.headers:
            if not _NAME.fullmatch(str(name)) or not _CONTENT.fullmatch(str(content)):
                raise ConfigError(
                    f"The header {name!r} cannot be sent: {content!r}.",
                    field="headers",
                    value=headers,
                )
        self.body = bytes(body)
