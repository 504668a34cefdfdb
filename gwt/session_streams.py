"""
A session's own streams: opened by a greenlet that waits for credit, or by a room, which does not.

The lower half of WebTransportSession, which session.py completes.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from .config import TransportConfig
from .errors import SessionError
from .manager.stream import StreamManager
from .net.waiting import Deadline, Signal
from .session_outlets import outlet_for
from .stream import WebTransportSendStream, WebTransportStream
from .stream_common import CONFIGURED

if TYPE_CHECKING:
    from .connection import WebTransportConnection

__all__ = ["OwnStreams"]


class OwnStreams:
    """One session, as far as it opens streams."""

    connection: WebTransportConnection
    config: TransportConfig
    session_id: str
    stream_id: int
    streams: StreamManager
    streams_opened: int

    # Woken when the peer may allow another stream, and at the end; whether we asked for that.
    _credit: Signal
    _local_drain: bool

    # What rooms send by: ``session.make_outlet(framing)``.
    make_outlet = outlet_for

    def _check_open(self) -> None:
        raise NotImplementedError

    def create_bidirectional_stream(
        self, *, timeout: float | None = CONFIGURED
    ) -> WebTransportStream:
        """
        Open a stream for both directions; waits for the peer's credit.

        Raises TimeoutError, SessionClosed, or TooManyStreams at once if a local ``max_streams``
        is reached. `timeout` is stream_creation_timeout unless given; None is no limit.
        """
        self._check_open()
        stream: WebTransportStream = self.streams.create_stream(
            partial(self._open_stream, False, timeout)
        )
        return stream

    def create_unidirectional_stream(
        self, *, timeout: float | None = CONFIGURED
    ) -> WebTransportSendStream:
        """Open a stream for sending; waits and raises as create_bidirectional_stream()."""
        self._check_open()
        stream: WebTransportSendStream = self.streams.create_stream(
            partial(self._open_stream, True, timeout)
        )
        return stream

    def _open_stream(
        self, unidirectional: bool, timeout: float | None = CONFIGURED
    ) -> WebTransportSendStream:
        deadline: Deadline | None = None
        while (stream := self.open_now(unidirectional)) is None:
            if deadline is None:
                configured = self.config.stream_creation_timeout
                deadline = Deadline(configured if timeout is CONFIGURED else timeout)
            try:
                self.wait_credit(deadline)
            except TimeoutError:
                raise TimeoutError(
                    f"The peer allowed no more streams within {deadline.timeout:g} s."
                ) from None
        return stream

    def open_now(self, unidirectional: bool) -> WebTransportSendStream | None:
        """Return a new stream, None while the peer allows no more; raises SessionError."""
        self._check_open()
        if self._local_drain:
            raise SessionError(
                "The session is being drained: no new streams.", session_id=self.session_id
            )
        stream_id = self.connection.protocol.open_stream(self.stream_id, unidirectional)
        if stream_id is None:
            return None
        stream = self.make_stream(stream_id, unidirectional)
        self.connection.flush_soon()
        self.streams_opened += 1
        return stream

    def wait_credit(self, deadline: Deadline | None) -> None:
        """Wait until open_now() is worth trying again, or the end; raises TimeoutError."""
        self.connection.protocol.want_stream(self.stream_id)
        self._credit.wait(deadline)

    def make_stream(self, stream_id: int, is_unidirectional: bool) -> WebTransportSendStream:
        """Return the object for a stream of ours that the protocol has opened."""
        kind = WebTransportSendStream if is_unidirectional else WebTransportStream
        stream = kind(self, stream_id)  # type: ignore[arg-type]  # session.py completes it.
        self.connection.add_stream(stream)
        return stream

    def feed_available(self) -> None:
        """Fed from the connection: the peer may allow another stream."""
        self._credit.notify()
