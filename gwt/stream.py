"""
WebTransport streams as a greenlet sees them: reading, writing, ending.

The two halves and what they share have files of their own; this one joins them and exports all.
"""

from __future__ import annotations

from typing import Any

from .errors import GwtError
from .manager.stream import StreamManager
from .stream_common import CONFIGURED, StreamDirection, StreamState
from .stream_receive import WebTransportReceiveStream
from .stream_send import WebTransportSendStream

__all__ = [
    "StreamDirection",
    "StreamState",
    "WebTransportReceiveStream",
    "WebTransportSendStream",
    "WebTransportStream",
]


class WebTransportStream(WebTransportReceiveStream, WebTransportSendStream):
    """A stream for both directions."""

    direction = StreamDirection.BIDIRECTIONAL

    def close(self, *, timeout: float | None = CONFIGURED) -> None:
        """Finish sending, wait until all is acknowledged as a send stream does, stop receiving."""
        WebTransportSendStream.close(self, timeout=timeout)
        self.stop()

    def abort(self, code: int = 0) -> None:
        """Reset and stop at once; does not wait."""
        self.reset(code)
        self.stop(code)

    def makefile(self, mode: str = "rb", buffering: int = 65536) -> Any:
        """Return a binary file for reading ("rb") or writing ("wb")."""
        if mode == "wb":
            return WebTransportSendStream.makefile(self, mode, buffering)
        return WebTransportReceiveStream.makefile(self, mode, buffering)

    def session_over(self, error: GwtError) -> None:
        WebTransportReceiveStream.session_over(self, error)
        WebTransportSendStream.session_over(self, error)


def make_stream(session: Any, stream_id: int, is_unidirectional: bool) -> Any:
    """Return the object for a stream of ours that has an id already."""
    return (WebTransportSendStream if is_unidirectional else WebTransportStream)(session, stream_id)


# The managers' floor may not know this one, so it is told how streams are made.
StreamManager.make_stream = staticmethod(make_stream)
