"""What one lost packet, or one that came twice, may not do: each of these once did."""

from __future__ import annotations

import pytest
from aioquic.tls import Epoch

from gwt.protocol import codes, events, quic
from gwt.protocol.capsules import encode_varint
from tests.helpers import raw
from tests.helpers.pair import CLIENT, Pair
from tests.helpers.raw import leftovers

BOTH = pytest.mark.parametrize("is_client", [True, False], ids=["client", "server"])


def test_new_keys_are_heard_of_though_their_first_packet_is_lost(monkeypatch):
    """A reader sends acknowledgements only: when one is lost, nothing is sent again for it."""
    peer = raw.server()
    ours = peer.protocol
    stream_id = peer.wt_uni(peer.session(), b"first", run=True)
    ours.accept_stream(stream_id)
    peer.run()
    peer.send(stream_id, b"second")
    monkeypatch.setattr(quic, "KEY_UPDATE_PACKETS", ours.quic.packets_sent)
    peer.quic.send_stream_data(stream_id, b"third")
    for data, _ in peer.quic.datagrams_to_send(peer.now):
        peer.end.take(ours.receive_datagrams([data], CLIENT, peer.now))
    peer.now = ours.next_timer()
    ours.on_timer(peer.now)
    assert ours.datagrams_to_send(peer.now), "the acknowledgement that is lost"
    monkeypatch.undo()
    assert ours.quic._quic._cryptos[Epoch.ONE_RTT].key_phase == 1
    peer.run(5)
    peer.send(stream_id, b"fourth", True)
    peer.run(5)
    assert peer.end.data(stream_id) == b"firstsecondthirdfourth"
    assert peer.quic._cryptos[Epoch.ONE_RTT].key_phase == 1


@BOTH
def test_stop_sending_that_comes_again_is_told_once(is_client):
    peer = raw.client() if is_client else raw.server()
    session_id = peer.session()
    stream_id = peer.protocol.open_stream(session_id, False)
    peer.run()
    frame = b"\x05" + encode_varint(stream_id) + encode_varint(codes.wire_code(7))
    for _ in range(2):
        peer.inject(frame)
    peer.run()
    assert peer.end.of(events.StreamStopped) == [events.StreamStopped(stream_id, 7)]


@BOTH
@pytest.mark.parametrize("opened_by_us", [True, False])
@pytest.mark.parametrize("arrived", [0, 4, 10])
def test_what_a_reset_keeps_from_arriving_is_credit_all_the_same(is_client, opened_by_us, arrived):
    flow = {codes.SETTING_WT_INITIAL_MAX_DATA: 1 << 30, 0x2B64: 1000, 0x2B65: 1000}
    settings = {**(raw.DRAFT16_SERVER if is_client else raw.DRAFT16), **flow}
    peer = raw.client(settings) if is_client else raw.server(settings)
    session_id = peer.session()
    if opened_by_us:
        stream_id = peer.protocol.open_stream(session_id, False)
        peer.run()
        peer.send(stream_id, bytes(arrived))
        final = 10
    else:
        stream_id = peer.wt_bidi(session_id, bytes(arrived), run=True)
        final = 3 + 10
    peer.protocol.accept_stream(stream_id)
    peer.inject(b"\x04" + b"".join(map(encode_varint, (stream_id, codes.wire_code(7), final))))
    peer.run()
    assert peer.end.of(events.StreamReset) == [events.StreamReset(stream_id, 7)]
    peer.protocol.consumed(stream_id, arrived)
    account = peer.protocol.sessions[session_id].flow
    assert (account.received, account.consumed) == (10, 10)


def test_a_session_whose_end_was_lost_is_not_followed_by_another_too_soon():
    peer = raw.client({**raw.DRAFT16_SERVER, codes.SETTING_WT_INITIAL_MAX_DATA: 0})
    ours = peer.protocol
    session_id = peer.session()
    assert not ours.may_open_session(), "without flow control there is one at a time"
    ours.close_session(session_id)
    assert ours.datagrams_to_send(peer.now), "what is lost"
    assert not ours.may_open_session()
    peer.run(2.0)
    assert ours.may_open_session()


@BOTH
def test_nothing_is_remembered_of_who_waits_on_what_is_over(is_client):
    """A writer may be woken by what comes before the end of its session, and ask again behind."""
    pair = Pair()
    session_id = pair.session()
    end = pair.client if is_client else pair.server
    stream_id = end.protocol.open_stream(session_id, True)
    end.protocol.close_session(session_id)
    end.protocol.want_room(stream_id)
    end.protocol.want_stream(session_id)
    pair.run(1.0)
    assert not leftovers(pair.client.protocol) and not leftovers(pair.server.protocol)
