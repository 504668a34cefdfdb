"""Bare servers over UDP sockets, which say whatever a test wants: by aioquic, or no QUIC at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import gevent
import gevent.socket
from aioquic.buffer import Buffer
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import pull_quic_header

from gwt import certificates

from .raw import DRAFT16_SERVER, HEADERS, frame, header_block, settings_frame

# What a server does with a request: it gets the connection, and the stream's id.
Answer = Callable[[Any, int], None]


def status(code: int, *headers: tuple[bytes, bytes]) -> Answer:
    """Answer with a status, and end the stream unless it is 2xx."""

    def answer(quic: Any, stream_id: int) -> None:
        block = header_block([(b":status", str(code).encode()), *headers])
        quic.send_stream_data(stream_id, frame(HEADERS, block), not 200 <= code < 300)

    return answer


def reset(code: int) -> Answer:
    """Reset the request, instead of an answer."""

    def answer(quic: Any, stream_id: int) -> None:
        quic.reset_stream(stream_id, code)
        quic.stop_stream(stream_id, code)

    return answer


def close(code: int, reason: str = "") -> Answer:
    """Close the connection, instead of an answer."""
    return lambda quic, stream_id: quic.close(code, reason_phrase=reason)


def silence(quic: Any, stream_id: int) -> None:
    """Do not answer."""


class StrangeServer:
    """
    A server of HTTP/3 on 127.0.0.1 as far as its arguments say, in a greenlet.

    `settings` are those of HTTP/3, None: it opens no stream. `answer` is what becomes of each
    request, `on_event` is called with the connection and each event of QUIC.
    """

    def __init__(
        self,
        *,
        alpn: Sequence[str] = ("h3",),
        settings: Mapping[int, int] | None = DRAFT16_SERVER,
        answer: Answer | None = None,
        on_event: Callable[[Any, Any], None] = lambda quic, event: None,
        certificate: certificates.Certificate | None = None,
        max_datagram_frame_size: int | None = 65536,
    ) -> None:
        self.certificate = certificate or certificates.generate()
        self.settings = settings
        self.answer = status(200) if answer is None else answer
        self.on_event = on_event
        self.configuration = QuicConfiguration(
            is_client=False,
            alpn_protocols=list(alpn),
            certificate=self.certificate.certificate,
            private_key=self.certificate.private_key,
            max_datagram_frame_size=max_datagram_frame_size,
        )
        self.quics: list[Any] = []
        self._by_id: dict[bytes, Any] = {}
        self._asked: set[tuple[int, int]] = set()
        self._socket: Any = gevent.socket.socket(gevent.socket.AF_INET, gevent.socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._greenlet = gevent.spawn(self._run)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._socket.getsockname()[1]}/"

    @property
    def hashes(self) -> list[str]:
        return [self.certificate.sha256]

    def stop(self) -> None:
        self._greenlet.kill()
        self._socket.close()

    def _run(self) -> None:
        while True:
            timers = [t for quic in self.quics if (t := quic.get_timer()) is not None]
            due = min(timers, default=None)
            self._socket.settimeout(None if due is None else max(0.001, due - time.monotonic()))
            try:
                data, address = self._socket.recvfrom(65536)
            except TimeoutError:
                for quic in self.quics:
                    timer = quic.get_timer()
                    if timer is not None and timer <= time.monotonic():
                        quic.handle_timer(time.monotonic())
            else:
                self._take(data, address)
            for quic in self.quics:
                self.flush(quic)

    def _take(self, data: bytes, address: Any) -> None:
        destination = pull_quic_header(Buffer(data=data), host_cid_length=8).destination_cid
        quic = self._by_id.get(destination)
        if quic is None:
            quic = QuicConnection(
                configuration=self.configuration, original_destination_connection_id=destination
            )
            self.quics.append(quic)
            self._by_id[destination] = quic
        quic.receive_datagram(data, address, time.monotonic())
        self._events(quic)
        for each in quic._host_cids:
            self._by_id[each.cid] = quic

    def _events(self, quic: Any) -> None:
        while (event := quic.next_event()) is not None:
            match event:
                case events.ProtocolNegotiated() if self.settings is not None:
                    stream_id = quic.get_next_available_stream_id(is_unidirectional=True)
                    quic.send_stream_data(stream_id, b"\0" + settings_frame(self.settings))
                case events.StreamDataReceived(stream_id=stream_id) if stream_id % 4 == 0:
                    if (id(quic), stream_id) not in self._asked:
                        self._asked.add((id(quic), stream_id))
                        self.answer(quic, stream_id)
            self.on_event(quic, event)

    def flush(self, quic: Any) -> None:
        """Send what there is to send."""
        for data, address in quic.datagrams_to_send(time.monotonic()):
            self._socket.sendto(data, address)


@contextmanager
def strange(**options: Any) -> Iterator[StrangeServer]:
    """A StrangeServer, and its end."""
    server = StrangeServer(**options)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def udp(answer: bytes | None = None) -> Iterator[str]:
    """A UDP socket that answers everything with these bytes, or nothing; the URL to reach it."""
    sock: Any = gevent.socket.socket(gevent.socket.AF_INET, gevent.socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))

    def run() -> None:
        while True:
            _, address = sock.recvfrom(65536)
            if answer is not None:
                sock.sendto(answer, address)

    greenlet = gevent.spawn(run)
    try:
        yield f"https://127.0.0.1:{sock.getsockname()[1]}/"
    finally:
        greenlet.kill()
        sock.close()
