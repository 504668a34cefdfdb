"""
The short ways in and out beside those of aioquic: the same conversation, packet for packet.

Time is virtual and losses are seeded, so that whatever one way does otherwise shows in when a
packet goes, how long it is, or what is remembered of it in the end.
"""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet_builder import QuicPacketBuilderStop

from gwt.protocol import events, quicsend
from gwt.protocol.quicreceive import Receiving
from tests.helpers.pair import Pair
from tests.protocol.test_quic_short import open_and_write, read_all


def conversation(loss, seed):
    """Return what went over the wire, as (when, to the server?, size), and how both ends ended."""
    pair = Pair()
    session = pair.session()
    pair.run(1.0)
    for end in pair.ends():
        read_all(end)
    chance = random.Random(seed)
    wire = []

    def lose(to_server, data):
        wire.append((round(pair.now, 5), to_server, len(data)))
        return chance.random() >= loss

    pair.filter = lose
    stream = open_and_write(pair.client, session, bytes(150_000))
    pair.run(0.02)
    pair.run_until(lambda: pair.server.of(events.StreamOpened))
    pair.server.protocol.send_stream(stream, bytes(50_000), True)
    for number in range(40):
        pair.client.protocol.send_datagram(session, bytes(number * 25))
        pair.server.protocol.send_datagram(session, bytes(1000 - number * 25))
        pair.run(0.005)
    pair.run(20.0)
    assert len(pair.server.data(stream)) == 150_000
    assert len(pair.client.data(stream)) == 50_000
    ends = []
    for end in pair.ends():
        quic = end.protocol.quic._quic
        space = quic._loss.spaces[-1]
        datagrams = [len(event.data) for event in end.of(events.DatagramReceived)]
        ends.append(
            (
                datagrams,
                sorted(space.sent_packets),
                list(space.ack_queue),
                space.ack_eliciting_in_flight,
                space.expected_packet_number,
                quic._loss.congestion_window,
                quic._loss.bytes_in_flight,
                quic._packet_number,
                quic._spin_highest_pn,
                quic._spin_bit,
                quic._remote_max_data_used,
                quic._local_max_data.used,
                round(quic._close_at, 5),
                sorted(quic._streams),
                end.protocol.quic.stats(),
            )
        )
    return wire, ends


@pytest.fixture
def alike(monkeypatch):
    """Take away the three differences that are meant, or of no matter."""
    # The short way leaves room for a few bytes unused.
    monkeypatch.setattr(quicsend, "_LEAST_ROOM", 0)

    # It does not ask the pacer when there is nothing to send, so that the pacer learns of a new
    # rate and of the time before it in another order.
    send = quicsend.Sending._send_short

    def ask_the_pacer(self, now):
        ack_at = self._short_space.ack_at
        if ack_at is None or ack_at >= now:
            self._loss._pacer.next_send_time(now=now)
        return send(self, now)

    monkeypatch.setattr(quicsend.Sending, "_send_short", ask_the_pacer)

    # A PING beside an acknowledgement, when the congestion window is full, ends aioquic's pass
    # before the pacer is told of that packet.
    ping = QuicConnection._write_ping_frame

    def ping_if_there_is_room(*args, **kwargs):
        with suppress(QuicPacketBuilderStop):
            ping(*args, **kwargs)

    monkeypatch.setattr(QuicConnection, "_write_ping_frame", ping_if_there_is_room)


@pytest.mark.parametrize(
    "loss, seed", [(0.0, 0), (0.01, 4), (0.02, 1), (0.05, 3), (0.05, 5), (0.15, 3)]
)
def test_both_ways_say_the_same_at_the_same_time(loss, seed, alike, monkeypatch):
    short = conversation(loss, seed)
    receive = Receiving._receive_any

    def never_short(self, *args):
        receive(self, *args)
        self._short_keys = self._short_space = None

    monkeypatch.setattr(Receiving, "_receive_any", never_short)
    assert conversation(loss, seed) == short
