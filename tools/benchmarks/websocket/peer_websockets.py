"""websockets as a peer of the bench: its asyncio server."""

from __future__ import annotations

import asyncio
import ssl
import sys

from control import answer_next, arguments, ready, tls_context
from websockets.asyncio.server import ServerConnection, serve


async def echo(ws: ServerConnection) -> None:
    async for message in ws:
        await ws.send(message)


async def main() -> None:
    context = tls_context(arguments().certificate, ssl.SSLContext)
    async with serve(echo, "127.0.0.1", 0, compression=None, ssl=context) as server:
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), answer_next)
        ready(next(iter(server.sockets)).getsockname()[1], "websockets")
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
