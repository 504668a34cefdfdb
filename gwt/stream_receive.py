"""
The receiving half of a WebTransport stream: what a greenlet reads.

Bytes are fed from the connection in the quiet zone and held within the window that the protocol
granted; reading them gives the credit back.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .errors import GwtError, IncompleteRead, MessageTooLarge, StreamError, StreamReset, anew
from .net.waiting import ByteQueue, Deadline, ReadGuard, Signal
from .stream_common import CONFIGURED, StreamDirection, StreamHalf, check_code

if TYPE_CHECKING:
    from .session import WebTransportSession

__all__ = ["WebTransportReceiveStream"]


class WebTransportReceiveStream(StreamHalf):
    """A stream that the peer sends on."""

    direction = StreamDirection.RECEIVE_ONLY

    def __init__(self, session: WebTransportSession, stream_id: int) -> None:
        super().__init__(session, stream_id)
        self._read_over = False

        # What arrived and was not read; whether the peer's end arrived behind it.
        self._received = ByteQueue()
        self._ended_by_peer = False
        self._readable = Signal()
        self._reading = ReadGuard("stream")

        # Bytes held here that have been counted as consumed already.
        self._prefetched = 0

    def read(self, size: int = 65536, *, timeout: float | None = None) -> bytes:
        """
        Return what is there, at least one byte and up to `size`; ``b""`` at the stream's end.

        Waits for the first byte. Raises StreamReset if the peer gave the stream up (behind bytes
        that it promised, if any), SessionClosed if the session ended before the stream did,
        TimeoutError, or ConcurrencyError.
        """
        if size < 0:
            return self.read_all(timeout=timeout)
        self._connection.check_thread()
        with self._reading:
            if size and not len(self._received):
                self._wait_for_more(0, Deadline(timeout))
            return self._take(size)

    def read_all(
        self, max_size: int | None = 64 * 1024 * 1024, *, timeout: float | None = None
    ) -> bytes:
        """
        Return everything up to the stream's end.

        Raises MessageTooLarge if that is more than `max_size` (None: no limit), and as read(). What
        was not returned can still be read, whatever interrupted.
        """
        with self._reading:
            self._gather(None if max_size is None else max_size + 1, Deadline(timeout))
            if max_size is not None and len(self._received) > max_size:
                raise MessageTooLarge(
                    f"The stream is longer than {max_size} bytes.", limit=max_size
                )
            return self._take(len(self._received))

    def readexactly(self, n: int, *, timeout: float | None = None) -> bytes:
        """Return exactly `n` bytes; raises as read(), or IncompleteRead if the stream ends."""
        if n < 0:
            raise ValueError("n must not be negative.")
        with self._reading:
            self._gather(n, Deadline(timeout))
            if len(self._received) < n:
                raise IncompleteRead(self._take(n), stream_id=self.stream_id)
            return self._take(n)

    def readuntil(
        self, separator: bytes = b"\n", limit: int = 65536, *, timeout: float | None = None
    ) -> bytes:
        """
        Return everything up to and with `separator`.

        Raises IncompleteRead if the stream ends before it, MessageTooLarge if `limit` bytes came
        without it, and as read(). What was not returned can still be read.
        """
        if not separator:
            raise ValueError("The separator must not be empty.")
        deadline = Deadline(timeout)
        with self._reading:
            while (end := self._received.find(separator)) < 0:
                held = len(self._received)
                if held >= limit:
                    break
                # The window may be smaller than the limit: what is held here counts as consumed.
                self._prefetch()
                self._wait_for_more(held, deadline)
                if len(self._received) == held:
                    raise IncompleteRead(self._take(held), stream_id=self.stream_id)
            if end < 0 or end > limit:
                raise MessageTooLarge(
                    f"No separator within {limit} bytes of the stream.", limit=limit
                )
            return self._take(end)

    def readline(self, limit: int = 65536, *, timeout: float | None = None) -> bytes:
        """Return a line with its newline; the rest at the stream's end, then ``b""``."""
        try:
            return self.readuntil(b"\n", limit, timeout=timeout)
        except IncompleteRead as exc:
            return exc.partial

    def __iter__(self) -> Iterator[bytes]:
        """Yield chunks until the stream's end."""
        while chunk := self.read():
            yield chunk

    def stop(self, code: int = 0) -> None:
        """Ask the peer to stop sending (STOP_SENDING); what it sent is discarded. Does not wait."""
        check_code(code)
        self._connection.check_thread()
        if self._read_over:
            return
        self._protocol.stop_stream(self.stream_id, code)
        self._discard(StreamError("Reading was stopped.", stream_id=self.stream_id))
        self._connection.flush_soon()

    def close(self, *, timeout: float | None = CONFIGURED) -> None:
        """Stop receiving, unless the end has arrived. Does not wait."""
        self.stop()

    def abort(self, code: int = 0) -> None:
        """Stop receiving at once."""
        self.stop(code)

    def makefile(self, mode: str = "rb", buffering: int = 65536) -> io.BufferedReader:
        """Return a binary file that reads from the stream."""
        if mode != "rb":
            raise ValueError(f'This stream makes files of mode "rb", not {mode!r}.')
        return io.BufferedReader(_RawReader(self), buffering)

    @property
    def is_readable(self) -> bool:
        """Whether read() can return something else than its end or an error."""
        return not self._read_over

    # Reading, inside

    def _wait_for_more(self, held: int, deadline: Deadline) -> None:
        """Block until more than `held` bytes are here, or the end; raises another end's reason."""
        self._connection.check_thread()
        while len(self._received) <= held:
            if self._ended_by_peer:
                return
            if self._read_error is not None:
                raise anew(self._read_error)
            self._readable.wait(deadline)

    def _gather(self, size: int | None, deadline: Deadline) -> None:
        """
        Block until `size` bytes are here, or the end; None: until the end.

        They stay in the queue, so that a time-out or a kill loses nothing; since the window may be
        smaller than what is asked for, they count as consumed for the peer.
        """
        while size is None or len(self._received) < size:
            held = len(self._received)
            self._prefetch()
            self._wait_for_more(held, deadline)
            if len(self._received) == held:
                return

    def _take(self, size: int) -> bytes:
        data = self._received.take(size)
        if data:
            self._consumed(len(data))
        if not len(self._received) and (self._ended_by_peer or self._read_error is not None):
            self._read_done()
        return data

    def _prefetch(self) -> None:
        size = len(self._received) - self._prefetched
        self._prefetched += size
        if size and self._protocol.consumed(self.stream_id, size):
            self._connection.flush_soon()

    def _consumed(self, size: int) -> None:
        covered = min(size, self._prefetched)
        self._prefetched -= covered
        if size > covered and self._protocol.consumed(self.stream_id, size - covered):
            self._connection.flush_soon()

    def _discard(self, error: GwtError) -> None:
        held = len(self._received)
        self._received.take(held)
        if held:
            self._consumed(held)
        if self._read_error is None:
            self._read_error = error
        self._read_done()

    def _read_done(self) -> None:
        self._read_over = True
        self._readable.notify()
        self._ended()

    # Fed from the connection

    def feed(self, data: bytes, ended: bool) -> None:
        if self._read_error is not None:
            if data and self._protocol.consumed(self.stream_id, len(data)):
                self._connection.flush_soon()
            return
        self.bytes_received += len(data)
        self._received.feed(data)
        if ended:
            self._ended_by_peer = True
            if not len(self._received):
                self._read_done()
        self._readable.notify()

    def feed_reset(self, code: int | None, reliable: int = 0) -> None:
        if code is None and not self._protocol.accepted(self.stream_id):
            # Refused by ourselves, since what nobody accepted held too much.
            with suppress(ValueError):
                self.session.incoming.remove(self)
        if not self._read_over and not self._ended_by_peer:
            self._reset_received = True
            error = StreamReset(code, True, stream_id=self.stream_id)
            if self.bytes_received - len(self._received) < reliable:
                # The peer saw to it that these bytes arrive: the error comes behind them.
                self._read_error = error
                self._readable.notify()
            else:
                self._discard(error)

    def session_over(self, error: GwtError) -> None:
        # What arrived before the end can still be read; the error comes behind it.
        if self._read_error is None:
            self._read_error = error
        self._read_over = True
        self._readable.notify()
        self._ended()


class _RawReader(io.RawIOBase):
    def __init__(self, stream: WebTransportReceiveStream) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
