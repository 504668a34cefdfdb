"""
The UDP half of a server: datagrams to their connections, new connections made or refused.

Everything here runs in the quiet zone. It knows QUIC's first packets and the limits on
connections; sessions are server.py's affair.
"""

from __future__ import annotations

import os
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
from ..net.udpsocket import shown
from ..observe import Counters
from ..protocol import codes, packets, retry
from ..protocol.events import SessionRequested, TunnelRequested
from ..protocol.farewell import Farewells
from ..protocol.quic import Quic
from ..protocol.seam import VERSIONS, QuicOptions
from ..protocol.webtransport import WebTransport
from .peers import Peers

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
        on_tunnel: Callable[[WebTransportConnection, TunnelRequested], None] | None = None,
        peers: Peers | None = None,
        retry_key: bytes | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.connections = connections
        self.counters = Counters()
        self._peers = peers if peers is not None else Peers(None, self.counters)
        self._on_request = on_request
        # None: tunnels are not served.
        self._on_tunnel = on_tunnel
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

        # The idle timeout is what ends the other side where our close was lost.
        self._farewells = Farewells(config.idle_timeout)

        # Connections whose handshake is under way, and what seals the tokens of Retry packets:
        # listeners that share a port have to share it.
        self._unfinished: set[WebTransportConnection] = set()
        self._retry_key = retry_key or os.urandom(32)
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
        """Close the socket. Whose connection is still open is told so, once."""
        for connection in set(self._routes.values()):
            connection.close(reason="The server is stopping")
            connection.send_now()
        self.endpoint.close()
        for connection in set(self._routes.values()):
            # No packet of its peer comes here any more.
            connection.fail(OSError("the server's socket was closed"))
        self._routes.clear()

    @property
    def lingering(self) -> bool:
        """Whether some connection has not finished its closing period."""
        return bool(self._routes)

    def stats(self) -> dict[str, int]:
        """Return the counters of the socket and of newcomers, and how many are at it."""
        return {
            **self.endpoint.stats,
            **self.counters,
            "handshakes_unfinished": len(self._unfinished),
        }

    def _route(
        self, data: bytes, address: Address, local: str | None
    ) -> WebTransportConnection | NewcomerType | None:
        connection_id = packets.routing_id(data)
        connection = self._routes.get(connection_id)
        if connection is not None:
            return connection
        farewell = self._farewells.find(connection_id, self._clock())
        if farewell is not None:
            if farewell.answers(data):
                self.counters["closes_repeated"] += 1
                self.endpoint.send([farewell.datagram], address, local)
            return None
        newcomer = packets.classify(data)
        if newcomer.kind is packets.Kind.INITIAL:
            return None if self._admit(newcomer, address, local) is None else NEWCOMER
        if newcomer.kind is packets.Kind.NEGOTIATE:
            self.counters["versions_negotiated"] += 1
            self.endpoint.send([newcomer.version_negotiation()], address, local)
        return None

    def _admit(
        self, newcomer: packets.Newcomer, address: Address, local: str | None
    ) -> bytes | None:
        """
        Return the connection id that a newcomer wrote to first, before any Retry.

        None for one who has to prove its address, or failed to: it is answered at once, which
        needs no state, and no place in the queue.
        """
        now = self._clock()
        try:
            original = retry.open_token(self._retry_key, newcomer, address, now)
        except retry.InvalidToken as exc:
            # RFC 9000 8.1.2: a client takes no second Retry, so that it is told the end.
            self.counters["tokens_invalid"] += 1
            answer = packets.encode_refusal(newcomer, codes.QUIC_INVALID_TOKEN, str(exc))
        else:
            if original is not None or not self._retry_wanted(address):
                return original or newcomer.destination
            self.counters["retries_sent"] += 1
            answer = retry.encode_retry(self._retry_key, newcomer, address, now)
        self.endpoint.send([answer], address, local)
        return None

    def _retry_wanted(self, address: Address) -> bool:
        config = self.config
        if self._stopping or config.retry != "auto":
            return config.retry == "on" and not self._stopping
        if self._peers.crowded(shown(address)):
            return True
        return len(self._unfinished) + len(self.endpoint.newcomers) >= config.retry_threshold

    def _newcomer(
        self, data: bytes, address: Address, local: str | None
    ) -> WebTransportConnection | None:
        newcomer = packets.classify(data)
        original = self._admit(newcomer, address, local)
        if original is None:
            return None
        connection, peer = None, shown(address)
        if not self._stopping and self._peers.admit(peer):
            retried = original != newcomer.destination
            quic = Quic(
                self._options,
                budget=self._budget,
                configuration=self._configurations[newcomer.version],
                original_destination_connection_id=original,
                retry_source_connection_id=newcomer.destination if retried else None,
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
        self._peers.hold(connection, peer)
        connection.handshake_deadline = self._clock() + self.config.handshake_timeout
        connection.on_request = self._on_request
        connection.on_tunnel = self._on_tunnel
        connection.protocol.takes_tunnels = self._on_tunnel is not None
        connection.on_end(self._ended)
        self._unfinished.add(connection)
        connection.unused_timeout = self.config.unused_timeout
        connection.on_connected = self._connected
        connection.on_end(self._unfinished.discard)
        connection.add_route(newcomer.destination)
        connection.on_gone(lambda: self._gone(connection))
        return connection

    def _ended(self, connection: WebTransportConnection) -> None:
        """Count whom we turned out, and why; the connection's own counters go with it."""
        if not connection.protocol.quic.heard:
            self.counters["newcomers_damaged"] += 1
        for key in ("protocol_errors", "handshakes_timed_out"):
            if connection.stats().get(key):
                self.counters[key] += 1

    def _connected(self, connection: WebTransportConnection) -> None:
        self._unfinished.discard(connection)
        connection.note_unused()

    def _gone(self, connection: WebTransportConnection) -> None:
        farewell = connection.protocol.quic.farewell
        if farewell is not None:
            self._farewells.add(connection.connection_ids, farewell, self._clock())
