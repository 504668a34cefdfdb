"""Streams that nobody reads, or accepts: they stall nothing else, and are bounded."""

from __future__ import annotations

import pytest
from aioquic.tls import Epoch

from gwt.config import KIB, MIB, ClientConfig, ServerConfig
from gwt.protocol import codes, events, quic
from tests.helpers import raw
from tests.helpers.pair import Pair
from tests.helpers.raw import leftovers

BOTH = pytest.mark.parametrize("is_client", [True, False], ids=["client", "server"])
SMALL = {"initial_stream_window": 4 * KIB, "stream_window": 32 * KIB, "session_window": 64 * KIB}
FLOW = {codes.SETTING_WT_INITIAL_MAX_DATA: 1 << 30, 0x2B64: 1000, 0x2B65: 1000}


def ends(pair, is_client):
    return (pair.client, pair.server) if is_client else (pair.server, pair.client)


@BOTH
@pytest.mark.parametrize("unread", [2, 4, 8])
@pytest.mark.parametrize("config", [{}, SMALL], ids=["default", "small"])
def test_accepted_streams_that_nobody_reads_stall_no_other_of_their_session(
    is_client, unread, config
):
    pair = Pair(client=ClientConfig(**config), server=ServerConfig(**config), latency=0.001)
    session_id = pair.session()
    writer, reader = ends(pair, is_client)
    one, other = writer.protocol, reader.protocol
    deaf = {one.open_stream(session_id, True): 64 * MIB for _ in range(unread)}
    live = one.open_stream(session_id, False)
    assert one.sessions[session_id].flow is not None
    read = 0

    def answer(event):
        nonlocal read
        match event:
            case events.StreamOpened(stream_id=stream_id):
                other.accept_stream(stream_id)
            case events.StreamDataReceived(stream_id=stream_id, data=data) if stream_id == live:
                read += len(data)
                other.consumed(live, len(data))

    def push(event=None):
        for stream_id in list(deaf):
            while size := min(one.room(stream_id), deaf[stream_id]):
                one.send_stream(stream_id, bytes(size))
                deaf[stream_id] -= size
            one.want_room(stream_id)

    reader.react = answer
    writer.react = lambda e: push() if isinstance(e, events.StreamWritable) else None
    push()
    pair.run(1.0)
    for _ in range(30):
        size = one.room(live)
        assert one.send_stream(live, bytes(size))
        pair.run(0.05)
    # When the others have used up what can be granted, it still has its first window.
    assert read > (400 * KIB if not config else 200 * KIB)
    assert one.room(live) >= 4 * KIB
    # What the peer lets nobody send has not used up more than the first half of the credit.
    flow = one.sessions[session_id].flow
    stuck = sum(one.quic.buffered(stream_id) for stream_id in deaf)
    assert stuck <= flow.reserve + unread * one.config.stream_send_floor


@BOTH
def test_writer_is_woken_when_the_limit_of_its_stream_grows(is_client):
    pair = Pair(client=ClientConfig(**SMALL), server=ServerConfig(**SMALL))
    session_id = pair.session()
    writer, reader = ends(pair, is_client)
    one, other = writer.protocol, reader.protocol
    stream_id = one.open_stream(session_id, True)
    # As if others had used up what may be taken beyond the peer's limit of a stream.
    one.sessions[session_id].flow.reserve = 1 << 40
    one.send_stream(stream_id, bytes(one.room(stream_id)))
    pair.run()
    one.send_stream(stream_id, bytes(one.room(stream_id)))
    one.want_room(stream_id)
    pair.run()
    assert not writer.of(events.StreamWritable)
    other.accept_stream(stream_id)
    pair.run()
    assert writer.of(events.StreamWritable) == [events.StreamWritable(stream_id)]


@pytest.mark.parametrize("how", ["end", "end with data", "reset", "reset with data", "nothing"])
@pytest.mark.parametrize("flow", [False, True], ids=["without flow control", "with it"])
def test_peer_can_have_no_more_unaccepted_streams_than_slots(how, flow):
    settings = {**raw.DRAFT16, **(FLOW if flow else {})}
    peer = raw.server(settings, config=ServerConfig(max_incoming_streams=16))
    peer.end.accepts_ended = False
    session_id = peer.session()
    protocol = peer.protocol

    def fill():
        # Three are those of HTTP/3.
        made = []
        used = peer.quic.get_next_available_stream_id(is_unidirectional=True) // 4
        count = peer.quic._remote_max_streams_uni - used
        if flow:
            account = protocol.sessions[session_id].flow
            count = min(count, account.max_streams[True] - account.streams_received[True])
        for _ in range(count):
            stream_id = peer.wt_uni(session_id, b"data" if "data" in how else b"", run=True)
            made.append(stream_id)
            if "end" in how:
                peer.send(stream_id, b"", True)
            elif "reset" in how:
                peer.reset(stream_id, codes.wire_code(1))
        peer.run(1.0)
        return made

    made = fill()
    assert len(made) == (8 if flow else 13)
    for event in peer.end.of(events.StreamDataReceived):
        protocol.consumed(event.stream_id, len(event.data))
    peer.run(1.0)
    assert not fill()
    assert len(peer.end.of(events.StreamOpened)) == len(made)
    if how != "nothing":
        kind = events.StreamReset if "reset" in how else events.StreamDataReceived
        assert {e.stream_id for e in peer.end.of(kind)} >= set(made)
        for stream_id in made:
            protocol.accept_stream(stream_id)
        assert not protocol.streams
        peer.run(1.0)
        assert len(fill()) == len(made)
    protocol.close_session(session_id)
    peer.send(session_id, b"", True)
    peer.run(1.0)
    if how != "nothing":
        assert leftovers(protocol) == {}


@BOTH
def test_session_gives_stream_credit_also_when_a_stream_comes(is_client):
    pair = Pair(latency=0.001)
    session_id = pair.session()
    writer, _ = ends(pair, is_client)
    opened = [writer.protocol.open_stream(session_id, True) for _ in range(70)]
    for stream_id in opened[:50]:
        writer.protocol.send_stream(stream_id, b"", True)
    pair.run()
    for _ in range(58):
        assert writer.protocol.open_stream(session_id, True) is not None
    pair.run()
    assert writer.protocol.open_stream(session_id, True) is not None


@BOTH
def test_window_comes_back_when_all_was_read_though_our_side_is_open(is_client):
    pair = Pair()
    session_id = pair.session()
    writer, reader = ends(pair, is_client)
    stream_id = writer.protocol.open_stream(session_id, False)
    pair.run()
    reader.protocol.accept_stream(stream_id)
    session = reader.protocol.sessions[session_id]
    # An idle stream takes nothing that another one could use.
    assert session.granted == reader.protocol._granted == 0
    writer.protocol.send_stream(stream_id, bytes(8192))
    pair.run(0.5)
    assert session.granted == reader.protocol._granted > 0
    writer.protocol.send_stream(stream_id, b"data", True)
    pair.run()
    assert session.granted > 0
    reader.protocol.consumed(stream_id, 8192 + 4)
    assert session.granted == reader.protocol._granted == 0
    assert stream_id in reader.protocol.streams


@BOTH
@pytest.mark.parametrize("prefix", [b"\x40\x54", b"\x40\x54\x40"])
def test_unidirectional_stream_that_ends_inside_its_session_id_is_ignored(is_client, prefix):
    peer = raw.client() if is_client else raw.server()
    peer.session()
    peer.uni(prefix, True, run=True)
    assert peer.close_code is None
    assert not peer.protocol._partial


def test_what_waits_for_its_session_expires_when_the_timer_says_so():
    peer = raw.server()
    for since in (1000.1 + n * 0.37 for n in range(2000)):
        peer.protocol._early_since[400] = since
        peer.protocol._expire(min(peer.protocol.next_timer(), since + 5.0))
        if peer.protocol.next_timer() == since + 5.0:
            assert not peer.protocol._early_since
        peer.protocol._early_since.clear()
        peer.protocol._early_since[400] = since
        peer.protocol._expire(since + peer.protocol.config.pending_timeout)
        assert not peer.protocol._early_since


def test_keys_are_renewed_after_so_many_packets_and_data_still_flows(monkeypatch):
    monkeypatch.setattr(quic, "KEY_UPDATE_PACKETS", 300)
    pair = Pair(latency=0.001)
    session_id = pair.session()
    phases = [[], []]

    def look(e):
        if isinstance(e, events.StreamDataReceived):
            pair.server.protocol.consumed(e.stream_id, len(e.data))
        for seen, end in zip(phases, pair.ends(), strict=True):
            phase = end.protocol.quic._quic._cryptos[Epoch.ONE_RTT].key_phase
            if seen[-1:] != [phase]:
                seen.append(phase)

    pair.server.react = look
    one = pair.client.protocol
    stream_id = one.open_stream(session_id, True)
    sent = 0
    while sent < 2 * MIB:
        room = one.room(stream_id)
        one.send_stream(stream_id, bytes(room))
        sent += room
        pair.run(0.05)
    pair.run(5)
    assert len(pair.server.data(stream_id)) == sent
    assert not one.quic.closed
    assert len(phases[0]) >= 4
    assert len(phases[1]) >= 4
