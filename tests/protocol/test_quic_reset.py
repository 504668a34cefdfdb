"""
gwt.protocol.quicreset: resets that deliver the beginning of a stream, and those that are illegal.
"""

from __future__ import annotations

import pytest
from aioquic.buffer import Buffer, encode_uint_var
from aioquic.quic.connection import EPOCHS, QuicConnection
from aioquic.quic.packet import QuicErrorCode

from gwt.protocol import codes
from gwt.protocol.quicreset import PARAMETERS, RESET_STREAM_AT
from tests.helpers import raw
from tests.helpers.pair import Pair

BOTH = pytest.mark.parametrize("is_client", [True, False])
KINDS = pytest.mark.parametrize("unidirectional", [True, False])

PREFIX = b"\x40\x54\x00"


def ends(pair, is_client):
    return (pair.client, pair.server) if is_client else (pair.server, pair.client)


def peer_of(is_client, **options):
    return (raw.client if is_client else raw.server)(**options)


def at(stream_id, code, final_size, reliable_size):
    """Encode a RESET_STREAM_AT frame."""
    values = (RESET_STREAM_AT, stream_id, code, final_size, reliable_size)
    return b"".join(map(encode_uint_var, values))


def plain(stream_id, code, final_size):
    """Encode a RESET_STREAM frame."""
    return b"".join(map(encode_uint_var, (0x04, stream_id, code, final_size)))


def stream(stream_id, offset, data, fin=False):
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
