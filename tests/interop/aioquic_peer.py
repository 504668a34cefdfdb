"""
A plain aioquic peer, with aioquic's own asyncio loop and H3Connection; runs as a script.

    aioquic_peer.py server CERTFILE KEYFILE     prints its port, and echoes until stdin ends
    aioquic_peer.py client PORT PATH            prints a JSON object of what came back

Both speak draft 02, which is what aioquic 1.7 has. Imports nothing of gwt.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from collections import defaultdict
from typing import Any

from aioquic.asyncio import QuicConnectionProtocol, connect, serve
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DatagramReceived, HeadersReceived, WebTransportStreamDataReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ProtocolNegotiated, QuicEvent, StreamDataReceived


def configuration(**options: Any) -> QuicConfiguration:
    return QuicConfiguration(alpn_protocols=H3_ALPN, max_datagram_frame_size=65536, **options)


class Peer(QuicConnectionProtocol):
    http: H3Connection

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Bidirectional streams that were opened here. H3Connection 1.7 takes what comes back on
        # them for HTTP/3 frames, and closes the connection.
        self.own: set[int] = set()

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, ProtocolNegotiated):
            self.http = H3Connection(self._quic, enable_webtransport=True)
        if isinstance(event, StreamDataReceived) and event.stream_id in self.own:
            self.data_received(event.stream_id, event.data, event.end_stream)
        elif hasattr(self, "http"):
            for http_event in self.http.handle_event(event):
                self.http_event_received(http_event)
        self.transmit()

    def data_received(self, stream_id: int, data: bytes, ended: bool) -> None:
        raise NotImplementedError

    def http_event_received(self, event: Any) -> None:
        raise NotImplementedError


class Server(Peer):
    """Echoes bidirectional streams, returns unidirectional ones, and returns datagrams."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.back: dict[int, int] = {}

    def http_event_received(self, event: Any) -> None:
        if isinstance(event, HeadersReceived):
            found = dict(event.headers).get(b":path") == b"/echo"
            status = b"200" if found else b"404"
            self.http.send_headers(event.stream_id, [(b":status", status)], end_stream=not found)
        elif isinstance(event, WebTransportStreamDataReceived):
            stream_id = event.stream_id
            if stream_id & 2:
                if stream_id not in self.back:
                    self.back[stream_id] = self.http.create_webtransport_stream(
                        event.session_id, is_unidirectional=True
                    )
                stream_id = self.back[stream_id]
            self._quic.send_stream_data(stream_id, event.data, event.stream_ended)
        elif isinstance(event, DatagramReceived):
            self.http.send_datagram(event.stream_id, event.data)


class Client(Peer):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.data: dict[int, bytes] = defaultdict(bytes)
        self.ended: dict[int, asyncio.Event] = defaultdict(asyncio.Event)
        self.status: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.datagram: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.came: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def http_event_received(self, event: Any) -> None:
        if isinstance(event, HeadersReceived):
            self.status.set_result(dict(event.headers)[b":status"])
        elif isinstance(event, WebTransportStreamDataReceived):
            if not self.came.done():
                self.came.set_result(event.stream_id)
            self.data_received(event.stream_id, event.data, event.stream_ended)
        elif isinstance(event, DatagramReceived):
            self.datagram.set_result(event.data)

    def data_received(self, stream_id: int, data: bytes, ended: bool) -> None:
        self.data[stream_id] += data
        if ended:
            self.ended[stream_id].set()

    def ask(self, authority: str, path: str) -> int:
        session_id = self._quic.get_next_available_stream_id()
        headers = [
            (b":method", b"CONNECT"),
            (b":scheme", b"https"),
            (b":authority", authority.encode()),
            (b":path", path.encode()),
            (b":protocol", b"webtransport"),
            (b"sec-webtransport-http3-draft02", b"1"),
        ]
        self.http.send_headers(session_id, headers)
        self.transmit()
        return session_id

    def send(self, stream_id: int, data: bytes) -> None:
        self._quic.send_stream_data(stream_id, data, True)
        self.transmit()

    async def talk(self, session_id: int) -> dict[str, Any]:
        large = bytes(range(256)) * 2048
        bidirectional = self.http.create_webtransport_stream(session_id)
        self.own.add(bidirectional)
        self.send(bidirectional, large)
        await self.ended[bidirectional].wait()
        unidirectional = self.http.create_webtransport_stream(session_id, is_unidirectional=True)
        self.send(unidirectional, b"one way")
        back = await self.came
        await self.ended[back].wait()
        self.http.send_datagram(session_id, b"datagram")
        self.transmit()
        return {
            "bidirectional": self.data[bidirectional] == large,
            "unidirectional": self.data[back].decode(),
            "datagram": (await self.datagram).decode(),
        }


async def run_client(port: int, path: str) -> None:
    async with connect(
        "127.0.0.1",
        port,
        configuration=configuration(is_client=True, verify_mode=ssl.CERT_NONE),
        create_protocol=Client,
    ) as client:
        assert isinstance(client, Client)
        session_id = client.ask(f"127.0.0.1:{port}", path)
        status = (await client.status).decode()
        said = await client.talk(session_id) if status == "200" else {}
    print(json.dumps({"status": status, **said}))


async def run_server(certfile: str, keyfile: str, *flags: str) -> None:
    server_configuration = configuration(is_client=False)
    server_configuration.load_cert_chain(certfile, keyfile)
    # aioquic's serve() does not say which port it got.
    loop = asyncio.get_running_loop()
    server = await serve(
        "127.0.0.1",
        0,
        configuration=server_configuration,
        create_protocol=Server,
        retry="retry" in flags,
    )
    print(server._transport.get_extra_info("sockname")[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    if sys.argv[1] == "server":
        asyncio.run(run_server(*sys.argv[2:]))
    else:
        asyncio.run(asyncio.wait_for(run_client(int(sys.argv[2]), sys.argv[3]), 20))
