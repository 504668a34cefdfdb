"""A bare aioquic client over a socket, which sends whatever a test wants it to send."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from typing import Any, Self

import gevent.socket
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

import gwt

from .raw import DRAFT16, HEADERS, connect_headers, frame, header_block, one_rtt, settings_frame


class Stranger:
    """A client of a server of ours; turn() lets it send and listen."""

    def __init__(self, server: gwt.Server, settings: dict[int, int] | None = None) -> None:
        self.settings = DRAFT16 if settings is None else settings
        self.address = server.address
        self.socket: Any = gevent.socket.socket(gevent.socket.AF_INET, gevent.socket.SOCK_DGRAM)
        self.socket.connect(self.address)
        configuration = QuicConfiguration(
            alpn_protocols=["h3"],
            is_client=True,
            max_datagram_frame_size=65536,
            server_name="localhost",
            verify_mode=ssl.CERT_NONE,
        )
        self.quic: Any = QuicConnection(configuration=configuration)
        self.closed: tuple[int, str] | None = None
        self.ready = False
        self.resets: dict[int, int] = {}
        self.received: dict[int, bytearray] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.ready and self.closed is None:
            # Or the server would wait for acknowledgements when it stops.
            self.quic.close()
            self.flush()
        self.socket.close()

    def flush(self) -> None:
        """Send what there is to send."""
        for data, _ in self.quic.datagrams_to_send(time.monotonic()):
            self.socket.send(data)

    def turn(self, until: Callable[[], object], timeout: float = 5.0) -> None:
        """Send, receive and let timers fire until something holds, or the server closed."""
        with gevent.Timeout(timeout, AssertionError("it never happened")):
            while not until() and self.closed is None:
                self.flush()
                try:
                    self.socket.settimeout(0.005)
                    data = self.socket.recv(65536)
                    self.quic.receive_datagram(data, self.address, time.monotonic())
                except TimeoutError:
                    timer = self.quic.get_timer()
                    if timer is not None and timer <= time.monotonic():
                        self.quic.handle_timer(time.monotonic())
                self._events()
        self.flush()

    def _events(self) -> None:
        while (event := self.quic.next_event()) is not None:
            match event:
                case events.HandshakeCompleted():
                    self.ready = True
                case events.StreamDataReceived():
                    self.received.setdefault(event.stream_id, bytearray()).extend(event.data)
                case events.StreamReset():
                    self.resets[event.stream_id] = event.error_code
        closed = self.quic._close_event
        if closed is not None:
            self.closed = (closed.error_code, closed.reason_phrase)

    def connect(self) -> Self:
        """Complete the handshake and send SETTINGS."""
        self.quic.connect(self.address, time.monotonic())
        self.turn(lambda: self.ready)
        self.quic.send_stream_data(2, b"\0" + settings_frame(self.settings))
        self.flush()
        return self

    def ask(self, path: str = "/") -> int:
        """Ask for a session."""
        stream_id: int = self.quic.get_next_available_stream_id()
        block = header_block(connect_headers(path=path.encode()))
        self.quic.send_stream_data(stream_id, frame(HEADERS, block))
        self.flush()
        return stream_id

    def session(self, path: str = "/") -> int:
        """Ask for a session, and have it."""
        stream_id = self.ask(path)
        self.turn(lambda: stream_id in self.received)
        return stream_id

    def packet(self, payload: bytes) -> None:
        """Send a 1-RTT packet with any payload."""
        for data in one_rtt(self.quic, payload):
            self.socket.send(data)
