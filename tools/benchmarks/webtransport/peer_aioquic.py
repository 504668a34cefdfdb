"""
aioquic's own asyncio client and server as a peer of the bench: WebTransport over H3Connection.

As little as does the same work correctly. Events are handled where they arrive, and futures are
used only where somebody waits. The driver is aioquic.asyncio as it comes, with its defaults.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

from aioquic.asyncio import QuicConnectionProtocol, connect, serve
from aioquic.h3.connection import FrameType, H3Connection
from aioquic.h3.events import (
    DatagramReceived,
    DataReceived,
    H3Event,
    HeadersReceived,
    WebTransportStreamDataReceived,
)
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ProtocolNegotiated, QuicEvent
from answers import measure, reply
from control import arguments, chunk

# CLOSE_WEBTRANSPORT_SESSION with code 0 and no reason.
CLOSE = bytes.fromhex("68430400000000")


def configuration(is_client: bool, payload: int) -> QuicConfiguration:
    return QuicConfiguration(
        alpn_protocols=["h3"],
        is_client=is_client,
        max_datagram_frame_size=65536,
        max_datagram_size=payload,
        verify_mode=ssl.CERT_NONE,
    )


class Protocol(QuicConnectionProtocol):
    """What both ends have in common."""

    h3: H3Connection | None = None

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, ProtocolNegotiated):
            self.h3 = H3Connection(self._quic, enable_webtransport=True)
        if self.h3 is not None:
            for happened in self.h3.handle_event(event):
                self.happened(happened)

    def happened(self, event: H3Event) -> None:
        raise NotImplementedError

    def forget(self, stream_id: int) -> None:
        # aioquic keeps the HTTP/3 half of a bidirectional WebTransport stream for ever.
        assert self.h3 is not None
        self.h3._stream.pop(stream_id, None)


class ServerProtocol(Protocol):
    streams: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.path = ""
        self.received: dict[int, bytearray] = {}
        self.counts: dict[int, int] = {}
        # Its 128 are no option; the peer has not been told yet.
        limit = self._quic._local_max_streams_bidi
        limit.value = limit.sent = self.streams

    def happened(self, event: H3Event) -> None:
        assert self.h3 is not None
        if isinstance(event, WebTransportStreamDataReceived):
            self.stream_data(event.stream_id, event.data, event.stream_ended)
        elif isinstance(event, DatagramReceived):
            self.h3.send_datagram(event.stream_id, event.data)
        elif isinstance(event, HeadersReceived):
            self.path = dict(event.headers)[b":path"].decode()
            self.h3.send_headers(event.stream_id, [(b":status", b"200")])
        elif isinstance(event, DataReceived) and event.stream_ended:
            self._quic.send_stream_data(event.stream_id, b"", True)

    def stream_data(self, stream_id: int, data: bytes, ended: bool) -> None:
        counts = self.path in ("/upload", "/sink")
        if counts:
            self.counts[stream_id] = self.counts.get(stream_id, 0) + len(data)
        else:
            self.received.setdefault(stream_id, bytearray()).extend(data)
        if not ended:
            return
        if counts:
            answer = b"%d" % self.counts.pop(stream_id)
        else:
            answer = bytes(self.received.pop(stream_id, b""))
            if self.path == "/download":
                answer = chunk(int(answer))
        self._quic.send_stream_data(stream_id, answer, True)
        self.forget(stream_id)


class ClientProtocol(Protocol):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        loop = asyncio.get_running_loop()
        self.negotiated = loop.create_future()
        self.accepted = loop.create_future()
        self.closed_by_peer = loop.create_future()
        self.answers: dict[int, tuple[Callable[[bytes], None], asyncio.Future[None]]] = {}
        self.datagrams: asyncio.Queue[bytes] = asyncio.Queue()
        self.session_id = 0

    def quic_event_received(self, event: QuicEvent) -> None:
        super().quic_event_received(event)
        if (
            self.h3 is not None
            and self.h3.received_settings is not None
            and not self.negotiated.done()
        ):
            self.negotiated.set_result(None)

    def happened(self, event: H3Event) -> None:
        if isinstance(event, WebTransportStreamDataReceived):
            take, done = self.answers[event.stream_id]
            take(event.data)
            if event.stream_ended:
                del self.answers[event.stream_id]
                self.forget(event.stream_id)
                done.set_result(None)
        elif isinstance(event, DatagramReceived):
            self.datagrams.put_nowait(event.data)
        elif isinstance(event, HeadersReceived):
            assert dict(event.headers)[b":status"] == b"200"
            self.accepted.set_result(None)
            if event.stream_ended:
                self.closed_by_peer.set_result(None)
        elif isinstance(event, DataReceived) and event.stream_ended:
            self.closed_by_peer.set_result(None)

    async def open_session(self, path: str, authority: str) -> None:
        await self.negotiated
        assert self.h3 is not None
        self.session_id = self._quic.get_next_available_stream_id()
        self.h3.send_headers(
            self.session_id,
            [
                (b":method", b"CONNECT"),
                (b":protocol", b"webtransport"),
                (b":scheme", b"https"),
                (b":authority", authority.encode()),
                (b":path", path.encode()),
                (b"sec-webtransport-http3-draft02", b"1"),
            ],
        )
        self.transmit()
        await self.accepted

    async def close_session(self) -> None:
        assert self.h3 is not None
        self.h3.send_data(self.session_id, CLOSE, True)
        self.transmit()
        # A CONNECTION_CLOSE could overtake it.
        await self.closed_by_peer

    def request(
        self, data: bytes, take: Callable[[bytes], None], end: bool = True
    ) -> asyncio.Future[None]:
        """Send a stream and its end; the future is done when the answer's end is here."""
        assert self.h3 is not None
        stream_id = self.h3.create_webtransport_stream(self.session_id)
        # aioquic does not know the bidirectional streams that it opened itself, and would read
        # the answer as HTTP/3 frames.
        with self.h3._get_or_create_stream(stream_id) as stream:
            stream.frame_type = FrameType.WEBTRANSPORT_STREAM
            stream.session_id = self.session_id
        self._quic.send_stream_data(stream_id, data, end)
        done = asyncio.get_running_loop().create_future()
        self.answers[stream_id] = (take, done)
        self.transmit()
        return done


class Client:
    """The works, each over sessions that are open already."""

    def __init__(self, port: int, payload: int) -> None:
        self.port = port
        self.payload = payload
        self.sessions: list[tuple[Any, ClientProtocol]] = []

    async def connect(self, path: str) -> tuple[Any, ClientProtocol]:
        context = connect(
            "127.0.0.1",
            self.port,
            configuration=configuration(True, self.payload),
            create_protocol=ClientProtocol,
        )
        protocol = await context.__aenter__()
        assert isinstance(protocol, ClientProtocol)
        await protocol.open_session(path, f"127.0.0.1:{self.port}")
        return context, protocol

    async def disconnect(self, context: Any, protocol: ClientProtocol) -> None:
        await protocol.close_session()
        await context.__aexit__(None, None, None)

    async def open(self, path: str, count: int) -> None:
        for _ in range(count):
            self.sessions.append(await self.connect(path))

    async def idle(self, count: int) -> None:
        for _ in range(count):
            self.sessions[0][1].request(b".", bytes, end=False)
            await asyncio.sleep(0)

    async def close(self) -> None:
        sessions, self.sessions = self.sessions, []
        await asyncio.gather(*(self.disconnect(*session) for session in sessions))

    async def download(self, size: int) -> int:
        received = 0

        def take(data: bytes) -> None:
            nonlocal received
            received += len(data)

        await self.sessions[0][1].request(b"%d" % size, take)
        assert received == size
        return size // (1024 * 1024)

    async def upload(self, size: int) -> int:
        answer = bytearray()
        await self.sessions[0][1].request(chunk(size), answer.extend)
        assert answer == b"%d" % size
        return size // (1024 * 1024)

    async def streams(self, count: int, at_once: int) -> int:
        protocol, data = self.sessions[0][1], chunk(64)

        async def one_after_another() -> None:
            for _ in range(count // at_once):
                answer = bytearray()
                await protocol.request(data, answer.extend)
                assert answer == data

        await asyncio.gather(*(one_after_another() for _ in range(at_once)))
        return count // at_once * at_once

    async def datagrams(self, count: int, at_once: int) -> int:
        protocol, data = self.sessions[0][1], chunk(64)
        assert protocol.h3 is not None
        returned = sent = 0
        while returned < count:
            before = sent
            while sent < min(count, returned + at_once):
                protocol.h3.send_datagram(protocol.session_id, data)
                sent += 1
            if sent > before:
                protocol.transmit()
            try:
                if protocol.datagrams.empty():
                    async with asyncio.timeout(1.0):
                        await protocol.datagrams.get()
                else:
                    protocol.datagrams.get_nowait()
                returned += 1
            except TimeoutError:
                # Lost ones are sent again.
                sent = returned
        return count

    async def connects(self, count: int, at_once: int) -> int:
        async def one_after_another() -> None:
            for _ in range(count // at_once):
                await self.disconnect(*await self.connect("/echo"))

        await asyncio.gather(*(one_after_another() for _ in range(at_once)))
        return count // at_once * at_once


async def commands() -> AsyncIterator[dict[str, Any]]:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield json.loads(line)


async def run_server(certificate: str, payload: int, streams: int) -> None:
    ServerProtocol.streams = streams
    config = configuration(False, payload)
    config.load_cert_chain(certificate)
    server = await serve("127.0.0.1", 0, configuration=config, create_protocol=ServerProtocol)
    reply({"port": server._transport.get_extra_info("sockname")[1]})
    async for command in commands():
        reply(measure(command["do"]) or {})
    server.close()


async def run_client(port: int, payload: int) -> None:
    client = Client(port, payload)
    async for command in commands():
        match command.pop("do"):
            case "open":
                await client.open(**command)
                reply({})
            case "idle":
                await client.idle(**command)
                reply({})
            case "close":
                await client.close()
                reply({})
            case "run":
                reply({"operations": await getattr(client, command.pop("work"))(**command)})
            case what:
                reply(measure(what) or {})


if __name__ == "__main__":
    options = arguments()
    if options.role == "server":
        asyncio.run(run_server(options.certificate, options.udp_payload, options.streams))
    else:
        asyncio.run(run_client(options.port, options.udp_payload))
