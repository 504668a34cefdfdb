"""
pywebtransport 0.6.1 as a peer of tools/bench clients: the last release with the same suite.

It is aioquic on asyncio. Its log is off.
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

    def __init__(self, port: str, secure: str, client: Any, verifying: Any) -> None:
        self.url = f"https://127.0.0.1:{port}{ECHO}"
        self.secure = f"https://127.0.0.1:{secure}{ECHO}"
        self.client, self.verifying = client, verifying
        self.held: list[Any] = []

    async def establish(self, count: int, at_once: int, verify: bool) -> dict[str, Any]:
        url, client = (self.secure, self.verifying) if verify else (self.url, self.client)

        async def one_after_another() -> None:
            for _ in range(count // at_once):
                self.held.append(await client.connect(url=url))

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


def config(**options: Any) -> Any:
    return ClientConfig.create(connect_timeout=PATIENCE, max_connections=2000, **options)


async def main() -> None:
    logging.disable(logging.CRITICAL)
    port, secure, cafile = sys.argv[1:]
    any_server = config(verify_mode=ssl.CERT_NONE)
    async with (
        pywebtransport.WebTransportClient(config=any_server) as plain,
        pywebtransport.WebTransportClient(config=config(ca_certs=cafile)) as verifying,
    ):
        client = Client(port, secure, plain, verifying)
        gc.collect()
        gc.freeze()
        while line := await asyncio.to_thread(sys.stdin.readline):
            command = json.loads(line)
            what = command.pop("do")
            answer = measure(what)
            reply(await getattr(client, what)(**command) if answer is None else answer)


if __name__ == "__main__":
    asyncio.run(main())
