"""
Every default, written once: frozen dataclasses of options. Floor 0.

An option is one field: its name, its default, its reason. Keywords of ``Server`` and
``connect`` are these fields; unknown ones are refused by name. Durations are seconds,
sizes are bytes. What servers and clients have in common is config_common.py's.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .config_common import KIB, MIB, TransportConfig
from .errors import ConfigError
from .options import Aliases, bad, check, check_texts, named_options

__all__ = ["KIB", "MIB", "ClientConfig", "ServerConfig", "TransportConfig"]


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
    """
    Connections at a time, QUIC and WebSocket together; one more is refused with
    CONNECTION_REFUSED or 503. As many HTTP/1.1 connections; one more waits to be accepted.
    """

    max_connections_per_address: int | None = None
    """
    The same for one address, TCP and QUIC together; IPv6 addresses count by their /64. None: any
    number, since a proxy, or a provider's NAT, is one address for thousands.
    """

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

    min_body_rate: int | None = 1000
    """
    Bytes a second that the body of an HTTP/1.1 request must bring on average while it is waited
    for; else 408. None: any. Links are faster; who only wants to hold a greenlet is slower.
    """

    body_grace: float = 20.0
    """
    Seconds that a body may fall behind that rate. A TLS record is seen when it is whole, which
    takes 16 of them.
    """

    response_timeout: float | None = 60.0
    """
    How long an HTTP/1.1 response may wait for its client to read on; None: any time. Browsers
    that pause a download ask again for the rest.
    """

    reuse_port: bool = False
    """Set SO_REUSEPORT. Off, so that a second server on a port is an error."""

    connect_targets: Sequence[str] = ()
    """
    Where clients may tunnel to by CONNECT (RFC 9114 4.4), as "host:port"; none: there are no
    tunnels. Names, "*.name", addresses and networks; docs/tunnels.md has what each stands for.
    """

    connect_timeout: float = 10.0
    """How long a tunnel's target may take: its name, and the TCP handshakes with its addresses."""

    tunnel_idle_timeout: float = 300.0
    """Seconds without a byte either way after which a tunnel is given up."""

    max_tunnels: int = 1000
    """Tunnels at a time, each with a descriptor; one more is refused with 503."""

    max_tunnels_per_address: int | None = None
    """The same for one client address, as max_connections_per_address counts; None: any number."""

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
                "body_grace",
                "response_timeout",
                "connection_idle_check_interval",
                "connect_timeout",
                "tunnel_idle_timeout",
            ),
            at_least={
                "max_connections": 1,
                "max_connections_per_address": 1,
                "max_sessions": 1,
                "max_handlers": 1,
                "max_pending_handshakes": 1,
                "retry_threshold": 1,
                "min_body_rate": 1,
                "max_tunnels": 1,
                "max_tunnels_per_address": 1,
            },
            optional=(
                "response_timeout",
                "min_body_rate",
                "max_connections_per_address",
                "max_tunnels_per_address",
            ),
        )
        if self.retry not in ("off", "on", "auto"):
            raise bad("retry", self.retry, '"off", "on" or "auto"')
        _check_compression(self.compression)
        origins = [self.origins] if isinstance(self.origins, str) else self.origins
        check_texts("origins", origins)
        check_texts("subprotocols", self.subprotocols)
        check_texts("allowed_hosts", self.allowed_hosts)
        check_texts("connect_targets", self.connect_targets)
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

    proxy: str | bool | None = True
    """URL of a proxy for WebSockets; True: what the environment says; None or False: none."""

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

    # For ReconnectingClient: connect() itself tries once.

    auto_reconnect: bool = False
    """Whether WebTransportClient.create() returns a ReconnectingClient."""

    max_retries: int | None = 3
    """How many further attempts follow the first of failures in a row; None: no limit."""

    retry_delay: float = 1.0
    """The longest time before the first of them; each is drawn from 0 to the longest."""

    retry_backoff: float = 2.0
    """By what the longest time grows with each failure; 1.0 at least."""

    max_retry_delay: float = 30.0
    """What it never exceeds, nor what a server may ask for by Retry-After."""

    stable_period: float = 10.0
    """
    How long a session must have lived for its end to be no failure. Who is closed that seldom by
    a broken server does not hammer it.
    """

    def __post_init__(self) -> None:
        # slots=True makes a new class, so that the zero-argument super() is not available here.
        TransportConfig.__post_init__(self)
        check(
            self,
            positive=(
                "connect_timeout",
                "retry_delay",
                "max_retry_delay",
                "retry_backoff",
                "stable_period",
            ),
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


def client_config(config: Any) -> ClientConfig:
    """Return a ClientConfig, the default for None; raises ConfigError for anything else."""
    if config is None:
        return ClientConfig()
    if not isinstance(config, ClientConfig):
        raise bad("config", config, "a ClientConfig, or None")
    return config


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
