"""Flow control from end to end: who does not read stops the writer, and both stay small."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import gevent
import pytest

import gwt
from tests.helpers import spawn
from tests.scale.peer import CHUNK, Peer, pattern, rest

MIB = 1024 * 1024
GIB = 1024 * MIB

# What a process may grow by, whatever the other side would like to send.
BOUND = 32 * MIB

pytestmark = [pytest.mark.slow, pytest.mark.deadline(120)]


@pytest.fixture(scope="module")
def digest() -> str:
    whole = hashlib.sha256()
    for start in range(0, 64 * MIB, CHUNK):
        whole.update(pattern(start, CHUNK))
    return f"{64 * MIB} {whole.hexdigest()}"


@pytest.fixture
def server() -> Iterator[Peer]:
    with Peer.server() as peer:
        yield peer


@pytest.fixture
def client(server: Peer) -> Iterator[Peer]:
    with Peer.client(server) as peer:
        peer.ask("echo")
        yield peer


def growth(idle: dict[str, int], peer: Peer) -> int:
    return peer.ask("memory")["peak"] - idle["now"]


@pytest.mark.parametrize(
    ("sessions", "streams"),
    [
        pytest.param(1, 1, id="one stream"),
        pytest.param(1, 100, id="100 streams"),
        pytest.param(20, 1, id="20 sessions with connections of their own"),
    ],
)
@pytest.mark.parametrize("accepting", [True, False], ids=["accepts", "does not even accept"])
@pytest.mark.parametrize("upload", [True, False], ids=["upload", "download"])
def test_a_gibibyte_for_a_reader_that_never_reads_stops_in_the_sender(
    server, client, sessions, streams, accepting, upload
):
    idle = {peer: peer.ask("memory") for peer in (server, client)}
    each = GIB // sessions
    if upload:
        client.ask("connect", path="/accept" if accepting else "/ignore", sessions=sessions)
        client.ask("upload", streams=streams, size=each)
    else:
        client.ask("connect", path=f"/pour/{streams}/{each}", sessions=sessions)
        if accepting:
            client.ask("accept_all")
    taken = sum(rest(server, client))
    assert CHUNK <= taken < 2 * BOUND
    grown = {name: growth(idle[p], p) for name, p in (("server", server), ("client", client))}
    assert max(grown.values()) <= BOUND, grown


def test_what_was_uploaded_to_a_sleeper_arrives_whole_when_it_wakes(server, digest):
    with gwt.connect(f"{server.url}/digest", verify=False) as session:
        stream = session.create_bidirectional_stream()
        sent = 0

        def write() -> None:
            nonlocal sent
            for start in range(0, 64 * MIB, CHUNK):
                stream.write(pattern(start, CHUNK))
                sent += CHUNK
            stream.finish()

        writing = spawn(write)
        before = -1
        while before != sent:
            before = sent
            # Until the writer has been stuck for a while; how long is of no importance.
            gevent.sleep(0.3)
        assert 0 < sent < 8 * MIB
        server.ask("wake")
        writing.get(timeout=60)
        assert stream.read_all().decode() == digest


def test_what_was_sent_to_a_sleeping_client_arrives_whole_when_it_wakes(server, digest):
    with gwt.connect(f"{server.url}/pour/1/{64 * MIB}", verify=False) as session:
        stream = session.accept_stream()
        (taken,) = rest(server)
        assert 0 < taken < 8 * MIB
        whole, size = hashlib.sha256(), 0
        for data in stream:
            whole.update(data)
            size += len(data)
        assert f"{size} {whole.hexdigest()}" == digest
