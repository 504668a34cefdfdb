"""
gwt.protocol.quicreset: resets that deliver the beginning of a stream, and those that are illegal.
"""

from __future__ import annotations

import random

import pytest
from aioquic.buffer import Buffer, encode_uint_var
from aioquic.quic.connection import EPOCHS, QuicConnection
from aioquic.quic.packet import QuicErrorCode
from aioquic.tls import Epoch

from gwt.config import ClientConfig, ServerConfig
from gwt.protocol import codes, events
from gwt.protocol.quicreset import PARAMETERS, RESET_STREAM_AT
from tests.helpers import raw
from tests.helpers.pair import Pair
from tests.helpers.raw import leftovers

BOTH = pytest.mark.parametrize("is_client", [True, False])
KINDS = pytest.mark.parametrize("unidirectional", [True, False])

PREFIX = b"\x40\x54\x00"
BODY = b"0123456789"
WHOLE = PREFIX + BODY
CODE = codes.wire_code(5)

# What is left while a session is open.
AT_REST = {"sessions", "h3", "quic", "queue"}


def ends(pair, is_client):
    return (pair.client, pair.server) if is_client else (pair.server, pair.client)


def peer_of(is_client, **options):
    return (raw.client if is_client else raw.server)(**options)


def settled(protocol):
    """Return whether nothing is left of any stream but those of HTTP/3 and of the session."""
    left = leftovers(protocol)
    return left.keys() <= AT_REST and left.get("quic", {0}) <= {0}


def at(stream_id, code, final_size, reliable_size):
    """Encode a RESET_STREAM_AT frame."""
    values = (RESET_STREAM_AT, stream_id, code, final_size, reliable_size)
    return b"".join(map(encode_uint_var, values))


def plain(stream_id, code, final_size):
    """Encode a RESET_STREAM frame."""
    return b"".join(map(encode_uint_var, (0x04, stream_id, code, final_size)))


def data(stream_id, offset, data, fin=False):
    """Encode a STREAM frame."""
    head = map(encode_uint_var, (0x0E | fin, stream_id, offset, len(data)))
    return b"".join(head) + data


class Peer(QuicConnection):
    """A bare peer that offers the extension, and notes the frames that it gets."""

    parameters = PARAMETERS
    value = b""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.resets_at = []
        handlers = self._QuicConnection__frame_handlers
        handlers[RESET_STREAM_AT] = (self._note, EPOCHS("01"))

    def _note(self, context, frame_type, buf):
        self.resets_at.append(tuple(buf.pull_uint_var() for _ in range(4)))

    def _serialize_transport_parameters(self):
        return super()._serialize_transport_parameters() + b"".join(
            encode_uint_var(parameter) + encode_uint_var(len(self.value)) + self.value
            for parameter in self.parameters
        )


@pytest.fixture
def offering(monkeypatch):
    """Let bare peers offer the extension."""

    def make(is_client, **attributes):
        monkeypatch.setattr(raw, "QuicConnection", type("Peer", (Peer,), attributes))
        return peer_of(is_client)

    return make


# The transport parameter


@BOTH
@pytest.mark.parametrize("parameters", [PARAMETERS, PARAMETERS[:1], PARAMETERS[1:]])
def test_either_parameter_offers_them(offering, is_client, parameters):
    assert offering(is_client, parameters=parameters).protocol.quic.partial_resets


@BOTH
def test_peer_without_the_parameter_is_sent_plain_resets_when_its_prefix_arrived(is_client):
    peer = peer_of(is_client)
    assert not peer.protocol.quic.partial_resets
    session_id = peer.session()
    stream_id = peer.protocol.open_stream(session_id, True)
    peer.protocol.reset_stream(stream_id, 5)
    peer.run()
    assert peer.resets == {stream_id: codes.wire_code(5)}
    assert bytes(peer.received[stream_id])[:2] == PREFIX[:2]


def test_both_parameters_are_sent_empty_and_once():
    connection = Pair().client.protocol.quic._quic
    buf = Buffer(data=connection._serialize_transport_parameters())
    found = []
    while not buf.eof():
        found.append((buf.pull_uint_var(), buf.pull_bytes(buf.pull_uint_var())))
    assert [pair for pair in found if pair[0] in PARAMETERS] == [(p, b"") for p in PARAMETERS]


def test_first_packet_of_a_client_still_holds_all_of_its_hello():
    pair = Pair()
    pair.client.take([])
    assert len(pair.client.protocol.datagrams_to_send(pair.now)) == 1


@BOTH
@pytest.mark.parametrize("parameter", PARAMETERS)
def test_parameter_with_a_value_is_an_error(offering, is_client, parameter):
    peer = offering(is_client, parameters=(parameter,), value=b"\x00")
    assert peer.close_code == QuicErrorCode.TRANSPORT_PARAMETER_ERROR
    assert not peer.protocol.quic.partial_resets


# Sending


@BOTH
@KINDS
def test_reset_right_behind_the_first_bytes_keeps_the_prefix(offering, is_client, unidirectional):
    peer = offering(is_client)
    session_id = peer.session()
    stream_id = peer.protocol.open_stream(session_id, unidirectional)
    peer.protocol.send_stream(stream_id, b"dropped")
    peer.protocol.reset_stream(stream_id, 5)
    assert peer.protocol.quic.reset_code(stream_id) == codes.wire_code(5)
    assert peer.protocol.quic.buffered(stream_id) == 3
    # A second one changes nothing.
    peer.protocol.reset_stream(stream_id, 6)
    peer.protocol.quic.reset(stream_id, 7)
    assert not peer.protocol.send_stream(stream_id, b"more")
    # The bytes and the reset share a packet, which is lost; so they are sent again.
    assert len(peer.protocol.datagrams_to_send(peer.now)) == 1
    peer.run(1.0)
    assert peer.quic.resets_at == [(stream_id, codes.wire_code(5), 3, 3)]
    assert len(peer.received[stream_id]) == 3
    assert not peer.protocol.quic.buffered(stream_id)
    assert peer.protocol.quic.sending_finished(stream_id)


@BOTH
def test_a_stream_of_the_peers_has_no_prefix_to_keep(offering, is_client):
    peer = offering(is_client)
    session_id = peer.session()
    stream_id = peer.wt_bidi(session_id, b"x", run=True)
    peer.protocol.send_stream(stream_id, b"answer")
    peer.run()
    peer.protocol.reset_stream(stream_id, 5)
    peer.run()
    assert peer.quic.resets_at == []
    assert peer.resets == {stream_id: CODE}


@BOTH
def test_reset_of_what_was_acknowledged_names_the_prefix_too(offering, is_client):
    # What the peer has acknowledged it may not have read.
    peer = offering(is_client)
    session_id = peer.session()
    stream_id = peer.protocol.open_stream(session_id, True)
    peer.protocol.send_stream(stream_id, bytes(5000))
    peer.run()
    peer.protocol.send_stream(stream_id, b"never sent")
    peer.protocol.reset_stream(stream_id, 5)
    peer.run()
    assert peer.quic.resets_at == [(stream_id, CODE, 5003, 3)]
    assert settled(peer.protocol)
    assert peer.protocol.quic.budget.buffered == peer.protocol.quic.buffered_total == 0


@BOTH
def test_reset_behind_an_end_on_its_way_keeps_the_final_size(offering, is_client):
    peer = offering(is_client)
    session_id = peer.session()
    stream_id = peer.protocol.open_stream(session_id, True)
    peer.protocol.send_stream(stream_id, BODY, end=True)
    # Both packets are lost: first the end, then the reset.
    assert peer.protocol.datagrams_to_send(peer.now)
    peer.protocol.reset_stream(stream_id, 5)
    assert peer.protocol.datagrams_to_send(peer.now)
    peer.run(2.0)
    assert set(peer.quic.resets_at) == {(stream_id, CODE, 13, 3)}
    assert len(peer.received[stream_id]) == 3 and stream_id not in peer.ended
    assert settled(peer.protocol)


@BOTH
def test_bytes_that_a_reset_keeps_are_sent_again_without_the_end(offering, is_client):
    peer = offering(is_client)
    session_id = peer.session()
    stream_id = peer.protocol.open_stream(session_id, True)
    peer.protocol.send_stream(stream_id, BODY, end=True)
    peer.protocol.quic.keep(stream_id, 13)
    assert peer.protocol.datagrams_to_send(peer.now)
    peer.protocol.reset_stream(stream_id, 5)
    peer.run(2.0)
    assert set(peer.quic.resets_at) == {(stream_id, CODE, 13, 13)}
    assert peer.received[stream_id][3:] == BODY and stream_id not in peer.ended
    assert settled(peer.protocol)


@BOTH
def test_no_more_is_kept_than_was_written(offering, is_client):
    peer = offering(is_client)
    session_id = peer.session()
    streams = [peer.protocol.open_stream(session_id, True), peer.protocol.quic.open(True)]
    for stream_id in streams:
        peer.protocol.quic.keep(stream_id, 100)
        peer.protocol.quic.reset(stream_id, CODE)
    peer.run()
    assert peer.quic.resets_at == [(streams[0], CODE, 3, 3)]
    assert peer.resets == {streams[1]: CODE}
    assert settled(peer.protocol)


@BOTH
def test_stream_that_the_peer_does_not_allow_yet_sends_nothing_of_its_reset(offering, is_client):
    peer = offering(is_client)
    peer.session()
    connection = peer.protocol.quic._quic
    real, connection._remote_max_streams_uni = connection._remote_max_streams_uni, 1
    stream_id = peer.protocol.quic.open(True, wait=False)
    peer.protocol.quic.write(stream_id, BODY)
    peer.protocol.quic.keep(stream_id, 5)
    peer.protocol.quic.reset(stream_id, CODE)
    peer.run()
    assert stream_id not in peer.received and peer.quic.resets_at == []
    connection._remote_max_streams_uni = real
    connection._unblock_streams(is_unidirectional=True)
    peer.run()
    assert peer.received[stream_id] == BODY[:5]
    assert peer.quic.resets_at == [(stream_id, CODE, 5, 5)]


@BOTH
@KINDS
def test_end_of_a_session_keeps_the_prefixes_of_its_streams(offering, is_client, unidirectional):
    peer = offering(is_client)
    session_id = peer.session()
    stream_id = peer.protocol.open_stream(session_id, unidirectional)
    peer.protocol.close_session(session_id)
    peer.run()
    assert peer.quic.resets_at == [(stream_id, codes.WT_SESSION_GONE, 3, 3)]


@BOTH
def test_stop_before_the_reset_is_answered_with_the_prefix_and_its_code(offering, is_client):
    peer = offering(is_client)
    session_id = peer.session()
    stream_id = peer.protocol.open_stream(session_id, False)
    # It overtakes the prefix, which is lost.
    assert peer.protocol.datagrams_to_send(peer.now)
    peer.inject(b"".join(map(encode_uint_var, (0x05, stream_id, CODE))))
    peer.run(1.0)
    assert set(peer.quic.resets_at) == {(stream_id, CODE, 3, 3)}
    assert len(peer.received[stream_id]) == 3


@BOTH
def test_stop_behind_the_reset_does_not_change_it(offering, is_client):
    peer = offering(is_client)
    session_id = peer.session()
    stream_id = peer.protocol.open_stream(session_id, False)
    peer.protocol.reset_stream(stream_id, 5)
    assert peer.protocol.datagrams_to_send(peer.now)
    peer.inject(b"".join(map(encode_uint_var, (0x05, stream_id, CODE + 1))))
    peer.run(1.0)
    assert set(peer.quic.resets_at) == {(stream_id, CODE, 3, 3)}


@BOTH
@pytest.mark.parametrize("limit", ["connection", "stream"])
def test_reset_waits_for_credit_for_the_bytes_that_it_keeps(offering, is_client, limit):
    peer = offering(is_client)
    session_id = peer.session()
    connection = peer.protocol.quic._quic
    stream_id = peer.protocol.open_stream(session_id, True)
    real = connection._remote_max_data
    if limit == "connection":
        connection._remote_max_data = connection._remote_max_data_used + 2
    else:
        connection._streams[stream_id].max_stream_data_remote = 2
    peer.protocol.reset_stream(stream_id, 5)
    peer.run(1.0)
    assert peer.quic.resets_at == []
    assert len(peer.received[stream_id]) == 2
    if limit == "connection":
        connection._remote_max_data = real
    else:
        connection._streams[stream_id].max_stream_data_remote = 3
    peer.run(1.0)
    assert peer.quic.resets_at == [(stream_id, CODE, 3, 3)]
    assert settled(peer.protocol)
    assert (
        connection._remote_max_data_used
        == sum(s.sender.highest_offset for s in dict.values(connection._streams)) + 3
    )


@BOTH
def test_close_returns_what_a_reset_kept_to_the_budget(offering, is_client):
    peer = offering(is_client)
    session_id = peer.session()
    stream_id = peer.protocol.open_stream(session_id, True)
    peer.protocol.send_stream(stream_id, bytes(2000))
    peer.protocol.reset_stream(stream_id, 5)
    assert peer.protocol.quic.budget.buffered == 3
    peer.protocol.close()
    assert peer.protocol.quic.budget.buffered == 0


# Receiving


class Receiving:
    """A stream of a bare peer's, told by injected frames, and an application that reads it."""

    def __init__(self, is_client):
        self.peer = peer_of(is_client)
        self.session_id = self.peer.session()
        self.id = self.peer.quic.get_next_available_stream_id(is_unidirectional=True)
        self.connection = self.peer.protocol.quic._quic
        self.used = self.connection._local_max_data.used
        self.slots = self.connection._local_max_streams_uni.value
        self.peer.end.react = self.read

    def read(self, event):
        if isinstance(event, events.StreamDataReceived):
            self.peer.protocol.consumed(event.stream_id, len(event.data))

    @property
    def told(self):
        told = []
        for event in self.peer.end.events:
            match event:
                case events.StreamOpened(stream_id=self.id):
                    told.append("opened")
                case events.StreamDataReceived(self.id, data, ended):
                    told.append(data + b"END" * ended)
                case events.StreamReset(self.id, code, reliable):
                    told.append((code, reliable))
        return told


@pytest.fixture(params=[True, False], ids=["client", "server"])
def receiving(request):
    return Receiving(request.param)


def sequences(n):
    """Frames of one stream, and what comes of them behind its opening."""
    reset = (BODY, (5, 10))
    return {
        "reset behind the bytes": ([data(n, 0, WHOLE), at(n, CODE, 13, 13)], reset),
        "reset before the bytes": ([at(n, CODE, 13, 13), data(n, 0, WHOLE)], reset),
        "only the prefix": ([at(n, CODE, 13, 3), data(n, 0, PREFIX)], ((5, 0),)),
        "nothing is promised": ([data(n, 0, WHOLE[:5]), at(n, CODE, 13, 0)], (BODY[:2], (5, 0))),
        "a gap below it": (
            [data(n, 5, WHOLE[5:8]), at(n, CODE, 13, 8), data(n, 0, WHOLE[:5])],
            (BODY[:5], (5, 5)),
        ),
        "a gap behind it": (
            [data(n, 9, WHOLE[9:]), at(n, CODE, 13, 8), data(n, 0, WHOLE[:8])],
            (BODY[:5], (5, 5)),
        ),
        "more than promised": ([at(n, CODE, 13, 4), data(n, 0, WHOLE[:8])], (BODY[:5], (5, 1))),
        "byte by byte": (
            [at(n, CODE, 13, 5), *(data(n, i, WHOLE[i : i + 1]) for i in (4, 2, 0, 1, 3, 5))],
            (BODY[:2], (5, 2)),
        ),
        "the end with it": ([at(n, CODE, 13, 13), data(n, 0, WHOLE, fin=True)], reset),
        "the end alone before it": (
            [data(n, 13, b"", fin=True), at(n, CODE, 13, 13), data(n, 0, WHOLE)],
            reset,
        ),
        "the end alone behind it": (
            [at(n, CODE, 13, 13), data(n, 13, b"", fin=True), data(n, 0, WHOLE)],
            reset,
        ),
        "promised less": (
            [at(n, CODE, 13, 13), at(n, CODE, 13, 4), data(n, 0, WHOLE[:4])],
            (BODY[:1], (5, 1)),
        ),
        "promised less than there is": (
            [data(n, 0, WHOLE[:6]), at(n, CODE, 13, 8), at(n, CODE, 13, 5)],
            (BODY[:3], (5, 2)),
        ),
        "promised more, out of order": (
            [at(n, CODE, 13, 4), at(n, CODE, 13, 13), data(n, 0, WHOLE[:4])],
            (BODY[:1], (5, 1)),
        ),
        "a plain reset behind it": (
            [data(n, 0, WHOLE[:5]), at(n, CODE, 13, 8), plain(n, CODE, 13)],
            (BODY[:2], (5, 0)),
        ),
        "a plain reset before it": (
            [data(n, 0, WHOLE[:5]), plain(n, CODE, 13), at(n, CODE, 13, 8)],
            (BODY[:2], (5, 0)),
        ),
        "again and again": ([data(n, 0, WHOLE), *[at(n, CODE, 13, 13)] * 3], reset),
        "bytes behind the reset": (
            [data(n, 0, WHOLE[:5]), at(n, CODE, 13, 5), data(n, 0, WHOLE, fin=True)],
            (BODY[:2], (5, 2)),
        ),
    }


@pytest.mark.parametrize("name", sequences(0))
@pytest.mark.parametrize("together", [True, False], ids=["in one packet", "in packets"])
def test_what_is_promised_is_delivered_and_then_the_reset(receiving, name, together):
    frames, expected = sequences(receiving.id)[name]
    for payload in [b"".join(frames)] if together else frames:
        receiving.peer.inject(payload)
    told = receiving.told
    assert told[0] == "opened"
    # The reset comes once, behind all bytes.
    assert (b"".join(told[1:-1]), told[-1]) == (expected[0] if expected[1:] else b"", expected[-1])
    receiving.peer.run()
    assert receiving.peer.close_code is None
    assert settled(receiving.peer.protocol)
    # What was never sent is used up, and the slot is free again.
    assert receiving.connection._local_max_data.used == receiving.used + 13
    assert receiving.connection._stream_is_discarded(receiving.id)
    assert receiving.connection._local_max_streams_uni.value == receiving.slots + 1
    # Nothing is known of it any more that a frame could contradict.
    receiving.peer.inject(at(receiving.id, CODE + 1, 14, 13) + plain(receiving.id, CODE, 12))
    assert receiving.peer.close_code is None
    assert receiving.told == told


def test_reset_that_promises_nothing_of_an_unknown_stream_is_a_plain_one(receiving):
    receiving.peer.inject(at(receiving.id, CODE, 13, 0))
    receiving.peer.run()
    assert receiving.told == []
    assert receiving.peer.close_code is None
    assert settled(receiving.peer.protocol)


def test_reset_waits_for_as_long_as_the_bytes_do(receiving):
    receiving.peer.inject(data(receiving.id, 0, WHOLE[:5]))
    receiving.peer.inject(at(receiving.id, CODE, 13, 8))
    receiving.peer.run(5.0)
    assert receiving.told == ["opened", BODY[:2]]
    # A session that ends takes it along; a peer that answers with nothing but the bytes is heard.
    stops = []
    receiving.peer.quic._QuicConnection__frame_handlers[0x05] = (
        lambda context, frame_type, buf: stops.append((buf.pull_uint_var(), buf.pull_uint_var())),
        EPOCHS("1"),
    )
    receiving.peer.protocol.close_session(receiving.session_id)
    receiving.peer.run()
    assert (receiving.id, codes.WT_SESSION_GONE) in stops
    receiving.peer.inject(data(receiving.id, 5, WHOLE[5:8]))
    receiving.peer.run()
    assert receiving.told == ["opened", BODY[:2]]
    assert receiving.id not in receiving.peer.protocol.quic._quic._streams
    assert receiving.id not in receiving.peer.protocol._ignored


@BOTH
def test_session_s_account_counts_what_never_arrives(is_client):
    # Of an answer on a stream of ours, too, which has no prefix.
    flow = {
        codes.SETTING_WT_INITIAL_MAX_DATA: 1 << 20,
        codes.SETTING_WT_INITIAL_MAX_STREAMS_BIDI: 9,
    }
    peer = peer_of(
        is_client, settings={**(raw.DRAFT16_SERVER if is_client else raw.DRAFT16), **flow}
    )
    session_id = peer.session()
    session = peer.protocol.sessions[session_id]
    ours = peer.protocol.open_stream(session_id, False)
    theirs = peer.quic.get_next_available_stream_id()
    peer.run()
    peer.inject(at(ours, CODE, 1000, 4) + data(ours, 0, b"answer"))
    peer.inject(at(theirs, CODE, 1003, 4) + data(theirs, 0, b"\x40\x41\x00x"))
    assert session.flow.received == 2000
    assert peer.end.of(events.StreamReset) == [
        events.StreamReset(ours, 5, 4),
        events.StreamReset(theirs, 5, 1),
    ]


@pytest.mark.parametrize("body", [b"", b"some"])
@KINDS
def test_stream_that_is_reset_before_its_session_is_told_of_with_it(unidirectional, body):
    flow = {codes.SETTING_WT_INITIAL_MAX_DATA: 1 << 20}
    peer = raw.server(settings={**raw.DRAFT16, **flow})
    session_id = peer.bidi(b"", run=False)
    stream_id = peer.quic.get_next_available_stream_id(is_unidirectional=unidirectional)
    kind = b"\x40\x54" if unidirectional else b"\x40\x41"
    peer.inject(data(stream_id, 0, kind + b"\x00" + body))
    peer.inject(at(stream_id, CODE, 1003, 3))
    assert not peer.end.of(events.StreamOpened) + peer.end.of(events.StreamReset)
    request = raw.frame(raw.HEADERS, raw.header_block(raw.connect_headers()))
    peer.send(session_id, request)
    assert peer.protocol.accept_session(session_id)
    peer.protocol.accept_stream(stream_id)
    peer.protocol.consumed(stream_id, len(body))
    peer.run()
    told = [e for e in peer.end.events if getattr(e, "stream_id", None) == stream_id]
    assert told[:-1] == [
        events.StreamOpened(session_id, stream_id),
        *([events.StreamDataReceived(stream_id, body, False)] if body else []),
    ]
    assert told[-1] == events.StreamReset(stream_id, 5, 0)
    assert peer.protocol.sessions[session_id].flow.received == 1000
    if unidirectional:
        assert settled(peer.protocol)


def test_what_never_arrives_of_a_stream_that_is_refused_counts_too():
    flow = {codes.SETTING_WT_INITIAL_MAX_DATA: 1 << 20}
    peer = raw.server(
        settings={**raw.DRAFT16, **flow}, config=ServerConfig(max_incoming_streams=32)
    )
    peer.session()
    peer.session()
    session_id = peer.request()
    prefix = b"\x40\x54" + encode_uint_var(session_id)
    first = peer.quic.get_next_available_stream_id(is_unidirectional=True)
    # One more than the session's share of a third.
    for stream_id in range(first, first + 11 * 4, 4):
        peer.inject(data(stream_id, 0, prefix + b"x") + at(stream_id, CODE, 1003, 3))
    peer.protocol.accept_session(session_id)
    peer.run()
    assert peer.protocol.counters["streams_refused"] == 1
    assert peer.protocol.sessions[session_id].flow.received == 11 * 1000


@pytest.mark.parametrize("end", ["expire", "reject", "abort", "full"])
@KINDS
def test_stream_that_is_reset_before_a_session_that_never_comes_is_given_up(unidirectional, end):
    config = ServerConfig(pending_timeout=2.0, max_pending_streams=1 if end == "full" else 9)
    peer = raw.server(config=config)
    session_id = peer.bidi(b"", run=False)
    opener = peer.wt_uni if unidirectional else peer.wt_bidi
    first, second = (opener(session_id, b"x", run=True) for _ in range(2))
    peer.inject(at(first, CODE, 4, 3))
    peer.inject(at(second, CODE, 4, 4))
    if end != "expire":
        peer.send(session_id, raw.frame(raw.HEADERS, raw.header_block(raw.connect_headers())))
    if end == "reject":
        peer.protocol.reject_session(session_id, 404)
    elif end == "abort":
        peer.protocol.abort_session(session_id)
    elif end == "full":
        peer.protocol.accept_session(session_id)
        peer.run()
        assert peer.end.of(events.StreamReset) == [events.StreamReset(first, 5, 0)]
        peer.protocol.close_session(session_id)
    peer.run(3.0)
    assert not peer.protocol.streams and not peer.protocol._ignored.keys() - {session_id}
    assert peer.protocol._early_streams == peer.protocol._unaccepted == 0
    assert len(peer.end.of(events.StreamReset)) == (end == "full")


# What is illegal (sections 3 to 5 of the draft)


def offences(n):
    return {
        "more promised than there is": (
            [at(n, CODE, 13, 14)],
            QuicErrorCode.FRAME_ENCODING_ERROR,
        ),
        "cut off": ([at(n, CODE, 13, 3)[:-1]], QuicErrorCode.FRAME_ENCODING_ERROR),
        "another final size": (
            [at(n, CODE, 13, 3), at(n, CODE, 14, 3)],
            QuicErrorCode.FINAL_SIZE_ERROR,
        ),
        "a smaller final size": (
            [data(n, 0, WHOLE), at(n, CODE, 12, 3)],
            QuicErrorCode.FINAL_SIZE_ERROR,
        ),
        "another final size than the end's": (
            [data(n, 4, BODY, fin=True), at(n, CODE, 13, 3)],
            QuicErrorCode.FINAL_SIZE_ERROR,
        ),
        "another final size in a plain one": (
            [at(n, CODE, 13, 3), plain(n, CODE, 12)],
            QuicErrorCode.FINAL_SIZE_ERROR,
        ),
        "an end at another size": (
            [at(n, CODE, 14, 3), data(n, 0, WHOLE, fin=True)],
            QuicErrorCode.FINAL_SIZE_ERROR,
        ),
        "bytes beyond it": (
            [at(n, CODE, 12, 3), data(n, 0, WHOLE)],
            QuicErrorCode.FINAL_SIZE_ERROR,
        ),
        "another code": (
            [at(n, CODE, 13, 3), at(n, CODE + 1, 13, 3)],
            QuicErrorCode.STREAM_STATE_ERROR,
        ),
        "another code in a plain one": (
            [at(n, CODE, 13, 3), plain(n, CODE + 1, 13)],
            QuicErrorCode.STREAM_STATE_ERROR,
        ),
        "another code when nothing was promised": (
            [data(n, 0, PREFIX), at(n, CODE, 13, 0) + at(n, CODE + 1, 13, 0)],
            QuicErrorCode.STREAM_STATE_ERROR,
        ),
        "beyond the stream's window": (
            [at(n, CODE, 16 * 1024 + 1, 3)],
            QuicErrorCode.FLOW_CONTROL_ERROR,
        ),
        "a stream beyond the limit": (
            [at(n + 4 * 300, CODE, 13, 3)],
            QuicErrorCode.STREAM_LIMIT_ERROR,
        ),
        "a stream that we only send on": (
            # Ours of HTTP/3; the lowest bit says whose it is.
            [at((n & 3) ^ 1, CODE, 13, 3)],
            QuicErrorCode.STREAM_STATE_ERROR,
        ),
        "a stream that we never opened": (
            [at(((n & 1) ^ 1) + 400, CODE, 13, 3)],
            QuicErrorCode.STREAM_STATE_ERROR,
        ),
    }


@pytest.mark.parametrize("name", offences(2))
def test_illegal_reset_closes_the_connection_with_its_code(receiving, name):
    frames, code = offences(receiving.id)[name]
    for frame in frames[:-1]:
        receiving.peer.inject(frame)
    assert receiving.peer.close_code is None
    receiving.peer.inject(frames[-1])
    assert receiving.peer.close_code == code


def test_final_size_is_subject_to_the_limit_of_the_connection(receiving):
    limit = receiving.connection._local_max_data
    limit.value = limit.used + 12
    receiving.peer.inject(at(receiving.id, CODE, 12, 3))
    assert receiving.peer.close_code is None
    receiving.peer.inject(at(receiving.id + 4, CODE, 1, 0))
    assert receiving.peer.close_code == QuicErrorCode.FLOW_CONTROL_ERROR


def test_frame_is_of_application_packets_only(receiving):
    _, epochs = receiving.connection._frame_table[RESET_STREAM_AT]
    assert epochs == {Epoch.ZERO_RTT, Epoch.ONE_RTT}


# Two of ours, over a network that loses and reorders

NETWORKS = {
    "loss": {"loss": 0.15},
    "reordering": {"jitter": 0.05},
    "everything": {"loss": 0.1, "jitter": 0.03},
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", range(8))
def test_every_byte_that_is_kept_arrives_once_and_then_the_reset(name, seed):
    config = {"max_incoming_streams": 16, "idle_timeout": 600.0}
    if seed % 2:
        config |= {"initial_stream_window": 2048, "stream_window": 8192}
    pair = Pair(
        client=ClientConfig(**config), server=ServerConfig(**config), seed=seed, **NETWORKS[name]
    )
    session_id = pair.session()
    one, other = ends(pair, seed % 4 < 2)
    rng = random.Random(seed)

    def read(event):
        if isinstance(event, events.StreamOpened):
            other.protocol.accept_stream(event.stream_id)
        elif isinstance(event, events.StreamDataReceived):
            other.protocol.consumed(event.stream_id, len(event.data))
        if isinstance(event, events.StreamReset) or getattr(event, "ended", False):
            other.protocol.reset_stream(event.stream_id, 1)

    other.react = read
    written = {}
    # More streams than there are slots: all of them come back.
    for number in range(40):
        opened = []

        def may_open(number=number, opened=opened):
            stream_id = one.protocol.open_stream(session_id, number % 2 == 0)
            opened.extend([] if stream_id is None else [stream_id])
            return opened

        pair.run_until(may_open)
        stream_id = opened[0]
        body = rng.randbytes(rng.choice((0, 1, 100, 3000, 12_000)))
        kept = rng.randint(0, len(body))
        one.protocol.send_stream(stream_id, body, end=rng.random() < 0.3)
        one.protocol.quic.keep(stream_id, 3 + kept)
        if rng.random() < 0.7:
            pair.run(rng.random() * 0.1)
        one.protocol.reset_stream(stream_id, number)
        written[stream_id] = (body, kept, number)
    pair.run(60.0)
    for stream_id, (body, kept, number) in written.items():
        told = [e for e in other.events if getattr(e, "stream_id", None) == stream_id]
        arrived = other.data(stream_id)
        assert arrived == body[: len(arrived)]
        ended = [e for e in told if isinstance(e, events.StreamDataReceived) and e.ended]
        resets = [e for e in told if isinstance(e, events.StreamReset)]
        if ended:
            # All had arrived, and the end with it, before the reset did.
            assert arrived == body and not resets
            continue
        assert len(arrived) >= kept
        assert resets == [events.StreamReset(stream_id, number, kept)]
        said = [e for e in told if isinstance(e, (events.StreamDataReceived, events.StreamReset))]
        assert said[-1] == resets[0]
        assert len([e for e in told if isinstance(e, events.StreamOpened)]) == 1
    for end in (one, other):
        assert settled(end.protocol)
        assert end.protocol.quic.buffered_total == end.protocol.quic.budget.buffered == 0
    assert one.protocol.quic._quic.partial_resets and other.protocol.quic._quic.partial_resets
