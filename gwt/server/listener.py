"""
The UDP half of a server: datagrams to their connections, new connections made or refused.

Everything here runs in the quiet zone. It knows QUIC's first packets and the limits on
connections; sessions are server.py's affair.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from .. import tracing
from ..budget import send_budget
from ..certificates import Certificate
from ..config import ServerConfig
from ..connection import WebTransportConnection
from ..errors import LimitExceeded
from ..manager.connection import ConnectionManager
from ..net.udp import NEWCOMER, Address, NewcomerType, UdpEndpoint
from ..observe import Counters
from ..protocol import codes, packets
from ..protocol.events import SessionRequested
from ..protocol.quic import Quic
from ..protocol.seam import VERSIONS, QuicOptions
from ..protocol.webtransport import WebTransport

__all__ = ["QuicListener"]


class QuicListener:
    """Connections on one UDP socket."""

    def __init__(
        self,
        sock: Any,
        config: ServerConfig,
        certificate: Certificate,
        connections: ConnectionManager,
        on_request: Callable[[WebTransportConnection, SessionRequested], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.connections = connections
        self.counters = Counters()
        self._on_request = on_request
        self._options = QuicOptions.of(
            config,
            is_client=False,
            certificate=certificate.certificate,
            chain=tuple(certificate.chain),
            private_key=certificate.private_key,
        )
        self._configurations = {
            version: tracing.configuration(self._options, version=version) for version in VERSIONS
        }
        self._budget = send_budget()
        self._clock = clock

        # Connection ids, ours and those that clients chose first, to connections. Connections
        # stay here through their closing period, when the manager has let them go already.
        self._routes: dict[bytes, WebTransportConnection] = {}
        self._stopping = False
        self.endpoint = UdpEndpoint(
            sock,
            route=self._route,
            newcomer=self._newcomer,
            max_newcomers=config.max_pending_handshakes,
            clock=clock,
        )

    def __repr__(self) -> str:
        return f"<QuicListener {self.endpoint.address} routes={len(self._routes)}>"

    def start(self) -> None:
        """Begin to read."""
        self.endpoint.start()

    def refuse_newcomers(self) -> None:
        """Refuse new connections from now on; the others go on."""
        self._stopping = True

    def close(self) -> None:
        """Close the socket; what is still open ends without a word."""
        self.endpoint.close()
        for connection in set(self._routes.values()):
            connection.fail(OSError("the server's socket was closed"))
        self._routes.clear()

    @property
    def lingering(self) -> bool:
        """Whether some connection has not finished its closing period."""
        return bool(self._routes)

    def stats(self) -> dict[str, int]:
        """Return the counters of the socket and of refused connections."""
        return {**self.endpoint.stats, **self.counters}

    def _route(
        self, data: bytes, address: Address, local: str | None
    ) -> WebTransportConnection | NewcomerType | None:
        connection = self._routes.get(packets.routing_id(data))
        if connection is not None:
            return connection
        newcomer = packets.classify(data)
        if newcomer.kind is packets.Kind.INITIAL:
            return NEWCOMER
        if newcomer.kind is packets.Kind.NEGOTIATE:
            self.counters["versions_negotiated"] += 1
            self.endpoint.send([newcomer.version_negotiation()], address, local)
        return None

    def _newcomer(
        self, data: bytes, address: Address, local: str | None
    ) -> WebTransportConnection | None:
        newcomer = packets.classify(data)
        connection = None
        if not self._stopping:
            quic = Quic(
                self._options,
                budget=self._budget,
                configuration=self._configurations[newcomer.version],
                original_destination_connection_id=newcomer.destination,
            )
            connection = WebTransportConnection(
                self.endpoint,
                WebTransport(quic, self.config),
                self._routes,
                self.config,
                keep_alive=self.config.keep_alive,
                clock=self._clock,
            )
            try:
                self.connections.add_connection(connection)
            except LimitExceeded:
                connection.fail(OSError("too many connections"))
                connection = None
        if connection is None:
            self.counters["connections_refused"] += 1
            reason = "the server is stopping" if self._stopping else "too many connections"
            refusal = packets.encode_refusal(newcomer, codes.QUIC_CONNECTION_REFUSED, reason)
            self.endpoint.send([refusal], address, local)
            return None
        connection.handshake_deadline = self._clock() + self.config.handshake_timeout
        connection.on_request = self._on_request
        connection.add_route(newcomer.destination)
        return connection
