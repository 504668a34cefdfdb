"""
Two protocols joined by a network that a test turns by hand: virtual time, latency, loss,
reordering. Nothing here sleeps, and a seed decides everything that is random.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from functools import cache
from typing import Any

from gwt import certificates
from gwt.config import ClientConfig, ServerConfig, TransportConfig
from gwt.protocol import events
from gwt.protocol.quic import Quic
from gwt.protocol.seam import QuicOptions, SendBudget
from gwt.protocol.webtransport import WebTransport

CLIENT = ("192.0.2.1", 50000)
SERVER = ("192.0.2.2", 4433)


@cache
def certificate() -> certificates.Certificate:
    return certificates.generate(["example.test"])


def quic_options(config: TransportConfig, *, is_client: bool) -> QuicOptions:
    if is_client:
        return QuicOptions.of(config, is_client=True, verify=False, server_name="example.test")
    cert = certificate()
    return QuicOptions.of(
        config, is_client=False, certificate=cert.certificate, private_key=cert.private_key
    )


class End:
    """One side: its protocol, and everything it has told so far."""

    def __init__(self, protocol: WebTransport) -> None:
        self.protocol = protocol
        self.events: list[Any] = []
        # Called for each event, so that a test can answer as the floor above would.
        self.react: Callable[[Any], None] | None = None
        # Whether streams that have ended are accepted: nobody's slot is free before.
        self.accepts_ended = True

    def take(self, happened: list[Any]) -> None:
        for event in happened:
            self.events.append(event)
            ended = isinstance(event, events.StreamReset) or (
                isinstance(event, events.StreamDataReceived) and event.ended
            )
            if ended and self.accepts_ended:
                self.protocol.accept_stream(event.stream_id)
            if self.react is not None:
                self.react(event)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def last(self, kind: type) -> Any:
        found = self.of(kind)
        assert found, f"no {kind.__name__} among {self.events}"
        return found[-1]

    def data(self, stream_id: int) -> bytes:
        return b"".join(
            e.data for e in self.of(events.StreamDataReceived) if e.stream_id == stream_id
        )


class Pair:
    """A client and a server; `run()` turns the world until nothing is left to do now."""

    def __init__(
        self,
        *,
        client: ClientConfig | None = None,
        server: ServerConfig | None = None,
        latency: float = 0.01,
        loss: float = 0.0,
        jitter: float = 0.0,
        seed: int = 0,
        client_factory: Callable[[Quic, TransportConfig], WebTransport] = WebTransport,
        server_factory: Callable[[Quic, TransportConfig], WebTransport] = WebTransport,
    ) -> None:
        self.now = 1000.0
        self.latency, self.loss, self.jitter = latency, loss, jitter
        self.random = random.Random(seed)
        self.budget = {True: SendBudget(), False: SendBudget()}
        self.server_config = server or ServerConfig()
        self.server_factory = server_factory
        client_config = client or ClientConfig()
        quic = Quic(quic_options(client_config, is_client=True), budget=self.budget[True])
        self.client = End(client_factory(quic, client_config))
        self.server: End = None  # type: ignore[assignment]
        # Datagrams under way: (arrival, order, to the server?, data).
        self.wire: list[tuple[float, int, bool, bytes]] = []
        self.order = 0
        # Where the client's datagrams come from.
        self.client_address = CLIENT
        # Called with (to_server, data); returns False to lose a datagram.
        self.filter: Callable[[bool, bytes], bool] = lambda to_server, data: True
        self.client.protocol.quic.connect(SERVER, self.now)

    def ends(self) -> list[End]:
        return [self.client] + ([self.server] if self.server is not None else [])

    def _send(self) -> None:
        for end in self.ends():
            end.take(end.protocol.next_events())
            for data, _ in end.protocol.datagrams_to_send(self.now):
                to_server = end is self.client
                if self.random.random() < self.loss or not self.filter(to_server, data):
                    continue
                arrival = self.now + self.latency + self.random.random() * self.jitter
                self.order += 1
                heapq.heappush(self.wire, (arrival, self.order, to_server, data))
            end.take(end.protocol.next_events())

    def _deliver(self, to_server: bool, data: bytes) -> None:
        if to_server and self.server is None:
            quic = Quic(
                quic_options(self.server_config, is_client=False),
                budget=self.budget[False],
                original_destination_connection_id=data[6 : 6 + data[5]],
            )
            self.server = End(self.server_factory(quic, self.server_config))
        end = self.server if to_server else self.client
        address = self.client_address if to_server else SERVER
        end.take(end.protocol.receive_datagrams([data], address, self.now))

    def step(self, until: float) -> bool:
        """Send what is due, then jump to the next thing that happens; False: nothing does."""
        self._send()
        timers = [
            (deadline, end)
            for end in self.ends()
            if (deadline := end.protocol.next_timer()) is not None
        ]
        next_timer = min((deadline for deadline, _ in timers), default=None)
        next_wire = self.wire[0][0] if self.wire else None
        due = min((t for t in (next_timer, next_wire) if t is not None), default=None)
        if due is None or due > until:
            return False
        self.now = max(self.now, due)
        if next_wire is not None and next_wire <= self.now:
            _, _, to_server, data = heapq.heappop(self.wire)
            self._deliver(to_server, data)
        else:
            for deadline, end in timers:
                if deadline <= self.now:
                    end.take(end.protocol.on_timer(self.now))
        return True

    def run(self, seconds: float = 1.0) -> None:
        """Let `seconds` pass."""
        until = self.now + seconds
        for _ in range(1_000_000):
            if not self.step(until):
                break
        else:
            raise AssertionError("the network never comes to rest")
        self.now = until
        self._send()

    def run_until(self, condition: Callable[[], object], seconds: float = 30.0) -> None:
        """Turn the world until `condition` holds."""
        until = self.now + seconds
        while not condition():
            assert self.step(until), "it never happened"

    def session(self, **options: Any) -> int:
        """Bring up a connection and a session; returns the session's id."""
        if not self.client.protocol.ready:
            self.run_until(lambda: self.client.protocol.ready)
        session_id = self.client.protocol.open_session("example.test", "/", **options)
        assert session_id is not None
        self.run_until(
            lambda: any(
                e.session_id == session_id
                for e in (self.server.of(events.SessionRequested) if self.server else [])
            )
        )
        assert self.server.protocol.accept_session(session_id)
        self.run_until(
            lambda: any(e.session_id == session_id for e in self.client.of(events.SessionAccepted))
        )
        return session_id
