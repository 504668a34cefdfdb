"""
Reading what rooms write: messages on a WebTransport stream, as users read and write them.

The format is protocol/messages.py's; waiting is the stream's.
"""

from __future__ import annotations

from collections.abc import Iterator

from .errors import IncompleteRead
from .protocol.messages import MessageReader, encode_message
from .stream import WebTransportReceiveStream

__all__ = ["encode_message", "read_messages"]


def read_messages(
    stream: WebTransportReceiveStream, *, max_size: int | None = 1 << 20
) -> Iterator[str | bytes]:
    """
    Yield the messages on a stream, text as str and the rest as bytes, until the stream ends.

    That is how the members of a room get them, on one unidirectional stream; encode_message()
    makes them. Waits as the stream's read(), and raises what that does; IncompleteRead if the
    stream ends within a message, MessageTooLarge if one is announced with more than `max_size`
    bytes, RemoteProtocolError for what is no message.
    """
    reader = MessageReader(max_size)
    for chunk in stream:
        yield from reader.feed(chunk)
    if rest := reader.rest:
        raise IncompleteRead(rest, stream_id=stream.stream_id)
