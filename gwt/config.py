"""
Every default, written once: frozen dataclasses of options. Floor 0.

An option is one field: its name, its default, its reason. Keywords of ``Server`` and
``connect`` are these fields; unknown ones are refused by name. Durations are seconds,
sizes are bytes.
"""

from __future__ import annotations

import dataclasses
import os
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from .errors import ConfigError
from .options import Aliases, bad, canonical, check, check_texts, named_options

__all__ = ["KIB", "MIB", "ClientConfig", "ServerConfig", "TransportConfig"]

KIB = 1024
MIB = 1024 * KIB

_CLOSE_TIMEOUT = 5.0


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
        return 10.0 if self.close_timeout == _CLOSE_TIMEOUT else self.close_timeout

    @classmethod
    def aliases(cls) -> Aliases:
        """Return other names of fields, with what turns their value into the field's."""
        return {}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make a config from a mapping; raises UnknownOption for a name that is no field."""
        return cls().update(**values)

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


@named_options
@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig(TransportConfig):
    """The options of a Server."""

    certfile: str | os.PathLike[str] | None = None
    """PEM certificate chain for TCP and QUIC; None: plain TCP and a development certificate."""

    keyfile: str | os.PathLike[str] | None = None
    """PEM private key of the certificate; None: it is in certfile."""

    http3: bool = True
    """Whether UDP is served at all."""

    stop_timeout: float = 10.0
    """How long stop() lets handlers finish."""

    handshake_timeout: float = 10.0
    """How long a peer may take from its first packet to a completed handshake."""

    unused_timeout: float = 15.0
    """
    How long a connection may be without a session: longer than a page takes to open its next one,
    shorter than the 30 s after which a browser gives up one that it does not need any more.
    """

    keep_alive: bool = False
    """Whether the server pings quiet peers. Off: clients keep their connections alive."""

    max_connections: int = 20_000
    """Connections at a time; one more is refused with CONNECTION_REFUSED."""

    max_sessions: int = 100_000
    """Sessions at a time; one more is refused with 503."""

    max_handlers: int = 20_000
    """Handler greenlets at a time; one more session is refused with 503."""

    connection_idle_timeout: float = 60.0
    """Seconds without a packet from the peer after which the reaper closes; <= 0 is off."""

    connection_idle_check_interval: float = 5.0
    """Seconds between two passes of the reaper."""

    max_pending_handshakes: int = 1024
    """First packets of new connections that wait to be served; then the newest is dropped."""

    retry: str = "auto"
    """
    Whether a newcomer must prove its address by one more round trip (RFC 9000 8.1.2): "on", "off",
    or "auto", which is while `retry_threshold` handshakes are unfinished.
    """

    retry_threshold: int = 256
    """
    More than clients that finish leave unfinished at a time: a hub begins some 500 handshakes a
    second, and each is done after a round trip. Forged ones then hold a few MB, not gigabytes.
    """

    origins: str | Sequence[str] | None = None
    """Origins allowed beside the server's own; "*" is any."""

    allowed_hosts: Sequence[str] | None = None
    """Host names that requests may be addressed to; None: any."""

    subprotocols: Sequence[str] = ()
    """Application protocols offered, best first."""

    compression: Any = None
    """"deflate" where a client offers it, or a Compression; None: WebSockets are not compressed."""

    request_timeout: float = 10.0
    """How long the header of an HTTP/1.1 request, and TLS before it, may take."""

    http_keep_alive_timeout: float = 15.0
    """How long an HTTP/1.1 connection may be idle between two requests."""

    reuse_port: bool = False
    """Set SO_REUSEPORT. Off, so that a second server on a port is an error."""

    def __post_init__(self) -> None:
        # slots=True makes a new class, so that the zero-argument super() is not available here.
        TransportConfig.__post_init__(self)
        check(
            self,
            positive=(
                "stop_timeout",
                "handshake_timeout",
                "unused_timeout",
                "request_timeout",
                "http_keep_alive_timeout",
                "connection_idle_check_interval",
            ),
            at_least={
                "max_connections": 1,
                "max_sessions": 1,
                "max_handlers": 1,
                "max_pending_handshakes": 1,
                "retry_threshold": 1,
            },
        )
        if self.retry not in ("off", "on", "auto"):
            raise bad("retry", self.retry, '"off", "on" or "auto"')
        _check_compression(self.compression)
        origins = [self.origins] if isinstance(self.origins, str) else self.origins
        check_texts("origins", origins)
        check_texts("subprotocols", self.subprotocols)
        check_texts("allowed_hosts", self.allowed_hosts)
        if self.keyfile is not None and self.certfile is None:
            raise ConfigError(
                "keyfile is given without certfile.", field="keyfile", value=self.keyfile
            )
        for name in ("certfile", "keyfile"):
            path = getattr(self, name)
            if path is not None and not os.path.isfile(path):
                raise ConfigError(f"{name} {str(path)!r} does not exist.", field=name, value=path)


@named_options
@dataclass(frozen=True, kw_only=True, slots=True)
class ClientConfig(TransportConfig):
    """The options of connect() and of the client classes."""

    connect_timeout: float | None = 10.0
    """Limit for a whole connect(): waiting for a slot, name, handshake, session."""

    attempt_delay: float = 0.25
    """Until a name's next address is tried beside a silent one (RFC 8305 5); 0.01 at least."""

    headers: Mapping[str, str] | Sequence[tuple[str, str]] = field(default_factory=dict)
    """Headers of every request."""

    user_agent: str | None = None
    """The user-agent header; None: gwt and its version."""

    origin: str | None = None
    """The origin header; None: none is sent."""

    subprotocols: Sequence[str] = ()
    """Application protocols offered, best first."""

    compression: Any = "deflate"
    """What a WebSocket offers: "deflate", a Compression, or None."""

    verify: bool = True
    """Whether the server's certificate and its host name are verified."""

    cafile: str | os.PathLike[str] | None = None
    """PEM file of the authorities to trust; None: those of certifi."""

    server_name: str | None = None
    """Name to verify and to send as SNI; None: the URL's host."""

    server_certificate_hashes: Sequence[str | bytes] = ()
    """SHA-256 of certificates to accept without an authority, as browsers do."""

    share_connection: bool = False
    """Whether sessions to one server share a QUIC connection where the peer allows it."""

    client_sockets: int | None = 8
    """UDP sockets that a hub's client connections share; None: one each."""

    max_connecting: int = 64
    """Handshakes in flight at a time, a hub; 2,000 connects at once may queue for over 10 s."""

    keep_alive: bool = True
    """Whether quiet connections are kept alive by pings."""

    # For reconnecting clients, which do not exist yet: connect() itself tries once.

    auto_reconnect: bool = False
    max_retries: int | None = 3
    retry_delay: float = 1.0
    retry_backoff: float = 2.0
    max_retry_delay: float = 30.0

    def __post_init__(self) -> None:
        # slots=True makes a new class, so that the zero-argument super() is not available here.
        TransportConfig.__post_init__(self)
        check(
            self,
            positive=("connect_timeout", "retry_delay", "max_retry_delay", "retry_backoff"),
            at_least={"client_sockets": 1, "max_connecting": 1, "max_retries": 0},
            optional=("connect_timeout", "client_sockets", "max_retries"),
        )
        check(self, positive=("attempt_delay",), at_least={})
        if self.retry_backoff < 1:
            raise bad("retry_backoff", self.retry_backoff, "at least 1.0")
        if self.cafile is not None and not os.path.isfile(self.cafile):
            raise ConfigError(
                f"cafile {str(self.cafile)!r} does not exist.", field="cafile", value=self.cafile
            )
        hashes = self.server_certificate_hashes
        if isinstance(hashes, (str, bytes)):
            object.__setattr__(self, "server_certificate_hashes", (hashes,))
        for value in self.server_certificate_hashes:
            certificate_hash(value)
        check_texts("subprotocols", self.subprotocols)
        for name in ("origin", "server_name", "user_agent"):
            value = getattr(self, name)
            if value is not None:
                check_texts(name, [value])
        _check_compression(self.compression)
        if not isinstance(self.verify, bool):
            raise bad("verify", self.verify, "True or False")

    @classmethod
    def aliases(cls) -> Aliases:
        """Return other names of fields, with what turns their value into the field's."""
        return _CLIENT_ALIASES


def certificate_hash(value: str | bytes) -> bytes:
    """Return a SHA-256 given as 32 bytes, or as hex with or without colons, as bytes."""
    digest: bytes
    if isinstance(value, (bytes, bytearray, memoryview)):
        digest = bytes(value)
    else:
        try:
            digest = bytes.fromhex(value.replace(":", ""))
        except (ValueError, AttributeError):
            digest = b""
    if len(digest) != 32:
        raise ConfigError(
            f"{value!r} is not a SHA-256 hash (32 bytes, or 64 hex digits).",
            field="server_certificate_hashes",
            value=value,
        )
    return digest


def _check_compression(value: Any) -> None:
    if isinstance(value, bool) or (isinstance(value, str) and value != "deflate"):
        raise bad("compression", value, '"deflate", a Compression, or None')


def _verify_mode(value: Any) -> bool:
    return value is None or ssl.VerifyMode(value) is not ssl.CERT_NONE


# Other names of a field, with what turns their value into the field's. Alias and field together
# are an error: they would be two options for one thing.
_CLIENT_ALIASES: Aliases = {
    "additional_headers": ("headers", None),
    "server_hostname": ("server_name", None),
    "open_timeout": ("connect_timeout", None),
    "timeout": ("connect_timeout", None),
    "ca_certs": ("cafile", None),
    "user_agent_header": ("user_agent", None),
    "verify_mode": ("verify", _verify_mode),
    "congestion_control_algorithm": ("congestion_control", None),
    "connection_keepalive_timeout": ("keep_alive_interval", None),
}
