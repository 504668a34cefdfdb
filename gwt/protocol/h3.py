"""
HTTP/3 framing and header compression: aioquic's H3Connection, hardened, and the only file that
touches its private attributes.

It sees control, QPACK and request streams only. WebTransport streams are told apart before
(webtransport.py) and never come here, so a 0x41 frame that is seen here is in a place where it
must not be. The QPACK dynamic table is off: no stream can ever wait for another, and no header
block is held on a peer's promise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pylsqpack
from aioquic.h3.connection import (
    ErrorCode,
    FrameError,
    FrameType,
    H3Connection,
    H3Stream,
    MessageError,
    ProtocolError,
    StreamType,
    encode_frame,
    encode_settings,
)
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.events import StopSendingReceived, StreamDataReceived, StreamReset

from .quic import Quic

__all__ = ["DataReceived", "HeadersReceived", "Http3", "MessageMalformed"]

# The longest SETTINGS or MAX_PUSH_ID frame that is waited for.
_MAX_CONTROL_FRAME = 4096


@dataclass
class MessageMalformed(H3Event):
    """A request or response broke a rule that concerns its stream only."""

    stream_id: int


class _ExcessiveLoad(ProtocolError):
    error_code = ErrorCode.H3_EXCESSIVE_LOAD


class _Port:
    """What H3Connection calls of a QuicConnection, done by the seam."""

    def __init__(self, quic: Quic) -> None:
        self._seam = quic
        self._quic_logger = quic.trace
        self.configuration = SimpleNamespace(is_client=quic.is_client)

    @property
    def _remote_max_datagram_frame_size(self) -> int | None:
        return self._seam.max_datagram or None

    def get_next_available_stream_id(self, is_unidirectional: bool = False) -> int:
        return self._seam.next_stream_id(is_unidirectional)

    def send_stream_data(
        self, stream_id: int | None, data: bytes, end_stream: bool = False
    ) -> None:
        if stream_id is None:
            # A stream of QPACK's: there are none.
            return
        unidirectional = bool(stream_id & 2)
        if stream_id == self._seam.next_stream_id(unidirectional):
            self._seam.open(unidirectional, wait=False)
        self._seam.write(stream_id, data, end_stream)

    def reset_stream(self, stream_id: int, error_code: int) -> None:
        self._seam.reset(stream_id, error_code)

    def close(self, error_code: int, reason_phrase: str = "") -> None:
        self._seam.close(error_code, reason_phrase)


class _Encoder:
    """A QPACK encoder without a dynamic table, whatever the peer offers."""

    def __init__(self) -> None:
        encoder = pylsqpack.Encoder()
        self.encode = encoder.encode
        self.feed_decoder = encoder.feed_decoder

    def apply_settings(self, max_table_capacity: int, blocked_streams: int) -> bytes:
        return b""


class _Decoder:
    """A QPACK decoder without a dynamic table, so that nothing is remembered between sections."""

    def __init__(self) -> None:
        # Reads the peer's encoder stream, where anything but a table of no size is an error.
        self._instructions: pylsqpack.Decoder | None = None

    def feed_header(self, stream_id: int, data: bytes) -> Any:
        # 4 KiB each, which an idle connection would keep.
        return pylsqpack.Decoder(0, 0).feed_header(stream_id, data)

    def feed_encoder(self, data: bytes) -> Any:
        if self._instructions is None:
            self._instructions = pylsqpack.Decoder(0, 0)
        return self._instructions.feed_encoder(data)

    def cancel_stream(self, stream_id: int) -> bytes:
        return b""


class _Connection(H3Connection):
    def __init__(self, port: Any, settings: Mapping[int, int], max_field_section_size: int) -> None:
        # The constructor asks for the settings, so they have to be there before it runs.
        self.local_settings = dict(settings)
        self.max_field_section_size = max_field_section_size
        super().__init__(port)
        self.going_away = False
        self._decoder = _Decoder()  # type: ignore[assignment]
        self._encoder = _Encoder()  # type: ignore[assignment]

    def _init_connection(self) -> None:
        # RFC 9114 7.2.7: a client that announces no push id is pushed nothing.
        self._max_push_id = None
        # RFC 9204 4.2: without dynamic tables neither an encoder nor a decoder stream is needed.
        self._local_control_stream_id = self._create_uni_stream(StreamType.CONTROL)
        self._sent_settings = self._get_local_settings()
        self._quic.send_stream_data(
            self._local_control_stream_id,
            encode_frame(FrameType.SETTINGS, encode_settings(self._sent_settings)),
        )

    def _receive_request_or_push_data(
        self, stream: H3Stream, data: bytes, stream_ended: bool
    ) -> list[H3Event]:
        try:
            return super()._receive_request_or_push_data(stream, data, stream_ended)
        except MessageError:
            # RFC 9114 4.1.2: an error of the stream; aioquic would close the connection.
            return [MessageMalformed(stream.stream_id)]

    def _get_local_settings(self) -> dict[int, int]:
        return self.local_settings

    def _check_control_frame_type(self, frame_type: int) -> None:
        super()._check_control_frame_type(frame_type)
        # RFC 9114 5.2: nothing new from now on. aioquic passes over what else is in the frame.
        self.going_away = self.going_away or frame_type == FrameType.GOAWAY

    def _check_request_or_push_frame_type(self, frame_type: int, stream: H3Stream) -> None:
        # webtrans-http3-16 4.4: only the first bytes of a stream may be a WT_STREAM.
        if frame_type == FrameType.WEBTRANSPORT_STREAM:
            raise FrameError("WT_STREAM in the middle of a stream")
        super()._check_request_or_push_frame_type(frame_type, stream)

    def check_frame_size(self, stream_id: int) -> None:
        # aioquic holds these frames until they are complete, whatever length they announce.
        stream = self._stream.get(stream_id)
        if stream is None or stream.frame_size is None:
            return
        if stream.frame_type in (FrameType.HEADERS, FrameType.PUSH_PROMISE):
            limit = self.max_field_section_size
        elif stream.stream_type == StreamType.CONTROL and stream.frame_type in (
            FrameType.SETTINGS,
            FrameType.MAX_PUSH_ID,
        ):
            limit = _MAX_CONTROL_FRAME
        else:
            return
        if stream.frame_size > limit:
            raise _ExcessiveLoad(f"A frame of {stream.frame_size} bytes, over {limit}")


class Http3:
    """The HTTP/3 side of one connection. A broken rule closes the connection with its code."""

    def __init__(
        self, quic: Quic, settings: Mapping[int, int], max_field_section_size: int
    ) -> None:
        self._quic = quic
        self._h3 = _Connection(_Port(quic), settings, max_field_section_size)

    @property
    def settings(self) -> dict[int, int] | None:
        """The peer's SETTINGS, or None until they arrive."""
        return self._h3.received_settings

    @property
    def going_away(self) -> bool:
        """Whether the peer takes no more requests on this connection (GOAWAY)."""
        return self._h3.going_away

    def knows(self, stream_id: int) -> bool:
        """Return whether a stream has been given to HTTP/3 and is not over."""
        return stream_id in self._h3._stream

    def receive(self, stream_id: int, data: bytes, ended: bool) -> list[H3Event]:
        """Take stream data; returns headers and data of requests."""
        events = self._h3.handle_event(
            StreamDataReceived(data=data, end_stream=ended, stream_id=stream_id)
        )
        try:
            self._h3.check_frame_size(stream_id)
            for event in events:
                if isinstance(event, HeadersReceived):
                    self._check_headers(event.headers)
        except ProtocolError as exc:
            self._quic.close(exc.error_code, exc.reason_phrase)
            return []
        return events

    def _check_headers(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        size = sum(len(name) + len(value) + 32 for name, value in headers)
        if size > self._h3.max_field_section_size:
            raise _ExcessiveLoad("The header section is too large")

    def receive_reset(self, stream_id: int, code: int) -> None:
        """Note that the peer reset a stream; a critical one closes the connection."""
        self._h3.handle_event(StreamReset(error_code=code, stream_id=stream_id))

    def receive_stop(self, stream_id: int, code: int) -> None:
        """Note that the peer stopped reading a stream; a critical one closes the connection."""
        self._h3.handle_event(StopSendingReceived(error_code=code, stream_id=stream_id))

    def send_headers(
        self, stream_id: int, headers: Sequence[tuple[bytes, bytes]], end: bool = False
    ) -> None:
        """Send a header section, unless the peer does not want it any more."""
        if self._quic.takes_data(stream_id):
            self._h3.send_headers(stream_id, list(headers), end)

    def send_data(self, stream_id: int, data: bytes, end: bool = False) -> None:
        """Send a DATA frame, unless the peer does not want it any more."""
        if self._quic.takes_data(stream_id):
            self._h3.send_data(stream_id, data, end)

    def ignore_length(self, stream_id: int) -> None:
        """Hold what comes to no content-length: in a tunnel it has no meaning (RFC 9110 9.3.6)."""
        stream = self._h3._stream.get(stream_id)
        if stream is not None:
            stream.expected_content_length = None

    def end(self, stream_id: int) -> None:
        """End our side of a stream without a frame."""
        self._quic.write(stream_id, b"", True)

    def forget(self, stream_id: int) -> None:
        """Drop what is kept of a stream that was reset or stopped: aioquic would keep it."""
        self._h3._stream.pop(stream_id, None)
