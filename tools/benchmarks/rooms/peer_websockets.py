"""websockets as a peer of the bench: its asyncio server, and its broadcast()."""

from __future__ import annotations

import asyncio
import gc
import ssl
import sys
from typing import Any

from control import answer_next, arguments, ready, tls_context
from websockets.asyncio.server import ServerConnection, broadcast, serve

members: set[ServerConnection] = set()


async def room(ws: ServerConnection) -> None:
    members.add(ws)
    await ws.send("joined")
    try:
        async for message in ws:
            broadcast(members, message)
    finally:
        members.remove(ws)


def settle(command: dict[str, Any]) -> None:
    gc.collect()
    gc.freeze()


async def main() -> None:
    context = tls_context(arguments().certificate, ssl.SSLContext)
    async with serve(room, "127.0.0.1", 0, compression=None, ssl=context) as server:
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), answer_next, settle)
        ready(next(iter(server.sockets)).getsockname()[1], "websockets")
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
