"""
The frames of WebSocket (RFC 6455 5): masking, writing, and the limits on what is read.

``Guard`` is what wsproto asks about each frame that it reads. The connection, and the short way
past wsproto, are in websocket.py.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from typing import Any

from wsproto.extensions import Extension
from wsproto.frame_protocol import (
    CloseReason,
    FrameDecoder,
    FrameProtocol,
    Opcode,
    RsvBits,
    XorMaskerSimple,
)

from ..errors import LocalProtocolError
from .deflate import Deflater, Inflater, TooMuch, compress_once

__all__ = [
    "MASKER",
    "Assembly",
    "Data",
    "Guard",
    "Writer",
    "encode",
    "encode_for",
    "encode_frame",
    "mask",
    "payload_of",
]

# Pongs that wait to be sent; beyond, only the newest pings are answered (RFC 6455 5.5.3).
MAX_PONGS = 64

Data = str | bytes | bytearray | memoryview


# -- Masking (RFC 6455 5.3) ---------------------------------------------------------------------

Mask = Callable[[Any, Any], bytes]


def _mask_small(data: bytes | bytearray, key: bytes | bytearray) -> bytes:
    size = len(data)
    pad = (bytes(key) * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(pad, "little")).to_bytes(size, "little")


def _mask_wsproto(data: bytes | bytearray, key: bytes | bytearray) -> bytes:
    if len(data) < 1024:
        return _mask_small(data, key)
    return bytes(XorMaskerSimple(key).process(bytearray(data)))


def _numpy_masker() -> Mask:
    import numpy

    def mask_numpy(data: bytes | bytearray, key: bytes | bytearray) -> bytes:
        size = len(data)
        if size < 1024:
            return _mask_small(data, key)
        whole = size & ~3
        words = numpy.frombuffer(data, "u4", size >> 2) ^ numpy.frombuffer(key, "u4")[0]
        out: bytes = words.tobytes()
        return out if whole == size else out + _mask_small(data[whole:], key)

    return mask_numpy


def _speedups_masker() -> Mask:
    from websockets.speedups import apply_mask

    masker: Mask = apply_mask
    return masker


def _masks(mask: Mask) -> bool:
    """Whether a masker does what wsproto's does."""
    key = b"\x01\x80\xfe\x37"
    for size in (0, 1, 3, 4, 5, 64, 1023, 1024, 1027, 4096):
        data = bytes(range(256)) * 16
        expected = XorMaskerSimple(key).process(bytearray(data[:size]))
        for kind in (bytes, bytearray, memoryview):
            masked = mask(kind(data[:size]), bytearray(key) if kind is bytearray else key)
            if type(masked) is not bytes or masked != expected:
                return False
    return True


def _choose_masker() -> tuple[str, Mask]:
    for name, make in (("websockets", _speedups_masker), ("numpy", _numpy_masker)):
        try:
            masker = make()
            if _masks(masker):
                return name, masker
        except (ImportError, AttributeError, TypeError, ValueError):
            # Not there, or another one than this was written for: the next one serves.
            continue
    return "wsproto", _mask_wsproto


# What masks, and its name: websockets' C code, numpy, or what Python and wsproto have.
MASKER, mask = _choose_masker()


# -- Frames out ---------------------------------------------------------------------------------


def payload_of(data: Data) -> bytes:
    if isinstance(data, str):
        try:
            return data.encode()
        except UnicodeEncodeError as error:
            raise LocalProtocolError(f"Text cannot be sent as UTF-8: {error}.") from error
    if isinstance(data, bytes):
        return data
    if isinstance(data, (bytearray, memoryview)):
        return bytes(data)
    raise TypeError(f"A message is str or bytes, not {type(data).__name__}.")


def encode_frame(first: int, payload: bytes, masked: bool) -> bytes:
    """Encode a frame whose first byte is given: FIN, reserved bits and opcode."""
    size = len(payload)
    bit = 0x80 if masked else 0
    if size < 126:
        head = bytes((first, bit | size))
    elif size < 0x10000:
        head = bytes((first, bit | 126, size >> 8, size & 0xFF))
    else:
        head = bytes((first, bit | 127)) + size.to_bytes(8, "big")
    if not masked:
        return head + payload
    key = os.urandom(4)
    return head + key + mask(payload, key)


def encode(data: Data) -> bytes:
    """
    Encode a message as a server sends it uncompressed: the same bytes for all who get it.

    Raises LocalProtocolError for text that is not Unicode, TypeError for what is no message.
    """
    return encode_frame(0x81 if isinstance(data, str) else 0x82, payload_of(data), False)


def encode_for(kind: tuple[int, ...], data: Data) -> bytes:
    """Encode a message for every Writer of a kind: as it is, or compressed by itself."""
    if kind:
        level, bits, threshold = kind
        payload = payload_of(data)
        if len(payload) >= threshold:
            first = 0xC1 if isinstance(data, str) else 0xC2
            return encode_frame(first, compress_once(payload, level, bits), False)
    return encode(data)


class Writer:
    """What is to be sent: frames, until they are taken."""

    __slots__ = (
        "_compressed",
        "_deflater",
        "_masked",
        "_open",
        "_out",
        "_pongs",
        "bytes",
        "messages",
    )

    def __init__(self, masked: bool, deflater: Deflater | None) -> None:
        self._masked = masked
        self._deflater = deflater
        self._out: list[bytes] = []
        self._open = False  # a message in fragments is
        self._compressed = False  # it is
        self.messages = self.bytes = 0
        self._pongs: list[bytes] = []  # payloads of those that wait

    @property
    def kind(self) -> tuple[int, ...] | None:
        """
        What the bytes of a message depend on, the same for all who are of one kind.

        None where they are nobody else's: masked, or compressed with context takeover.
        """
        if self._masked:
            return None
        return () if self._deflater is None else self._deflater.kind

    def take(self) -> list[bytes]:
        """Return what is to be sent, and forget it."""
        self._answer()
        out, self._out = self._out, []
        for frame in out:
            self.bytes += len(frame)
        return out

    def pong(self, payload: bytes) -> None:
        """Answer a ping. Where too many answers wait, the oldest is not given."""
        if len(self._pongs) >= MAX_PONGS:
            del self._pongs[0]
        self._pongs.append(payload)

    def _answer(self) -> None:
        # Before whatever is sent after the ping; nothing may come behind a close frame.
        if self._pongs:
            self._out += [encode_frame(0x8A, payload, self._masked) for payload in self._pongs]
            self._pongs.clear()

    def control(self, first: int, payload: bytes) -> None:
        """Add a control frame."""
        self._answer()
        self._out.append(encode_frame(first, payload, self._masked))

    def message(self, data: Data) -> None:
        """Add a whole message. Raises LocalProtocolError while another one is in fragments."""
        frame = self._whole(data)
        self._answer()
        self._out.append(frame)

    def encoded(self, data: Data) -> bytes:
        """Take what is to be sent, with a whole message behind it."""
        frame = self._whole(data)
        if self._out or self._pongs:
            frame = b"".join((*self.take(), frame))
        self.bytes += len(frame)
        return frame

    def _whole(self, data: Data) -> bytes:
        if self._open:
            raise LocalProtocolError("Another message is being sent in fragments.")
        payload = payload_of(data)
        first = 0x81 if isinstance(data, str) else 0x82
        if self._deflater is not None and len(payload) >= self._deflater.threshold:
            payload = self._deflater.compress(payload, final=True)
            first |= 0x40
        self.messages += 1
        return encode_frame(first, payload, self._masked)

    def fragment(self, data: Data, *, text: bool, first: bool, final: bool) -> None:
        """Add a part of a message. Raises LocalProtocolError where it does not fit."""
        if first is self._open:
            raise LocalProtocolError(
                "Another message is being sent in fragments."
                if first
                else "No message is being sent in fragments."
            )
        if isinstance(data, str) and not text:
            raise TypeError("A part of a binary message is bytes, not str.")
        payload = payload_of(data)
        deflater = self._deflater
        head = 0x80 if final else 0
        if first:
            head |= 0x01 if text else 0x02
            self._compressed = deflater is not None and (
                (not final and deflater.threshold < 2**62) or len(payload) >= deflater.threshold
            )
            if self._compressed:
                head |= 0x40
        if self._compressed and deflater is not None:
            payload = deflater.compress(payload, final=final)
        self._answer()
        self._out.append(encode_frame(head, payload, self._masked))
        self._open = not final
        self.messages += final


# -- Frames in ----------------------------------------------------------------------------------


class Guard(Extension):
    """
    What wsproto asks about each frame, as an extension: limits on messages, inflation.

    Whole messages that are within the limit and not compressed need not come by here.
    """

    name = "gwt"

    def __init__(self, inflater: Inflater | None, max_size: int | None, max_fragments: int) -> None:
        self._inflater = inflater
        self._max_size = max_size
        self._max_fragments = max_fragments
        self._open = False  # a message is
        self._size = 0  # of it so far, inflated
        self._wire = 0  # and as it was sent
        self._fragments = 0
        self._compressed = False
        # The frame at hand: what its message comes to with it, None for a control frame.
        self._header: tuple[bool, int, int] | None = None
        self._within = False  # its payload
        self.reason = ""  # why a frame was refused

    @property
    def within_message(self) -> bool:
        """Whether a message has begun, and its end has not come."""
        return self._open

    def enabled(self) -> bool:
        return True

    def offer(self) -> bool:
        return False

    def _refuse(self, code: CloseReason, reason: str) -> CloseReason:
        self.reason = reason
        return code

    def frame_inbound_header(
        self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> CloseReason | RsvBits:
        # wsproto asks again while a header is incomplete, so that nothing is kept here but the
        # answer to the last question; the payload comes once.
        error = CloseReason.PROTOCOL_ERROR
        if opcode.iscontrol():
            self._header = None
            return RsvBits(False, False, False)
        if opcode is Opcode.CONTINUATION:
            if not self._open:
                return self._refuse(error, "continuation of no message")
            if rsv.rsv1:
                return self._refuse(error, "reserved bit set")
            header = self._compressed, self._fragments + 1, self._wire + payload_length
        elif self._open:
            return self._refuse(error, "message within a message")
        else:
            header = rsv.rsv1 and self._inflater is not None, 1, payload_length
        compressed, fragments, wire = self._header = header
        if fragments > self._max_fragments:
            return self._refuse(CloseReason.POLICY_VIOLATION, "too many fragments")
        if self._max_size is not None:
            # Compression may add a little to what does not compress, but not that much.
            allowed = 2 * self._max_size + 65536 if compressed else self._max_size
            if wire > allowed:
                return self._too_big()
        return RsvBits(self._inflater is not None, False, False)

    def _too_big(self) -> CloseReason:
        return self._refuse(
            CloseReason.MESSAGE_TOO_BIG, f"message of more than {self._max_size} bytes"
        )

    def _inflate(self, step: Callable[[int | None], bytes]) -> bytes | CloseReason:
        try:
            data = step(None if self._max_size is None else self._max_size - self._size)
        except TooMuch:
            return self._too_big()
        except zlib.error:
            return self._refuse(CloseReason.INVALID_FRAME_PAYLOAD_DATA, "invalid compressed data")
        self._size += len(data)
        return data

    def frame_inbound_payload_data(
        self, proto: FrameDecoder | FrameProtocol, data: bytes
    ) -> bytes | CloseReason:
        if self._header is None:
            return data  # of a control frame
        if not self._within:
            self._within = True
            if not self._open:
                self._open, self._size = True, 0
            self._compressed, self._fragments, self._wire = self._header
        inflater = self._inflater
        if not self._compressed or inflater is None:
            return data
        return self._inflate(lambda room: inflater.inflate(data, room))

    def frame_inbound_complete(
        self, proto: FrameDecoder | FrameProtocol, fin: bool
    ) -> bytes | CloseReason | None:
        if self._header is None:
            return None
        self._within = False
        if not fin:
            return None
        self._open = False
        # wsproto compresses an empty message to nothing, where it should be a byte.
        if not self._compressed or not self._wire or self._inflater is None:
            return None
        return self._inflate(self._inflater.finish)


class Assembly:
    """The parts of the message that is coming in; small parts are joined as they get many."""

    def __init__(self) -> None:
        self._parts: list[Any] = []
        self._joined: list[Any] = []

    def add(self, part: str | bytes) -> None:
        if part:
            self._parts.append(part)
            if len(self._parts) >= 256:
                self._joined.append(part[:0].join(self._parts))
                self._parts.clear()

    def take(self, last: str | bytes) -> Any:
        if not self._parts and not self._joined:
            return last
        self._joined += self._parts
        self._joined.append(last)
        whole = last[:0].join(self._joined)
        self._parts, self._joined = [], []
        return whole
