"""
Messages on a stream: how rooms tell a WebTransport session text from bytes, and where each ends.

A message is a type byte (1 text, 2 binary), its length as a QUIC varint (RFC 9000 16), and its
payload; a text's is UTF-8. Pure: bytes in, messages out.
"""

from __future__ import annotations

from ..errors import LocalProtocolError, MessageTooLarge, RemoteProtocolError
from .capsules import encode_varint, pull_varint

__all__ = ["MessageReader", "encode_message", "payload_of"]

TEXT, BINARY = 1, 2


def payload_of(message: str | bytes | bytearray | memoryview) -> bytes:
    """Return a message's bytes; raises LocalProtocolError for text that is not Unicode."""
    if not isinstance(message, str):
        return message if isinstance(message, bytes) else bytes(memoryview(message))
    try:
        return message.encode()
    except UnicodeEncodeError as exc:
        raise LocalProtocolError(f"A text that is not Unicode cannot be sent: {exc}.") from None


def encode_message(message: str | bytes | bytearray | memoryview) -> bytes:
    """
    Return a message as rooms write it on a stream: type byte, varint length, payload.

    Raises LocalProtocolError for text that is not Unicode, TypeError for what is no message.
    """
    payload = payload_of(message)
    kind = b"\x01" if isinstance(message, str) else b"\x02"
    return kind + encode_varint(len(payload)) + payload


class MessageReader:
    """Finds the messages in what arrives; holds at most one of `max_size` bytes, and its head."""

    __slots__ = ("_buffer", "_max_size")

    def __init__(self, max_size: int | None) -> None:
        self._buffer = bytearray()
        self._max_size = max_size

    @property
    def rest(self) -> bytes:
        """What has arrived of a message that is not whole yet."""
        return bytes(self._buffer)

    def feed(self, data: bytes) -> list[str | bytes]:
        """
        Take bytes; returns the messages that they complete.

        Raises MessageTooLarge as soon as a length is announced that is, and RemoteProtocolError
        for a type that does not exist and for text that is no UTF-8; then it is of no use any more.
        """
        buffer = self._buffer
        buffer += data
        messages: list[str | bytes] = []
        position = 0
        while position < len(buffer):
            kind = buffer[position]
            if kind not in (TEXT, BINARY):
                raise RemoteProtocolError(f"There is no type {kind} of messages.")
            head = pull_varint(buffer, position + 1)
            if head is None:
                break
            size, begin = head
            if self._max_size is not None and size > self._max_size:
                raise MessageTooLarge(
                    f"A message of {size} bytes was announced; at most {self._max_size} are taken.",
                    limit=self._max_size,
                )
            if len(buffer) < begin + size:
                break
            payload = bytes(buffer[begin : begin + size])
            position = begin + size
            messages.append(_text(payload) if kind == TEXT else payload)
        del buffer[:position]
        return messages


def _text(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError as exc:
        raise RemoteProtocolError(f"A text is not UTF-8: {exc}.") from None
