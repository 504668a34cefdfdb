"""
aioquic's streams, with an account of what they buffer and a window that is ours.

Part of the seam of quic.py: these subclasses read and write what is private to the classes that
they extend, and quic.py is the only one who uses them.
"""

from __future__ import annotations

from typing import Protocol

from aioquic.quic.events import QuicEvent
from aioquic.quic.packet_builder import QuicDeliveryState
from aioquic.quic.stream import QuicStream

from .quicguard import Ranges
from .quicreset import PartialReceiver, PartialSender

__all__ = ["Owner", "Receiver", "Sender", "Stream"]


class Owner(Protocol):
    """The connection that keeps the account."""

    # Frames that were lost; streams whose acknowledgements advanced.
    frames_lost: int
    progress: set[int | None]

    def account(self, change: int) -> None:
        """Count bytes that came into a buffer, or left it."""

    def wake(self, stream_id: int | None, *, ending: bool = False) -> None:
        """Note that a stream has something to send, an end of it, or is finished."""

    def tell(self, event: QuicEvent) -> None:
        """Add to what drain() reports."""


class Sender(PartialSender):
    """A stream's sending half that accounts for its buffer."""

    def __init__(self, owner: Owner, stream_id: int | None, writable: bool) -> None:
        super().__init__(stream_id=stream_id, writable=writable)
        self.owner = owner

    def write(self, data: bytes, end_stream: bool = False) -> None:
        super().write(data, end_stream)
        self.owner.account(len(data))
        self.owner.wake(self._stream_id)

    def on_data_delivery(
        self, delivery: QuicDeliveryState, start: int, stop: int, fin: bool
    ) -> None:
        before = self._buffer_start
        super().on_data_delivery(delivery, start, stop, fin)
        if delivery is not QuicDeliveryState.ACKED:
            self.owner.frames_lost += 1
            self.owner.wake(self._stream_id)
        elif self._reset_error_code is None:
            self.owner.account(before - self._buffer_start)
            self.owner.progress.add(self._stream_id)
            if self.is_finished:
                self.owner.wake(self._stream_id)

    def on_reset_delivery(self, delivery: QuicDeliveryState) -> None:
        super().on_reset_delivery(delivery)
        self.owner.progress.add(self._stream_id)
        self.owner.wake(self._stream_id, ending=self.reset_pending)

    def reset(self, error_code: int) -> None:
        before = self.buffered
        super().reset(error_code)
        self.owner.account(self.buffered - before)
        self.owner.progress.add(self._stream_id)
        self.owner.wake(self._stream_id, ending=self.reset_pending)

    def take(self, room: int, max_offset: int) -> tuple[bytes, bool] | None:
        """
        Return the next bytes to be sent, at next_offset, and whether the stream ends with them.

        As get_frame() does, but it also notes at once when nothing is left to be sent.
        """
        pending = self._pending
        if len(pending):
            first = pending[0]
            start = first.start
            stop = min(first.stop, start + room, max_offset)
            if stop <= start:
                return None
            base = self._buffer_start
            data = bytes(self._buffer[start - base : stop - base])
            pending.subtract(start, stop)
            if stop > self.highest_offset:
                self.highest_offset = stop
            fin = stop == self._buffer_fin
            if fin:
                self._pending_eof = False
            if stop == first.stop and not self._pending_eof and not len(pending):
                self.buffer_is_empty = True
            return data, fin
        if self._pending_eof and room >= 0:
            self._pending_eof = False
            self.buffer_is_empty = True
            return b"", True
        self.buffer_is_empty = not self._pending_eof
        return None

    @property
    def has_bytes(self) -> bool:
        """Whether bytes wait to be sent, for the first time or again."""
        return len(self._pending) > 0

    @property
    def buffered(self) -> int:
        return self._buffer_stop - self._buffer_start

    @property
    def acked(self) -> int:
        """Up to which offset all has been acknowledged; meaningless after a reset."""
        return self._buffer_start

    @property
    def takes_data(self) -> bool:
        return not (self.is_finished or self.reset_code is not None) and self._buffer_fin is None


class Receiver(PartialReceiver):
    """A stream's receiving half: bounded in pieces, and woken when a STOP_SENDING was lost."""

    owner: Owner

    # What waits for something that is missing before it.
    pieces: Ranges

    def bound_pieces(self) -> None:
        """Bound what aioquic does not."""
        self.pieces = self._ranges = Ranges()  # type: ignore[assignment]

    def on_stop_sending_delivery(self, delivery: QuicDeliveryState) -> None:
        super().on_stop_sending_delivery(delivery)
        self.owner.wake(self._stream_id, ending=self.stop_pending)

    def stop(self, error_code: int = 0) -> None:
        super().stop(error_code)
        self.owner.wake(self._stream_id, ending=self.stop_pending)


class Stream(QuicStream):
    """A stream with its own window, which is not forgotten while the floor above holds it."""

    # All streams are made by aioquic and adopted, so these are the values they start with.
    held = False
    # Not in the queue of streams that have something to send.
    parked = False
    consumed = 0
    window = 0
    sender: Sender
    receiver: Receiver

    @classmethod
    def adopt(cls, stream: QuicStream, owner: Owner) -> None:
        """Turn a new stream of aioquic's into one of these, with its sender and window."""
        # aioquic makes its streams itself, in two methods; a subclass of the class they make is
        # the least invasive way to give each what is ours.
        stream.__class__ = cls
        assert isinstance(stream, cls)
        stream.sender = Sender(owner, stream.stream_id, not stream.sender.is_finished)
        stream.receiver.__class__ = Receiver
        stream.receiver.owner = owner
        stream.receiver.bound_pieces()
        stream.set_window(stream.max_stream_data_local)

    def set_window(self, window: int) -> None:
        """Change how far the peer may be ahead of the reader, and in how many pieces."""
        self.window = window
        self.receiver.pieces.set_window(window)

    @property
    def is_finished(self) -> bool:
        return not self.held and self.receiver.is_finished and self.sender.is_finished
