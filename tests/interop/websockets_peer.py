"""
The `websockets` library in both roles, in a process of its own: a server or a client.

``server [CERT KEY]`` echoes, and prints its port. ``client URL`` talks to an echo server and prints
what it found.
"""

from __future__ import annotations

import asyncio
import ssl
import sys

from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed


async def echo(connection) -> None:
    async for message in connection:
        if message == "close":
            await connection.close(4321, "as you wish")
        elif message == "fragments":
            await connection.send(["in ", "three ", "pieces"])
        else:
            await connection.send(message)


async def run_server(*files: str) -> None:
    context = None
    if files:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*files)
    async with serve(
        echo, "127.0.0.1", 0, ssl=context, subprotocols=["second", "first"], max_size=None
    ) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        # Until whoever started it closes our input.
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def run_client(url: str, compression: str) -> None:
    context = None
    if url.startswith("wss:"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with connect(
        url,
        ssl=context,
        subprotocols=["first", "second"],
        compression=compression if compression != "none" else None,
        max_size=None,
        proxy=None,
    ) as connection:
        print("subprotocol", connection.subprotocol)
        print("extensions", len(connection.protocol.extensions))
        for message in ("text", b"binary", "", "ü" * 70_000, bytes(range(256)) * 3000):
            await connection.send(message)
            assert await connection.recv() == message
        await connection.send(["a", "b", "c"])
        print("fragments", await connection.recv())
        for n in range(500):
            await connection.send(str(n))
        assert [await connection.recv() for _ in range(500)] == [str(n) for n in range(500)]
        await (await connection.ping())
        print("pong")
        await connection.send("close")
        try:
            await connection.recv()
        except ConnectionClosed as exc:
            print("closed", exc.rcvd.code, exc.rcvd.reason)


if __name__ == "__main__":
    role, *arguments = sys.argv[1:]
    asyncio.run({"server": run_server, "client": run_client}[role](*arguments))
