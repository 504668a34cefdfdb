"""aiohttp as a peer of the bench: its server's WebSockets, with the reader in C if it is there."""

from __future__ import annotations

import asyncio
import ssl
import sys

from aiohttp import WSMsgType, web
from control import answer_next, arguments, ready, tls_context


async def echo(request: web.Request) -> web.WebSocketResponse:
    ws = web.WebSocketResponse(compress=False)
    await ws.prepare(request)
    async for message in ws:
        if message.type is WSMsgType.TEXT:
            await ws.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await ws.send_bytes(message.data)
    return ws


async def main() -> None:
    app = web.Application()
    app.router.add_get("/echo", echo)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(
        runner, "127.0.0.1", 0, ssl_context=tls_context(arguments().certificate, ssl.SSLContext)
    )
    await site.start()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), answer_next)
    ready(runner.addresses[0][1], "aiohttp")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
