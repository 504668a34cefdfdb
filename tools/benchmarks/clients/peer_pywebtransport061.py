"""
pywebtransport 0.6.1 as a peer of tools/bench clients: the last release with the same suite.

It is aioquic on asyncio. Its log is off, and the certificate is not verified, as with gwt.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import ssl
import sys
from typing import Any

import pywebtransport
from answers import measure, reply
from control import ECHO
from pywebtransport.config import ClientConfig

PATIENCE = 120.0


class Client:
    """What the bench asks for."""

    def __init__(self, port: int, client: Any) -> None:
        self.url = f"https://127.0.0.1:{port}{ECHO}"
        self.client = client
        self.held: list[Any] = []

    async def establish(self, count: int, at_once: int) -> dict[str, Any]:
        async def one_after_another() -> None:
            for _ in range(count // at_once):
                self.held.append(await self.client.connect(url=self.url))

        await asyncio.gather(*(one_after_another() for _ in range(at_once)))
        return {}

    async def close(self) -> dict[str, Any]:
        held, self.held = self.held, []
        await asyncio.gather(*(each.close() for each in held))
        return {}

    async def hold(self, kind: str, count: int) -> dict[str, Any]:
        assert kind == "session"
        for _ in range(count):
            self.held.append(await self.client.connect(url=self.url))
        return {}


async def main() -> None:
    logging.disable(logging.CRITICAL)
    config = ClientConfig.create(
        verify_mode=ssl.CERT_NONE, connect_timeout=PATIENCE, max_connections=2000
    )
    async with pywebtransport.WebTransportClient(config=config) as transport:
        client = Client(int(sys.argv[1]), transport)
        gc.collect()
        gc.freeze()
        while line := await asyncio.to_thread(sys.stdin.readline):
            command = json.loads(line)
            what = command.pop("do")
            answer = measure(what)
            reply(await getattr(client, what)(**command) if answer is None else answer)


if __name__ == "__main__":
    asyncio.run(main())
