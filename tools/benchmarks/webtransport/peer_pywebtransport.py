"""
pywebtransport as a peer of the bench: its public API, as an application would use it.

What is not its default: it allows as many connections and streams as the works have at once
(its own limits are 100 and 10), and its certificate is not verified, as with the other peers.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any

import pywebtransport as wt
from answers import measure, reply
from control import arguments, chunk

# What one write of a bulk transfer takes.
WRITE = 1024 * 1024

LIMITS: dict[str, Any] = {"max_connections": 2000}

# asyncio itself keeps no task alive.
tasks: set[asyncio.Task[None]] = set()


def spawn(work: Coroutine[Any, Any, None]) -> None:
    async def until_closed() -> None:
        with suppress(wt.ConnectionError, wt.SessionError, wt.StreamError):
            await work

    task = asyncio.create_task(until_closed())
    tasks.add(task)
    task.add_done_callback(tasks.discard)


async def answer_stream(stream: wt.WebTransportBidirectionalStream) -> None:
    await stream.write_all(data=await stream.read_all(), end_stream=True)


async def echo(session: wt.WebTransportSession) -> None:
    async def datagrams() -> None:
        while True:
            await session.send_datagram(data=await session.read_datagram())

    spawn(datagrams())
    async for stream in session.incoming_bidirectional_streams():
        spawn(answer_stream(stream))


async def download(session: wt.WebTransportSession) -> None:
    async for stream in session.incoming_bidirectional_streams():
        await send(stream, int(await stream.read_all()))


async def count(stream: wt.WebTransportBidirectionalStream) -> None:
    received = 0
    async for data in stream:
        received += len(data)
    await stream.write_all(data=b"%d" % received, end_stream=True)


async def upload(session: wt.WebTransportSession) -> None:
    async for stream in session.incoming_bidirectional_streams():
        await count(stream)


async def sink(session: wt.WebTransportSession) -> None:
    async for stream in session.incoming_bidirectional_streams():
        spawn(count(stream))


HANDLERS = {"/echo": echo, "/download": download, "/upload": upload, "/sink": sink}


async def send(stream: wt.WebTransportBidirectionalStream, size: int) -> None:
    data = chunk(WRITE)
    for start in range(0, size, WRITE):
        await stream.write_all(data=data[: size - start], end_stream=start + WRITE >= size)


class Client:
    """The works, each over sessions that are open already."""

    def __init__(self, port: int, client: wt.WebTransportClient) -> None:
        self.url = f"https://127.0.0.1:{port}"
        self.client = client
        self.sessions: list[wt.WebTransportSession] = []

    async def connect(self, path: str) -> wt.WebTransportSession:
        return await self.client.connect(url=self.url + path)

    async def disconnect(self, session: wt.WebTransportSession) -> None:
        connection = session.connection
        await session.close()
        await connection.close()

    async def open(self, path: str, count: int) -> None:
        for _ in range(count):
            self.sessions.append(await self.connect(path))

    async def idle(self, count: int) -> None:
        for _ in range(count):
            stream = await self.sessions[0].create_bidirectional_stream()
            await stream.write(data=b".")

    async def close(self) -> None:
        sessions, self.sessions = self.sessions, []
        await asyncio.gather(*(self.disconnect(session) for session in sessions))

    async def download(self, size: int) -> int:
        stream = await self.sessions[0].create_bidirectional_stream()
        await stream.write_all(data=b"%d" % size, end_stream=True)
        received = 0
        async for data in stream:
            received += len(data)
        assert received == size
        return size // (1024 * 1024)

    async def upload(self, size: int) -> int:
        stream = await self.sessions[0].create_bidirectional_stream()
        await send(stream, size)
        assert await stream.read_all() == b"%d" % size
        return size // (1024 * 1024)

    async def streams(self, count: int, at_once: int) -> int:
        session, data = self.sessions[0], chunk(64)

        async def one_after_another() -> None:
            for _ in range(count // at_once):
                stream = await session.create_bidirectional_stream()
                await stream.write_all(data=data, end_stream=True)
                assert await stream.read_all() == data

        await asyncio.gather(*(one_after_another() for _ in range(at_once)))
        return count // at_once * at_once

    async def datagrams(self, count: int, at_once: int) -> int:
        session, data = self.sessions[0], chunk(64)
        returned = sent = 0
        while returned < count:
            while sent < min(count, returned + at_once):
                await session.send_datagram(data=data)
                sent += 1
            try:
                async with asyncio.timeout(1.0):
                    await session.read_datagram()
                returned += 1
            except TimeoutError:
                # Lost ones are sent again.
                sent = returned
        return count

    async def connects(self, count: int, at_once: int) -> int:
        async def one_after_another() -> None:
            for _ in range(count // at_once):
                await self.disconnect(await self.connect("/echo"))

        await asyncio.gather(*(one_after_another() for _ in range(at_once)))
        return count // at_once * at_once


async def commands() -> AsyncIterator[dict[str, Any]]:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield json.loads(line)


async def accept(connection: wt.WebTransportConnection) -> None:
    async for session in connection.incoming_sessions():
        await session.accept()
        spawn(HANDLERS[session.path](session))


async def accept_all(server: wt.WebTransportServer) -> None:
    async for connection in server.incoming_connections():
        spawn(accept(connection))


async def run_server(certificate: str, streams: int) -> None:
    # Port 0 is none of its ports.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = wt.ServerConfig(
        certfile=certificate,
        keyfile=certificate,
        bind_host="127.0.0.1",
        bind_port=port,
        initial_max_streams_bidi=streams,
        max_streams_bidi=streams,
        **LIMITS,
    )
    async with wt.WebTransportServer(config=config) as server:
        await server.listen()
        spawn(accept_all(server))
        reply({"port": port})
        async for command in commands():
            reply(measure(command["do"]) or {})


async def run_client(port: int) -> None:
    config = wt.ClientConfig(verify_mode=ssl.CERT_NONE, **LIMITS)
    async with wt.WebTransportClient(config=config) as transport:
        client = Client(port, transport)
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
        asyncio.run(run_server(options.certificate, options.streams))
    else:
        asyncio.run(run_client(options.port))
