"""A router between a client and a server: it forwards, it loses, and it changes its mind."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import gevent
import gevent.socket

__all__ = ["Relay"]


class Relay:
    """One client's way to one server, both on loopback; the server sees the relay's address."""

    def __init__(self, server: tuple[str, int]) -> None:
        self._server = server
        self._client: Any = None
        self._front = self._socket("127.0.0.1")
        self._back: Any = None
        self._readers: list[gevent.Greenlet] = []
        # Called with (to_server, data); returns False to lose a datagram.
        self.passes: Callable[[bool, bytes], object] = lambda to_server, data: True
        self.move()
        self._readers.append(gevent.spawn(self._to_server))

    @property
    def address(self) -> tuple[str, int]:
        """Where the client sends to."""
        host, port = self._front.getsockname()
        return host, port

    @property
    def source(self) -> tuple[str, int]:
        """Where the server sees the client."""
        host, port = self._back.getsockname()
        return host, port

    def url(self, path: str = "/") -> str:
        return f"https://{self.address[0]}:{self.address[1]}{path}"

    def move(self, host: str = "127.0.0.1") -> None:
        """Show the server another port, or host; what it still sends to the old one is lost."""
        if self._back is not None:
            self._readers.pop(0).kill()
            self._back.close()
        self._back = self._socket(host)
        self._readers.insert(0, gevent.spawn(self._to_client, self._back))

    def _socket(self, host: str) -> Any:
        sock = gevent.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((host, 0))
        return sock

    def _to_server(self) -> None:
        while True:
            data, self._client = self._front.recvfrom(65_535)
            if self.passes(True, data):
                with suppress(OSError):
                    self._back.sendto(data, self._server)

    def _to_client(self, back: Any) -> None:
        while True:
            data = back.recv(65_535)
            if self.passes(False, data):
                with suppress(OSError):
                    self._front.sendto(data, self._client)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        gevent.killall(self._readers)
        self._front.close()
        self._back.close()
