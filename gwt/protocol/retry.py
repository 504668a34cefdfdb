"""
Retry: a client's address is proven by a round trip, before anything is kept of it (RFC 9000 8.1.2).

Pure functions: the packet that asks a client to come again, and the token that it brings back.
A token is no secret, since all that it holds was sent in the clear; a keyed hash makes it ours.
"""

from __future__ import annotations

import hashlib
import hmac
import os

from aioquic.quic.packet import encode_quic_retry

from .packets import Newcomer
from .seam import CONNECTION_ID_LENGTH, Address

__all__ = ["LIFETIME", "InvalidToken", "encode_retry", "make_token", "open_token"]

# Seconds for which a token is good. A client brings it back in one round trip; more would only
# serve those who replay it.
LIFETIME = 15.0

# What tokens of this kind begin with. Others (NEW_TOKEN frames of some other server) are not ours
# to judge, and count as none.
_MARK = b"gwtR"
_TIME = 8
_MAC = 16


class InvalidToken(ValueError):
    """A token of ours that is forged, expired, or another client's."""


def _seal(key: bytes, body: bytes, address: Address, source: bytes) -> bytes:
    # Address and port, as RFC 9000 8.1.4 asks: no NAT changes them within a round trip.
    # Each part tells its length, so that no two clients' parts can run into the same text.
    host, port = str(address[0]).encode(), int(address[1])
    text = bytes((len(source), len(host))) + source + host + port.to_bytes(2, "big") + body
    return hashlib.blake2s(text, key=key, digest_size=_MAC).digest()


def make_token(
    key: bytes, address: Address, destination: bytes, source: bytes, now: float
) -> bytes:
    """
    Return a token for the client at `address` that wrote to `destination`.

    `source` is the connection id that it is told to write to. The key has at most 32 bytes.
    """
    body = _MARK + int(now * 1000).to_bytes(_TIME, "big") + destination
    return body + _seal(key, body, address, source)


def open_token(key: bytes, newcomer: Newcomer, address: Address, now: float) -> bytes | None:
    """
    Return the connection id that the client wrote to first; None if it brings no token of ours.

    Raises InvalidToken for one of ours that is not good, here and now and for this client.
    """
    token = newcomer.token
    if not token.startswith(_MARK):
        return None
    body, mac = token[:-_MAC], token[-_MAC:]
    if not hmac.compare_digest(mac, _seal(key, body, address, newcomer.destination)):
        raise InvalidToken("The token is not for this client.")
    age = now - int.from_bytes(body[len(_MARK) :][:_TIME], "big") / 1000
    # Less than nothing: another process of ours has a clock that is a little ahead.
    if not -1.0 <= age <= LIFETIME:
        raise InvalidToken("The token has expired.")
    return body[len(_MARK) + _TIME :]


def encode_retry(key: bytes, newcomer: Newcomer, address: Address, now: float) -> bytes:
    """Return the Retry packet for a client's first packet: smaller, and without any state."""
    source = os.urandom(CONNECTION_ID_LENGTH)
    return encode_quic_retry(
        version=newcomer.version,
        source_cid=source,
        destination_cid=newcomer.source,
        original_destination_cid=newcomer.destination,
        retry_token=make_token(key, address, newcomer.destination, source, now),
    )
