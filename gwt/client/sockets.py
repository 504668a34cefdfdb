"""
The UDP sockets of a hub's client connections, and the handshakes in flight on them.

A few sockets carry many connections: connection ids tell them apart, so thousands of clients do
not need thousands of descriptors. A socket is closed when its last connection is gone.
"""

from __future__ import annotations

import socket as _stdlib_socket
from collections.abc import Callable
from typing import Any

from gevent.hub import get_hub
from gevent.lock import BoundedSemaphore

from .. import tracing
from ..budget import send_budget
from ..config import ClientConfig
from ..connection import ConnectionState, WebTransportConnection
from ..net.turns import Pace
from ..net.udp import Address, UdpEndpoint, open_socket
from ..net.waiting import Signal
from ..protocol import packets
from ..protocol.quic import Quic
from ..protocol.seam import QuicOptions
from ..protocol.webtransport import WebTransport
from .names import Names

__all__ = ["ClientHub", "ClientSocket"]

# A thousand greenlets may want to at once, and gevent runs fifty before it looks at a clock.
_STARTS_A_TURN = 4

# Addresses whose last handshake is remembered.
_REMEMBERED = 256


class ClientSocket:
    """One UDP socket and the connections on it."""

    def __init__(self, family: int, buffer: int, closed: Callable[[ClientSocket], None]) -> None:
        wildcard = ("::", 0, 0, 0) if family == _stdlib_socket.AF_INET6 else ("0.0.0.0", 0)
        self.family = family
        self._closed = closed
        self._routes: dict[bytes, WebTransportConnection] = {}
        # Everything that has not gone yet, handshakes and closing periods included.
        self._connections: set[WebTransportConnection] = set()
        self.endpoint = UdpEndpoint(
            open_socket(wildcard, family, buffer=buffer),
            route=self._route,
            path_error=self._path_error,
        )
        self.endpoint.start()

    def __repr__(self) -> str:
        return f"<ClientSocket {self.endpoint.address} connections={len(self._connections)}>"

    def __len__(self) -> int:
        return len(self._connections)

    def dial(
        self,
        address: Address,
        options: QuicOptions,
        config: ClientConfig,
        changed: Signal,
    ) -> WebTransportConnection:
        """Start a connection; returns before anything has arrived. Does not wait."""
        configuration = tracing.configuration(options)
        quic = Quic(options, budget=send_budget(), configuration=configuration)
        connection = WebTransportConnection(
            self.endpoint,
            WebTransport(quic, config),
            self._routes,
            config,
            keep_alive=config.keep_alive,
            changed=changed,
        )
        self._connections.add(connection)
        connection.on_gone(lambda: self._gone(connection))
        connection.start_client(address)
        return connection

    def _route(
        self, data: bytes, address: Address, local: str | None
    ) -> WebTransportConnection | None:
        return self._routes.get(packets.routing_id(data))

    def _path_error(self, address: Address, error: OSError) -> None:
        # An ICMP message is not authenticated, so it only counts while nothing but a
        # handshake would be lost by believing it.
        for connection in list(self._connections):
            if (
                connection.destination == address
                and connection.state is ConnectionState.CONNECTING
                and connection.remote_address is None
            ):
                connection.fail(error)

    def _gone(self, connection: WebTransportConnection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self.endpoint.close()
            self._closed(self)


class ClientHub:
    """What all client connections of one hub share."""

    def __init__(self) -> None:
        # Sockets in use, by family and by how many may be shared.
        self._sockets: dict[tuple[int, int], list[ClientSocket]] = {}
        # Handshakes that may begin now, by the limit that the config sets.
        self._slots: dict[int, BoundedSemaphore] = {}
        # What the last handshake with an address took, in seconds, of those that answered last.
        self.handshakes: dict[Address, float] = {}
        self.names = Names()
        # Who may begin a handshake in this turn of the loop: that takes a millisecond.
        self.pace = Pace(_STARTS_A_TURN)
        # Connections that sessions may share, and who is making one, by everything that has
        # to be equal.
        self.shared: dict[Any, WebTransportConnection] = {}
        self.sharing: dict[Any, BoundedSemaphore] = {}

    @classmethod
    def current(cls) -> ClientHub:
        """Return the current hub's one; it goes with the hub."""
        hub = get_hub()
        found: ClientHub | None = getattr(hub, "gwt_client_hub", None)
        if found is None:
            found = hub.gwt_client_hub = cls()
        return found

    def slots(self, limit: int) -> BoundedSemaphore:
        """Return the semaphore that bounds handshakes in flight."""
        return self._slots.setdefault(limit, BoundedSemaphore(limit))

    def remember(self, address: Address, seconds: float | None) -> None:
        """Note what a handshake took; None if it did not come about, or was overtaken."""
        self.handshakes.pop(address, None)
        if seconds is not None:
            self.handshakes[address] = seconds
            if len(self.handshakes) > _REMEMBERED:
                del self.handshakes[next(iter(self.handshakes))]

    def dial(
        self,
        family: int,
        address: Address,
        options: QuicOptions,
        config: ClientConfig,
        changed: Signal,
    ) -> WebTransportConnection:
        """
        Start a connection on the least used socket; raises OSError if there can be none.

        `changed` is notified when it is ready or closed; several connections may have the same.
        """
        if config.client_sockets is None:
            sock = ClientSocket(family, config.socket_buffer, lambda _: None)
        else:
            key = (family, config.client_sockets)
            pool = self._sockets.setdefault(key, [])
            if len(pool) < config.client_sockets and all(len(other) for other in pool):
                pool.append(ClientSocket(family, config.socket_buffer, pool.remove))
            sock = min(pool, key=len)
        return sock.dial(address, options, config, changed)
