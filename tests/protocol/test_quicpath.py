"""
gwt.protocol.quicpath: how large packets become, on paths that carry so much and no more, that
change, and that lose packets for other reasons.
"""

from __future__ import annotations

import random

import pytest

from gwt.config import ClientConfig, ServerConfig
from gwt.protocol import events
from gwt.protocol.quicpath import BASE
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
    transfer = Transfer(pair, session_id, is_client, 1_000_000)
    transfer.finish(pair)
    sent = path.seen[is_client]
    assert max(sent) == size
    assert sum(sent) < 1_060_000
    assert len(sent) < 1_000_000 / size * 1.5
    assert one.protocol.quic.stats()["frames_lost"] == 0


@pytest.mark.parametrize("size", [BASE, 1452, 16_000])
def test_handshake_has_base_size_whatever_was_asked_for(size):
    pair = make(size, size)
    path = Path(pair)
    pair.run_until(lambda: pair.client.protocol.quic._quic._handshake_confirmed)
    confirmed = pair.server.protocol.quic._quic._handshake_confirmed
    assert confirmed
    assert path.seen[True][0] == BASE
    assert path.seen[False][0] == BASE
    assert max(path.seen[True]) == BASE
    # The server's is confirmed earlier, and its probe may be under way.
    assert set(path.seen[False]) <= set(range(BASE + 1)) | {size}
    assert path.seen[False].count(size) <= 1 or size == BASE
