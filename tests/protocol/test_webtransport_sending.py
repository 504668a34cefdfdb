"""What may be written, who is woken and when, and that every account returns to zero."""

from __future__ import annotations

import pytest

from gwt.config import KIB, MIB, ClientConfig, ServerConfig
from gwt.protocol import codes, events
from tests.helpers import raw
from tests.helpers.pair import Pair

BOTH = pytest.mark.parametrize("is_client", [True, False], ids=["client", "server"])
LARGE = {"session_window": 64 * MIB, "stream_window": 64 * MIB, "receive_pool": 64 * MIB}
LARGE["initial_stream_window"] = 1 * MIB


def ends(pair, is_client):
    return (pair.client, pair.server) if is_client else (pair.server, pair.client)


def pair_of(is_client, *, other=None, **config):
    """Make a pair; the side that writes has `config`."""
    mine, theirs = config, {**LARGE, **(other or {})}
    pair = Pair(
        client=ClientConfig(**(mine if is_client else theirs)),
        server=ServerConfig(**(theirs if is_client else mine)),
    )
    session_id = pair.session()
    pair.run()
    return pair, session_id


def read_everything(end):
    end.react = lambda e: (
        end.protocol.consumed(e.stream_id, len(e.data))
        if isinstance(e, events.StreamDataReceived)
        else None
    )


@BOTH
def test_room_of_a_stream_is_its_buffer_less_what_waits(is_client):
    pair, session_id = pair_of(is_client, stream_send_buffer=50_000)
    one, _ = ends(pair, is_client)
    stream_id = one.protocol.open_stream(session_id, True)
    prefix = one.protocol.streams[stream_id].prefix
    assert one.protocol.room(stream_id) == 50_000 - prefix
    one.protocol.send_stream(stream_id, bytes(20_000))
    assert one.protocol.room(stream_id) == 30_000 - prefix
    one.protocol.send_stream(stream_id, bytes(30_000 - prefix))
    assert one.protocol.room(stream_id) == 0
    pair.run()
    # What was acknowledged makes room, whether it was read or not.
    assert 10_000 < one.protocol.room(stream_id) <= 50_000


@BOTH
def test_above_the_bound_of_the_connection_every_stream_has_the_floor(is_client):
    pair, session_id = pair_of(
        is_client,
        stream_send_buffer=60_000,
        connection_send_buffer=100_000,
        stream_send_floor=2_000,
    )
    one, _ = ends(pair, is_client)
    first, second, third = (one.protocol.open_stream(session_id, True) for _ in range(3))
    for stream_id in (first, second):
        one.protocol.send_stream(stream_id, bytes(one.protocol.room(stream_id)))
    assert one.protocol.quic.buffered_total >= 100_000
    assert one.protocol.room(first) == one.protocol.room(second) == 0
    assert one.protocol.room(third) == 2_000 - one.protocol.streams[third].prefix
    one.protocol.send_stream(third, bytes(one.protocol.room(third)))
    assert one.protocol.room(third) == 0


def test_bound_of_the_process_counts_all_connections_that_share_it():
    pair, session_id = pair_of(
        True, stream_send_buffer=60_000, process_send_buffer=100_000, stream_send_floor=2_000
    )
    one = pair.client.protocol
    stream_id = one.open_stream(session_id, True)
    assert one.room(stream_id) > 50_000
    pair.budget[True].buffered += 100_000
    assert one.room(stream_id) == 2_000 - one.streams[stream_id].prefix
    pair.budget[True].buffered -= 100_000
    assert one.room(stream_id) > 50_000


@BOTH
@pytest.mark.parametrize("how", ["read", "reset", "stop", "session", "abort", "connection", "lost"])
def test_budget_returns_to_zero(is_client, how):
    pair, session_id = pair_of(is_client)
    one, other = ends(pair, is_client)
    if how == "read":
        read_everything(other)
    else:
        # Not even the peer's initial window is enough for what follows.
        pair.filter = lambda to_server, data: how != "lost"
    streams = [one.protocol.open_stream(session_id, bool(n % 2)) for n in range(6)]
    for stream_id in streams:
        one.protocol.send_stream(stream_id, bytes(300_000), end=stream_id == streams[0])
    account = one.protocol.quic.buffered_total
    assert account == pair.budget[is_client].buffered >= 6 * 300_000
    pair.run(0.1)
    match how:
        case "reset":
            for stream_id in streams:
                one.protocol.reset_stream(stream_id)
        case "stop":
            for stream_id in streams:
                other.protocol.stop_stream(stream_id)
        case "session":
            one.protocol.close_session(session_id)
        case "abort":
            other.protocol.abort_session(session_id)
        case "connection":
            one.protocol.close()
    pair.run(60.0)
    assert pair.budget[is_client].buffered == one.protocol.quic.buffered_total == 0


@BOTH
def test_writer_is_woken_when_a_quarter_is_free_and_only_once(is_client):
    pair, session_id = pair_of(is_client, stream_send_buffer=40_000)
    one, other = ends(pair, is_client)
    read_everything(other)
    stream_id = one.protocol.open_stream(session_id, True)
    one.protocol.send_stream(stream_id, bytes(one.protocol.room(stream_id)))
    pair.run_until(lambda: one.protocol.room(stream_id) >= 10_000)
    assert not one.of(events.StreamWritable), "nobody asked"
    one.protocol.send_stream(stream_id, bytes(one.protocol.room(stream_id)))
    one.protocol.want_room(stream_id)

    def look(event):
        if isinstance(event, events.StreamWritable):
            assert one.protocol.room(stream_id) >= 10_000

    one.react = look
    pair.run(2.0)
    assert one.of(events.StreamWritable) == [events.StreamWritable(stream_id)]


@BOTH
@pytest.mark.parametrize("how", ["reset", "stop"])
def test_waiting_writer_is_woken_when_the_stream_takes_nothing_more(is_client, how):
    pair, session_id = pair_of(
        is_client, other={"stream_window": 16 * KIB, "initial_stream_window": 16 * KIB}
    )
    one, other = ends(pair, is_client)
    stream_id = one.protocol.open_stream(session_id, True)
    one.protocol.send_stream(stream_id, bytes(one.protocol.room(stream_id)))
    one.protocol.want_room(stream_id)
    pair.run(2.0)
    assert not one.of(events.StreamWritable)
    if how == "reset":
        one.protocol.reset_stream(stream_id)
    else:
        other.protocol.stop_stream(stream_id)
    pair.run(1.0)
    assert one.of(events.StreamWritable)
    assert one.protocol.room(stream_id) == 0


@BOTH
def test_flushed_means_that_everything_was_acknowledged(is_client):
    pair, session_id = pair_of(is_client)
    one, other = ends(pair, is_client)
    read_everything(other)
    stream_id = one.protocol.open_stream(session_id, True)
    pair.run()
    assert not one.protocol.want_flush(stream_id), "there is nothing to wait for"
    one.protocol.send_stream(stream_id, bytes(100_000))
    assert one.protocol.want_flush(stream_id)
    pair.run_until(lambda: one.of(events.StreamFlushed))
    assert one.protocol.quic.buffered(stream_id) == 0
    assert not one.of(events.StreamFinished)
    assert len(one.of(events.StreamFlushed)) == 1


@BOTH
def test_flushed_comes_also_when_the_last_acknowledgement_finishes_the_stream(is_client):
    pair, session_id = pair_of(is_client)
    one, _ = ends(pair, is_client)
    stream_id = one.protocol.open_stream(session_id, True)
    one.protocol.send_stream(stream_id, b"all of it", end=True)
    assert one.protocol.want_flush(stream_id)
    pair.run()
    told = [e for e in one.events if isinstance(e, (events.StreamFlushed, events.StreamFinished))]
    assert told == [events.StreamFlushed(stream_id), events.StreamFinished(stream_id)]


@BOTH
def test_finished_means_that_the_end_was_acknowledged(is_client):
    pair, session_id = pair_of(is_client)
    one, other = ends(pair, is_client)
    stream_id = one.protocol.open_stream(session_id, False)
    one.protocol.send_stream(stream_id, b"data")
    pair.run(1.0)
    assert not one.of(events.StreamFinished)
    pair.filter = lambda to_server, data: to_server == is_client
    one.protocol.send_stream(stream_id, b"", end=True)
    pair.run(0.5)
    assert other.last(events.StreamDataReceived).ended
    assert not one.of(events.StreamFinished)
    pair.filter = lambda to_server, data: True
    pair.run(2.0)
    assert one.of(events.StreamFinished) == [events.StreamFinished(stream_id)]


@BOTH
def test_session_credit_counts_bodies_and_what_a_reset_never_sent_comes_back(is_client):
    window = {"session_window": 50_000, "stream_window": 50_000, "initial_stream_window": 10_000}
    pair, session_id = pair_of(is_client, other=window, stream_send_floor=50_000)
    one, other = ends(pair, is_client)
    flow = one.protocol.sessions[session_id].flow
    # As of a peer that keeps its sessions short.
    flow.peer_max_data = 50_000
    stream_id = one.protocol.open_stream(session_id, True)
    assert flow.sent == 0, "prefixes do not count"
    one.protocol.send_stream(stream_id, bytes(40_000))
    assert flow.sent == 40_000
    waiting = one.protocol.open_stream(session_id, True)
    assert one.protocol.room(waiting) == 10_000
    one.protocol.send_stream(waiting, bytes(9_900))
    one.protocol.want_room(waiting)
    pair.run(1.0)
    # The peer's stream window let no more than this through.
    assert one.protocol.quic.sent(stream_id) == 10_000
    one.protocol.reset_stream(stream_id)
    pair.run(1.0)
    sent = 10_000 - 3
    assert flow.sent == sent + 9_900
    assert other.protocol.sessions[session_id].flow.received == flow.sent
    assert one.of(events.StreamWritable) == [events.StreamWritable(waiting)]
    assert one.protocol.room(waiting) == 50_000 - flow.sent


# Datagrams


@pytest.mark.parametrize("udp, size", [(1200, 1170), (1280, 1250), (1350, 1320), (1452, 1422)])
@BOTH
def test_datagram_size_is_the_measured_one_and_fits_exactly(is_client, udp, size):
    pair = Pair(client=ClientConfig(max_udp_payload=udp), server=ServerConfig(max_udp_payload=udp))
    session_id = pair.session()
    pair.run()
    one, other = ends(pair, is_client)
    # One byte of it is the session's id.
    assert one.protocol.max_datagram_size(session_id) == size - 1
    seen = []
    pair.filter = lambda to_server, data: seen.append(len(data)) or True
    assert one.protocol.send_datagram(session_id, bytes(size - 1))
    assert not one.protocol.send_datagram(session_id, bytes(size))
    pair.run()
    assert [len(e.data) for e in other.of(events.DatagramReceived)] == [size - 1]
    assert max(seen) <= udp


def test_peer_with_empty_connection_ids_leaves_more_room():
    # As Chromium's are; aioquic as a peer cannot have them.
    peer = raw.server()
    session_id = peer.session()
    peer.protocol.quic._quic._peer_cid.cid = b""
    assert peer.protocol.max_datagram_size(session_id) == 1178 - 1


def test_peer_that_accepts_small_datagrams_only_says_how_small():
    peer = raw.server(max_datagram_frame_size=100)
    session_id = peer.session()
    size = peer.protocol.max_datagram_size(session_id)
    assert size == 100 - 3 - 1
    assert peer.protocol.send_datagram(session_id, bytes(size))
    peer.run()
    assert len(peer.datagrams[0]) == size + 1


@pytest.mark.parametrize("is_client", [True, False])
def test_peer_without_datagrams_takes_none(is_client):
    settings = {codes.SETTING_WT_ENABLED: 1, 0x8: 1}
    peer = raw.Raw(is_client=is_client, settings=settings, max_datagram_frame_size=None)
    session_id = peer.session()
    assert peer.protocol.max_datagram_size(session_id) == 0
    assert not peer.protocol.send_datagram(session_id, b"x")
    peer.run()
    assert peer.datagrams == []
    assert peer.close_code is None


def test_oversized_datagram_never_blocks_others():
    pair, session_id = pair_of(True)
    assert not pair.client.protocol.send_datagram(session_id, bytes(3000))
    assert pair.client.protocol.send_datagram(session_id, b"ok")
    pair.run()
    assert [e.data for e in pair.server.of(events.DatagramReceived)] == [b"ok"]


def test_datagrams_that_wait_are_bounded_and_grow_old():
    pair, session_id = pair_of(True, datagram_send_queue=10, datagram_max_age=0.5)
    one = pair.client.protocol
    for number in range(15):
        assert one.send_datagram(session_id, b"%d" % number)
    assert one.quic.stats()["datagrams_dropped"] == 5
    pair.run()
    assert [e.data for e in pair.server.of(events.DatagramReceived)] == [
        b"%d" % n for n in range(5, 15)
    ]
    # Nothing is acknowledged: the congestion window fills, and what waits behind it grows old.
    pair.filter = lambda to_server, data: False
    for _ in range(60):
        one.send_datagram(session_id, bytes(1000))
        pair.run(0.05)
    assert one.quic.stats()["datagrams_dropped"] > 5
    assert len(one.quic._quic._datagrams_pending) <= 10
