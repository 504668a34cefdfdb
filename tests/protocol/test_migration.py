"""
A client whose address changes (RFC 9000 9): a NAT that forgot it, another network, or an attacker.

Time is virtual. What goes to an address that nobody has any more is lost.
"""

from __future__ import annotations

import heapq
from collections import Counter

import pytest
from aioquic.quic.connection import QuicConnection

from gwt.config import ServerConfig
from gwt.protocol import events
from gwt.protocol.quic import Quic
from gwt.protocol.webtransport import WebTransport
from tests.helpers.pair import CLIENT, SERVER, End, Pair, quic_options

ELSEWHERE = ("198.51.100.7", 1234)
ATTACKER = ("203.0.113.66", 666)

SIZE = 1_000_000


class Moving(Pair):
    """A pair whose client is at `here`; datagrams know where they come from and go to."""

    def __init__(self, **options):
        self.here = CLIENT
        # Bytes by address: sent there by the server, and delivered to it from there.
        self.sent, self.came = Counter(), Counter()
        # Called with each datagram of the client's; may return more of (address, data) that
        # arrive just before it.
        self.spy = lambda data: []
        super().__init__(**options)

    def _send(self):
        for end in self.ends():
            end.take(end.protocol.next_events())
            for data, destination in end.protocol.datagrams_to_send(self.now):
                to_server = end is self.client
                where = self.here if to_server else destination
                if not to_server:
                    self.sent[destination] += len(data)
                if self.filter(to_server, data) is False:
                    continue
                for address, copy in self.spy(data) if to_server else []:
                    self._under_way(True, address, copy, self.latency * 0.9)
                self._under_way(to_server, where, data, self.latency)
            end.take(end.protocol.next_events())

    def _under_way(self, to_server, where, data, latency):
        self.order += 1
        heapq.heappush(self.wire, (self.now + latency, self.order, to_server, (where, data)))

    def _deliver(self, to_server, data):
        where, data = data
        if to_server:
            self.came[where] += len(data)
            if self.server is None:
                quic = Quic(
                    quic_options(self.server_config, is_client=False),
                    original_destination_connection_id=data[6 : 6 + data[5]],
                )
                self.server = End(WebTransport(quic, self.server_config))
            self.server.take(self.server.protocol.receive_datagrams([data], where, self.now))
        elif where == self.here:
            self.client.take(self.client.protocol.receive_datagrams([data], SERVER, self.now))

    @property
    def seen(self):
        """Where the server believes the client to be."""
        return self.server.protocol.quic.peer_address

    @property
    def paths(self):
        return self.server.protocol.quic._quic._network_paths


def moving(**options):
    pair = Moving(server=ServerConfig(stream_send_buffer=SIZE), **options)
    session = pair.session()
    pair.run(0.5)
    assert pair.seen == CLIENT
    return pair, session


def upload(pair, session):
    """Begin to send from the client; returns what is true once all has arrived."""
    stream = pair.client.protocol.open_stream(session, True)
    pair.client.protocol.send_stream(stream, b"u" * SIZE, True)
    server = pair.server.protocol

    def react(event):
        if isinstance(event, events.StreamOpened):
            server.accept_stream(event.stream_id)
        if isinstance(event, events.StreamDataReceived):
            server.consumed(event.stream_id, len(event.data))

    pair.server.react = react
    return lambda: len(pair.server.data(stream)) == SIZE


def download(pair, session):
    stream = pair.server.protocol.open_stream(session, True)
    pair.server.protocol.send_stream(stream, b"d" * SIZE, True)
    client = pair.client.protocol

    def react(event):
        if isinstance(event, events.StreamOpened):
            client.accept_stream(event.stream_id)
        if isinstance(event, events.StreamDataReceived):
            client.consumed(event.stream_id, len(event.data))

    pair.client.react = react
    return lambda: len(pair.client.data(stream)) == SIZE


BOTH = pytest.mark.parametrize("transfer", [upload, download])


@BOTH
@pytest.mark.parametrize("moves", [1, 5])
def test_a_transfer_goes_on_at_the_new_address(transfer, moves):
    pair, session = moving()
    done = transfer(pair, session)
    for number in range(moves):
        pair.run(0.04)
        assert not done()
        pair.here = (ELSEWHERE[0], number + 1)
    # A client that only receives does not know that it moved; its keep-alive tells the server.
    pair.run(1)
    pair.client.protocol.quic.ping()
    pair.run_until(done)
    pair.run(1)
    assert pair.seen == pair.here
    # The new address has been validated, and the old ones get nothing any more.
    assert pair.paths[0].is_validated
    before = pair.sent.copy()
    pair.client.protocol.quic.ping()
    pair.run(1)
    assert set(pair.sent - before) == {pair.here}


def test_after_a_move_packets_take_the_short_ways_again(monkeypatch):
    pair, session = moving()
    pair.here = ELSEWHERE
    pair.client.protocol.quic.ping()
    pair.run(1)
    assert pair.seen == ELSEWHERE and len(pair.paths) == 2
    taken = Counter()
    for name in ("receive_datagram", "datagrams_to_send"):

        def counted(*args, name=name, method=getattr(QuicConnection, name)):  # noqa: B008
            taken[name] += 1
            return method(*args)

        monkeypatch.setattr(QuicConnection, name, counted)
    pair.run_until(download(pair, session))
    assert pair.server.protocol.quic.packets_sent > SIZE / 1200
    # Credit goes the long way.
    assert taken["receive_datagram"] < 5 and taken["datagrams_to_send"] < 30


@pytest.mark.parametrize("loss", [0.05, 0.15])
@BOTH
def test_a_transfer_survives_loss_and_moves_at_once(transfer, loss):
    pair, session = moving()
    pair.filter = lambda to_server, data: pair.random.random() > loss
    done = transfer(pair, session)
    pair.run(0.1)
    pair.here = ELSEWHERE
    for _ in range(60):
        # One that only receives is found when it next sends: a keep-alive, if nothing else. That,
        # or the challenge that answers it, may be lost.
        pair.client.protocol.quic.ping()
        pair.run(1.0)
    assert done()
    assert pair.seen == ELSEWHERE


def test_a_client_that_moves_uses_fresh_connection_ids_only_if_it_wants_to():
    """A NAT that changes a port is no news to the client: it goes on with the ids it has."""
    pair, _ = moving()
    quic = pair.server.protocol.quic._quic
    before = quic.host_cid
    pair.here = ELSEWHERE
    pair.client.protocol.quic.ping()
    pair.run(1)
    assert pair.seen == ELSEWHERE and quic.host_cid == before


def test_until_a_new_address_is_validated_it_gets_three_times_what_came_from_it():
    """RFC 9000 9.3.1: or a client could have its download sent to somebody else."""
    pair, session = moving()
    done = download(pair, session)
    pair.run(0.1)
    pair.here = ELSEWHERE
    # One packet comes from there, and nothing more: no answer to the challenge.
    came = pair.came[ELSEWHERE]
    pair.filter = lambda to_server, data: not to_server or not pair.came[ELSEWHERE] > came
    pair.client.protocol.quic.ping()
    until = pair.now + 5
    while pair.step(until):
        assert pair.sent[ELSEWHERE] <= 3 * pair.came[ELSEWHERE]
    assert pair.came[ELSEWHERE] > 0 and pair.sent[ELSEWHERE] > 0
    # RFC 9000 9.3.2: nobody answered, so it goes back to where the client was known to be.
    assert pair.seen == CLIENT
    assert not done()


def test_a_packet_that_an_attacker_copied_first_moves_the_connection_for_a_moment_only():
    """RFC 9000 9.3.2: who sees packets can race them, and gains three times their size."""
    pair, session = moving()
    done = download(pair, session)
    pair.run(0.1)
    copied = []

    def spy(data):
        if len(copied) < 3:
            copied.append(data)
            return [(ATTACKER, data)]
        return []

    pair.spy = spy
    until = pair.now + 30
    while not done():
        assert pair.step(until), "the transfer never ended"
        assert pair.sent[ATTACKER] <= 3 * pair.came[ATTACKER]
    pair.run(1)
    assert pair.came[ATTACKER] > 0
    assert pair.seen == CLIENT


def test_a_packet_that_is_replayed_from_elsewhere_changes_nothing():
    pair, session = moving()
    old = []
    pair.spy = lambda data: old.append(data) or []
    done = upload(pair, session)
    pair.run_until(done)
    pair.run(1)
    before = pair.sent[ATTACKER]
    for data in old:
        pair._under_way(True, ATTACKER, data, 0.001)
    pair.run(1)
    assert pair.came[ATTACKER] > 100_000
    assert pair.seen == CLIENT and pair.sent[ATTACKER] == before == 0


def test_an_attacker_at_many_addresses_does_not_make_the_server_remember_them_all():
    pair, _ = moving()
    for number in range(100):
        pair.spy = lambda data, n=number: [((f"203.0.113.{n}", 1), data)]
        pair.client.protocol.quic.ping()
        pair.run(0.05)
        assert len(pair.paths) <= 8
    pair.spy = lambda data: []
    pair.client.protocol.quic.ping()
    pair.run(3)
    assert pair.seen == CLIENT
    assert not pair.server.protocol.quic.closed


@pytest.mark.parametrize("at", [0.005, 0.015, 0.025, 0.035, 0.045])
def test_a_client_may_lose_its_address_in_the_midst_of_the_handshake(at):
    pair = Moving()
    pair.run(at)
    pair.here = ELSEWHERE
    session = pair.session()
    assert pair.seen == ELSEWHERE
    pair.run_until(upload(pair, session))


def test_a_client_takes_nothing_from_another_address_than_its_server_s():
    """RFC 9000 9: servers do not move."""
    pair, session = moving()
    done = download(pair, session)
    pair.run(0.05)
    received = pair.client.protocol.quic._quic._loss.bytes_in_flight
    for data, _ in pair.server.protocol.datagrams_to_send(pair.now):
        pair.client.take(pair.client.protocol.receive_datagrams([data], ATTACKER, pair.now))
    assert pair.client.protocol.quic._quic._loss.bytes_in_flight == received
    assert pair.client.protocol.quic.peer_address == SERVER
    pair.run_until(done)
