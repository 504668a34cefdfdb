"""
Packet protection of 1-RTT packets (RFC 9001 5) in two calls, over aioquic's keys.

Part of the seam of quic.py. aioquic takes nine calls and five copies for each packet; the ciphers
are the same. Changes of keys go through aioquic's own methods.
"""

from __future__ import annotations

from typing import Any

from aioquic._crypto import CryptoError
from aioquic.quic.crypto import CryptoPair, NoCallback
from aioquic.quic.packet import decode_packet_number
from cryptography.exceptions import InvalidTag

__all__ = ["open_packet", "quiet_keys", "seal_packet"]

# RFC 9001 5.4.2: the sample begins where a packet number of four bytes would end.
_SAMPLE = 16
_LONGEST_NUMBER = 4
_NONCE = 12
_KEY_PHASE = 0x04


def seal_packet(
    crypto: CryptoPair, first: int, connection_id: bytes, number: int, payload: bytes
) -> bytes:
    """Return a packet with a packet number of two bytes; `payload` has at least two bytes."""
    truncated = number & 0xFFFF
    header = b"%c%b%b" % (first, connection_id, truncated.to_bytes(2, "big"))
    if crypto._update_key_requested:
        return crypto.encrypt_packet(header, payload, number)
    send: Any = crypto.send
    aead = send.aead
    sealed: bytes = aead._aead.encrypt((aead._iv ^ number).to_bytes(_NONCE, "big"), payload, header)
    start = _LONGEST_NUMBER - 2
    mask = send.hp._mask(sealed[start : start + _SAMPLE])
    return b"%c%b%b%b" % (
        first ^ (mask[0] & 0x1F),
        connection_id,
        (truncated ^ (mask[1] << 8 | mask[2])).to_bytes(2, "big"),
        sealed,
    )


def open_packet(
    crypto: CryptoPair, packet: bytes, offset: int, expected: int
) -> tuple[int, bytes, int]:
    """
    Return the first byte, the payload and the number of a packet whose number is at `offset`.

    Raises CryptoError if it is not of the peer's making, or too short.
    """
    recv: Any = crypto.recv
    sample = packet[offset + _LONGEST_NUMBER : offset + _LONGEST_NUMBER + _SAMPLE]
    if len(sample) < _SAMPLE:
        raise CryptoError("Packet is too short to sample")
    mask = recv.hp._mask(sample)
    first = packet[0] ^ (mask[0] & 0x1F)
    if (first & _KEY_PHASE) >> 2 != recv.key_phase:
        header, payload, number = crypto.decrypt_packet(packet, offset, expected)
        return header[0], payload, number
    length = (first & 0x03) + 1
    end = offset + length
    truncated = int.from_bytes(packet[offset:end], "big") ^ int.from_bytes(
        mask[1 : 1 + length], "big"
    )
    number = decode_packet_number(truncated, length * 8, expected)
    header = b"%c%b%b" % (first, packet[1:offset], truncated.to_bytes(length, "big"))
    aead = recv.aead
    try:
        payload = aead._aead.decrypt(
            (aead._iv ^ number).to_bytes(_NONCE, "big"), packet[end:], header
        )
    except InvalidTag:
        raise CryptoError("Packet does not decrypt") from None
    return first, payload, number


def quiet_keys(pair: CryptoPair) -> None:
    """Drop the callbacks of keys, 1 KiB that tells only a logger what becomes of them."""
    for keys in (pair.recv, pair.send):
        keys._setup_cb = keys._teardown_cb = NoCallback
