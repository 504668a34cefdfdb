"""
DatagramApplicationServer: a StatelessServer over UDP, one application instance a peer.

The socket is net/datagrams.py's; here is what becomes of a datagram: a message for the instance
of its sender's address, or, where a bound is reached, nothing but a count. One greenlet reads.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any, Self

import gevent

from ..errors import ApplicationClosed, DatagramTooLarge
from ..net.datagrams import MOST, Datagram, DatagramSocket
from ..net.timers import now
from .stateless import StatelessServer

__all__ = ["DatagramApplicationServer"]


class DatagramApplicationServer(StatelessServer):
    """
    Serves an application over UDP: an instance for each peer address.

    The scope is ``{"type": "datagram", "peer": (host, port), "server": (host, port)}``; messages
    in are ``{"type": "datagram.receive", "data": bytes, "peer": (host, port)}``, and out
    ``{"type": "datagram.send", "data": bytes}``. run() serves in the calling greenlet; start() and
    stop(), or ``with``, in one of its own.
    """

    def __init__(
        self,
        application: Callable[..., Any],
        bind: str = "127.0.0.1:0",
        max_applications: int = 1000,
        *,
        idle_timeout: float | None = 60.0,
        grace: float = 0.0,
        max_queue: int | None = 64,
        max_waiting: int = 16 * 1024 * 1024,
        clock: Callable[[], float] = now,
    ) -> None:
        """
        Take an application and where to listen, "host:port"; port 0 picks one that is free.

        Of datagrams that wait to be received, at most `max_queue` are kept for one peer, and
        `max_waiting` bytes for all together; what comes beyond that is dropped and counted.
        """
        super().__init__(
            application,
            max_applications,
            idle_timeout=idle_timeout,
            grace=grace,
            max_queue=max_queue,
            clock=clock,
        )
        self.bind = bind
        self.max_waiting = max_waiting

        # Bytes of datagrams that no application has received yet.
        self.waiting = 0

        self._socket: DatagramSocket | None = None
        self._greenlet: gevent.Greenlet | None = None
        self.counters.update(datagrams_dropped=0)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port, once it listens."""
        return None if self._socket is None else self._socket.address

    def listen(self) -> None:
        """Open the socket, so that there is an address. Raises OSError; idempotent."""
        if self._socket is None:
            self._socket = DatagramSocket(self.bind)

    def start(self) -> None:
        """Listen, and serve in a greenlet. Raises OSError if it cannot; idempotent."""
        if self._greenlet is not None:
            return
        self.listen()
        self._greenlet = gevent.Greenlet(self.run)
        self._greenlet.name = f"gwt-datagrams {self.bind}"
        self._greenlet.start()

    def stop(self) -> None:
        """Stop serving: as run() ends. Waits for that; idempotent."""
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None:
            greenlet.kill()
            # Killed before its turn, it has not done that.
            self.shutdown()
        self._close()

    def handle(self) -> None:
        """Read datagrams and hand them on, for ever."""
        self.listen()
        assert self._socket is not None
        receive = self._socket.receive
        while True:
            for datagram in receive():
                self._deliver(datagram)

    def run(self) -> None:
        """Serve until KeyboardInterrupt, or until the greenlet is killed; then close."""
        try:
            super().run()
        finally:
            self._close()

    def application_send(self, scope: Any, message: Any) -> None:
        """
        Send a datagram to the peer of a scope; wait while the socket is full.

        Raises DatagramTooLarge for more than 65,507 bytes, ValueError for a message of another
        type. That the network does not take it is counted only.
        """
        if message.get("type", "datagram.send") != "datagram.send":
            raise ValueError(f"Unknown type of a message: {message['type']!r}.")
        data = message["data"]
        if len(data) > MOST:
            raise DatagramTooLarge(len(data), MOST)
        if self._socket is not None:
            self._socket.send(data, scope["peer"], scope["server"][0])

    def stats(self) -> dict[str, Any]:
        """Return what StatelessServer.stats() has, and ``waiting`` bytes and ``datagrams``."""
        datagrams = {} if self._socket is None else dict(self._socket.stats)
        return {**super().stats(), "waiting": self.waiting, "datagrams": datagrams}

    def _deliver(self, datagram: Datagram) -> None:
        data, peer, local = datagram
        if self.waiting + len(data) > self.max_waiting:
            self.counters["datagrams_dropped"] += 1
            return
        assert self._socket is not None
        host, port = self._socket.address
        input_queue = self.get_or_create_application_instance(
            peer, {"type": "datagram", "peer": peer, "server": (local or host, port)}
        )
        try:
            input_queue.put_nowait({"type": "datagram.receive", "data": data, "peer": peer})
        except (queue.Full, ApplicationClosed):
            self.counters["datagrams_dropped"] += 1
        else:
            self.waiting += len(data)

    def _message_left(self, message: Any) -> None:
        self.waiting -= len(message["data"])

    def _close(self) -> None:
        sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()
