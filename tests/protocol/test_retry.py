"""gwt.protocol.retry: tokens that prove an address, and the packet that asks for one."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwt.config import ServerConfig
from gwt.protocol import events
from gwt.protocol.packets import Newcomer, classify
from gwt.protocol.quic import Quic
from gwt.protocol.retry import LIFETIME, InvalidToken, encode_retry, make_token, open_token
from gwt.protocol.seam import CONNECTION_ID_LENGTH, VERSIONS
from gwt.protocol.webtransport import WebTransport
from tests.helpers.pair import CLIENT, SERVER, End, Pair, quic_options
from tests.protocol.test_packets import aioquic_client

KEY = bytes(range(32))


def bringing(token, destination=b"retry-id"):
    _, first = aioquic_client()
    newcomer = classify(first)
    return Newcomer(newcomer.kind, newcomer.version, destination, newcomer.source, token)


def test_a_token_brings_back_what_the_client_wrote_to():
    token = make_token(KEY, CLIENT, b"original-id", b"retry-id", 5.0)
    assert open_token(KEY, bringing(token), CLIENT, 5.1) == b"original-id"


@pytest.mark.parametrize("token", [b"", b"something else", b"\x00" * 200])
def test_a_token_that_is_not_ours_counts_as_none(token):
    assert open_token(KEY, bringing(token), CLIENT, 5.0) is None


@pytest.mark.parametrize(
    "change",
    [
        {"address": ("192.0.2.99", CLIENT[1])},
        {"address": (CLIENT[0], CLIENT[1] + 1)},
        {"destination": b"another-one"},
        {"key": bytes(32)},
        {"now": 5.1 + LIFETIME},
        {"now": 3.0},
    ],
    ids=["host", "port", "connection id", "key", "late", "early"],
)
def test_a_token_is_good_for_one_client_and_a_short_time(change):
    token = make_token(KEY, CLIENT, b"original-id", b"retry-id", 5.0)
    newcomer = bringing(token, change.get("destination", b"retry-id"))
    address, now = change.get("address", CLIENT), change.get("now", 5.0)
    with pytest.raises(InvalidToken):
        open_token(change.get("key", KEY), newcomer, address, now)


def test_an_ipv6_address_is_as_good():
    address = ("2001:db8::1", 443, 0, 0)
    token = make_token(KEY, address, b"original-id", b"retry-id", 5.0)
    assert open_token(KEY, bringing(token), address, 5.0) == b"original-id"


@given(st.data())
def test_a_token_that_was_changed_anywhere_is_none_or_invalid(data):
    token = bytearray(make_token(KEY, CLIENT, b"original-id", b"retry-id", 5.0))
    index = data.draw(st.integers(0, len(token) - 1))
    token[index] ^= data.draw(st.integers(1, 255))
    token = token[: data.draw(st.integers(0, len(token)))]
    with contextlib.suppress(InvalidToken):
        assert open_token(KEY, bringing(bytes(token)), CLIENT, 5.0) is None


def test_no_part_of_a_token_can_be_taken_for_another():
    """The address is between two parts that a client chooses: it must not run into either."""
    original = b"\0" * 8 + bytes([8, 9]) + b"192.0.2.7"
    token = make_token(KEY, ("192.0.2.1", 1), original, b"12345678", 5.0)
    for end in range(8, len(original)):
        shorter = token[: 12 + end] + token[-16:]
        for source in (original[end:] + b"12345678", b"12345678" + original[end:], b"12345678"):
            newcomer = bringing(shorter, source[:20])
            with pytest.raises(InvalidToken):
                open_token(KEY, newcomer, ("192.0.2.7", 1), 5.0)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_retry_is_smaller_than_what_asked_for_it_and_makes_the_client_come_again(version):
    client, first = aioquic_client(original_version=version)
    newcomer = classify(first)
    assert newcomer.version == version
    answer = encode_retry(KEY, newcomer, CLIENT, 1.0)
    assert len(answer) < 150
    client.receive_datagram(answer, SERVER, 1.1)
    ((second, _), *_) = client.datagrams_to_send(1.1)
    again = classify(second)
    assert again.source == newcomer.source
    assert len(again.destination) == CONNECTION_ID_LENGTH != newcomer.destination
    assert open_token(KEY, again, CLIENT, 1.2) == newcomer.destination


class RetryPair(Pair):
    """A pair whose server answers the first packet with a Retry."""

    def _deliver(self, to_server, data):
        if to_server and self.server is None:
            newcomer = classify(data)
            original = open_token(KEY, newcomer, CLIENT, self.now)
            if original is None:
                answer = encode_retry(KEY, newcomer, CLIENT, self.now)
                if self.random.random() < self.loss:
                    return
                self.client.take(self.client.protocol.receive_datagrams([answer], SERVER, self.now))
                return
            quic = Quic(
                quic_options(self.server_config, is_client=False),
                original_destination_connection_id=original,
                retry_source_connection_id=newcomer.destination,
            )
            self.server = End(WebTransport(quic, ServerConfig()))
        super()._deliver(to_server, data)


def test_our_client_and_server_do_the_handshake_behind_a_retry():
    pair = RetryPair()
    session = pair.session()
    stream = pair.client.protocol.open_stream(session, True)
    pair.client.protocol.send_stream(stream, b"x" * 10_000, True)
    pair.run()
    assert pair.server.last(events.StreamDataReceived).ended


@pytest.mark.parametrize("seed", range(6))
def test_a_handshake_behind_a_retry_survives_loss(seed):
    """Every packet of it may be the one that is lost, the Retry included."""
    pair = RetryPair(loss=0.3, seed=seed)
    pair.run_until(lambda: pair.client.of(events.HandshakeCompleted), seconds=60)


def test_behind_a_retry_the_address_is_validated_from_the_first_packet():
    """RFC 9000 8.1: nothing then limits what may be sent there, however large a certificate."""
    pair = RetryPair()
    pair.run_until(lambda: pair.server is not None)
    (path,) = pair.server.protocol.quic._quic._network_paths
    assert path.is_validated


def test_without_a_retry_the_address_is_not_validated_by_the_first_packet():
    pair = Pair()
    pair.run_until(lambda: pair.server is not None)
    (path,) = pair.server.protocol.quic._quic._network_paths
    assert not path.is_validated
