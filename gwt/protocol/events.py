"""
What a connection tells the floor above: the vocabulary of events.

Frozen and slotted, few, named in the past tense for what the peer or the network did. A session
is named by the stream id of its CONNECT request, as on the wire.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = [
    "ConnectionEnded",
    "ConnectionIdAdded",
    "ConnectionIdRetired",
    "ConnectionReady",
    "DatagramReceived",
    "Event",
    "HandshakeCompleted",
    "SessionAccepted",
    "SessionDraining",
    "SessionEnded",
    "SessionGone",
    "SessionRefused",
    "SessionRequested",
    "StreamAvailable",
    "StreamDataReceived",
    "StreamFinished",
    "StreamFlushed",
    "StreamOpened",
    "StreamReset",
    "StreamStopped",
    "StreamWritable",
    "TunnelAccepted",
    "TunnelRefused",
    "TunnelRequested",
]

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class HandshakeCompleted:
    """TLS is done: the peer is who it says, and 1-RTT data may flow."""


@dataclass(frozen=True, slots=True)
class ConnectionReady:
    """The peer's SETTINGS arrived: a client may open sessions."""


@dataclass(frozen=True, slots=True)
class ConnectionIdAdded:
    """Datagrams with this connection id belong to this connection from now on."""

    connection_id: bytes


@dataclass(frozen=True, slots=True)
class ConnectionIdRetired:
    """No more datagrams with this connection id will come."""

    connection_id: bytes


@dataclass(frozen=True, slots=True)
class ConnectionEnded:
    """The connection is over; nothing follows."""

    code: int
    reason: str
    remote: bool
    # Whether the code is HTTP/3's (an application close) or QUIC's (a transport close).
    application: bool


@dataclass(frozen=True, slots=True)
class SessionRequested:
    """A client asks for a session: accept_session() or reject_session() answers."""

    session_id: int
    authority: str
    path: str
    origin: str | None
    subprotocols: tuple[str, ...]
    headers: Headers = field(repr=False)


@dataclass(frozen=True, slots=True)
class SessionAccepted:
    """The server answered 2xx to our request."""

    session_id: int
    subprotocol: str | None
    headers: Headers = field(repr=False)


@dataclass(frozen=True, slots=True)
class SessionRefused:
    """The server answered our request with another status, or did not answer at all."""

    session_id: int
    # None: the request stream was reset instead, with `code`.
    status: int | None
    code: int | None
    headers: Headers = field(repr=False)


@dataclass(frozen=True, slots=True)
class SessionDraining:
    """The peer asks to bring the session to an end."""

    session_id: int


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """The session is over for both directions; `code` is None if it ended without a close."""

    session_id: int
    code: int | None
    reason: str
    remote: bool


@dataclass(frozen=True, slots=True)
class SessionGone:
    """The request stream of an ended session has finished: our close has been delivered."""

    session_id: int


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The peer opened a stream in a session."""

    session_id: int
    stream_id: int


@dataclass(frozen=True, slots=True)
class StreamDataReceived:
    """Bytes of a stream, in order; `ended` with the last ones, which may be none."""

    stream_id: int
    data: bytes
    ended: bool


@dataclass(frozen=True, slots=True)
class StreamReset:
    """
    The peer abandoned its sending side; `code` is None if it was no application code.

    The first `reliable` bytes of the stream are to be read all the same.
    """

    stream_id: int
    code: int | None
    reliable: int = 0


@dataclass(frozen=True, slots=True)
class StreamStopped:
    """The peer will not read what we send; `code` is None if it was no application code."""

    stream_id: int
    code: int | None


@dataclass(frozen=True, slots=True)
class StreamWritable:
    """A stream that want_room() was called for has room again, or takes nothing any more."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class StreamFinished:
    """Everything we sent, its end included, has been acknowledged, or the reset has."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class StreamFlushed:
    """Everything written to a stream that want_flush() was called for has been acknowledged."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class StreamAvailable:
    """The peer allows more streams of a direction in a session, or more tunnels (NO_SESSION)."""

    session_id: int


@dataclass(frozen=True, slots=True)
class TunnelRequested:
    """A client asks for a tunnel: accept_tunnel() or reject_tunnel() answers."""

    stream_id: int
    # Where to: a name or an address without brackets, in lower case.
    host: str
    port: int
    headers: Headers = field(repr=False)


@dataclass(frozen=True, slots=True)
class TunnelAccepted:
    """The proxy answered 2xx to our request: from now on the stream is the tunnel."""

    stream_id: int
    headers: Headers = field(repr=False)


@dataclass(frozen=True, slots=True)
class TunnelRefused:
    """The proxy answered our request with another status, or did not answer at all."""

    stream_id: int
    # None: the request stream was reset instead, with `code`.
    status: int | None
    code: int | None
    headers: Headers = field(repr=False)


@dataclass(frozen=True, slots=True)
class DatagramReceived:
    """A datagram of a session."""

    session_id: int
    data: bytes


Event = (
    HandshakeCompleted
    | ConnectionReady
    | ConnectionIdAdded
    | ConnectionIdRetired
    | ConnectionEnded
    | SessionRequested
    | SessionAccepted
    | SessionRefused
    | SessionDraining
    | SessionEnded
    | SessionGone
    | StreamOpened
    | StreamDataReceived
    | StreamReset
    | StreamStopped
    | StreamWritable
    | StreamFinished
    | StreamFlushed
    | StreamAvailable
    | TunnelRequested
    | TunnelAccepted
    | TunnelRefused
    | DatagramReceived
)
