"""
A WebSocket connection (RFC 6455) after its handshake: bytes and a time in, events and bytes out.

wsproto's frame layer parses; what it leaves to its driver is here: messages put together, closing,
pings, when to give up. Whole messages take a short way past it, which is in wsshort.py; the two are
all that touches its private attributes. The handshake is in wshandshake.py, limits and frames in
wsframes.py, compression in deflate.py.
"""

from __future__ import annotations

import os

from wsproto.frame_protocol import Frame, FrameProtocol, Opcode, ParseFailed

from ..errors import LocalProtocolError
from .deflate import Compression, Deflater, Inflater, as_compression
from .wsevents import Closed, Event, Fragment, Message, Ping, Pong
from .wsframes import Assembly, Data, Guard, Writer, encode, encode_for, payload_of
from .wshandshake import Agreement
from .wsshort import Decoder, message_in, works

__all__ = [
    "FAST",
    "Closed",
    "Event",
    "Fragment",
    "Message",
    "Ping",
    "Pong",
    "WebSocketProtocol",
    "encode",
    "encode_for",
]

MAX_SIZE = 2**20
# A megabyte in fragments of eight bytes.
MAX_FRAGMENTS = 2**17
# What is larger than a read was inflated, which takes as long as many frames: it is told by itself.
BIG = 2**16
# Pings of ours that wait for a pong.
MAX_PINGS = 256
# What a close frame has room for behind its code.
MAX_REASON = 123


# Whether whole messages take the short way.
FAST = works()


# -- The connection ----------------------------------------------------------------------------


def _may_close_with(code: int) -> bool:
    # RFC 6455 7.4: 1004, 1005, 1006 and 1015 are never sent; what is below 3000 is not ours to use.
    return code in (1000, 1001, 1002, 1003) or 1007 <= code <= 1013 or 3000 <= code <= 4999


class WebSocketProtocol:
    """
    One end of an open WebSocket.

    Nothing that a peer sends raises: it is answered with a close frame, and ``Closed`` says so.
    What we may not send raises LocalProtocolError. After each call take ``data_to_send()``, and
    look at ``next_timer()``. ``max_size`` counts the bytes of a message after inflating.
    """

    __slots__ = (
        "__weakref__",
        "_assembly",
        "_begun",
        "_bytes_in",
        "_close_by",
        "_close_timeout",
        "_decoder",
        "_failure",
        "_guard",
        "_held",
        "_keepalive",
        "_limit",
        "_messages_in",
        "_ping_at",
        "_ping_interval",
        "_ping_timeout",
        "_pings",
        "_pong_by",
        "_proto",
        "_writer",
        "close_rcvd",
        "close_sent",
        "fragments",
        "is_client",
        "latency",
        "pending",
        "state",
        "subprotocol",
    )

    def __init__(
        self,
        is_client: bool,
        *,
        agreement: Agreement | None = None,
        max_size: int | None = MAX_SIZE,
        max_fragments: int = MAX_FRAGMENTS,
        ping_interval: float | None = 20.0,
        ping_timeout: float | None = 20.0,
        close_timeout: float | None = 10.0,
        compression: Compression | str | None = None,
        now: float,
    ) -> None:
        agreement = agreement or Agreement()
        self.is_client = is_client
        self.state = "open"
        self.subprotocol = agreement.subprotocol
        self.close_rcvd: tuple[int, str] | None = None
        self.close_sent: tuple[int, str] | None = None
        self.latency: float | None = None
        # Whether messages are told in parts, as they come.
        self.fragments = False
        # Whether bytes wait that can be decoded: call receive_data(b"", now) to go on.
        self.pending = False

        inflater = deflater = None
        if agreement.deflate is not None:
            options = as_compression(compression) or Compression()
            deflater = Deflater(agreement.deflate, options, is_client)
            inflater = Inflater(agreement.deflate, is_client)
        self._writer = Writer(is_client, deflater)
        self._guard = Guard(inflater, max_size, max_fragments)
        self._limit = 2**62 if max_size is None else max_size
        self._proto = FrameProtocol(is_client, [self._guard])
        self._decoder: Decoder | None = None
        if FAST:
            self._decoder = Decoder(is_client, [self._guard])
            self._proto._frame_decoder = self._decoder
        self._assembly = Assembly()
        self._begun = False  # a message has been told in part
        self._failure: tuple[int, str] | None = None  # what the peer did wrong, not yet told

        self._messages_in = self._bytes_in = 0

        self._pings: dict[bytes, float] = {}
        self._ping_interval = ping_interval
        self._ping_timeout = ping_timeout
        self._close_timeout = close_timeout
        self._ping_at = None if ping_interval is None else now + ping_interval
        self._keepalive: bytes | None = None
        self._pong_by: float | None = None
        self._close_by: float | None = None
        self._held = False

    # -- in --

    def message(self, data: bytes) -> str | bytes | None:
        """
        Return the message that bytes are which arrived, if they are just that: one, in one frame.

        None says that nothing was taken: they are for receive_data().
        """
        decoder = self._decoder
        if (
            decoder is None
            or self.state != "open"
            or decoder.buffer.buffer
            or decoder.header is not None
            or self._proto._message_decoder.opcode is not None
            or self.fragments
        ):
            return None
        found = message_in(data, decoder.client, self._limit, len(data))
        if found is None:
            return None
        self._bytes_in += len(data)
        self._messages_in += 1
        return found[0]

    def receive_data(self, data: bytes, now: float, limit: int = 64) -> list[Event]:
        """
        Take bytes that arrived; return what they say, of at most ``limit`` frames, or a large one.

        While ``pending`` is set more can be had: call again with ``b""``. Bytes that were given are
        kept until then, so give none before.
        """
        events: list[Event] = []
        if self.state == "closed":
            return events
        if self._failure is not None:
            return self.fail(*self._failure, now)
        self._bytes_in += len(data)
        self.pending = False
        proto, decoder = self._proto, self._decoder
        proto.receive_bytes(data)
        try:
            while limit > 0:
                limit -= 1
                if decoder is not None:
                    if not decoder.buffer.buffer:
                        break
                    # Within a message in fragments a whole one is an error, which wsproto finds.
                    if proto._message_decoder.opcode is None:
                        message = decoder.whole(self._limit)
                        if message is not None:
                            self._messages_in += 1
                            events.append(
                                Fragment(message, True, True, isinstance(message, str))
                                if self.fragments
                                else Message(message)
                            )
                            continue
                    control = decoder.control()
                    if control is not None:
                        self._control(*control, events, now)
                        if self.state == "closed":
                            break
                        continue
                frame = next(proto.received_frames(), None)
                if frame is None:
                    break
                self._received(frame, events, now)
                if self.state == "closed":
                    break
                if len(frame.payload) > BIG:
                    limit = 0
            else:
                self.pending = decoder is None or bool(decoder.buffer.buffer)
        except ParseFailed as error:
            reason = "invalid UTF-8" if error.code == 1007 else str(error)
            self._failure = int(error.code), self._guard.reason or reason
            # What came before the error is told by itself, so that it can still be answered.
            if events:
                self.pending = True
            else:
                return self.fail(*self._failure, now)
        return events

    @property
    def receiving(self) -> bool:
        """Whether something came that was not told yet: part of a message, or what is pending."""
        return self.pending or self._guard.within_message

    @property
    def failing(self) -> bool:
        """Whether an error comes next: what came before it should be answered first."""
        return self._failure is not None

    def _received(self, frame: Frame, events: list[Event], now: float) -> None:
        payload = frame.payload
        if isinstance(payload, tuple):
            self._close_came(int(payload[0]), payload[1], events)
        elif frame.opcode.iscontrol():
            self._control(frame.opcode, payload_of(payload), events, now)
        else:
            self._data(frame, payload, events)

    def _control(self, opcode: int, payload: bytes, events: list[Event], now: float) -> None:
        if opcode == Opcode.PING:
            # After our close frame nothing but the peer's counts.
            if self.state == "open":
                self._writer.pong(payload)
            events.append(Ping(payload))
        elif opcode == Opcode.PONG:
            self._answered(payload, events, now)
        else:
            code = int.from_bytes(payload[:2], "big") if payload else 1005
            self._close_came(code, payload[2:].decode(), events)

    def _close_came(self, code: int, reason: str, events: list[Event]) -> None:
        self.close_rcvd = code, reason
        first = self.close_sent is None
        if first:
            self._send_close(code, reason)
        events.append(self._closed(rcvd_then_sent=first))

    def _data(self, frame: Frame, payload: str | bytes, events: list[Event]) -> None:
        finished = frame.message_finished
        self._messages_in += finished
        if self.fragments or self._begun:
            part = self._assembly.take(payload)
            if part or finished:
                text = frame.opcode is Opcode.TEXT
                events.append(Fragment(part, not self._begun, finished, text))
                self._begun = not finished
        elif finished:
            events.append(Message(self._assembly.take(payload)))
        else:
            self._assembly.add(payload)

    def _answered(self, payload: bytes, events: list[Event], now: float) -> None:
        if payload not in self._pings:
            return  # unsolicited, which is allowed (RFC 6455 5.5.3)
        self.latency = now - self._pings[payload]
        # A peer may answer only the newest of several pings: those before it are answered too.
        for each in list(self._pings):
            events.append(Pong(each, now - self._pings.pop(each)))
            if each == self._keepalive:
                self._keepalive = self._pong_by = None
            if each == payload:
                break

    def receive_eof(self, now: float) -> list[Event]:
        """Say that the peer sends nothing more: what is pending, and the end."""
        events: list[Event] = []
        while self.pending:
            events += self.receive_data(b"", now)
        if self.state != "closed":
            events.append(self._closed())
        return events

    def _closed(self, rcvd_then_sent: bool = False) -> Closed:
        self.state = "closed"
        self.pending = False
        self._pings.clear()
        self._assembly = Assembly()
        return Closed(self.close_rcvd, self.close_sent, rcvd_then_sent)

    # -- out --

    def data_to_send(self) -> list[bytes]:
        """Return what is to be sent, in order and in whole frames, and forget it."""
        return self._writer.take()

    def _check_open(self) -> None:
        if self.state != "open":
            raise LocalProtocolError(f"The WebSocket is {self.state}.")

    def send(self, data: Data) -> None:
        """Send a whole message: str as text, bytes as binary."""
        self._check_open()
        self._writer.message(data)

    def encoded(self, data: Data) -> bytes:
        """Return what sends a whole message, behind what is to be sent before; forget both."""
        self._check_open()
        return self._writer.encoded(data)

    @property
    def kind(self) -> tuple[int, ...] | None:
        """What the bytes of a whole message depend on, for encode_for(); None: encoded() only."""
        return self._writer.kind

    def send_fragment(self, data: Data, *, text: bool, first: bool, final: bool) -> None:
        """Send a part of a message, whose kind is said with each part."""
        self._check_open()
        self._writer.fragment(data, text=text, first=first, final=final)

    def ping(self, payload: bytes | None, now: float) -> bytes:
        """Send a ping; return its payload, which the Pong will have: random if None was given."""
        self._check_open()
        if payload is None:
            payload = os.urandom(4)
            while payload in self._pings:
                payload = os.urandom(4)
        payload = payload_of(payload)
        if len(payload) > 125:
            raise LocalProtocolError("The payload of a ping has at most 125 bytes.")
        if payload in self._pings:
            raise LocalProtocolError(f"A ping with the payload {payload!r} waits for its pong.")
        if len(self._pings) >= MAX_PINGS:
            raise LocalProtocolError(f"{MAX_PINGS} pings wait for their pongs.")
        self._pings[payload] = now
        self._writer.control(0x89, payload)
        return payload

    def close(
        self, code: int = 1000, reason: str = "", *, now: float, within: float | None = None
    ) -> None:
        """
        Begin to close: the peer has ``close_timeout`` seconds to answer, or `within` if that is
        less. Later calls do nothing.

        A reason longer than 123 bytes is cut. LocalProtocolError: a code that may not be sent.
        """
        if not _may_close_with(code):
            raise LocalProtocolError(f"A WebSocket cannot be closed with code {code}.")
        if self.state != "open":
            return
        self._send_close(code, reason)
        self.state = "closing"
        limits = [limit for limit in (self._close_timeout, within) if limit is not None]
        if limits:
            self._close_by = now + min(limits)

    def fail(self, code: int, reason: str, now: float) -> list[Event]:
        """
        Give up on the peer: a close frame, if none was sent, and the end without its answer.

        Send what there is to send, then close the transport (RFC 6455 7.1.7).
        """
        if self.state == "closed":
            return []
        if self.close_sent is None:
            self._send_close(code, reason)
        return [self._closed()]

    def _send_close(self, code: int, reason: str) -> None:
        payload = b""
        if code != 1005:
            # Cut within a character, what is left of it goes too.
            text = reason.encode("utf-8", "replace")[:MAX_REASON].decode("utf-8", "ignore")
            payload = code.to_bytes(2, "big") + text.encode()
            reason = text
        self.close_sent = code, reason
        self._writer.control(0x88, payload)

    # -- time --

    def next_timer(self) -> float | None:
        """Return when ``on_timer`` has something to do, or None."""
        if self.state == "closing":
            return self._close_by
        if self.state == "closed":
            return None
        if self._pong_by is not None and not self._held:
            return self._pong_by
        again = self._keepalive is None or self._ping_timeout is None or self._held
        return self._ping_at if again else None

    @property
    def waits_for_peer(self) -> bool:
        """Whether what is due next is to give up on a peer."""
        return self.state == "closing" or (self._pong_by is not None and not self._held)

    def on_timer(self, now: float) -> list[Event]:
        """Do what is due: ping, or give up on a peer that does not answer."""
        due = self.next_timer()
        if due is None or now < due:
            return []
        if self.state == "closing":
            return [self._closed()]
        if due == self._pong_by and not self._held:
            return self.fail(1011, "keepalive ping timeout", now)
        if self._keepalive is not None:
            self._pings.pop(self._keepalive, None)
        if len(self._pings) < MAX_PINGS:
            self._keepalive = self.ping(None, now)
            if self._ping_timeout is not None:
                self._pong_by = now + self._ping_timeout
        self._ping_at = None if self._ping_interval is None else now + self._ping_interval
        return []

    def hold(self, held: bool, now: float) -> None:
        """Say that reading is held back, or goes on: a pong may wait unread meanwhile."""
        if self._held and not held and self._pong_by is not None and self._ping_timeout is not None:
            self._pong_by = now + self._ping_timeout
        self._held = held

    def stats(self) -> dict[str, int]:
        """Return counts of messages, and of bytes on the wire."""
        return {
            "messages_received": self._messages_in,
            "messages_sent": self._writer.messages,
            "bytes_received": self._bytes_in,
            "bytes_sent": self._writer.bytes,
        }
