"""
The short way past wsproto, for whole messages in one frame: most of what there is.

With websocket.py all that touches its private attributes. ``works()`` says whether the installed
wsproto is the one that this was written for; if not, everything takes wsproto's way.
"""

from __future__ import annotations

from wsproto.frame_protocol import FrameDecoder, FrameProtocol, Opcode, XorMaskerSimple

from .wsframes import encode_frame, mask, payload_of

__all__ = ["Decoder", "message_in", "works"]

# FIN, no reserved bit: close, ping, pong.
_CONTROL = (0x88, 0x89, 0x8A)
# Without a code, 1000, 1001.
_USUAL_CLOSE = (b"", b"\x03\xe8", b"\x03\xe9")

# Payloads from here on are unmasked where they lie, instead of being cut out before.
_LARGE = 1024


def message_in(
    data: bytes | bytearray, client: bool, limit: int, end: int | None = None
) -> tuple[str | bytes, int] | None:
    """
    Return the message with which data begins, in one frame and nothing special, and where it ends.

    None if it is not whole, has more than ``limit`` bytes, or does not end at ``end``; or is wrong
    or unusual in any way, which is wsproto's to find.
    """
    have = len(data)
    if have < 2:
        return None
    first = data[0]
    if first != 0x81 and first != 0x82:
        return None
    size = data[1]
    if client:
        start = 2
    else:
        start = 6
        size -= 0x80
    if not 0 <= size < 126:
        if size == 126 and have >= 4:
            start += 2
            size = data[2] << 8 | data[3]
            shortest = 126
        elif size == 127 and have >= 10:
            start += 8
            size = int.from_bytes(data[2:10], "big")
            shortest = 0x10000
        else:
            return None
        if size < shortest:
            return None
    stop = start + size
    if have < stop or size > limit or (end is not None and stop != end):
        return None
    payload: bytes | bytearray
    if client:
        payload = data[start:stop]
    elif size < _LARGE or end is None:
        payload = mask(data[start:stop], data[start - 4 : start])
    else:
        payload = mask(memoryview(data)[start:stop], data[start - 4 : start])
    if first == 0x82:
        return bytes(payload), stop
    try:
        return payload.decode(), stop
    except UnicodeDecodeError:
        return None


class Masker:
    """wsproto's masker for frames that come in parts, with our mask."""

    def __init__(self, key: bytes | bytearray) -> None:
        self._key = bytes(key)

    def process(self, data: bytearray) -> bytes:
        key = self._key
        turn = len(data) & 3
        self._key = key[turn:] + key[:turn]
        return mask(data, key)


class Decoder(FrameDecoder):
    """wsproto's, with a short way for whole messages in one frame."""

    def parse_header(self) -> bool:
        parsed = super().parse_header()
        if isinstance(self.masker, XorMaskerSimple):
            self.masker = Masker(self.masker._masking_key)  # type: ignore[assignment]
        return parsed

    def whole(self, limit: int) -> str | bytes | None:
        """Take a message that is whole, in one frame, and nothing special; else take nothing."""
        if self.header is not None:
            return None
        found = message_in(self.buffer.buffer, self.client, limit)
        if found is None:
            return None
        message, end = found
        del self.buffer.buffer[:end]
        return message

    def control(self) -> tuple[int, bytes] | None:
        """Take the opcode and payload of a whole control frame without fault; else nothing."""
        data = self.buffer.buffer
        if self.header is not None or len(data) < 2 or data[0] not in _CONTROL:
            return None
        start, size = (2, data[1]) if self.client else (6, data[1] - 0x80)
        end = start + size
        if not 0 <= size < 126 or len(data) < end:
            return None
        payload = bytes(data[start:end])
        if not self.client:
            payload = mask(payload, data[2:6])
        opcode = data[0] & 0x0F
        if opcode == Opcode.CLOSE and not _is_usual(payload):
            return None
        del data[:end]
        return opcode, payload


def _is_usual(close: bytes) -> bool:
    """Whether a close frame is an everyday one; the others are wsproto's to judge."""
    if close[:2] not in _USUAL_CLOSE:
        return False
    try:
        close[2:].decode()
    except UnicodeDecodeError:
        return False
    return True


def works() -> bool:
    """Whether the installed wsproto is the one that the short way was written for."""
    try:
        proto = FrameProtocol(False, [])
        decoder = Decoder(False, proto._frame_decoder.extensions)
        proto._frame_decoder = decoder
        for data in ("ab", b"cd"):
            proto.receive_bytes(
                encode_frame(0x81 if data == "ab" else 0x82, payload_of(data), True)
            )
            if proto._message_decoder.opcode is not None or decoder.whole(2) != data:
                return False
        proto.receive_bytes(encode_frame(0x02, b"e" * 5, True)[:-2])
        if decoder.whole(9) is not None or len(list(proto.received_frames())) != 1:
            return False
        if decoder.header is None or proto._message_decoder.opcode is not Opcode.BINARY:
            return False
        if decoder.buffer.buffer or decoder.buffer.bytes_used:
            return False
        decoder = Decoder(True, [])
        decoder.receive_bytes(b"\x89\x01a\x88\x00")
        return decoder.control() == (9, b"a") and decoder.control() == (8, b"")
    except (AttributeError, TypeError, AssertionError):
        return False
