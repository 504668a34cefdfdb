"""
A whole conversation over a bad network, decided by one number, with an account of every byte.

A seed chooses the network, the options of both sides, and what two applications do on up to three
sessions. `World(seed).play()` turns virtual time until all is over, and raises AssertionError where
anything was lost, doubled, mixed up, told twice, held beyond its bound, or left behind. The sides
are driven as gwt/connection.py drives them: a side that wakes up reads all that waits, tells its
application, and sends in one pass; time-outs come behind packets that were waiting already.
"""

from __future__ import annotations

import heapq
import itertools
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.oid import NameOID

from gwt.config import ClientConfig, ServerConfig
from gwt.protocol import codes, events, packets, quic
from gwt.protocol.quic import Quic
from gwt.protocol.seam import QuicOptions, SendBudget
from gwt.protocol.webtransport import WebTransport
from tests.helpers.raw import leftovers

SERVER = ("192.0.2.2", 4433)
KIB = 1024

# What streams carry: each direction of each begins elsewhere in it.
PATTERN = random.Random(0).randbytes(1536 * KIB)

# As in gwt/connection.py: a timer that is later than this reads what waits before it fires.
STALL = 0.05

# Sessions of one connection, one after another.
MOST_SESSIONS = 5

# RFC 9000 20.1.
APPLICATION_ERROR = 0xC

# QUIC streams that are HTTP/3's own: control, encoder and decoder, both ways.
HTTP3_STREAMS = 6


def content(stream_id: int, by_client: bool, start: int, stop: int) -> bytes:
    base = (stream_id * 7919 + by_client * 524_287) % (1024 * KIB)
    return PATTERN[base + start : base + stop]


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """Take from aioquic what differs from run to run: its random bytes, the order of its sets."""
    from aioquic.quic import connection, packet, stream

    source = SimpleNamespace(urandom=random.Random(seed).randbytes)
    with pytest.MonkeyPatch.context() as patch:
        for module in (connection, packet):
            assert module.os is os
            patch.setattr(module, "os", source)
        # Streams are put into sets, which memory addresses would order.
        patch.setattr(stream.QuicStream, "__hash__", lambda self: hash(self.stream_id))
        yield


@cache
def certificate() -> tuple[x509.Certificate, ed25519.Ed25519PrivateKey]:
    """Return a certificate whose signatures have one length, unlike those of ECDSA."""
    key = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "example.test")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1)
    builder = builder.not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
    return builder.not_valid_after(datetime(2040, 1, 1, tzinfo=UTC)).sign(key, None), key


# The network


@dataclass
class Link:
    """One direction of the network."""

    latency: float
    jitter: float = 0.0
    loss: float = 0.0
    reordering: float = 0.0
    duplication: float = 0.0
    corruption: float = 0.0
    # Bytes a second (0: no limit), and how many seconds may wait for them.
    rate: float = 0.0
    queue: float = 0.1
    mtu: int = 65535
    free_at: float = 0.0

    def carry(
        self, rng: random.Random, counts: Counter[str], now: float, data: bytes
    ) -> list[tuple[float, bytes]]:
        """Return when which datagrams arrive."""
        leaves = now
        if len(data) > self.mtu:
            counts["too large"] += 1
            return []
        if self.rate:
            leaves = max(now, self.free_at)
            if leaves - now > self.queue:
                counts["overflowed"] += 1
                return []
            self.free_at = leaves = leaves + len(data) / self.rate
        arrivals = []
        for copy in range(2 if rng.random() < self.duplication else 1):
            if rng.random() < self.loss:
                counts["lost"] += 1
                continue
            arrival = leaves + self.latency + rng.random() * self.jitter
            if copy:
                counts["duplicated"] += 1
                arrival += rng.random() * 4 * self.latency
            if rng.random() < self.reordering:
                counts["reordered"] += 1
                arrival += rng.random() * 4 * self.latency
            damaged = data
            if rng.random() < self.corruption:
                counts["corrupted"] += 1
                damaged = damage(rng, data)
            arrivals.append((arrival, damaged))
        return arrivals


def damage(rng: random.Random, data: bytes) -> bytes:
    if rng.random() < 0.1:
        return data[: rng.randrange(len(data))]
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        position = rng.randrange(len(data))
        if data[0] & 0x80 and 1 <= position < 5:
            # The version decides whom a packet is for; nothing protects it (RFC 9000 6.2).
            position = len(data) - 1
        damaged[position] ^= 1 << rng.randrange(8)
    return bytes(damaged)


# The ledger


@dataclass(eq=False)
class Flow:
    """One direction of one stream: what its sender means to do, and what came of it."""

    stream_id: int
    session: Session = field(repr=False)
    sender: Side = field(repr=False)
    receiver: Side = field(repr=False)
    # Whether its sender opened the stream.
    opening: bool

    # The sender's plan.
    size: int
    chunk: int
    pause: float
    fin_apart: bool
    reset_at: int | None
    reset_behind_fin: float | None
    # The receiver's plan.
    accept_after: float
    read: int
    read_pause: float
    rest_at: int | None
    rest: float
    stop_at: int | None
    code: int
    stop_code: int

    # What the sender did, and was told.
    written: int = 0
    fin: bool = False
    reset: int | None = None
    stops: list[int | None] = field(default_factory=list)
    finished: int = 0
    waiting: bool = False
    # The other direction, if there is one.
    back: Flow | None = field(default=None, repr=False)

    # What the receiver did, and was told.
    announced: int = 0
    accepted: bool = False
    received: int = 0
    held: int = 0
    ended: bool = False
    resets: list[int | None] = field(default_factory=list)
    stop: int | None = None
    reading: bool = False

    def __str__(self) -> str:
        names = "size written fin reset stops finished waiting"
        names += " announced accepted received held ended resets stop"
        state = {name: getattr(self, name) for name in names.split()}
        return f"stream {self.stream_id} from {self.sender.name}: {state}"

    @property
    def writing_over(self) -> bool:
        return bool(self.fin or self.reset is not None or self.stops or self.finished)

    @property
    def reading_over(self) -> bool:
        return self.ended or bool(self.resets) or self.stop is not None

    @property
    def unheard(self) -> bool:
        """Whether its sender never heard of the stream: reset before its session was known."""
        back = self.back
        return back is not None and back.opening and not back.announced and back.reset is not None

    def check(self) -> None:
        """The session outlived the stream: everything must have come to its proper end."""
        if self.unheard:
            assert not self.written and self.resets in ([], [None]), self
            return
        assert self.finished == 1, self
        assert len(self.stops) <= 1 and len(self.resets) <= 1, self
        assert not (self.ended and self.resets), self
        if self.announced == 0 and self.opening:
            # Reset before its receiver knew the session: it will never hear of the stream.
            assert self.reset is not None and self.receiver.is_client, self
            return
        if self.ended:
            assert self.fin and self.received == self.written, self
        elif self.resets:
            assert self.resets[0] in {self.reset, self.stop} - {None}, self
        else:
            assert self.stop is not None, self
        if self.stop is None:
            assert not self.stops, self
            if self.reset is None:
                assert self.ended and self.received == self.written == self.size, self
            elif not self.fin:
                assert self.resets == [self.reset], self
        elif self.reset is None and not self.fin:
            assert self.stops == [self.stop], self


@dataclass(eq=False)
class Session:
    """One session: how each side ended it, and was told of its end."""

    id: int
    number: int
    refused: int | None = None
    # By side: what it did, and what it heard.
    closes: dict[Side, tuple[int | None, str]] = field(default_factory=dict)
    ends: dict[Side, list[events.SessionEnded]] = field(default_factory=dict)
    drains_sent: Counter[Side] = field(default_factory=Counter)
    drains: Counter[Side] = field(default_factory=Counter)
    open: set[Side] = field(default_factory=set)
    flows: list[Flow] = field(default_factory=list)
    # Datagrams sent, by their number, and those that arrived.
    datagrams: dict[tuple[Side, int], bytes] = field(default_factory=dict)
    arrived: set[tuple[Side, int]] = field(default_factory=set)
    # Streams that wait for credit, by side.
    openings: dict[Side, list[bool]] = field(default_factory=dict)

    def over(self, side: Side) -> bool:
        return bool(self.ends.get(side))

    @property
    def undisturbed(self) -> bool:
        return not self.ends and self.refused is None


class Side:
    """One end: its protocol, its application, and the hub that runs both."""

    def __init__(self, world: World, protocol: WebTransport, name: str) -> None:
        self.world, self.protocol, self.name = world, protocol, name
        self.is_client = protocol.is_client
        self.config = protocol.config
        self.ids = {protocol.quic.connection_id}
        self.inbox: list[tuple[bytes, Any]] = []
        # When what waits is read, and until when nothing happens here at all.
        self.wake: float | None = None
        self.stalled_until = 0.0
        self.timer: float | None = None
        self.spins = 0
        self.dirty = False
        self.late = world.rng.choice((0.0, 0.0, 0.0005, 0.001))
        self.turn = world.rng.choice((0.0, 0.0002, 0.001))
        # What greenlets that were woken do behind the events of one wake-up.
        self.soon: list[Callable[[], None]] = []
        self.closed: tuple[int, str] | None = None
        self.ended: events.ConnectionEnded | None = None
        self.held = 0

    # The hub

    def due(self) -> float | None:
        """Return when this side runs next of itself."""
        times = []
        if self.wake is not None:
            times.append(self.wake)
        if self.timer is not None:
            times.append(self.timer + self.late)
        return max(min(times), self.stalled_until) if times else None

    def arrive(self, data: bytes, address: Any) -> None:
        self.inbox.append((data, address))
        if self.wake is None:
            self.wake = self.world.now + self.turn

    def run(self) -> None:
        """Read what waits, or let the timer fire."""
        world, now = self.world, self.world.now
        timer = self.timer
        fires = timer is not None and timer + self.late <= now
        if (self.wake is not None and self.wake <= now) or (
            fires and timer is not None and now - timer > STALL
        ):
            self._read()
            self.settle()
            timer = self.timer
            fires = timer is not None and timer + self.late <= now
        if fires:
            self.take(self.protocol.on_timer(now))
            self.dirty = True
            self.settle()
            if self.timer is not None and self.timer <= now:
                self.spins += 1
                assert self.spins < 100, f"{self.name}'s timer stays in the past"
                world.counts["spins"] += 1
            else:
                self.spins = 0

    def _read(self) -> None:
        self.wake = None
        inbox, self.inbox = self.inbox, []
        for address, group in itertools.groupby(inbox, lambda item: item[1]):
            datagrams = [data for data, _ in group]
            for start in range(0, len(datagrams), 64):
                batch = datagrams[start : start + 64]
                self.take(self.protocol.receive_datagrams(batch, address, self.world.now))
                self.dirty = True

    def settle(self) -> None:
        """Let the application act and send, until nothing is left to do now."""
        for _ in range(1000):
            soon, self.soon = self.soon, []
            for resume in soon:
                resume()
            self.take(self.protocol.next_events())
            if self.dirty:
                self.dirty = False
                outgoing = self.protocol.datagrams_to_send(self.world.now)
                self.world.carry(self, outgoing)
                self.take(self.protocol.next_events())
            if not self.soon and not self.dirty:
                break
        else:
            raise AssertionError(f"{self.name} never comes to rest")
        self.timer = self.protocol.next_timer()

    def act(self, action: Callable[..., None], *args: Any) -> None:
        """Do what the application planned for now."""
        if self.ended is None:
            action(*args)
            self.settle()

    # Events

    def take(self, happened: list[events.Event]) -> None:
        for event in happened:
            self.world.note(self, event)
            assert self.ended is None, "nothing follows the end of a connection"
            handler = getattr(self, "on_" + type(event).__name__, None)
            if handler is not None:
                handler(event)

    def on_ConnectionIdAdded(self, event: events.ConnectionIdAdded) -> None:
        self.ids.add(event.connection_id)

    def on_ConnectionIdRetired(self, event: events.ConnectionIdRetired) -> None:
        self.ids.discard(event.connection_id)

    def on_ConnectionReady(self, event: events.ConnectionReady) -> None:
        if self.is_client:
            assert self.protocol.missing_requirement() is None
            self.world.began()

    def on_ConnectionEnded(self, event: events.ConnectionEnded) -> None:
        self.ended = event
        self.world.connection_ended(self, event)

    def on_SessionRequested(self, event: events.SessionRequested) -> None:
        world = self.world
        session = world.sessions[event.session_id]
        assert self not in session.open and not session.over(self)
        assert event.path == f"/{session.number}"
        world.after(world.app.choice((0.0, 0.0, 0.3)), self, self.answer, session)

    def answer(self, session: Session) -> None:
        if session.over(self):
            return
        if session.refused is not None:
            self.protocol.reject_session(session.id, session.refused)
        else:
            assert self.protocol.accept_session(session.id)
            session.open.add(self)
            self.world.plan(session, self)
        self.dirty = True

    def on_SessionAccepted(self, event: events.SessionAccepted) -> None:
        session = self.world.sessions[event.session_id]
        assert session.refused is None and self not in session.open
        session.open.add(self)
        self.world.plan(session, self)

    def on_SessionRefused(self, event: events.SessionRefused) -> None:
        session = self.world.sessions[event.session_id]
        assert self not in session.open and self not in session.ends
        if event.status is None:
            # The server gave the session up before its answer arrived.
            assert session.closes[self.world.other(self)] == (None, "")
        else:
            assert session.refused == event.status
        session.ends[self] = []
        self.world.counts["refused"] += 1

    def on_SessionDraining(self, event: events.SessionDraining) -> None:
        session = self.world.sessions[event.session_id]
        assert not session.over(self)
        session.drains[self] += 1

    def on_SessionEnded(self, event: events.SessionEnded) -> None:
        session = self.world.sessions[event.session_id]
        told = session.ends.setdefault(self, [])
        told.append(event)
        assert len(told) == 1, "a session ended twice"
        mine, theirs = session.closes.get(self), session.closes.get(self.world.other(self))
        if self.protocol.quic.closed:
            assert event.code is None
        elif event.remote:
            assert theirs is not None and (event.code, event.reason) == theirs
            assert mine is None
        else:
            assert mine is not None and (event.code, event.reason) == mine
        for flow in session.flows:
            if flow.receiver is self:
                self.release(flow)
        self.world.session_ended(self)

    def on_DatagramReceived(self, event: events.DatagramReceived) -> None:
        session = self.world.sessions[event.session_id]
        assert self in session.open and not session.over(self)
        key = (self.world.other(self), int.from_bytes(event.data[:4], "big"))
        assert session.datagrams[key] == event.data, "a datagram was damaged"
        assert key not in session.arrived, "a datagram came twice"
        session.arrived.add(key)
        self.world.counts["datagrams"] += 1

    # Events of streams

    def on_StreamOpened(self, event: events.StreamOpened) -> None:
        world = self.world
        flow = world.flow(event.stream_id, world.other(self))
        session = flow.session
        assert flow.opening and session.id == event.session_id
        assert self in session.open and not session.over(self)
        flow.announced += 1
        assert flow.announced == 1, flow
        world.after(flow.accept_after, self, self.accept, flow)

    def accept(self, flow: Flow) -> None:
        if flow.session.over(self):
            return
        flow.accepted = True
        self.protocol.accept_stream(flow.stream_id)
        self.dirty = True
        self.want(flow)
        if not flow.stream_id & 2:
            self.write(self.world.flow(flow.stream_id, self))

    def on_StreamDataReceived(self, event: events.StreamDataReceived) -> None:
        flow = self.incoming(event.stream_id)
        assert not flow.ended and not flow.resets, flow
        start, stop = flow.received, flow.received + len(event.data)
        assert event.data == content(flow.stream_id, flow.sender.is_client, start, stop), flow
        assert stop <= flow.written, flow
        assert event.data or event.ended, flow
        flow.received = stop
        flow.ended = event.ended
        if flow.stop is not None:
            # It was under way when reading was stopped.
            self.consume(flow, len(event.data))
            return
        flow.held += len(event.data)
        self.held += len(event.data)
        self.check_held(flow)
        if flow.accepted:
            self.want(flow)

    def check_held(self, flow: Flow) -> None:
        config = self.config
        window = config.initial_stream_window
        if flow.accepted:
            window = max(window, config.stream_window)
        assert flow.held <= window, f"a stream holds more than its window: {flow}"
        if self.held > window:
            holding = [f for f in self.world.flows.values() if f.receiver is self and f.held]
            base = len(holding) * config.initial_stream_window
            assert self.held <= base + config.receive_pool
            mine = [f for f in holding if f.session is flow.session]
            base = len(mine) * config.initial_stream_window
            assert sum(f.held for f in mine) <= base + config.session_window

    def on_StreamReset(self, event: events.StreamReset) -> None:
        flow = self.incoming(event.stream_id)
        assert not flow.ended and not flow.resets, flow
        flow.resets.append(event.code)
        if event.code is None:
            assert flow.session.over(flow.sender) or flow.unheard, flow
        else:
            assert event.code in {flow.reset, flow.stop} - {None}, flow
        held = flow.held
        self.release(flow)
        self.consume(flow, held)
        self.world.counts["resets"] += 1

    def on_StreamStopped(self, event: events.StreamStopped) -> None:
        flow = self.outgoing(event.stream_id)
        flow.stops.append(event.code)
        assert len(flow.stops) == 1 and not flow.finished, flow
        if event.code is None:
            assert flow.session.over(flow.receiver), flow
        else:
            assert event.code == flow.stop, flow
        self.world.counts["stops"] += 1

    def on_StreamWritable(self, event: events.StreamWritable) -> None:
        flow = self.outgoing(event.stream_id)
        if flow.waiting:
            flow.waiting = False
            self.soon.append(lambda: self.write(flow))

    def on_StreamFinished(self, event: events.StreamFinished) -> None:
        flow = self.outgoing(event.stream_id)
        flow.finished += 1
        assert flow.finished == 1, flow
        assert flow.fin or flow.reset is not None or flow.stops, flow
        clean = flow.fin and flow.reset is None and not flow.stops
        if clean and flow.stop is None and flow.announced and not flow.session.over(flow.receiver):
            assert flow.ended and flow.received == flow.written, flow

    def on_StreamAvailable(self, event: events.StreamAvailable) -> None:
        session = self.world.sessions[event.session_id]
        assert not session.over(self)
        self.world.counts["credit waits"] += 1
        for unidirectional in session.openings.pop(self, []):
            self.soon.append(lambda u=unidirectional: self.open(session, u))

    def incoming(self, stream_id: int) -> Flow:
        flow = self.world.flow(stream_id, self.world.other(self))
        assert flow.announced or not flow.opening, flow
        assert not flow.session.over(self), flow
        return flow

    def outgoing(self, stream_id: int) -> Flow:
        flow = self.world.flow(stream_id, self)
        assert not flow.session.over(self), flow
        return flow

    # The application

    def open(self, session: Session, unidirectional: bool, **plan: Any) -> None:
        if session.over(self):
            return
        stream_id = self.protocol.open_stream(session.id, unidirectional)
        if stream_id is None:
            session.openings.setdefault(self, []).append(unidirectional)
            self.protocol.want_stream(session.id)
            return
        self.dirty = True
        world = self.world
        flow = world.add_flow(stream_id, session, self, True, plan)
        if not unidirectional:
            back = world.add_flow(stream_id, session, world.other(self), False, plan)
            back.accepted = True
            flow.back, back.back = back, flow
        self.write(flow)

    def write(self, flow: Flow) -> None:
        protocol = self.protocol
        if flow.writing_over or flow.waiting or flow.session.over(self):
            return
        if flow.reset_at is not None and flow.written >= flow.reset_at:
            self.reset(flow)
            return
        left = flow.size - flow.written
        want = min(left, flow.chunk)
        size = min(want, protocol.room(flow.stream_id))
        end = size == left and not (flow.fin_apart and size)
        if size or end:
            data = content(flow.stream_id, self.is_client, flow.written, flow.written + size)
            flow.written += size
            assert protocol.send_stream(flow.stream_id, data, end), flow
            self.check_buffered()
            self.dirty = True
        if end:
            flow.fin = True
            if flow.reset_behind_fin is not None:
                self.world.after(flow.reset_behind_fin, self, self.reset, flow)
        elif size < want:
            protocol.want_room(flow.stream_id)
            flow.waiting = True
            self.world.counts["write waits"] += 1
        else:
            self.world.after(flow.pause, self, self.write, flow)

    def reset(self, flow: Flow) -> None:
        if flow.finished or flow.stops or flow.reset is not None or flow.session.over(self):
            return
        flow.reset = flow.code
        self.protocol.reset_stream(flow.stream_id, flow.code)
        self.dirty = True

    def check_buffered(self) -> None:
        config, protocol = self.config, self.protocol
        streams = len(protocol.streams) + len(protocol.sessions) + HTTP3_STREAMS
        limit = config.connection_send_buffer + config.stream_send_buffer
        assert protocol.quic.buffered_total <= limit + streams * (config.stream_send_floor + 64)

    def want(self, flow: Flow) -> None:
        """Read as soon as the reader comes to it."""
        if flow.reading:
            return
        flow.reading = True
        if flow.rest_at is not None and flow.received - flow.held >= flow.rest_at:
            flow.rest_at = None
            self.world.counts["rests"] += 1
            self.world.after(flow.rest, self, self.read, flow)
        elif flow.read_pause:
            self.world.after(flow.read_pause, self, self.read, flow)
        else:
            self.soon.append(lambda: self.read(flow))

    def read(self, flow: Flow) -> None:
        flow.reading = False
        if flow.session.over(self) or flow.stop is not None or flow.resets:
            return
        size = min(flow.held, flow.read)
        flow.held -= size
        self.held -= size
        self.consume(flow, size)
        taken = flow.received - flow.held
        if flow.stop_at is not None and taken >= flow.stop_at and not (flow.ended or flow.resets):
            held = flow.held
            self.release(flow)
            flow.stop = flow.stop_code
            self.protocol.stop_stream(flow.stream_id, flow.stop_code)
            self.consume(flow, held)
            self.dirty = True
        elif flow.held:
            self.want(flow)

    def consume(self, flow: Flow, size: int) -> None:
        if size and self.protocol.consumed(flow.stream_id, size):
            self.dirty = True

    def release(self, flow: Flow) -> None:
        self.held -= flow.held
        flow.held = 0

    def send_datagram(self, session: Session, size: int) -> None:
        if self not in session.open or session.over(self):
            return
        limit = self.protocol.max_datagram_size(session.id)
        number = len(session.datagrams)
        data = number.to_bytes(4, "big") + content(number, self.is_client, 0, size)
        session.datagrams[self, number] = data = data[:limit]
        assert self.protocol.send_datagram(session.id, data)
        self.dirty = True

    def drain(self, session: Session) -> None:
        if self in session.open and not session.over(self):
            session.drains_sent[self] += 1
            self.protocol.drain_session(session.id)
            self.dirty = True

    def close(self, session: Session, code: int | None, reason: str) -> None:
        """End a session; without a code it is aborted."""
        if self not in session.open or session.over(self):
            return
        session.closes[self] = (code, reason)
        if code is None:
            self.protocol.abort_session(session.id)
        else:
            self.protocol.close_session(session.id, code, reason)
        self.dirty = True

    def close_connection(self, code: int, reason: str) -> None:
        self.closed = (code, reason)
        self.protocol.close(code, reason)
        self.dirty = True

    def keep_alive(self) -> None:
        self.protocol.quic.ping()
        self.dirty = True
        self.world.after(self.world.ping_interval, self, self.keep_alive, background=True)


class World:
    """Two sides, the network between them, and what a seed lets them do."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        # One for the network and one for the applications.
        self.rng = random.Random(f"network {seed}")
        self.app = random.Random(f"application {seed}")
        self.now = 1000.0
        self.counts: Counter[str] = Counter()
        self.transcript: list[str] | None = None
        self.agenda: list[tuple[float, int, Callable[[], None], bool]] = []
        self.order = itertools.count()
        # Things of the applications that are still to come.
        self.planned = 0
        self.sessions: dict[int, Session] = {}
        self.flows: dict[tuple[int, Side], Flow] = {}
        self.address = ("192.0.2.1", 50000)
        self.finishing = False
        self._choose()
        self.budgets = {True: SendBudget(), False: SendBudget()}
        self.client = self._side(True, None)
        self.server: Side | None = None
        self.client.protocol.quic.connect(SERVER, self.now)
        self.client.dirty = True
        self.client.settle()

    # What the seed decides

    def _choose(self) -> None:
        rng, app = self.rng, self.app
        self.draft, self.with_flow = rng.choice(
            ((2, False), (12, False), (14, True), (16, True), (16, True), (16, False))
        )
        bad = rng.random()
        self.links = {to_server: self._link(bad) for to_server in (True, False)}
        # Hub stalls need a network on which silence means something, and a timeout with room for
        # what they do to the round-trip time: what waited in a socket seems to have travelled.
        self.stalls = rng.random() < 0.2
        if self.stalls:
            for link in self.links.values():
                link.loss, link.corruption = min(link.loss, 0.05), min(link.corruption, 0.02)
        self.idle_timeout = 120.0 if self.stalls else 900.0
        self.ping_interval = 10.0
        self.rebinds = rng.random() < 0.25
        # aioquic is deaf to old keys as soon as it makes new ones, and so would never hear from
        # where its peer now sends.
        self.key_update = rng.choice((1 << 22, 200, 100)) if not self.rebinds else 1 << 22
        self.configs = {True: self._config(ClientConfig), False: self._config(ServerConfig)}
        for link in self.links.values():
            # Whoever sends more than was agreed on must be able to do without.
            agreed = max(config.max_udp_payload for config in self.configs.values())
            link.mtu = agreed + rng.choice((0, 0, 100, 10_000))
        self.session_count = rng.choice((1, 1, 2, 3))
        if self.draft == 16 and not self.with_flow:
            self.session_count = 1
        self.tight = any(c.max_incoming_streams < 100 for c in self.configs.values())
        if self.tight:
            # Beside others a session has its share, and what is beyond it is refused.
            self.session_count = 1
        self.calm = app.random() < 0.6
        self.many = self.seed % 200 == 7
        self.largest = app.choice((2, 8, 30, 30, 100, 400)) * KIB

    def _link(self, bad: float) -> Link:
        rng = self.rng

        def sometimes(chance: float, most: float) -> float:
            return rng.random() * most if rng.random() < chance * min(1, 2 * bad) else 0.0

        latency = rng.choice((0.0005, 0.01, 0.03, 0.1, 0.3))
        return Link(
            latency=latency,
            jitter=sometimes(0.5, 2 * latency),
            loss=sometimes(0.7, 0.2),
            reordering=sometimes(0.4, 0.2),
            duplication=sometimes(0.4, 0.2),
            corruption=sometimes(0.4, 0.1),
            rate=rng.choice((0, 0, 100e3, 1e6, 10e6)),
            queue=rng.choice((0.05, 0.2, 1.0)),
        )

    def _config(self, kind: type) -> Any:
        rng = self.rng
        initial = rng.choice((1024, 2048, 5000, 16 * KIB, 16 * KIB))
        streams = rng.choice((8, 20, 256, 256, 256))
        pool = rng.choice((100_000, 24_576 * KIB))
        if streams < 100:
            # All that streams can hold before anybody accepts them: nothing may be refused.
            pool = max(pool, 6 * streams * initial)
        return kind(
            idle_timeout=self.idle_timeout,
            initial_stream_window=initial,
            stream_window=rng.choice((initial, 8 * KIB, 64 * KIB, 1024 * KIB)),
            session_window=rng.choice((0, 10_000, 100_000, 4096 * KIB)),
            receive_pool=pool,
            max_incoming_streams=streams,
            stream_send_buffer=rng.choice((4 * KIB, 30_000, 1024 * KIB)),
            connection_send_buffer=rng.choice((16 * KIB, 100_000, 4096 * KIB)),
            process_send_buffer=rng.choice((16 * KIB, 100_000, 8192 * KIB)),
            stream_send_floor=rng.choice((1024, 4096, 16 * KIB)),
            # A stream that overtakes its session's answer waits for it.
            max_pending_streams=1000,
            max_udp_payload=rng.choice((1200, 1200, 1350, 1452, 4000)),
            congestion_control=rng.choice(("reno", "cubic")),
        )

    def _side(self, is_client: bool, destination: bytes | None) -> Side:
        config = self.configs[is_client]
        if is_client:
            own: dict[str, Any] = {"verify": False, "server_name": "example.test"}
        else:
            cert, key = certificate()
            own = {"certificate": cert, "private_key": key}
        quic = Quic(
            QuicOptions.of(config, is_client=is_client, **own),
            budget=self.budgets[is_client],
            original_destination_connection_id=destination,
        )
        protocol = WebTransport(quic, config)
        for draft in codes.DRAFTS:
            if draft.number != self.draft:
                protocol.settings.pop(draft.setting, None)
        if not self.with_flow:
            for setting in (
                codes.SETTING_WT_INITIAL_MAX_DATA,
                codes.SETTING_WT_INITIAL_MAX_STREAMS_BIDI,
                codes.SETTING_WT_INITIAL_MAX_STREAMS_UNI,
            ):
                protocol.settings.pop(setting, None)
        return Side(self, protocol, "client" if is_client else "server")

    def began(self) -> None:
        """The client is ready: plan the sessions, and what befalls the connection."""
        app, client = self.app, self.client
        for _ in range(self.session_count):
            self.after(self.session_count * app.random(), client, self.request)
        if self.rebinds:
            for _ in range(app.randrange(1, 4)):
                self.after(app.random() * 5, client, self.rebind)
        # Without it a server could go on for ever about an address that the NAT has forgotten.
        self.after(self.ping_interval, client, client.keep_alive, background=True)
        if self.stalls:
            for _ in range(app.randrange(1, 3)):
                self.after(app.random() * 4, client, self.stall, 1 + app.random() * 5)
        if app.random() < 0.06:
            side = app.choice((client, self.server))
            code, reason = app.choice((0x100, 0x10C, 77)), app.choice(("", "enough", "x" * 600))
            self.after(app.random() * 3, side, side.close_connection, code, reason)

    def request(self) -> None:
        if not self.client.protocol.may_open_session():
            # Draft 16 without flow control: one at a time.
            self.after(0.5, self.client, self.request)
            return
        number = len(self.sessions)
        session_id = self.client.protocol.open_session("example.test", f"/{number}")
        if session_id is None:
            self.after(0.05, self.client, self.request)
            return
        session = self.sessions[session_id] = Session(session_id, number)
        if self.app.random() < 0.04:
            session.refused = self.app.choice((403, 404, 429))
        self.client.dirty = True

    def rebind(self) -> None:
        """A NAT gives the client another address."""
        self.address = (self.address[0], self.address[1] + 1)
        self.counts["rebound"] += 1

    def stall(self, seconds: float) -> None:
        for side in self.app.choice(((self.client,), (self.server,), (self.client, self.server))):
            side.stalled_until = self.now + seconds
            self.counts["stalls"] += 1

    def plan(self, session: Session, side: Side) -> None:
        """One side of a session begins: plan what its application does."""
        app = self.app
        for _ in range(app.choice((0, 1, 3, 6, 12, 24))):
            self.after(app.random() * 2, side, side.open, session, app.random() < 0.5)
        for _ in range(app.choice((0, 0, 3, 20))):
            size = app.choice((0, 10, 100, 1000, 4000))
            self.after(app.random() * 3, side, side.send_datagram, session, size)
        if app.random() < 0.1:
            self.after(app.random() * 2, side, side.drain, session)
        if app.random() < 0.1:
            code = app.choice((None, 0, 1, 0xFFFFFFFF))
            reason = "" if code is None else app.choice(("", "early", "\N{SNOWMAN}" * 50))
            self.after(app.random() * 3, side, side.close, session, code, reason)

    def add_flow(
        self, stream_id: int, session: Session, sender: Side, opening: bool, plan: dict[str, Any]
    ) -> Flow:
        app = self.app
        size = min(int(app.paretovariate(0.5)) * app.randrange(20), self.largest)
        rough = 0.05 if self.calm else 0.25
        chosen: dict[str, Any] = {
            "size": size,
            "chunk": app.choice((max(1, size // 20), 1000, 5000, 1 << 30, 1 << 30)),
            "pause": app.choice((0.0, 0.001, 0.02)),
            "fin_apart": app.random() < 0.3,
            "reset_at": app.randrange(size + 1) if app.random() < rough else None,
            "reset_behind_fin": app.random() * 0.5 if app.random() < rough else None,
            "accept_after": app.choice((0.0, 0.0, 0.0, 0.01, 1.0)),
            "read": app.choice((1 << 30, 1 << 30, max(1, size // 30), 3000)),
            "read_pause": app.choice((0.0, 0.0, 0.002, 0.02)),
            "rest_at": app.randrange(size + 1) if app.random() < 0.15 else None,
            "rest": app.random() * 8,
            "stop_at": app.randrange(size + 1) if app.random() < rough else None,
            "code": app.choice((0, 1, 29, 30, 31, 0xFFFFFFFF, app.randrange(1 << 32))),
            "stop_code": app.choice((0, 1, 29, 30, 31, 0xFFFFFFFF, app.randrange(1 << 32))),
        }
        flow = Flow(stream_id, session, sender, self.other(sender), opening, **{**chosen, **plan})
        session.flows.append(flow)
        assert (stream_id, sender) not in self.flows
        self.flows[stream_id, sender] = flow
        return flow

    # Time

    def other(self, side: Side) -> Side:
        other = self.server if side is self.client else self.client
        assert other is not None
        return other

    def flow(self, stream_id: int, sender: Side) -> Flow:
        return self.flows[stream_id, sender]

    def after(
        self,
        delay: float,
        side: Side,
        action: Callable[..., None],
        *args: Any,
        background: bool = False,
    ) -> None:
        """Let a side do something later; what is not in the background is waited for."""
        self.planned += not background

        def do() -> None:
            if side.stalled_until > self.now:
                self._push(side.stalled_until, do)
                return
            self.planned -= not background
            side.act(action, *args)

        self._push(self.now + delay, do)

    def _push(self, at: float, do: Callable[[], None]) -> None:
        heapq.heappush(self.agenda, (at, next(self.order), do))

    def note(self, side: Side, event: events.Event) -> None:
        self.counts[type(event).__name__] += 1
        if self.transcript is not None and not isinstance(
            event, events.ConnectionIdAdded | events.ConnectionIdRetired
        ):
            self.transcript.append(f"{self.now!r} {side.name} {event!r}")

    def carry(self, side: Side, outgoing: list[tuple[bytes, Any]]) -> None:
        """Put what a side sends on the network."""
        to_server = side is self.client
        source = self.address
        link = self.links[to_server]
        for data, destination in outgoing:
            self.counts["packets"] += 1
            for arrival, arrived in link.carry(self.rng, self.counts, self.now, data):
                if to_server:
                    self._push(arrival, lambda d=arrived: self._to_server(d, source))
                else:
                    self._push(arrival, lambda d=arrived, a=destination: self._to_client(d, a))

    def _to_server(self, data: bytes, source: Any) -> None:
        server, routed = self.server, packets.routing_id(data)
        if server is not None and routed in server.ids:
            if server.wake is not None or server.timer is not None or server.ended is not None:
                server.arrive(data, source)
                return
            # Nothing that could be read has come: to its driver that is the end of a connection.
        elif server is not None and server.protocol.quic.packets_sent:
            return
        # Else there is none, or one that was made for a damaged packet and has no peer.
        newcomer = packets.classify(data)
        if newcomer.kind is packets.Kind.INITIAL:
            self.server = server = self._side(False, newcomer.destination)
            server.ids.add(newcomer.destination)
            server.arrive(data, source)

    def _to_client(self, data: bytes, destination: Any) -> None:
        # What is sent to an address that the NAT has forgotten is lost.
        if destination == self.address and packets.routing_id(data) in self.client.ids:
            self.client.arrive(data, SERVER)

    def run(self, done: Callable[[], bool], seconds: float, what: str) -> None:
        """Turn the world until `done`, at most so many seconds."""
        until = self.now + seconds
        steps = 0
        before = self.now
        while not done():
            best = self.agenda[0][0] if self.agenda else None
            runner = None
            for side in (self.client, self.server):
                due = None if side is None else side.due()
                if due is not None and (best is None or due < best):
                    best, runner = due, side
            assert best is not None and best <= until, f"{what}: {self.stuck()}"
            self.now = max(self.now, best)
            if runner is None:
                heapq.heappop(self.agenda)[2]()
            else:
                runner.run()
            steps += 1
            if steps % 10_000 == 0:
                assert self.now > before, f"time stands still, {what}: {self.stuck()}"
                before = self.now
            assert steps < 300_000, f"too many steps, {what}: {self.stuck()}"

    def stuck(self) -> str:
        flows = [str(f) for f in self.flows.values() if f.finished == 0 or not f.reading_over]
        wait = [sum(map(len, s.openings.values())) for s in self.sessions.values() if not s.ends]
        return "\n".join([f"{self.now:.3f}, {self.planned} planned, {wait} to open", *flows[:20]])

    # The course of events

    def play(self) -> None:
        """Everything from the first packet to the last, and the accounts."""
        with deterministic(self.seed), pytest.MonkeyPatch.context() as patch:
            patch.setattr(quic, "KEY_UPDATE_PACKETS", self.key_update)
            self.run(lambda: self.client.protocol.ready, 300, "the handshake")
            self.run(self.over, 1200, "streams")
            if not self.cut:
                self.audit()
                self.finish()
            self.part()

    @property
    def cut(self) -> bool:
        """Whether the connection was closed in the middle."""
        return any(side is not None and side.closed for side in (self.client, self.server))

    def over(self) -> bool:
        """Return whether the applications have done all that they had planned."""
        if self.cut:
            return True
        if self.planned or self.server is None:
            return False
        for session in self.sessions.values():
            if session.undisturbed and (
                len(session.open) < 2
                or any(session.openings.values())
                or session.drains.total() < session.drains_sent.total()
            ):
                return False
            if not session.undisturbed and len(session.ends) < 2 - (session.refused is not None):
                return False
        return not any(side.protocol.streams for side in (self.client, self.server)) and all(
            f.finished or f.unheard for f in self.flows.values() if f.session.undisturbed
        )

    def audit(self) -> None:
        for session in self.sessions.values():
            if session.undisturbed:
                for flow in session.flows:
                    flow.check()
                    self.counts["bytes"] += flow.received
        for side in (self.client, self.server):
            assert side.held == 0, f"{side.name} holds {side.held} bytes"
            counters = side.protocol.counters
            assert not counters["streams_refused"] and not counters["streams_expired"], counters
            assert not counters["requests_malformed"], counters
            kept = leftovers(side.protocol)
            for name in ("granted", "unaccepted", "writers", "flushers", "openers", "held"):
                assert name not in kept, f"{side.name} keeps {kept}"
            assert not any(name.startswith("early") for name in kept), kept
        for session in self.sessions.values():
            if session.undisturbed:
                ours, theirs = (s.protocol.sessions[session.id] for s in (self.client, self.server))
                for one, other in ((ours, theirs), (theirs, ours)):
                    assert one.granted == one.incoming == len(one.streams) == 0
                    if one.flow is not None:
                        assert one.flow.sent == other.flow.received == other.flow.consumed

    def finish(self) -> None:
        """All slots are free again; then the sessions end in order."""
        app = self.app
        self.finishing = True
        sides = (self.client, self.server)
        sessions = [s for s in self.sessions.values() if s.undisturbed]
        if self.many and sessions:
            for number in range(300):
                side, session = app.choice(sides), app.choice(sessions)
                plan = {"size": number, "reset_at": None, "stop_at": None, "rest_at": None}
                plan |= {"reset_behind_fin": None, "accept_after": 0.0}
                side.act(lambda s=side, n=session, p=plan: s.open(n, app.random() < 0.5, **p))
            self.run(self.over, 600, "many streams")
            self.audit()
        for session in sessions:
            code, reason = app.randrange(1 << 32), app.choice(("", "done", "é" * 300))
            closers = app.choice((sides[:1], sides[1:], sides))
            for side in closers:
                side.act(side.close, session, code, reason)
        self.run(
            lambda: not any(side.protocol.sessions for side in sides), 300, "sessions that end"
        )
        for side in sides:
            # What an acknowledgement was lost of is sent again: give it its time.
            self.after(20.0, side, lambda: None)
        self.run(lambda: not self.planned, 30, "rest")
        for side in sides:
            kept = leftovers(side.protocol)
            assert kept == {}, f"{side.name} keeps {kept}"
            assert side.protocol.quic.stats()["streams"] <= HTTP3_STREAMS
            assert self.budgets[side.is_client].buffered == 0
        for session in self.sessions.values():
            for side in session.open:
                assert len(session.ends[side]) == 1
                assert session.drains[side] <= session.drains_sent[self.other(side)]

    def part(self) -> None:
        """The connection ends: once, for the same reason on both sides, and nothing stays."""
        client, server = self.client, self.server
        sides = [side for side in (client, server) if side is not None]
        if not self.cut:
            side = self.app.choice(sides)
            side.act(side.close_connection, 0x100, "over")
        for side in sides:
            side.stalled_until = min(side.stalled_until, self.now + 1)
        self.run(
            lambda: all(s.ended is not None and s.protocol.next_timer() is None for s in sides),
            4 * self.idle_timeout,
            "the end of the connection",
        )
        for side in sides:
            protocol = side.protocol
            self.counts["key updates"] += protocol.quic.packets_sent // self.key_update
            assert not protocol.sessions and not protocol.streams
            assert self.budgets[side.is_client].buffered == 0
            assert protocol.quic.buffered_total == 0
            assert side.held == 0
            for session in self.sessions.values():
                if side in session.open:
                    assert len(session.ends[side]) == 1

    def session_ended(self, side: Side) -> None:
        # Another begins while this one is still on its way out.
        again = side is self.client and len(self.sessions) < MOST_SESSIONS
        if again and not self.tight and not (self.finishing or self.cut):
            self.after(self.app.random(), side, self.request)

    def connection_ended(self, side: Side, event: events.ConnectionEnded) -> None:
        other = self.client if side is self.server else self.server
        assert self.cut, f"{side.name} lost a healthy peer: {event}"
        if side.closed is not None and not event.remote:
            code, reason = side.closed
            assert event.code == code and event.application
            assert event.reason == reason[:512]
        elif event.remote:
            assert other is not None and other.closed is not None
            code, reason = other.closed
            if event.application:
                assert event.code == code and event.reason == reason[:512]
            else:
                # RFC 9000 10.2.3: during the handshake nothing is told of the application.
                assert event.code == APPLICATION_ERROR and event.reason == ""
        else:
            # Its packet was lost, and silence says the rest.
            assert event.reason == "Idle timeout"
