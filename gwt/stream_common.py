"""
What every WebTransport stream has: its id, its state, its end.

The two halves are stream_receive.py and stream_send.py; stream.py joins them. Calls from above
run in the caller's greenlet; methods said to be fed from the connection run in the quiet zone.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from .errors import GwtError

if TYPE_CHECKING:
    from .session import WebTransportSession

__all__ = ["CONFIGURED", "MAX_CODE", "StreamDirection", "StreamHalf", "StreamState", "check_code"]

MAX_CODE = 0xFFFFFFFF

# For a timeout that was left out: a field of the config rules it. None is no limit.
CONFIGURED: Final[Any] = object()


class StreamDirection(Enum):
    """Which way a stream carries data, seen from here."""

    BIDIRECTIONAL = "bidirectional"
    SEND_ONLY = "send_only"
    RECEIVE_ONLY = "receive_only"


class StreamState(Enum):
    """Where a stream is in its life."""

    OPEN = "open"
    HALF_CLOSED_LOCAL = "half_closed_local"
    HALF_CLOSED_REMOTE = "half_closed_remote"
    RESET_SENT = "reset_sent"
    RESET_RECEIVED = "reset_received"
    CLOSED = "closed"


def check_code(code: int) -> int:
    """Return an application code, or raise ValueError: 32 bits is what the wire carries."""
    if isinstance(code, bool) or not isinstance(code, int) or not 0 <= code <= MAX_CODE:
        raise ValueError(f"A code must be an integer from 0 to 2**32 - 1, not {code!r}.")
    return code


class StreamHalf:
    """What the kinds of streams have in common; the two halves add their direction."""

    direction: StreamDirection

    def __init__(self, session: WebTransportSession, stream_id: int) -> None:
        self.session = session
        self.stream_id = stream_id
        self._connection = session.connection
        self._protocol = session.connection.protocol

        # Why nothing more comes or goes, if it was not a proper end. The first reason wins.
        self._read_error: GwtError | None = None
        self._write_error: GwtError | None = None

        self.bytes_sent = self.bytes_received = 0

        # Whether each direction is over: there is none, it ended, or it was given up.
        self._read_over = True
        self._write_over = True

        # Whether our end was written; until it is acknowledged that direction is not over.
        self._finished = False
        self._reset_sent = self._reset_received = False

        self._end_callbacks: list[Callable[[Any], None]] | None = []

    @property
    def id(self) -> int:
        """The stream's id on the wire."""
        return self.stream_id

    @property
    def is_closed(self) -> bool:
        """Whether both directions are over and nothing is left to be read."""
        return self._end_callbacks is None

    @property
    def is_done(self) -> bool:
        """Whether nobody here has anything left to do: read to its end, finished, or given up."""
        return self._read_over and (self._write_over or self._finished)

    @property
    def state(self) -> StreamState:
        """Where the stream is in its life."""
        if self._reset_sent:
            return StreamState.RESET_SENT
        if self._reset_received:
            return StreamState.RESET_RECEIVED
        if self.is_closed:
            return StreamState.CLOSED
        if self.direction is not StreamDirection.BIDIRECTIONAL:
            return StreamState.OPEN
        if self._write_over:
            return StreamState.HALF_CLOSED_LOCAL
        return StreamState.HALF_CLOSED_REMOTE if self._read_over else StreamState.OPEN

    def stats(self) -> dict[str, Any]:
        """Return the stream's state and how many bytes went each way."""
        return {
            "state": self.state.value,
            "direction": self.direction.value,
            "bytes_sent": self.bytes_sent,
            "bytes_received": self.bytes_received,
            "bytes_unacknowledged": self._protocol.quic.buffered(self.stream_id),
        }

    def on_end(self, callback: Callable[[Any], None]) -> None:
        """Call ``callback(stream)`` once it is closed, at once if it is; it must not wait."""
        if self._end_callbacks is None:
            callback(self)
        else:
            self._end_callbacks.append(callback)

    def _ended(self) -> None:
        if self._read_over and self._write_over and self._end_callbacks is not None:
            callbacks, self._end_callbacks = self._end_callbacks, None
            self._connection.forget_stream(self.stream_id)
            for callback in callbacks:
                callback(self)

    def session_over(self, error: GwtError) -> None:
        """Fed from the connection: the session ended."""

    def close(self, *, timeout: float | None = CONFIGURED) -> None:
        """Finish sending, wait until all is acknowledged, and stop receiving."""

    def abort(self, code: int = 0) -> None:
        """Give up both directions at once; what was not sent is lost. Does not wait."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.stream_id} {self.state.value}>"
