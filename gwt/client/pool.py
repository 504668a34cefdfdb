"""
ClientPool: several clients in turn, each with a configuration and statistics of its own.

What is shared by all who want the same URL, sessions, is pooled.py's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import gevent
from gevent.pool import Group

from ..config import ClientConfig
from ..errors import ClientError
from ..net.waiting import check_thread, native_thread
from ..options import bad
from ..stream_common import CONFIGURED
from .client import WebTransportClient
from .stats import ClientStats
from .target import without_user

__all__ = ["ClientPool"]

logger = logging.getLogger("gwt.client")


class ClientPool:
    """
    Clients that are used in turn.

    It can be used at once, with and without ``with``; leaving the block closes all clients. One
    that is closed alone is passed over.
    """

    def __init__(self, configs: Iterable[ClientConfig | None]) -> None:
        """Make a client for each configuration, of which None is the default; empty: ValueError."""
        self._clients = [WebTransportClient(config=config) for config in configs]
        if not self._clients:
            raise bad("configs", [], "at least one configuration")
        self._turn = 0
        self._thread = native_thread()

    @classmethod
    def create(cls, *, num_clients: int = 10, base_config: ClientConfig | None = None) -> Self:
        """Return a pool of clients with the same configuration; less than one: ValueError."""
        if type(num_clients) is not int or num_clients < 1:
            raise bad("num_clients", num_clients, "an integer of at least 1")
        return cls([base_config] * num_clients)

    def __repr__(self) -> str:
        return f"<ClientPool open={self.get_client_count()} of {len(self._clients)}>"

    @property
    def is_closed(self) -> bool:
        """Whether all clients have been closed."""
        return not self.get_client_count()

    @property
    def stats(self) -> dict[str, Any]:
        """Statistics of all clients together, as those of one, and how many are open."""
        figures = [client.figures for client in self._clients]
        return {**ClientStats.total(figures).to_dict(), "clients": self.get_client_count()}

    def get_client_count(self) -> int:
        """Return how many clients are open."""
        return sum(not client.is_closed for client in self._clients)

    def get_client(self) -> WebTransportClient:
        """Return the next client in turn that is open; raises ClientError if none is."""
        for _ in self._clients:
            client = self._clients[self._turn]
            self._turn = (self._turn + 1) % len(self._clients)
            if not client.is_closed:
                return client
        raise ClientError("The pool of clients is closed.")

    def connect_all(
        self, url: str, *, raise_on_error: bool = False, timeout: float | None = CONFIGURED
    ) -> list[Any]:
        """
        Connect every open client to a URL, all at the same time; return the sessions, in order.

        Those that fail are left out, and logged in one line. If all fail, or one does and
        `raise_on_error` is set, or the pool was closed meanwhile, an ExceptionGroup of their
        ClientErrors is raised, and what had succeeded is closed. So it is when the caller is
        interrupted. Waits as long as the slowest connect: each may take `timeout`, its
        configuration's connect_timeout unless given. Raises ClientError if the pool is closed.
        """
        self._check_thread()
        clients = [client for client in self._clients if not client.is_closed]
        if not clients:
            raise ClientError("The pool of clients is closed.", target_url=url)
        sessions: dict[int, Any] = {}
        errors: list[ClientError] = []

        def connect(index: int, client: WebTransportClient) -> None:
            try:
                sessions[index] = client.connect(url, timeout=timeout)
            except ClientError as exc:
                errors.append(exc)

        connecting = Group()
        try:
            for number, client in enumerate(clients):
                connecting.spawn(connect, number, client)
            # What is raised here beside is an error of our own.
            connecting.join(raise_error=True)
        except BaseException:
            connecting.kill()
            for session in sessions.values():
                session.abort()
            raise
        if errors:
            failed = (
                f"{len(errors)} of {len(clients)} clients could not connect to "
                f"{without_user(url)}, the first because: {errors[0]}"
            )
            if raise_on_error or not sessions or self.is_closed:
                _close(sessions.values())
                raise ExceptionGroup(failed, errors)
            logger.warning("%s", failed)
        return [session for _, session in sorted(sessions.items())]

    def close_all(self) -> None:
        """Close all clients and their sessions, at the same time; waits as their close() does."""
        self._check_thread()
        _close(self._clients)

    close = close_all

    def _check_thread(self) -> None:
        check_thread(self._thread, "pool of clients")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close_all()


def _close(members: Iterable[Any]) -> None:
    """Close clients, or sessions, at the same time; who is left when it is interrupted, at once."""
    members = list(members)
    closers = [gevent.spawn(member.close) for member in members]
    try:
        gevent.joinall(closers)
    except BaseException:
        gevent.killall(closers, block=False)
        for member in members:
            member.abort()
        raise
