"""
CONNECT tunnels with aioquic's own asyncio loop and H3Connection; runs as a script.

    aioquic_tunnel.py proxy CERTFILE KEYFILE        prints its port; a proxy until stdin ends
    aioquic_tunnel.py client PORT HOST:PORT SIZE    prints a JSON object of what came back

Imports nothing of gwt.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
import sys
from typing import Any

from aioquic.asyncio import QuicConnectionProtocol, connect, serve
from aioquic.h3.connection import H3_ALPN, ErrorCode, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ProtocolNegotiated, QuicEvent, StreamReset


class Peer(QuicConnectionProtocol):
    http: H3Connection

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, ProtocolNegotiated):
            self.http = H3Connection(self._quic)
        if isinstance(event, StreamReset):
            self.reset_received(event.stream_id, event.error_code)
        if hasattr(self, "http"):
            for http_event in self.http.handle_event(event):
                self.http_event_received(http_event)
        self.transmit()

    def reset_received(self, stream_id: int, code: int) -> None:
        raise NotImplementedError

    def http_event_received(self, event: Any) -> None:
        raise NotImplementedError


class Proxy(Peer):
    """Connects wherever it is asked to, unless the name ends in .invalid."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.upward: dict[int, asyncio.Queue[tuple[bytes, bool]]] = {}
        self.tasks: dict[int, asyncio.Task[None]] = {}

    def http_event_received(self, event: Any) -> None:
        if isinstance(event, HeadersReceived):
            headers = dict(event.headers)
            expected = {b":method": b"CONNECT", b":authority": headers[b":authority"]}
            assert {k: v for k, v in headers.items() if k[:1] == b":"} == expected
            self.upward[event.stream_id] = asyncio.Queue()
            self.tasks[event.stream_id] = asyncio.ensure_future(
                self.tunnel(event.stream_id, headers[b":authority"].decode())
            )
        elif isinstance(event, DataReceived):
            self.upward[event.stream_id].put_nowait((event.data, event.stream_ended))

    def reset_received(self, stream_id: int, code: int) -> None:
        if stream_id in self.tasks:
            self.tasks[stream_id].cancel()

    async def tunnel(self, stream_id: int, target: str) -> None:
        host, _, port = target.rpartition(":")
        if host.endswith(".invalid"):
            headers = [(b":status", b"502"), (b"proxy-status", b"aioquic; error=dns_error")]
            self.http.send_headers(stream_id, headers)
            self.http.send_data(stream_id, b"no such name", True)
            self.transmit()
            return
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        self.http.send_headers(stream_id, [(b":status", b"200")])
        self.transmit()
        up = asyncio.ensure_future(self.carry_up(stream_id, writer))
        try:
            while data := await reader.read(65536):
                self.http.send_data(stream_id, data, False)
                self.transmit()
            self.http.send_data(stream_id, b"", True)
            self.transmit()
            await up
        except OSError:
            self._quic.reset_stream(stream_id, ErrorCode.H3_CONNECT_ERROR)
            self.transmit()
        finally:
            up.cancel()
            writer.close()

    async def carry_up(self, stream_id: int, writer: asyncio.StreamWriter) -> None:
        ended = False
        while not ended:
            data, ended = await self.upward[stream_id].get()
            writer.write(data)
            await writer.drain()
        writer.write_eof()


class Client(Peer):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[dict[bytes, bytes]] = loop.create_future()
        self.end: asyncio.Future[Any] = loop.create_future()
        self.digest = hashlib.sha256()

    def http_event_received(self, event: Any) -> None:
        if isinstance(event, HeadersReceived):
            self.answer.set_result(dict(event.headers))
        elif isinstance(event, DataReceived):
            self.digest.update(event.data)
            if event.stream_ended:
                self.end.set_result("end")

    def reset_received(self, stream_id: int, code: int) -> None:
        self.end.set_result(code)

    async def talk(self, target: str, size: int) -> dict[str, Any]:
        stream_id = self._quic.get_next_available_stream_id()
        request = [(b":method", b"CONNECT"), (b":authority", target.encode())]
        self.http.send_headers(stream_id, request)
        self.transmit()
        answer = await self.answer
        said = {name.decode(): value.decode() for name, value in answer.items()}
        if answer[b":status"] != b"200":
            return said
        data = bytes(range(256)) * (size // 256)
        half = len(data) // 2
        self.http.send_data(stream_id, data[:half], False)
        self.http.send_data(stream_id, data[half:], True)
        self.transmit()
        said["end"] = await self.end
        said["echoed"] = self.digest.digest() == hashlib.sha256(data).digest()
        return said


async def run_client(port: int, target: str, size: int) -> None:
    configuration = QuicConfiguration(
        alpn_protocols=H3_ALPN, is_client=True, verify_mode=ssl.CERT_NONE
    )
    async with connect(
        "127.0.0.1", port, configuration=configuration, create_protocol=Client
    ) as client:
        assert isinstance(client, Client)
        said = await client.talk(target, size)
    print(json.dumps(said))


async def run_proxy(certfile: str, keyfile: str) -> None:
    configuration = QuicConfiguration(alpn_protocols=H3_ALPN, is_client=False)
    configuration.load_cert_chain(certfile, keyfile)
    loop = asyncio.get_running_loop()
    server = await serve("127.0.0.1", 0, configuration=configuration, create_protocol=Proxy)
    # aioquic's serve() does not say which port it got.
    print(server._transport.get_extra_info("sockname")[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    if sys.argv[1] == "proxy":
        asyncio.run(run_proxy(*sys.argv[2:]))
    else:
        port, target, size = sys.argv[2:]
        asyncio.run(asyncio.wait_for(run_client(int(port), target, int(size)), 60))
