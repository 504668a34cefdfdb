"""flask-sock, which takes the raw socket: it gets one that behaves as it takes it to."""

from __future__ import annotations

import os
from collections.abc import Iterator

import gevent.socket
import pytest

import gwt
from gwt import certificates
from tests.helpers import eventually
from tests.helpers.hosts import HOSTS, Host, everything, serving

# gwt does not monkey-patch, and flask-sock waits in native threads where nobody does.
PATCHED = [host for host in HOSTS if host != "gwt serve"]


@pytest.fixture(scope="module", params=[*PATCHED, "pywsgi with TLS"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Host]:
    host, tls, _ = request.param.partition(" with TLS")
    files = ()
    if tls:
        folder = tmp_path_factory.mktemp("certificate")
        files = certificates.write(folder, certificates.generate())
    with serving(host, "sock_app:app", *map(str, files)) as running:
        yield running


def test_eight_mebibytes_come_back(server: Host) -> None:
    # Compression, which it always agrees to, does not make this any smaller.
    data = os.urandom(2**23)
    with server.connect(max_size=2**24) as ws:
        for message in ("small", data, "small again"):
            ws.send(message)
            assert ws.recv(20) == message
    assert "Traceback" not in server.output


def test_messages_of_many_greenlets_do_not_mix(server: Host) -> None:
    sock = gevent.socket.socket()
    # So little that each of them has to wait.
    sock.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_RCVBUF, 65536)
    sock.connect(("127.0.0.1", server.port))
    with server.connect("/many", max_size=2**24, compression=None, sock=sock) as ws:
        ws.send("now")
        messages = [ws.recv(20) for _ in range(8)]
        assert sorted(message[:1] for message in messages) == [bytes([n]) for n in range(8)]
        for message in messages:
            half = len(message) // 2
            assert half == 1_000_000 and message[1:half] == message[half + 1 :]
        assert list(ws) == []
        assert ws.close_code == 1000


def test_its_end_is_a_close_and_nothing_behind_it(server: Host) -> None:
    with server.connect("/bye") as ws:
        assert list(ws) == ["bye"]
        assert ws.close_code == 1000
    with server.upgrade("/bye") as sock:
        answer = everything(sock)
    # The peer never answered the close, and was not waited for.
    assert answer.endswith(b"\r\n\r\n\x81\x03bye\x88\x02\x03\xe8")
    assert answer.count(b"HTTP/1.1") == 1


def test_what_came_behind_the_request_is_received(server: Host) -> None:
    with server.upgrade("/ws", behind=b"\x81\x82\0\0\0\0hi") as sock:
        answer = b""
        while not answer.endswith(b"\x81\x02hi"):
            answer += sock.recv(65536) or pytest.fail(f"ended: {answer!r}")


def test_the_log_says_what_happened(server: Host) -> None:
    with server.connect("/bye") as ws:
        list(ws)
    eventually(lambda: '"GET /bye HTTP/1.1" 101 ' in server.output)
    assert '"GET /bye HTTP/1.1" 200' not in server.output


def test_one_that_fails_is_told_once_and_ends(server: Host) -> None:
    with server.connect("/broken") as ws, pytest.raises(gwt.WebSocketClosedError):
        ws.recv(20)
    eventually(lambda: "KeyError" in server.output)
    assert server.output.count("Traceback") == 1


def test_pages_are_as_ever(server: Host) -> None:
    assert "a page" in server.get()
