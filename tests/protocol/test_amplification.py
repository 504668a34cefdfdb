"""
RFC 9000 8.1: to an address that is not validated goes at most three times what came from it.

Every datagram both ways is counted, as a victim of forged packets would count them.
"""

from __future__ import annotations

import dataclasses
import random

import pytest

from gwt import certificates
from gwt.protocol import codes, events
from gwt.protocol.packets import classify, encode_refusal
from gwt.protocol.quic import Quic
from gwt.protocol.webtransport import WebTransport
from tests.helpers.pair import CLIENT, End, Pair, quic_options
from tests.protocol.test_packets import aioquic_client, long_header


class Counting(Pair):
    """A pair whose server may have a long chain; it counts what both sides send."""

    def __init__(self, chain=0, **options):
        self.chain = chain
        self.to_server = self.to_client = 0
        # What the server may never be above, for each datagram that it sends.
        self.worst = 0.0
        super().__init__(**options)
        self.filter = lambda to_server, data: True

    def _deliver(self, to_server, data):
        if to_server:
            self.to_server += len(data)
        if to_server and self.server is None:
            others = [certificates.generate([f"{n}.example.test"]) for n in range(self.chain)]
            quic = Quic(
                dataclasses.replace(
                    quic_options(self.server_config, is_client=False),
                    chain=tuple(other.certificate for other in others),
                ),
                original_destination_connection_id=data[6 : 6 + data[5]],
            )
            self.server = End(WebTransport(quic, self.server_config))
        super()._deliver(to_server, data)

    def validated(self):
        return self.server.protocol.quic._quic._network_paths[0].is_validated

    def count(self, to_server, data):
        if not to_server:
            self.to_client += len(data)
            if not self.validated():
                assert self.to_client <= 3 * self.to_server
                self.worst = max(self.worst, self.to_client / self.to_server)


def counted(pair, passes):
    def look(to_server, data):
        pair.count(to_server, data)
        return passes(to_server, data)

    pair.filter = look
    return pair


CHAINS = pytest.mark.parametrize("chain", [0, 8, 30])


@CHAINS
def test_a_client_that_never_answers_gets_no_more_than_three_times_its_first_packet(chain):
    first = []

    def passes(to_server, data):
        # One datagram, and nothing ever again: its address was forged.
        return to_server and not first and first.append(data) is None

    pair = counted(Counting(chain), passes)
    pair.run(60)
    assert pair.to_server == len(first[0]) == 1200
    # Retransmissions use up what is allowed, or most of it.
    assert 2.0 < pair.worst <= 3.0


@CHAINS
def test_a_client_that_hears_nothing_and_repeats_itself_gets_three_times_all_that(chain):
    pair = counted(Counting(chain), lambda to_server, data: to_server)
    pair.run(60)
    assert pair.to_server > 2 * 1200
    assert 1.0 < pair.worst <= 3.0


@CHAINS
@pytest.mark.parametrize("seed", range(4))
def test_a_handshake_over_a_bad_network_stays_below_the_limit_and_ends_well(chain, seed):
    """The server must not wait for room that only the client's next packet can give."""
    # Lost here, and not by the pair: what the server sends counts, also where it gets lost.
    luck = random.Random(seed)
    pair = counted(Counting(chain), lambda to_server, data: luck.random() > 0.2)
    pair.run_until(lambda: pair.server is not None and pair.server.protocol.ready, seconds=60)
    assert pair.worst <= 3.0


@CHAINS
@pytest.mark.parametrize("reason", ["", "x" * 500], ids=["short", "long"])
def test_a_close_counts_too(chain, reason):
    """Given up by a handshake timeout, say: only what is allowed goes out."""
    first = []

    def passes(to_server, data):
        return to_server and not first and first.append(data) is None

    pair = counted(Counting(chain), passes)
    pair.run(5)
    pair.server.protocol.quic.close(codes.QUIC_CONNECTION_REFUSED, reason, application=False)
    pair._send()
    assert pair.to_client <= 3 * pair.to_server
    farewell = pair.server.protocol.quic.farewell
    assert farewell is not None
    # Who sends more is told: that is its own allowance.
    more = bytes(1200)
    server = pair.server.protocol
    server.receive_datagrams([more], CLIENT, pair.now)
    assert server.datagrams_to_send(pair.now) == [(farewell.datagram, CLIENT)]


def test_an_answer_to_a_first_packet_that_cannot_be_read_is_nothing():
    pair = Counting()
    damaged = []

    def passes(to_server, data):
        pair.count(to_server, data)
        if to_server:
            damaged.append(data[:100] + bytes([data[100] ^ 1]) + data[101:])
        return False

    pair.filter = passes
    pair._send()
    pair._deliver(True, damaged[0])
    pair.run(5)
    assert pair.to_client == 0


@pytest.mark.parametrize("reason", ["", "x" * 5000])
def test_a_refusal_is_no_larger_than_what_it_refuses(reason):
    _, first = aioquic_client()
    assert len(encode_refusal(classify(first), 2, reason)) <= len(first) == 1200


@pytest.mark.parametrize("size", [1200, 1500, 65_000])
def test_a_version_negotiation_is_far_smaller_than_what_asked_for_it(size):
    newcomer = classify(long_header(0x1A2A3A4A, bytes(20), bytes(20), size))
    assert len(newcomer.version_negotiation()) < 100


def test_a_client_with_a_large_chain_to_read_gets_there_without_loss():
    """30 certificates are more than three datagrams: the client's probes make room."""
    pair = Counting(30)
    counted(pair, lambda to_server, data: True)
    pair.run_until(lambda: bool(pair.client.of(events.HandshakeCompleted)), seconds=5)
    assert pair.worst > 2.5
