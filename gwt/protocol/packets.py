"""
QUIC headers before there is a connection: where a datagram belongs, and what to answer to one
that belongs nowhere.

Pure functions over one datagram. Everything here meets bytes of unknown senders first.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from aioquic.buffer import Buffer  # type: ignore[attr-defined]
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import (
    QuicFrameType,
    QuicPacketType,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.packet_builder import QuicPacketBuilder

from .seam import CONNECTION_ID_LENGTH, VERSIONS

__all__ = ["Kind", "Newcomer", "classify", "encode_refusal", "routing_id"]

# RFC 9000 14.1: a client pads the datagrams of its first packets to this size.
MIN_INITIAL_SIZE = 1200


def routing_id(data: bytes) -> bytes:
    """Return the destination connection id of a datagram; empty if there is none."""
    if not data:
        return b""
    if not data[0] & 0x80:
        return data[1 : 1 + CONNECTION_ID_LENGTH]
    # RFC 8999 5.1: long headers have the length in byte 5, in every version.
    return data[6 : 6 + data[5]] if len(data) > 6 else b""


class Kind(Enum):
    """What to do with a datagram whose connection id nobody knows."""

    # Nothing: it is no QUIC, or nothing that may be answered.
    DROP = "drop"
    # Answer with a Version Negotiation packet.
    NEGOTIATE = "negotiate"
    # The first packet of a new connection.
    INITIAL = "initial"


@dataclass(frozen=True, slots=True)
class Newcomer:
    """The header of a client's first packet."""

    kind: Kind
    version: int = 0
    destination: bytes = b""
    source: bytes = b""
    # What the client brings along from a Retry packet; empty the first time.
    token: bytes = b""

    def version_negotiation(self) -> bytes:
        """Return the packet that tells the client which versions there are (RFC 9000 6)."""
        return encode_quic_version_negotiation(
            source_cid=self.destination,
            destination_cid=self.source,
            supported_versions=list(VERSIONS),
        )


_DROP = Newcomer(Kind.DROP)


def classify(data: bytes) -> Newcomer:
    """Tell what an unroutable datagram is. Never raises."""
    # RFC 9000 5.2.2: a short header, or a datagram too small to start a connection, is dropped:
    # answering could only serve an amplification.
    if len(data) < MIN_INITIAL_SIZE or not data[0] & 0x80:
        return _DROP
    version = int.from_bytes(data[1:5], "big")
    if version == 0:
        # A Version Negotiation packet is never answered, or two servers could be set at each
        # other for ever.
        return _DROP
    if version not in VERSIONS:
        destination_end = 6 + data[5]
        source_end = destination_end + 1 + data[min(destination_end, len(data) - 1)]
        if source_end > len(data) or data[5] > 20:
            return _DROP
        return Newcomer(
            Kind.NEGOTIATE, version, data[6:destination_end], data[destination_end + 1 : source_end]
        )
    try:
        header = pull_quic_header(Buffer(data=data), host_cid_length=CONNECTION_ID_LENGTH)
    except ValueError:
        return _DROP
    # RFC 9000 7.2: a client's first destination connection id has at least 8 bytes.
    if header.packet_type is not QuicPacketType.INITIAL or len(header.destination_cid) < 8:
        return _DROP
    return Newcomer(Kind.INITIAL, version, header.destination_cid, header.source_cid, header.token)


def encode_refusal(newcomer: Newcomer, code: int, reason: str = "") -> bytes:
    """
    Build the one packet that refuses a connection without having made one.

    The keys of Initial packets derive from what the client chose (RFC 9001 5.2), so a refusal
    needs no state and no handshake.
    """
    crypto = CryptoPair()
    crypto.setup_initial(cid=newcomer.destination, is_client=False, version=newcomer.version)
    builder = QuicPacketBuilder(
        host_cid=newcomer.destination,
        is_client=False,
        max_datagram_size=MIN_INITIAL_SIZE,
        peer_cid=newcomer.source,
        version=newcomer.version,
    )
    builder.start_packet(QuicPacketType.INITIAL, crypto)
    text = reason.encode()[:256]
    buf = builder.start_frame(QuicFrameType.TRANSPORT_CLOSE, capacity=32 + len(text))
    buf.push_uint_var(code)
    buf.push_uint_var(QuicFrameType.PADDING)
    buf.push_uint_var(len(text))
    buf.push_bytes(text)
    return builder.flush()[0][0]
