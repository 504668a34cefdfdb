"""The `websockets` library in both roles, plain, compressed, and by TLS."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from gevent import subprocess

import gwt
from gwt import certificates

pytest.importorskip("websockets")

PEER = Path(__file__).with_name("websockets_peer.py")


@contextmanager
def peer(*arguments: object) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        [sys.executable, str(PEER), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.stdin.close()
        assert process.wait(timeout=15) == 0
        process.stdout.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return certificates.write(tmp_path_factory.mktemp("identity"), certificates.generate())


def handler(ws: gwt.WebSocket) -> None:
    for message in ws:
        if message == "close":
            ws.close(4321, "as you wish")
        else:
            ws.send(message)


@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
@pytest.mark.parametrize("compression", ["none", "deflate"])
def test_its_client_talks_to_our_server(secure, compression, files):
    app = gwt.App()
    app.websocket("/echo", compression=None if compression == "none" else compression)(handler)
    options = dict(zip(("certfile", "keyfile"), files, strict=True)) if secure else {}
    with gwt.Server(app, "127.0.0.1:0", http3=False, subprotocols=["second"], **options) as server:
        host, port = server.address
        url = f"{'wss' if secure else 'ws'}://{host}:{port}/echo"
        with peer("client", url, compression) as process:
            lines = process.stdout.read().splitlines()
    assert lines == [
        "subprotocol second",
        f"extensions {int(compression == 'deflate')}",
        "fragments abc",
        "pong",
        "closed 4321 as you wish",
    ]


@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
@pytest.mark.parametrize("compression", [None, "deflate"])
def test_our_client_talks_to_its_server(secure, compression, files):
    with peer("server", *(files if secure else ())) as process:
        url = f"{'wss' if secure else 'ws'}://127.0.0.1:{int(process.stdout.readline())}/"
        ws = gwt.connect(url, compression=compression, verify=False, subprotocols=["first"])
        assert ws.subprotocol == "first"
        for message in ("text", b"binary", "", "ü" * 70_000, bytes(range(256)) * 3000):
            ws.send(message)
            assert ws.recv(timeout=10) == message
        ws.send(iter([b"a", b"b", b"c"]))
        assert ws.recv(timeout=10) == b"abc"
        ws.send("fragments")
        assert list(ws.recv_streaming()) == ["in ", "three ", "pieces", ""]
        assert ws.ping().wait(timeout=10)
        ws.send("close")
        with pytest.raises(gwt.WebSocketClosedError) as caught:
            ws.recv(timeout=10)
        assert (caught.value.code, caught.value.reason) == (4321, "as you wish")
        ws.close()
