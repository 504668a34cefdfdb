"""WebTransport with aioquic's own asyncio endpoints and H3Connection: draft 02, both roles."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import gevent.subprocess
import pytest

import gwt
from gwt import certificates
from tests.helpers import live, spawn

PEER = str(Path(__file__).with_name("aioquic_peer.py"))


def ask(server: gwt.Server, path: str) -> dict[str, object]:
    """What aioquic's client says about our server."""
    process = gevent.subprocess.Popen(
        [sys.executable, PEER, "client", str(server.address[1]), path],
        stdout=gevent.subprocess.PIPE,
        stderr=gevent.subprocess.PIPE,
    )
    stdout, stderr = process.communicate(timeout=25)
    assert process.returncode == 0, stderr.decode()
    return json.loads(stdout)


def test_aioquic_s_client_talks_to_our_server():
    with live.serving(live.echo, "/echo") as server:
        assert ask(server, "/echo") == {
            "status": "200",
            "bidirectional": True,
            "unidirectional": "one way",
            "datagram": "datagram",
        }


def test_aioquic_s_client_comes_again_behind_a_retry():
    with live.serving(live.echo, "/echo", retry="on") as server:
        assert ask(server, "/echo")["bidirectional"] is True
        assert server.stats()["udp"]["retries_sent"] == 1


def test_aioquic_s_client_is_told_that_there_is_nothing():
    with live.serving(live.echo, "/echo") as server:
        assert ask(server, "/nowhere") == {"status": "404"}


@pytest.fixture
def url(tmp_path, request) -> Iterator[str]:
    """Where aioquic's server listens; a parameter goes to its command line."""
    files = certificates.write(tmp_path, certificates.generate())
    process = gevent.subprocess.Popen(
        [sys.executable, PEER, "server", *map(str, files), getattr(request, "param", "")],
        stdin=gevent.subprocess.PIPE,
        stdout=gevent.subprocess.PIPE,
    )
    try:
        yield f"https://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.stdin.close()
        process.stdout.close()
        assert process.wait(timeout=10) == 0


def test_our_client_talks_to_aioquic_s_server(url):
    with gwt.connect(f"{url}/echo", verify=False) as session:
        data = bytes(range(256)) * 2048
        stream = session.create_bidirectional_stream()
        writing = spawn(stream.write_all, data)
        assert stream.read_all(timeout=20) == data
        writing.get()

        session.create_unidirectional_stream().write_all(b"one way")
        back = session.accept_unidirectional_stream(timeout=10)
        assert back.read_all(timeout=10) == b"one way"

        session.send_datagram(b"datagram")
        assert session.receive_datagram(timeout=10) == b"datagram"


@pytest.mark.parametrize("url", ["retry"], indirect=True)
def test_our_client_comes_again_when_aioquic_s_server_sends_a_retry(url):
    with gwt.connect(f"{url}/echo", verify=False) as session:
        stream = session.create_bidirectional_stream()
        stream.write_all(b"behind a retry")
        assert stream.read_all(timeout=10) == b"behind a retry"
        quic = session.connection.protocol.quic._quic
        assert quic._retry_count == 1


def test_many_short_streams_to_aioquic_s_server(url):
    """aioquic allows 128 streams at first: the rest wait for credit."""
    with gwt.connect(f"{url}/echo", verify=False) as session:
        for number in range(300):
            stream = session.create_bidirectional_stream()
            stream.write_all(b"%d" % number)
            assert stream.read_all(timeout=10) == b"%d" % number


def test_our_client_is_told_that_there_is_nothing_on_aioquic_s_server(url):
    with pytest.raises(gwt.SessionRejected) as caught:
        gwt.connect(f"{url}/nowhere", verify=False)
    assert caught.value.status == 404
