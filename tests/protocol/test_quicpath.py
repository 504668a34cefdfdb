"""
gwt.protocol.quicpath: how large packets become, on paths that carry so much and no more, that
change, and that lose packets for other reasons.
"""

from __future__ import annotations

import random

import pytest
from aioquic.quic.connection import QuicConnection

from gwt.config import ClientConfig, ServerConfig
from gwt.protocol import events
from gwt.protocol.capsules import encode_varint
from gwt.protocol.quicpath import BASE, RAISE, TRIES, PathConnection, Search
from tests.helpers import raw
from tests.helpers.pair import Pair

BOTH = pytest.mark.parametrize("is_client", [True, False], ids=["client", "server"])
CONTROLS = pytest.mark.parametrize("control", ["reno", "cubic"])
ELSEWHERE = ("198.51.100.7", 50001)


class Path:
    """A path of a pair: what it carries to the server, and to the client, and what it saw."""

    def __init__(self, pair, to_server=65_535, to_client=None):
        self.pair = pair
        self.limits = {True: to_server, False: to_server if to_client is None else to_client}
        self.seen = {True: [], False: []}
        # Called with (to_server, size); whether a datagram that fits is lost all the same.
        self.loses = lambda to_server, size: False
        pair.filter = self.carry

    def carry(self, to_server, data):
        self.seen[to_server].append(len(data))
        return len(data) <= self.limits[to_server] and not self.loses(to_server, len(data))

    def limit(self, size):
        self.limits = {True: size, False: size}

    def forget(self):
        self.seen = {True: [], False: []}


def make(client=1452, server=1452, *, control="reno", seed=0, **options):
    return Pair(
        client=ClientConfig(max_udp_payload=client, congestion_control=control),
        server=ServerConfig(max_udp_payload=server, congestion_control=control),
        seed=seed,
        **options,
    )


def used(end):
    return end.protocol.quic.stats()["max_udp_payload"]


def ends(pair, is_client):
    return (pair.client, pair.server) if is_client else (pair.server, pair.client)


class Transfer:
    """Bytes from one end to the other on one stream, written and read as there is room."""

    def __init__(self, pair, session_id, is_client, size):
        self.one, self.other = ends(pair, is_client)
        self.data = random.Random(size).randbytes(size)
        self.stream_id = self.one.protocol.open_stream(session_id, True)
        self.rest = memoryview(self.data)
        self.one.react = self.write
        self.other.react = self.read
        self.write(None)

    def write(self, event):
        protocol = self.one.protocol
        if self.rest is not None and (room := protocol.room(self.stream_id)):
            chunk, rest = self.rest[:room], self.rest[room:]
            assert protocol.send_stream(self.stream_id, bytes(chunk), not rest)
            self.rest = rest if rest else None
            if rest:
                protocol.want_room(self.stream_id)

    def read(self, event):
        match event:
            case events.StreamOpened(stream_id=stream_id):
                self.other.protocol.accept_stream(stream_id)
            case events.StreamDataReceived(stream_id=stream_id, data=data):
                self.other.protocol.consumed(stream_id, len(data))

    def done(self):
        return self.rest is None and len(self.other.data(self.stream_id)) == len(self.data)

    def finish(self, pair, seconds=60.0):
        pair.run_until(self.done, seconds)
        assert self.other.data(self.stream_id) == self.data


# Growing


@pytest.mark.parametrize("size", [1350, 1452, 8900, 16_000])
@CONTROLS
@BOTH
def test_grows_to_the_size_that_was_asked_for_and_uses_it(is_client, control, size):
    pair = make(*((size, BASE) if is_client else (BASE, size)), control=control)
    path = Path(pair)
    session_id = pair.session()
    pair.run()
    one, other = ends(pair, is_client)
    assert (used(one), used(other)) == (size, BASE)
    assert path.seen[is_client].count(size) == 1, "one probe"
    assert max(path.seen[not is_client]) == BASE
    path.forget()
    Transfer(pair, session_id, is_client, 400_000).finish(pair)
    sent = path.seen[is_client]
    assert max(sent) == size
    assert sum(sent) < 430_000
    assert len(sent) < 400_000 / size * 1.6
    assert one.protocol.quic.stats()["frames_lost"] == 0


@CONTROLS
@BOTH
def test_congestion_control_and_pacing_count_in_packets_of_the_size(is_client, control):
    pair = make(16_000, 16_000, control=control)
    Path(pair)
    pair.run_until(lambda: pair.client.protocol.ready)
    one, _ = ends(pair, is_client)

    def sizes():
        loss = one.protocol.quic._quic._loss
        return {
            loss._cc._max_datagram_size,
            getattr(loss._cc, "additive_increase_factor", loss._cc._max_datagram_size),
            loss._pacer._max_datagram_size,
        }

    pair.run_until(lambda: used(one) == 16_000)
    assert sizes() == {16_000}
    assert one.protocol.quic.stats()["congestion_window"] >= 32_000
    one.protocol.quic._quic._on_black_hole(pair.now)
    assert sizes() == {BASE}


@pytest.mark.parametrize("size", [BASE, 1452, 16_000])
@CONTROLS
def test_handshake_has_base_size_whatever_was_asked_for(control, size):
    pair = make(size, size, control=control)
    path = Path(pair)
    pair.run_until(lambda: pair.client.protocol.ready)
    pair.run_until(lambda: used(pair.server) == size)
    for sent in path.seen.values():
        # The first is padded to exactly as much; what is larger is the probe.
        assert sent[0] == BASE
        assert set(sent) <= {*range(BASE + 1), size}
        assert sent.count(size) <= 1 or size == BASE
    pair = make(size, size)
    path = Path(pair, BASE)
    pair.session()
    assert not pair.client.of(events.ConnectionEnded)


def test_without_the_option_nothing_is_probed():
    pair = make(BASE, BASE)
    path = Path(pair)
    session_id = pair.session()
    Transfer(pair, session_id, True, 100_000).finish(pair)
    pair.run(2 * RAISE)
    assert max(path.seen[True] + path.seen[False]) == BASE
    assert used(pair.client) == used(pair.server) == BASE


@pytest.mark.parametrize(
    "carried, wanted, size",
    [
        (1452, 16_000, 1452),
        (1451, 16_000, 1350),
        (1400, 1452, 1350),
        (1349, 1452, BASE),
        (1349, 16_000, BASE),
        (1300, 1300, 1300),
        (1299, 1300, BASE),
        (8900, 9000, 1452),
        (9000, 9000, 9000),
    ],
)
@pytest.mark.parametrize("busy", [True, False])
@BOTH
def test_smaller_sizes_are_tried_where_the_path_takes_less(is_client, busy, carried, wanted, size):
    pair = make(wanted, wanted)
    path = Path(pair, *((carried, 65_535) if is_client else (65_535, carried)))
    session_id = pair.session()
    if busy:
        Transfer(pair, session_id, is_client, 300_000).finish(pair)
    pair.run(5.0)
    one, other = ends(pair, is_client)
    assert (used(one), used(other)) == (size, wanted)
    sent = path.seen[is_client]
    tried = {each for each in sent if each > carried}
    assert tried == {each for each in (wanted, 1452, 1350) if carried < each <= wanted}
    assert all(sent.count(each) == TRIES for each in tried)
    Transfer(pair, session_id, is_client, 50_000).finish(pair)
    assert one.protocol.quic.stats()["frames_lost"] == 0, "only probes were lost"


@CONTROLS
@BOTH
def test_lost_probe_is_tried_again_and_is_no_congestion(is_client, control):
    pair = make(control=control)
    path = Path(pair)
    lost = []

    def loses(to_server, size):
        if to_server == is_client and size == 1452 and len(lost) < TRIES - 1:
            lost.append(pair.now)
            return True
        return False

    path.loses = loses
    session_id = pair.session()
    one, _ = ends(pair, is_client)
    windows = []
    transfer = Transfer(pair, session_id, is_client, 500_000)
    while not transfer.done():
        pair.run(0.005)
        windows.append(one.protocol.quic.stats()["congestion_window"])
    assert len(lost) == TRIES - 1
    assert lost[1] - lost[0] >= 2 * pair.latency, "a round trip apart"
    assert used(one) == 1452
    assert windows == sorted(windows)


@BOTH
def test_probes_wait_for_nothing_and_nothing_waits_for_probes(is_client):
    # Of 16,000 bytes with a window of 12,000.
    pair = make(16_000, 16_000)
    path = Path(pair, BASE)
    pair.run_until(lambda: 16_000 in path.seen[is_client])
    one, _ = ends(pair, is_client)
    assert one.protocol.quic.stats()["bytes_in_flight"] < 3000
    assert one.protocol.quic._quic.search.probe is not None
    session_id = pair.session()
    began = pair.now
    Transfer(pair, session_id, is_client, 10_000).finish(pair)
    assert pair.now - began < 0.025


@BOTH
def test_probe_is_remembered_however_many_packets_follow(is_client):
    pair = make()
    path = Path(pair)
    pair.session()
    one, _ = ends(pair, is_client)
    quic = one.protocol.quic._quic
    pair.run_until(lambda: quic.search.probe is not None)
    quic._packet_number += 1000
    one.protocol.quic.ping()
    pair.run()
    assert path.seen[is_client].count(1452) == 1
    assert used(one) == 1452


def test_probe_that_was_taken_for_lost_still_counts_when_it_is_acknowledged():
    pair = make()
    Path(pair)
    pair.run_until(lambda: pair.client.protocol.quic._quic.search.probe is not None)
    search = pair.client.protocol.quic._quic.search
    probe = search.probe
    for _ in range(TRIES):
        search.probe = probe
        search.failed(BASE)
    assert search.sizes == [1350]
    pair.run(0.1)
    assert used(pair.client) == 1452
    assert not search.sizes
    assert search.probe is None


@pytest.mark.parametrize("limit, size", [(1400, 1400), (1200, 1200), (1300, 1300), (1452, 1452)])
@pytest.mark.parametrize("wanted", [1452, 16_000])
@BOTH
def test_peer_that_takes_no_more_is_sent_no_more(monkeypatch, is_client, wanted, limit, size):
    serialize = QuicConnection._serialize_transport_parameters

    def with_limit(self):
        data = serialize(self)
        if isinstance(self, PathConnection):
            return data
        value = encode_varint(limit)
        return data + b"\x03" + encode_varint(len(value)) + value

    monkeypatch.setattr(QuicConnection, "_serialize_transport_parameters", with_limit)
    config = (ClientConfig if is_client else ServerConfig)(max_udp_payload=wanted)
    make_peer = raw.client if is_client else raw.server
    peer = make_peer(config=config)
    sizes = []
    poll = peer.protocol.quic.poll

    def recorded(now):
        datagrams = poll(now)
        sizes.extend(len(data) for data, _ in datagrams)
        return datagrams

    monkeypatch.setattr(peer.protocol.quic, "poll", recorded)
    peer.session()
    peer.run(5.0)
    assert used(peer.end) == size
    assert max(sizes, default=0) <= limit


# Paths that change


@pytest.mark.parametrize("latency, size", [(0.001, 9000), (0.02, 1452), (0.15, 1452)])
@CONTROLS
@BOTH
def test_path_that_ceases_to_carry_large_packets(is_client, control, size, latency):
    pair = make(size, size, control=control, latency=latency)
    path = Path(pair)
    session_id = pair.session()
    pair.run(1.0)
    one, _ = ends(pair, is_client)
    assert used(one) == size
    transfer = Transfer(pair, session_id, is_client, 600_000)
    pair.run_until(lambda: transfer.other.of(events.StreamDataReceived))
    path.limit(1349)
    pair.run_until(lambda: used(one) == BASE)
    path.forget()
    began = pair.now
    transfer.finish(pair)
    # It moves on at once.
    assert pair.now - began < 40 * latency
    pair.run(3.0)
    probes = [each for each in path.seen[is_client] if each > BASE]
    assert set(probes) == {each for each in (1452, 1350) if each < size}
    assert len(probes) == TRIES * len(set(probes))
    assert used(one) == BASE


@BOTH
def test_fallback_takes_a_few_timeouts(is_client):
    pair = make()
    path = Path(pair)
    session_id = pair.session()
    pair.run(1.0)
    one, _ = ends(pair, is_client)
    transfer = Transfer(pair, session_id, is_client, 1_000_000)
    pair.run(0.05)
    assert not transfer.done()
    path.limit(BASE)
    began = pair.now
    pair.run_until(lambda: used(one) == BASE)
    timeout = one.protocol.quic._quic._loss.get_probe_timeout()
    assert pair.now - began < 6 * timeout
    transfer.finish(pair)


@pytest.mark.parametrize("kind", ["messages", "datagrams", "both"])
@BOTH
def test_black_hole_is_noticed_whatever_is_sent(is_client, kind):
    # Small packets arrive all the time, so that no timer backs off.
    pair = make()
    path = Path(pair)
    session_id = pair.session()
    pair.run(1.0)
    one, other = ends(pair, is_client)
    path.limit(1400)
    streams = []
    for _ in range(40):
        if kind != "datagrams":
            stream_id = one.protocol.open_stream(session_id, True)
            assert one.protocol.send_stream(stream_id, bytes(1380), True)
            streams.append(stream_id)
        if kind != "messages":
            one.protocol.send_datagram(session_id, b"small")
            large = one.protocol.max_datagram_size(session_id)
            assert one.protocol.send_datagram(session_id, bytes(large))
        pair.run(0.3)
        if used(one) < 1452:
            break
    assert used(one) in (BASE, 1350)
    pair.run(1.0)
    assert used(one) == 1350
    assert all(len(other.data(each)) == 1380 for each in streams)


@BOTH
def test_path_that_carries_nothing_for_a_while_keeps_its_size(is_client):
    pair = make()
    path = Path(pair)
    session_id = pair.session()
    pair.run(1.0)
    one, _ = ends(pair, is_client)
    transfer = Transfer(pair, session_id, is_client, 2_000_000)
    pair.run(0.1)
    assert not transfer.done()
    path.limit(0)
    pair.run(5.0)
    assert one.protocol.quic._quic._loss._pto_count > 3
    path.limit(65_535)
    transfer.finish(pair)
    assert used(one) == 1452


@pytest.mark.parametrize("loss", [0.02, 0.1])
@pytest.mark.parametrize("seed", range(3))
def test_loss_of_other_reasons_keeps_the_size(seed, loss):
    pair = make(seed=seed, loss=loss, jitter=0.002)
    session_id = pair.session()
    pair.run_until(lambda: used(pair.client) == 1452)
    Transfer(pair, session_id, True, 400_000).finish(pair, 600.0)
    assert used(pair.client) == 1452


@pytest.mark.parametrize("seed", range(4))
@CONTROLS
def test_every_byte_arrives_while_the_path_changes_and_loses(control, seed):
    pair = make(9000, 9000, control=control, seed=seed, loss=0.05, jitter=0.01)
    path = Path(pair)
    session_id = pair.session()
    sizes = random.Random(seed)
    transfers = []
    for _ in range(6):
        transfer = Transfer(pair, session_id, sizes.random() < 0.5, sizes.randrange(150_000))
        pair.run(sizes.random())
        carried = (1200, 1300, 1400, 1452, 5000, 9000)
        path.limits = {way: sizes.choice(carried) for way in (True, False)}
        pair.run(sizes.random())
        transfer.finish(pair, 300.0)
        transfers.append(transfer)
    for transfer in transfers:
        assert transfer.other.data(transfer.stream_id) == transfer.data
    assert not pair.client.of(events.ConnectionEnded)


@BOTH
def test_search_begins_again_after_a_while_with_traffic_only(is_client):
    pair = make()
    path = Path(pair, 1300)
    pair.session()
    pair.run(5.0)
    one, _ = ends(pair, is_client)
    assert used(one) == BASE
    path.limit(65_535)
    path.forget()
    for _ in range(60):
        pair.run(RAISE / 100)
        one.protocol.quic.ping()
    assert max(path.seen[is_client]) < BASE
    pair.run(20.0)
    for _ in range(40):
        pair.run(RAISE / 100)
        one.protocol.quic.ping()
    assert used(one) == 1452
    assert path.seen[is_client].count(1452) == 1


# Migration


def test_new_address_of_the_peer_begins_with_base_size_and_a_search():
    pair = make()
    path = Path(pair)
    session_id = pair.session()
    pair.run(1.0)
    assert used(pair.server) == 1452
    transfer = Transfer(pair, session_id, False, 1_500_000)
    pair.run(0.1)
    assert not transfer.done()
    # The new path carries less; large packets sent before are lost with the old one.
    path.limits[False] = 1300
    pair.client_address = ELSEWHERE
    pair.client.protocol.quic.ping()
    pair.run_until(lambda: used(pair.server) == BASE)
    path.forget()
    pair.run_until(lambda: path.seen[False].count(1350) == TRIES)
    transfer.finish(pair)
    assert used(pair.server) == BASE
    assert path.seen[False].count(1452) == TRIES
    # And one that carries more.
    path.limits[False] = 1452
    pair.client_address = ("198.51.100.8", 50002)
    transfer = Transfer(pair, session_id, False, 1_000_000)
    pair.client.protocol.quic.ping()
    transfer.finish(pair)
    pair.run(1.0)
    assert used(pair.server) == 1452


def test_peer_that_moves_with_every_packet_draws_no_probes():
    pair = make(BASE, 16_000)
    path = Path(pair)
    pair.session()
    pair.run(1.0)
    assert used(pair.server) == 16_000
    addresses = [("198.51.100.8", port) for port in (1, 2)]
    path.forget()
    for turn in range(40):
        pair.client_address = addresses[turn % 2]
        pair.client.protocol.quic.ping()
        pair.run(0.03)
    assert max(path.seen[False]) <= BASE
    assert len(path.seen[False]) > 40
    pair.run(1.0)
    pair.client.protocol.quic.ping()
    pair.run(1.0)
    assert used(pair.server) == 16_000


def test_another_path_is_validated_with_base_size():
    peer = raw.server(config=ServerConfig(max_udp_payload=1452))
    peer.session()
    peer.run(1.0)
    assert used(peer.end) == 1452
    # A challenge from elsewhere: the answer goes there, and a challenge of ours.
    peer.inject(b"\x1a" + bytes(1090), ELSEWHERE)
    sent = [len(data) for data, to in peer.protocol.quic.poll(peer.now) if to == ELSEWHERE]
    assert sent == [BASE]
    assert used(peer.end) == 1452


def test_address_that_is_not_validated_draws_no_probes():
    pair = make()
    path = Path(pair)
    pair.session()
    pair.run(1.0)
    # From where nobody answers.
    path.limits[False] = 0
    pair.client_address = ELSEWHERE
    path.forget()
    for _ in range(10):
        pair.client.protocol.quic.ping()
        pair.run(0.03)
    assert used(pair.server) == BASE
    assert path.seen[False]
    assert max(path.seen[False]) <= BASE


def test_acknowledged_probe_of_another_path_says_nothing():
    pair = make()
    path = Path(pair)
    pair.run_until(lambda: 1452 in path.seen[False])
    # The probe is under way when the client moves; its acknowledgement comes from elsewhere.
    path.limits[False] = 1300
    pair.client_address = ELSEWHERE
    pair.client.protocol.quic.ping()
    pair.step(pair.now + 1.0)
    sizes = []
    for _ in range(1000):
        pair.run(0.001)
        sizes.append(used(pair.server))
    assert set(sizes) == {BASE}


# Datagrams


@BOTH
def test_datagrams_may_be_as_large_as_packets_are_now(is_client):
    pair = make()
    path = Path(pair)
    pair.run_until(lambda: pair.client.protocol.ready)
    session_id = pair.session()
    one, other = ends(pair, is_client)
    pair.run(1.0)
    protocol = one.protocol
    assert protocol.max_datagram_size(session_id) == 1421
    assert protocol.send_datagram(session_id, bytes(1421))
    assert not protocol.send_datagram(session_id, bytes(1422))
    pair.run(0.1)
    assert [len(e.data) for e in other.of(events.DatagramReceived)] == [1421]
    path.limit(1300)
    while used(one) > BASE:
        protocol.send_datagram(session_id, bytes(1421))
        protocol.send_datagram(session_id, b"small")
        pair.run(0.2)
    assert protocol.max_datagram_size(session_id) == 1169
    assert not protocol.send_datagram(session_id, bytes(1170))
    assert protocol.send_datagram(session_id, bytes(1169))
    pair.run(0.1)
    assert len(other.of(events.DatagramReceived)[-1].data) == 1169


def test_before_it_grows_the_limit_is_that_of_base_size():
    pair = make()
    Path(pair, BASE)
    session_id = pair.session()
    for end in pair.ends():
        assert end.protocol.max_datagram_size(session_id) == 1169
        assert not end.protocol.send_datagram(session_id, bytes(1170))


@BOTH
def test_waiting_datagrams_that_do_not_fit_any_more_are_dropped_and_counted(is_client):
    pair = make()
    Path(pair)
    session_id = pair.session()
    pair.run(1.0)
    one, other = ends(pair, is_client)
    protocol = one.protocol
    for size in (1421, 10, 1300, 1169, 1170, 11):
        assert protocol.send_datagram(session_id, bytes(size))
    one.protocol.quic._quic._on_black_hole(pair.now)
    pair.run(0.1)
    assert [len(e.data) for e in other.of(events.DatagramReceived)] == [10, 1169, 11]
    assert protocol.quic.stats()["datagrams_dropped"] == 3


# The search itself


def test_search_goes_from_the_largest_down():
    assert Search(BASE).sizes == []
    assert Search(1300).sizes == [1300]
    assert Search(1400).sizes == [1400, 1350]
    assert Search(1452).sizes == [1452, 1350]
    assert Search(9000).sizes == [9000, 1452, 1350]
    search = Search(9000)
    search.restart(1452, 5.0)
    assert (search.sizes, search.at) == ([9000], 5.0)
    search.limit(1452)
    assert search.sizes == [1452, 1350]
    search.failed(BASE)
    assert search.sizes == [1452, 1350], "there was no probe to lose"
