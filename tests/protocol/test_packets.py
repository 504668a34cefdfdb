"""gwt.protocol.packets: what a datagram of an unknown sender is, and the answers without state."""

from __future__ import annotations

import ssl

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated
from hypothesis import given
from hypothesis import strategies as st

from gwt.protocol import codes
from gwt.protocol.packets import Kind, classify, encode_refusal, routing_id
from gwt.protocol.seam import VERSIONS
from tests.helpers.pair import SERVER


def aioquic_client(**options):
    client = QuicConnection(
        configuration=QuicConfiguration(
            is_client=True,
            alpn_protocols=["h3"],
            server_name="example.test",
            verify_mode=ssl.CERT_NONE,
            **options,
        )
    )
    client.connect(SERVER, 1.0)
    ((first, _),) = client.datagrams_to_send(1.0)
    return client, first


def events_of(client):
    found = []
    while (event := client.next_event()) is not None:
        found.append(event)
    return found


def long_header(version, destination=bytes(8), source=bytes(8), size=1200, first=0xC0):
    data = (
        bytes([first])
        + version.to_bytes(4, "big")
        + bytes([len(destination)])
        + destination
        + bytes([len(source)])
        + source
    )
    return data + bytes(max(0, size - len(data)))


def test_first_packet_of_a_client_is_initial_and_names_both_ids():
    client, first = aioquic_client()
    newcomer = classify(first)
    assert newcomer.kind is Kind.INITIAL
    assert newcomer.version in VERSIONS
    assert newcomer.destination == client.original_destination_connection_id
    assert newcomer.source == client.host_cid
    assert routing_id(first) == newcomer.destination


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x40",
        b"\xc0",
        b"\x40" + bytes(1300),
        b"hello" * 300,
        # A Version Negotiation packet is never answered.
        long_header(0),
        # Too small to be worth an answer.
        long_header(0x1A2A3A4A, size=1199),
        long_header(1, size=1199),
        # Handshake, 0-RTT, Retry.
        long_header(1, first=0xE0),
        long_header(1, first=0xD0),
        long_header(1, first=0xF0),
        # Connection ids that cannot be.
        long_header(1, destination=bytes(7)),
        long_header(1, destination=bytes(21)),
        long_header(0x1A2A3A4A, destination=bytes(21)),
        b"\xc0\x1a\x2a\x3a\x4a\xff" + bytes(1300),
        b"\xc0\x1a\x2a\x3a\x4a\x00\xff" + bytes(200),
    ],
    ids=lambda data: f"{data[:7].hex()}x{len(data)}",
)
def test_what_cannot_start_a_connection_is_dropped(data):
    assert classify(data).kind is Kind.DROP


def test_unknown_version_is_answered_with_ours():
    newcomer = classify(long_header(0x1A2A3A4A, b"destinat", b"src"))
    assert newcomer.kind is Kind.NEGOTIATE
    assert (newcomer.destination, newcomer.source) == (b"destinat", b"src")
    answer = newcomer.version_negotiation()
    assert answer[1:5] == bytes(4)
    assert routing_id(answer) == b"src"
    assert classify(answer + bytes(1200)).kind is Kind.DROP
    for version in VERSIONS:
        assert version.to_bytes(4, "big") in answer


def test_version_negotiation_is_understood_by_a_client():
    client, first = aioquic_client(
        original_version=0x1A2A3A4A, supported_versions=[0x1A2A3A4A, *VERSIONS]
    )
    newcomer = classify(first)
    assert newcomer.kind is Kind.NEGOTIATE
    client.receive_datagram(newcomer.version_negotiation(), SERVER, 1.1)
    ((second, _), *_) = client.datagrams_to_send(1.1)
    assert classify(second).kind is Kind.INITIAL


@pytest.mark.parametrize("code", [codes.QUIC_CONNECTION_REFUSED, codes.QUIC_INTERNAL_ERROR])
@pytest.mark.parametrize("reason", ["", "the server is full", "x" * 5000])
def test_refusal_is_understood_by_a_client(code, reason):
    client, first = aioquic_client()
    answer = encode_refusal(classify(first), code, reason)
    assert len(answer) <= 1200
    client.receive_datagram(answer, SERVER, 1.1)
    client.handle_timer(client.get_timer() + 0.001)
    (ended,) = [e for e in events_of(client) if isinstance(e, ConnectionTerminated)]
    assert ended.error_code == code
    assert reason.startswith(ended.reason_phrase)
    assert bool(ended.reason_phrase) == bool(reason)


@given(st.binary(max_size=60), st.integers(0, 1300))
def test_garbage_of_any_length_is_classified_without_an_error(data, padding):
    data += bytes(padding)
    newcomer = classify(data)
    if newcomer.kind is Kind.NEGOTIATE:
        newcomer.version_negotiation()
    elif newcomer.kind is Kind.INITIAL:
        encode_refusal(newcomer, codes.QUIC_CONNECTION_REFUSED)
    assert len(routing_id(data)) <= 255


@given(st.data())
def test_damaged_first_packet_is_classified_without_an_error(data):
    _, first = aioquic_client()
    damaged = bytearray(first)
    for index in data.draw(st.lists(st.integers(0, 60), max_size=8)):
        damaged[index] = data.draw(st.integers(0, 255))
    newcomer = classify(bytes(damaged))
    if newcomer.kind is Kind.INITIAL:
        assert len(newcomer.destination) >= 8


@pytest.mark.parametrize("size", range(0, 30))
def test_routing_id_of_every_short_datagram_is_bytes(size):
    for first in (0x00, 0x40, 0x80, 0xC0):
        assert isinstance(routing_id((bytes([first]) + b"\x08" * 29)[:size]), bytes)


def test_routing_id_is_where_each_header_has_it():
    assert routing_id(b"\x40" + b"12345678" + b"rest") == b"12345678"
    assert routing_id(long_header(1, b"12345")) == b"12345"
    assert routing_id(long_header(0xABCDEF01, b"x" * 20)) == b"x" * 20
