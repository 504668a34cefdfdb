"""
What a connection remembers of its sessions and streams, and the settings they rest on.

Records that do next to nothing, and pure functions over settings; who changes them is sessions.py,
incoming.py, tunnels.py and webtransport.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from ..config import MIB, TransportConfig
from . import codes
from .capsules import CapsuleReader
from .codes import Draft
from .flow import SessionFlow

__all__ = [
    "NO_SESSION",
    "Session",
    "SessionPhase",
    "Stream",
    "Tunnel",
    "bad_setting",
    "local_settings",
    "missing_requirement",
    "session_reserve",
]


# The session of what belongs to none.
NO_SESSION = -1


class SessionPhase(Enum):
    """Where a session is in its life."""

    CONNECTING = "connecting"
    OPEN = "open"
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class Session:
    """One session, from its request until the request stream is over."""

    id: int
    draft: Draft
    phase: SessionPhase = SessionPhase.CONNECTING
    reader: CapsuleReader = field(default_factory=CapsuleReader)
    # None: flow control is off.
    flow: SessionFlow | None = None
    # What the client offered, to check the server's choice.
    offered: tuple[str, ...] = ()
    # The header that a subprotocol is chosen with, on a server.
    choice_header: bytes | None = None
    # Streams by id, until they are over; how many of them the peer opened.
    streams: dict[int, Stream] = field(default_factory=dict)
    incoming: int = 0
    # Receive window granted to its streams beyond the initial ones.
    granted: int = 0
    # Capsules that came before the session was accepted.
    early: bytearray = field(default_factory=bytearray)
    # Whether a CLOSE arrived, after which nothing may; whether the stream's end did.
    close_received: bool = False
    receive_done: bool = False

    @property
    def live(self) -> bool:
        return self.phase is not SessionPhase.ENDED


@dataclass(slots=True, eq=False)
class Stream:
    """One WebTransport stream, until both directions are over and all was read."""

    id: int
    session_id: int
    # Bytes of the prefix, which are not the application's.
    prefix: int
    own: bool
    # Whether the application has taken it: then it has its full window.
    accepted: bool = False
    # Bytes of the body delivered upward, and those of them that were not consumed yet.
    received: int = 0
    unread: int = 0
    receive_done: bool = False
    stopped: bool = False
    # Bytes of the body written.
    written: int = 0
    send_done: bool = False
    # Whether the peer asked us to stop: it may ask again, when its asking was not acknowledged.
    stop_received: bool = False
    # The wire code of a reset that waits for the prefix to be acknowledged.
    pending_reset: int | None = None
    # Window beyond the initial one.
    granted: int = 0
    # Body that came before the session; None once the session is open.
    early: bytearray | None = None
    # The wire code of a reset that came before the session, too, and left the prefix intact.
    early_reset: int | None = None

    def told_code(self, wire: int) -> int | None:
        """Return what the application is told about a code on the wire."""
        return codes.application_code(wire)

    def wire_code(self, code: int) -> int:
        """Return what goes on the wire for an application's code."""
        return codes.wire_code(code)


@dataclass(slots=True, eq=False)
class Tunnel(Stream):
    """A CONNECT request (RFC 9114 4.4): what is in its DATA frames is a stream of no session."""

    # Whether it was answered with 2xx; when it was asked for.
    open: bool = False
    since: float = 0.0

    def told_code(self, wire: int) -> int | None:
        # HTTP/3's own codes are what both ends understand.
        return wire

    def wire_code(self, code: int) -> int:
        return code or codes.H3_REQUEST_CANCELLED


def session_reserve(config: TransportConfig) -> int:
    """Return what a session may send whatever else of it is unread."""
    return max(config.stream_window, 1 * MIB)


def local_settings(config: TransportConfig, *, is_client: bool) -> dict[int, int]:
    """Return the SETTINGS we send: those of every draft that peers speak, at once."""
    sessions = config.max_sessions_per_connection
    # Each session gets half of the connection's streams to begin with; a session that keeps
    # them is limited to its fair share as soon as there are more sessions (incoming.py).
    streams = config.max_incoming_streams // 2
    # Everything that streams nobody reads can hold (what the session can be granted, and the first
    # window of every stream: the peer's of both kinds, and those of our own that it answers on),
    # and what live ones need: unread streams must not use up the session's credit. What bounds
    # memory is the windows of the streams.
    window = (
        config.session_window
        + 3 * config.max_incoming_streams * config.initial_stream_window
        + session_reserve(config)
    )
    settings = {
        codes.SETTING_QPACK_MAX_TABLE_CAPACITY: 0,
        codes.SETTING_MAX_FIELD_SECTION_SIZE: config.max_field_section_size,
        codes.SETTING_QPACK_BLOCKED_STREAMS: 0,
        codes.SETTING_H3_DATAGRAM: 1,
        codes.SETTING_ENABLE_WEBTRANSPORT: 1,
        codes.SETTING_WEBTRANSPORT_MAX_SESSIONS: sessions,
        codes.SETTING_WT_MAX_SESSIONS: sessions,
        codes.SETTING_WT_ENABLED: 1,
        codes.SETTING_WT_INITIAL_MAX_DATA: window,
        codes.SETTING_WT_INITIAL_MAX_STREAMS_UNI: streams,
        codes.SETTING_WT_INITIAL_MAX_STREAMS_BIDI: streams,
    }
    if not is_client:
        settings[codes.SETTING_ENABLE_CONNECT_PROTOCOL] = 1
    return settings


def missing_requirement(
    draft: Draft | None, settings: Mapping[int, int], *, datagrams: bool
) -> str | None:
    """Return what a server lacks for WebTransport, or None (webtrans-http3-16 3.1)."""
    if draft is None:
        return "The server speaks HTTP/3, but no WebTransport that this client knows."
    if settings.get(codes.SETTING_H3_DATAGRAM) != 1 or not datagrams:
        return "The server does not support HTTP/3 datagrams, which WebTransport needs."
    if draft.number > 6 and settings.get(codes.SETTING_ENABLE_CONNECT_PROTOCOL) != 1:
        return "The server does not support extended CONNECT, which WebTransport needs."
    return None


def bad_setting(settings: Mapping[int, int], *, is_client: bool) -> str | None:
    """Return what is illegal in a peer's SETTINGS, or None; a H3_SETTINGS_ERROR if any."""
    # webtrans-http3-16 9.2. aioquic checks ENABLE_WEBTRANSPORT and those of HTTP/3 itself.
    if is_client and settings.get(codes.SETTING_WT_ENABLED, 0) > 1:
        return "WT_ENABLED is neither 0 nor 1"
    return None
