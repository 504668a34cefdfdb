"""
The vocabulary of the QUIC seam: what a connection is made from, and whom it tells what happened.

Values and interfaces; quic.py has the one implementation, and what it does for each.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Any, Protocol, Self

from aioquic.quic.configuration import QuicConfiguration

from ..config import TransportConfig

__all__ = [
    "CONNECTION_ID_LENGTH",
    "CONNECTION_WINDOW",
    "MOMENT",
    "SILENT",
    "VERSIONS",
    "Address",
    "QuicOptions",
    "QuicSink",
    "SendBudget",
]

Address = tuple[Any, ...]

# How far the connection's receive limit stays ahead of what has arrived.
CONNECTION_WINDOW = 4 * 1024 * 1024

# Far below what any timer of QUIC resolves, and enough for rounding.
MOMENT = 1e-6

# The length of the connection ids that we choose; routing relies on it.
CONNECTION_ID_LENGTH = 8

VERSIONS = tuple(QuicConfiguration().supported_versions)


class SendBudget:
    """Bytes written but not acknowledged, over all connections that share it."""

    __slots__ = ("buffered",)

    def __init__(self) -> None:
        self.buffered = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class QuicOptions:
    """What a connection is made from; one object serves all connections of a server."""

    is_client: bool
    initial_stream_window: int
    max_incoming_streams: int
    max_udp_payload: int
    idle_timeout: float
    congestion_control: str
    datagram_send_queue: int
    datagram_max_age: float
    # Server: the certificate, its chain and the key, as `cryptography` objects.
    certificate: Any = None
    chain: tuple[Any, ...] = ()
    private_key: Any = None
    # Client: whom to trust, and the name to verify.
    verify: bool = True
    cafile: str | None = None
    # What is in that file, or in certifi's; None: it is read for each handshake.
    authorities: Any = None
    server_name: str | None = None

    @classmethod
    def of(cls, config: TransportConfig, *, is_client: bool, **own: Any) -> Self:
        """Take from a config what QUIC needs; `own` is what only this side has."""
        return cls(
            is_client=is_client,
            initial_stream_window=config.initial_stream_window,
            max_incoming_streams=config.max_incoming_streams,
            max_udp_payload=config.max_udp_payload,
            idle_timeout=config.idle_timeout,
            congestion_control=config.congestion_control,
            datagram_send_queue=config.datagram_send_queue,
            datagram_max_age=config.datagram_max_age,
            **own,
        )

    def configuration(
        self, *, version: int | None = None, secrets: Any = None, qlog: Any = None
    ) -> QuicConfiguration:
        """
        Return these options as aioquic's configuration.

        `secrets` is written to as a text file, in NSS key log format; `qlog` is a Qlog. aioquic
        derives the first keys for every version that it is given, which is a twentieth of a
        handshake: a client is of version 1, and a server may name its client's.
        """
        if version is None and self.is_client:
            version = VERSIONS[0]
        versions = list(VERSIONS if version is None else (version,))
        return QuicConfiguration(
            original_version=versions[0],
            supported_versions=versions,
            alpn_protocols=["h3"],
            cafile=self.cafile,
            certificate=self.certificate,
            certificate_chain=list(self.chain),
            congestion_control_algorithm=self.congestion_control,
            connection_id_length=CONNECTION_ID_LENGTH,
            idle_timeout=self.idle_timeout,
            is_client=self.is_client,
            max_data=CONNECTION_WINDOW,
            max_datagram_frame_size=65536,
            max_stream_data=self.initial_stream_window,
            private_key=self.private_key,
            quic_logger=qlog,
            secrets_log_file=secrets,
            server_name=self.server_name,
            verify_mode=ssl.CERT_REQUIRED if self.is_client and self.verify else ssl.CERT_NONE,
        )


class QuicSink(Protocol):
    """Who drain() tells what happened; called directly, nothing is stored in between."""

    def quic_negotiated(self) -> None:
        """The transport parameters are known; on a server, 0.5-RTT data may be written."""

    def quic_handshake_completed(self) -> None:
        """TLS is done."""

    def quic_stream_data(self, stream_id: int, data: bytes, ended: bool) -> None:
        """Bytes arrived in order."""

    def quic_stream_reset(self, stream_id: int, code: int) -> None:
        """The peer reset its sending side."""

    def quic_stream_stopped(self, stream_id: int, code: int) -> None:
        """The peer sent STOP_SENDING; our side has been reset with its code."""

    def quic_stream_progress(self, stream_id: int) -> None:
        """Bytes we sent were acknowledged, the peer's limit grew, or the stream takes no more."""

    def quic_stream_credit(self) -> None:
        """The peer allows more streams."""

    def quic_datagram(self, data: bytes) -> None:
        """A DATAGRAM frame arrived."""

    def quic_connection_id(self, connection_id: bytes, added: bool) -> None:
        """A connection id of ours came into use, or went out of it."""

    def quic_ping_acknowledged(self) -> None:
        """A ping of ours was answered."""

    def quic_closed(self, code: int, reason: str, remote: bool, application: bool) -> None:
        """The connection carries nothing any more."""


class _Silent:
    """In place of aioquic's logger: what a peer does must not write to our process's log."""

    def debug(self, *_args: object) -> None:
        pass

    info = warning = error = debug


SILENT: Any = _Silent()
