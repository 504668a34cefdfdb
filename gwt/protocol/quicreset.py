"""
Resets with partial delivery: RESET_STREAM_AT (draft-ietf-quic-reliable-stream-reset-09).

Part of the seam of quic.py, and all of that extension: its transport parameter, its frame, and what
either half of a stream does with it. A sender keeps the first bytes of a stream and delivers them
whatever else a reset drops; a receiver waits for as many as the frame names, and then tells of the
reset. In all else the frame is a RESET_STREAM, which is aioquic's.
"""

from __future__ import annotations

from typing import Any

from aioquic.buffer import (  # type: ignore[attr-defined]
    UINT_VAR_MAX_SIZE,
    Buffer,
    encode_uint_var,
)
from aioquic.quic.connection import (
    EPOCHS,
    QuicConnectionError,
    QuicReceiveContext,
)
from aioquic.quic.events import StreamDataReceived, StreamReset
from aioquic.quic.packet import QuicErrorCode, QuicFrameType, QuicStreamFrame
from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilder
from aioquic.quic.stream import QuicStream, QuicStreamReceiver, QuicStreamSender
from aioquic.tls import Epoch

from .quicreceive import Receiving

__all__ = ["PARAMETERS", "RESET_STREAM_AT", "PartialReceiver", "PartialResets", "PartialSender"]

RESET_STREAM_AT = 0x24

# reset_stream_at: that of drafts 09 to 11 and of IANA, and that of drafts 07 and 08, which many
# peers know alone. The frame is the same.
PARAMETERS = (0x1D, 0x17F7586D2CB571)

_FRAME_CAPACITY = 1 + 4 * UINT_VAR_MAX_SIZE


class PartialSender(QuicStreamSender):
    """A sending half whose reset delivers the first `keep` bytes all the same."""

    keep = 0

    # The code of a reset that keeps bytes; aioquic's own says that nothing is sent any more.
    _kept_code: int | None = None
    _reset_acked = False

    @property
    def reset_code(self) -> int | None:
        """The code of a reset, ours or the answer to STOP_SENDING."""
        return self._reset_error_code if self._kept_code is None else self._kept_code

    @property
    def resets_partially(self) -> bool:
        return self._kept_code is not None

    def reset(self, error_code: int) -> None:
        if self.reset_code is not None or self.is_finished:
            return
        # aioquic keeps what will never be sent until the reset is acknowledged.
        end = max(self._buffer_start, min(self.keep, self._buffer_stop))
        if end < self._buffer_stop:
            del self._buffer[end - self._buffer_start :]
            self._pending.subtract(end, self._buffer_stop)
            self._acked.subtract(end, self._buffer_stop)
            self._buffer_stop = end
        self.keep = min(self.keep, end)
        if not self.keep:
            super().reset(error_code)
            return
        self._kept_code = error_code
        self._buffer_fin = None
        self._pending_eof = False
        self.reset_pending = True

    def on_data_delivery(
        self, delivery: QuicDeliveryState, start: int, stop: int, fin: bool
    ) -> None:
        if self._kept_code is not None:
            # What is behind the kept bytes was dropped, with the end.
            stop, fin = min(stop, self.keep), False
        super().on_data_delivery(delivery, start, stop, fin)
        if self._kept_code is not None:
            self._check_finished()

    def on_reset_delivery(self, delivery: QuicDeliveryState) -> None:
        if self._kept_code is None:
            super().on_reset_delivery(delivery)
        elif delivery is QuicDeliveryState.ACKED:
            self._reset_acked = True
            self._check_finished()
        else:
            self.reset_pending = True

    def _check_finished(self) -> None:
        self.is_finished = self._reset_acked and self._buffer_start >= self.keep


class PartialReceiver(QuicStreamReceiver):
    """A receiving half that knows of a reset, and from where on data may be missing."""

    # How many bytes come before the reset, by the frame that is being read and by all of them.
    offered = 0
    reliable = 0
    code: int | None = None
    # The connection.
    owner: Any

    def handle_reset(
        self, *, final_size: int, error_code: int = QuicErrorCode.NO_ERROR
    ) -> StreamReset | None:
        # A plain RESET_STREAM offers nothing.
        offered, self.offered = self.offered, 0
        if self.code not in (None, error_code):
            raise QuicConnectionError(
                error_code=QuicErrorCode.STREAM_STATE_ERROR,
                frame_type=RESET_STREAM_AT,
                reason_phrase="Cannot change the code of a reset",
            )
        event = super().handle_reset(final_size=final_size, error_code=error_code)
        if event is None:
            return None
        # A frame that was overtaken by a later one may name more than that.
        self.reliable = offered if self.code is None else min(offered, self.reliable)
        self.code = error_code
        self.is_finished = self._buffer_start >= self.reliable
        return event if self.is_finished else None

    def handle_frame(self, frame: QuicStreamFrame) -> Any:
        event: StreamDataReceived | None = super().handle_frame(frame)
        if event is None or self.code is None:
            return event
        # The stream ends with the reset, even if all of it arrives.
        event.end_stream = False
        if self._buffer_start < self.reliable:
            return event
        self.is_finished = True
        self.owner.tell(event)
        return StreamReset(error_code=self.code, stream_id=event.stream_id)


class PartialResets(Receiving):
    """QuicConnection that takes RESET_STREAM_AT, and sends it to a peer that takes it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Whether the peer takes them.
        self.partial_resets = False
        self._frame_table.setdefault(
            RESET_STREAM_AT, (PartialResets._handle_reset_stream_at_frame, EPOCHS("01"))
        )

    # The transport parameter

    def _serialize_transport_parameters(self) -> bytes:
        own = b"".join(encode_uint_var(parameter) + b"\x00" for parameter in PARAMETERS)
        return super()._serialize_transport_parameters() + own

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:
        # aioquic checks the form of the whole.
        super()._parse_transport_parameters(data, from_session_ticket)
        buf = Buffer(data=data)
        while not buf.eof():
            parameter = buf.pull_uint_var()
            value = buf.pull_bytes(buf.pull_uint_var())
            if parameter in PARAMETERS:
                if value:
                    raise QuicConnectionError(
                        error_code=QuicErrorCode.TRANSPORT_PARAMETER_ERROR,
                        frame_type=QuicFrameType.CRYPTO,
                        reason_phrase="reset_stream_at must be empty",
                    )
                self.partial_resets = True

    # The frame

    def _handle_reset_stream_at_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        start = buf.tell()
        stream_id = buf.pull_uint_var()
        buf.pull_uint_var()
        final_size = buf.pull_uint_var()
        reliable_size = buf.pull_uint_var()
        end = buf.tell()
        if reliable_size > final_size:
            raise QuicConnectionError(
                error_code=QuicErrorCode.FRAME_ENCODING_ERROR,
                frame_type=frame_type,
                reason_phrase="Reliable size over final size",
            )
        self._assert_stream_can_receive(frame_type, stream_id)
        stream = self._get_or_create_stream(frame_type, stream_id)
        receiver = stream.receiver
        assert isinstance(receiver, PartialReceiver)
        receiver.offered = reliable_size
        # The fields before are those of RESET_STREAM, and so are the limits and the accounts.
        buf.seek(start)
        self._handle_reset_stream_frame(context, frame_type, buf)
        buf.seek(end)

    def _write_reset_stream_frame(self, builder: QuicPacketBuilder, stream: QuicStream) -> None:
        sender = stream.sender
        if not isinstance(sender, PartialSender) or not sender.resets_partially:
            super()._write_reset_stream_frame(builder, stream)
            return
        self._write_kept(builder, stream)
        if sender.highest_offset < sender.keep:
            # The final size is subject to the peer's limits: the frame waits behind the bytes.
            return
        buf = builder.start_frame(
            RESET_STREAM_AT, capacity=_FRAME_CAPACITY, handler=sender.on_reset_delivery
        )
        sender.reset_pending = False
        for value in (stream.stream_id, sender.reset_code, sender.highest_offset, sender.keep):
            buf.push_uint_var(value or 0)

    def _write_kept(self, builder: QuicPacketBuilder, stream: QuicStream) -> None:
        """Write kept bytes that wait, so that they share the packet of their reset."""
        # aioquic writes either a reset or data of a stream into a packet.
        if not stream.is_blocked and not stream.sender.buffer_is_empty:
            credit = self._remote_max_data - self._remote_max_data_used
            self._remote_max_data_used += self._write_stream_frame(
                builder=builder,
                space=self._spaces[Epoch.ONE_RTT],
                stream=stream,
                max_offset=min(
                    stream.sender.highest_offset + credit, stream.max_stream_data_remote
                ),
            )
