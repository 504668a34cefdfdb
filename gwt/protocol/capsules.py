"""
Capsules (RFC 9297 3.2) on a CONNECT stream: an incremental reader and the writers.

The reader is fed whatever arrives and returns what is complete. Unknown capsules are skipped as
they arrive, so that their length costs nothing; known ones are held whole, and are therefore
bounded.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "CLOSE_SESSION",
    "DRAIN_SESSION",
    "Capsule",
    "CapsuleError",
    "CapsuleReader",
    "encode_capsule",
    "encode_close",
    "encode_varint",
    "parse_close",
    "parse_limit",
    "pull_varint",
]

CLOSE_SESSION = 0x2843
DRAIN_SESSION = 0x78AE
MAX_DATA = 0x190B4D3D
MAX_STREAMS_BIDI = 0x190B4D3F
MAX_STREAMS_UNI = 0x190B4D40
DATA_BLOCKED = 0x190B4D41
STREAMS_BLOCKED_BIDI = 0x190B4D43
STREAMS_BLOCKED_UNI = 0x190B4D44

# webtrans-http3-16 5.4: QUIC limits the data of a stream, so these are errors.
PROHIBITED = (0x190B4D3E, 0x190B4D42)

# webtrans-http3-16 6: the reason of a close is limited to 1024 bytes.
MAX_REASON = 1024

# The longest legal payload of each capsule that is held: a u32 and the reason, or one varint.
_MAX_PAYLOAD = {
    CLOSE_SESSION: 4 + MAX_REASON,
    DRAIN_SESSION: 0,
    MAX_DATA: 8,
    MAX_STREAMS_BIDI: 8,
    MAX_STREAMS_UNI: 8,
    DATA_BLOCKED: 8,
    STREAMS_BLOCKED_BIDI: 8,
    STREAMS_BLOCKED_UNI: 8,
    **dict.fromkeys(PROHIBITED, 16),
}


class CapsuleError(Exception):
    """A capsule that breaks its own rules. Never leaves the protocol floor."""


@dataclass(frozen=True, slots=True)
class Capsule:
    """A complete capsule of a known type."""

    type: int
    payload: bytes


def encode_varint(value: int) -> bytes:
    """Encode a QUIC variable-length integer (RFC 9000 16)."""
    if value < 0x40:
        return value.to_bytes(1, "big")
    if value < 0x4000:
        return (value | 0x4000).to_bytes(2, "big")
    if value < 0x40000000:
        return (value | 0x80000000).to_bytes(4, "big")
    return (value | 0xC000000000000000).to_bytes(8, "big")


def pull_varint(data: bytes | bytearray, offset: int = 0) -> tuple[int, int] | None:
    """Return a varint and the offset behind it, or None if it is not complete yet."""
    if offset >= len(data):
        return None
    first = data[offset]
    end = offset + (1 << (first >> 6))
    if end > len(data):
        return None
    value = first & 0x3F
    for byte in data[offset + 1 : end]:
        value = value << 8 | byte
    return value, end


def encode_capsule(kind: int, payload: bytes = b"") -> bytes:
    """Encode one capsule."""
    return encode_varint(kind) + encode_varint(len(payload)) + payload


def encode_close(code: int, reason: bytes) -> bytes:
    """Encode a CLOSE_WEBTRANSPORT_SESSION capsule."""
    return encode_capsule(CLOSE_SESSION, code.to_bytes(4, "big") + reason)


def parse_close(payload: bytes) -> tuple[int, str]:
    """Return code and reason of a CLOSE; raises CapsuleError if it is short or not UTF-8."""
    if len(payload) < 4:
        raise CapsuleError("CLOSE capsule is too short")
    try:
        return int.from_bytes(payload[:4], "big"), payload[4:].decode("utf-8")
    except UnicodeDecodeError:
        raise CapsuleError("CLOSE reason is not UTF-8") from None


def parse_limit(payload: bytes) -> int:
    """Return the one varint that a flow-control capsule consists of."""
    pulled = pull_varint(payload)
    if pulled is None or pulled[1] != len(payload):
        raise CapsuleError("Flow-control capsule is not one integer")
    return pulled[0]


class CapsuleReader:
    """Cuts a byte stream into capsules; holds at most one known capsule and a header."""

    __slots__ = ("_buffer", "_skip")

    def __init__(self) -> None:
        self._buffer = bytearray()
        # Bytes of an unknown capsule that are still to come.
        self._skip = 0

    @property
    def pending(self) -> bool:
        """Whether the stream would end in the middle of a capsule now."""
        return bool(self._buffer or self._skip)

    def feed(self, data: bytes) -> list[Capsule]:
        """
        Take bytes, return the known capsules that they complete.

        Raises CapsuleError for a known capsule that is longer than it can legally be.
        """
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        if not data:
            return []
        buffer = self._buffer
        buffer += data
        capsules: list[Capsule] = []
        start = 0
        while (kind := pull_varint(buffer, start)) and (length := pull_varint(buffer, kind[1])):
            limit = _MAX_PAYLOAD.get(kind[0])
            end = length[1] + length[0]
            if limit is None:
                self._skip = max(0, end - len(buffer))
                start = min(end, len(buffer))
                continue
            if length[0] > limit:
                raise CapsuleError(f"Capsule {kind[0]:#x} has {length[0]} bytes, over {limit}")
            if end > len(buffer):
                break
            capsules.append(Capsule(kind[0], bytes(buffer[length[1] : end])))
            start = end
            if kind[0] == CLOSE_SESSION:
                # Nothing may follow, so that even a byte that is pending then is too much.
                break
        del buffer[:start]
        return capsules
