"""
What the options of both ends have in common: TransportConfig, and the units of sizes. Floor 0.

config.py has what is a server's or a client's alone, and says how options are written down.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from .options import Aliases, bad, canonical, check

__all__ = ["KIB", "MIB", "TransportConfig"]

KIB = 1024
MIB = 1024 * KIB

# An object of its own: the same number, given, counts for WebSockets too.
_CLOSE_TIMEOUT = float("5")


@dataclass(frozen=True, kw_only=True, slots=True)
class TransportConfig:
    """What clients and servers have in common: QUIC, HTTP/3 and WebTransport."""

    # Timeouts

    idle_timeout: float = 30.0
    """Silence after which QUIC gives a connection up. Browsers use 30 s; the smaller side wins."""

    close_timeout: float = _CLOSE_TIMEOUT
    """
    How long close() waits for what was written to be acknowledged. For a WebSocket 10 s unless
    another value is given.
    """

    stream_creation_timeout: float = 10.0
    """How long create_*_stream() waits for the peer's credit."""

    keep_alive_interval: float = 10.0
    """Seconds between keep-alive pings, shortened to a third of the effective idle timeout."""

    # Flow control, receiving. The largest amount a peer can make us hold is
    # (2 * max_incoming_streams * initial_stream_window) + receive_pool a connection: with the
    # defaults 8 + 24 MiB if it uses every stream of several sessions, 1 MiB if it uses one stream.

    initial_stream_window: int = 16 * KIB
    """
    Credit a stream has before anybody accepted it. More than the 12 KB that a new connection
    may send in its first round trip, so a prompt accept() never stalls a sender.
    """

    stream_window: int = 1 * MIB
    """Credit a stream has once it is accepted, ahead of what the application consumed."""

    session_window: int = 4 * MIB
    """What all streams of one session may hold together beyond their initial windows."""

    receive_pool: int = 24 * MIB
    """
    What all sessions of one connection may hold together beyond the initial windows. Streams
    that nobody accepted may hold a quarter of this and those; then the newest are refused.
    """

    max_incoming_streams: int = 256
    """
    Streams of each direction a peer may have open on a connection. Chromium rejects a stream
    at once when its credit is used up, so the default is generous.
    """

    # Flow control, sending. A write waits while more than this is unacknowledged. Above the
    # connection's or the process's bound each stream still has `stream_send_floor`, so that one
    # reader that never reads cannot stop the others.

    stream_send_buffer: int = 1 * MIB
    """Unsent plus unacknowledged bytes at which write() waits."""

    connection_send_buffer: int = 4 * MIB
    """The same for all streams of a connection."""

    process_send_buffer: int = 8 * MIB
    """The same for all connections of a hub, that is, of a process."""

    stream_send_floor: int = 16 * KIB
    """What every stream may have in flight whatever the larger bounds say."""

    # Other limits

    max_streams: int | None = None
    """Streams of our own a session may have open; None: as many as the peer allows."""

    max_pending_streams: int = 32
    """Streams held for sessions that are not known yet, a connection."""

    max_pending_datagrams: int = 32
    """Datagrams held for sessions that are not known yet, a connection."""

    pending_timeout: float = 5.0
    """How long a stream or datagram is held for its session."""

    max_sessions_per_connection: int = 16
    """Sessions a peer may have on one connection."""

    datagram_queue: int = 256
    """Datagrams waiting in a session for receive_datagram(); then the oldest goes."""

    datagram_send_queue: int = 256
    """Datagrams waiting for the congestion window; then the oldest goes."""

    datagram_max_age: float = 1.0
    """Seconds after which a datagram still waiting to be sent is dropped."""

    max_field_section_size: int = 16 * KIB
    """The largest header block accepted."""

    # WebSocket

    max_size: int | None = 1 * MIB
    """Bytes of the largest message that is received, inflated; None: any. Beyond it: 1009."""

    max_queue: int | None = 16
    """Messages that wait for recv(); then the socket is not read. None: any number."""

    ping_interval: float | None = 20.0
    """Seconds between two pings of a WebSocket; None: none are sent."""

    ping_timeout: float | None = 20.0
    """Seconds that a pong may take, while the socket is read; None: any time."""

    # QUIC

    max_udp_payload: int = 1200
    """
    Bytes of UDP payload a packet of ours may have: 1200 to 16000. 1452 fits Ethernet.

    More than 1200 is a wish. Every connection starts with 1200; after the handshake it sends a
    probe of this size, then of 1452 and 1350 if that is lost, and uses what the path and the peer
    take; 1200 again when the path changes, or ceases to carry it. With 1452 a bulk transfer costs
    about an eighth less CPU time. The default stays 1200: it needs no probe, and leaves
    ``session.max_datagram_size`` the same for the whole of a session.
    """

    congestion_control: str = "reno"
    """"reno" or "cubic"."""

    socket_buffer: int = 4 * MIB
    """Receive buffer of each UDP socket, as far as the system allows."""

    def __post_init__(self) -> None:
        check(
            self,
            positive=(
                "idle_timeout",
                "close_timeout",
                "stream_creation_timeout",
                "keep_alive_interval",
                "pending_timeout",
                "datagram_max_age",
                "ping_interval",
                "ping_timeout",
            ),
            at_least={
                "max_size": 1,
                "max_queue": 1,
                "initial_stream_window": 1024,
                "stream_window": 1024,
                "session_window": 0,
                "receive_pool": 0,
                "max_incoming_streams": 8,
                "stream_send_buffer": 1024,
                "connection_send_buffer": 1024,
                "process_send_buffer": 1024,
                "stream_send_floor": 1024,
                "max_streams": 1,
                "max_pending_streams": 0,
                "max_pending_datagrams": 0,
                "max_sessions_per_connection": 1,
                "datagram_queue": 1,
                "datagram_send_queue": 1,
                "max_field_section_size": 1024,
                "max_udp_payload": 1200,
                "socket_buffer": 1024,
            },
            optional=("max_streams", "max_size", "max_queue", "ping_interval", "ping_timeout"),
        )
        if self.max_udp_payload > 16000:
            # Above 16383 bytes aioquic writes a frame's length wrongly; below 1200 is no QUIC.
            raise bad("max_udp_payload", self.max_udp_payload, "from 1200 to 16000")
        if self.congestion_control not in ("reno", "cubic"):
            raise bad("congestion_control", self.congestion_control, '"reno" or "cubic"')

    @property
    def websocket_close_timeout(self) -> float:
        """How long a WebSocket waits for the peer's close frame: 10 s, or a given close_timeout."""
        return 10.0 if self.close_timeout is _CLOSE_TIMEOUT else self.close_timeout

    @classmethod
    def aliases(cls) -> Aliases:
        """Return other names of fields, with what turns their value into the field's."""
        return {}

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any]) -> Self:
        """Make a config from a mapping; raises UnknownOption for a name that is no field."""
        return cls().update(**config_dict)

    def update(self, **changes: Any) -> Self:
        """Return a copy with some fields changed; raises UnknownOption, or ConfigError."""
        if not changes:
            return self
        return dataclasses.replace(self, **canonical(changes, self.aliases()))

    def key(self) -> tuple[str, ...]:
        """Return something hashable that is equal for equal options."""
        return tuple(f"{name}={value!r}" for name, value in self.to_dict().items())

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a plain dict, which from_dict() takes."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
