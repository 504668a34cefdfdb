"""
The sending half of a WebTransport stream: what a greenlet writes.

A write waits while too much is unsent or unacknowledged; how much that is the protocol decides.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .errors import GwtError, LocalProtocolError, StreamError, StreamReset, StreamStopped, anew
from .net.waiting import Deadline, Signal
from .stream_common import CONFIGURED, StreamDirection, StreamHalf, check_code

if TYPE_CHECKING:
    from .session import WebTransportSession

__all__ = ["WebTransportSendStream", "flush_or_reset"]

logger = logging.getLogger("gwt")

Buffer = bytes | bytearray | memoryview


class WebTransportSendStream(StreamHalf):
    """A stream that we send on."""

    direction = StreamDirection.SEND_ONLY

    def __init__(self, session: WebTransportSession, stream_id: int) -> None:
        super().__init__(session, stream_id)
        self._write_over = False
        self._writable = Signal()

        # Whether a greenlet is in the middle of a write that waits for room, and whether its end
        # is to be the stream's.
        self._writing = False
        self._finish_due = False

    def write(self, data: Buffer, *, timeout: float | None = None) -> int:
        """
        Send `data`, of any size; returns its length once all of it is in the send buffer.

        Waits while too much is unacknowledged. Writes of several greenlets do not mix. Raises
        StreamStopped if the peer will not read, SessionClosed, LocalProtocolError after
        finish(), or TimeoutError, which says how much was taken.
        """
        view = memoryview(data).cast("B")
        self._connection.check_thread()
        deadline = Deadline(timeout)
        self._check_writable()
        while self._writing:
            self._writable.wait(deadline)
            self._check_writable()
        sent, size, room = 0, len(view), self._protocol.room(self.stream_id)
        if size <= room:
            # The usual case: it fits, and nobody has to wait.
            self._send(bytes(view))
            return size
        self._writing = True
        try:
            while sent < size:
                if self._write_error is not None:
                    raise anew(self._write_error)
                room = self._protocol.room(self.stream_id)
                if room:
                    self._send(bytes(view[sent : sent + room]))
                    sent += min(room, size - sent)
                else:
                    self._protocol.want_room(self.stream_id)
                    self._writable.wait(deadline)
        except TimeoutError:
            raise TimeoutError(
                f"write() timed out after {timeout:g} s: {sent} of {size} bytes were taken."
            ) from None
        finally:
            self._writing = False
            self._writable.notify()
            if self._finish_due and sent < size:
                # An end behind half a write would tell the peer that it is whole.
                self.reset()
        if self._finish_due:
            self._finish()
        return size

    def try_write(self, data: bytes, *, end: bool = False) -> bool:
        """
        Send `data`, and the end behind it if `end`, if all of it fits in the send buffer now.

        Returns whether it did; otherwise nothing was sent. Never waits; raises as write().
        """
        self._connection.check_thread()
        self._check_writable()
        if self._writing or len(data) > self._protocol.room(self.stream_id):
            return False
        if end:
            self._finished = True
        self._send(data, end)
        return True

    def _send(self, data: bytes, end: bool = False) -> None:
        if not self._protocol.send_stream(self.stream_id, data, end):
            self._check_writable()
            raise StreamError("The stream takes no more data.", stream_id=self.stream_id)
        self.bytes_sent += len(data)
        self._connection.flush_soon()

    def write_all(self, data: Buffer, *, timeout: float | None = None) -> None:
        """Send `data` and the end of the stream; waits and raises as write()."""
        view = memoryview(data).cast("B")
        if not self._writing and self.is_writable:
            self._connection.check_thread()
            if len(view) <= self._protocol.room(self.stream_id):
                # One frame carries both.
                self._finished = True
                self._send(bytes(view), end=True)
                return
        self.write(view, timeout=timeout)
        self.finish()

    def finish(self) -> None:
        """
        Send the end of the stream (FIN). Does not wait; idempotent.

        While another greenlet is writing, the end follows what it writes.
        """
        self._connection.check_thread()
        if self._writing:
            # The end comes behind what that greenlet is writing.
            self._finish_due = True
        elif not self._finished and self._write_error is None:
            self._finish()

    def _finish(self) -> None:
        self._finished = True
        self._protocol.send_stream(self.stream_id, b"", True)
        self._connection.flush_soon()

    def flush(self, *, timeout: float | None = None) -> None:
        """Wait until the peer has acknowledged everything written; raises as write()."""
        self._connection.check_thread()
        deadline = Deadline(timeout)
        while self._write_error is None:
            if self._finished:
                if self._write_over:
                    return
            elif not self._protocol.want_flush(self.stream_id):
                return
            self._writable.wait(deadline)
        raise anew(self._write_error)

    def reset(self, code: int = 0) -> None:
        """Abandon the stream: what was not sent never will be. Does not wait; idempotent."""
        check_code(code)
        self._connection.check_thread()
        if self._write_over:
            return
        self._protocol.reset_stream(self.stream_id, code)
        self._reset_sent = True
        self._write_failed(StreamReset(code, False, stream_id=self.stream_id))
        self._connection.flush_soon()

    def close(self, *, timeout: float | None = CONFIGURED) -> None:
        """
        Finish, and wait until everything is acknowledged, at most `timeout` or close_timeout.

        What was not acknowledged by then is reset, counted and logged.
        """
        if self._write_over:
            return
        self.finish()
        flush_or_reset(
            f"stream {self.stream_id}", [self], Deadline(self.session.close_timeout(timeout))
        )

    def wait_over(self, deadline: Deadline) -> None:
        """Wait until all is acknowledged, the end too, or was given up; raises TimeoutError."""
        while not self._write_over:
            self._writable.wait(deadline)

    @property
    def is_over(self) -> bool:
        """Whether all was acknowledged, the end too, or was given up."""
        return self._write_over

    def abort(self, code: int = 0) -> None:
        """Reset the stream at once."""
        self.reset(code)

    def makefile(self, mode: str = "wb", buffering: int = 65536) -> io.BufferedWriter:
        """Return a binary file that writes to the stream; closing it finishes the stream."""
        if mode != "wb":
            raise ValueError(f'This stream makes files of mode "wb", not {mode!r}.')
        return io.BufferedWriter(_RawWriter(self), buffering)

    @property
    def is_writable(self) -> bool:
        """Whether write() can take something."""
        return not (self._finished or self._finish_due) and self._write_error is None

    def _check_writable(self) -> None:
        if self._write_error is not None:
            raise anew(self._write_error)
        if self._finished or self._finish_due:
            raise LocalProtocolError(
                "The stream was finished: nothing can be written behind its end."
            )

    def _write_failed(self, error: GwtError) -> None:
        if self._write_error is None:
            self._write_error = error
        self._write_over = True
        self._writable.notify()
        self._ended()

    # Fed from the connection

    def feed_writable(self) -> None:
        self._writable.notify()

    def feed_stopped(self, code: int | None) -> None:
        if not self._write_over:
            self._write_failed(StreamStopped(code, stream_id=self.stream_id))

    def feed_finished(self) -> None:
        self._write_over = True
        self._writable.notify()
        self._ended()

    def session_over(self, error: GwtError) -> None:
        if not self._write_over:
            self._write_failed(error)


def flush_or_reset(
    closed: str, streams: Sequence[WebTransportSendStream], deadline: Deadline
) -> None:
    """
    Wait until these finished streams are acknowledged; those that are not by then are reset.

    They are counted one by one, and logged in one line for all that `closed` names.
    """
    with suppress(TimeoutError):
        for stream in streams:
            stream.wait_over(deadline)
    late = [stream for stream in streams if not stream.is_over]
    lost = sum(stream.stats()["bytes_unacknowledged"] for stream in late)
    for stream in late:
        stream.session.connection.counters.note("streams_reset_at_close")
        stream.reset()
    if late:
        logger.warning(
            "Closing %s reset %d stream%s: %s not acknowledged within %g s.",
            closed,
            len(late),
            "s" * (len(late) != 1),
            f"{lost} bytes were" if lost else "the end was",
            deadline.timeout or 0.0,
        )


class _RawWriter(io.RawIOBase):
    def __init__(self, stream: WebTransportSendStream) -> None:
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._stream.write(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.finish()
        super().close()
