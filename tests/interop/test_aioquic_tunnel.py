"""CONNECT tunnels with aioquic's own asyncio endpoints and H3Connection, in both roles."""

from __future__ import annotations

import json
import socket as _stdlib_socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import gevent.subprocess
import pytest

import gwt
from gwt import certificates
from gwt.protocol import codes
from tests.helpers import spawn
from tests.helpers.targets import proxying, service

PEER = str(Path(__file__).with_name("aioquic_tunnel.py"))
LARGE = bytes(range(256)) * 4 * 1024


def ask(server: gwt.Server, target: str, size: int = 256) -> dict[str, object]:
    """What aioquic's client says about a tunnel through our server."""
    process = gevent.subprocess.Popen(
        [sys.executable, PEER, "client", str(server.address[1]), target, str(size)],
        stdout=gevent.subprocess.PIPE,
        stderr=gevent.subprocess.PIPE,
    )
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr.decode()
    return json.loads(stdout)


def test_aioquic_s_client_tunnels_through_our_server():
    with service() as target, proxying(target) as server:
        assert ask(server, target, 1 << 20) == {":status": "200", "end": "end", "echoed": True}


def test_aioquic_s_client_is_told_no():
    with service() as target, proxying("example.test:80") as server:
        said = ask(server, target)
        assert said == {":status": "403", "proxy-status": "gwt; error=http_request_denied"}


def test_aioquic_s_client_is_told_of_a_target_that_breaks_off():
    def break_off(sock):
        sock.recv(10)
        sock.setsockopt(
            _stdlib_socket.SOL_SOCKET, _stdlib_socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        sock.close()

    with service(break_off) as target, proxying(target) as server:
        assert ask(server, target)["end"] == codes.H3_CONNECT_ERROR


@pytest.fixture
def proxy(tmp_path) -> Iterator[gwt.WebTransportProxy]:
    """aioquic as the proxy, and our way to it."""
    files = certificates.write(tmp_path, certificates.generate())
    process = gevent.subprocess.Popen(
        [sys.executable, PEER, "proxy", *map(str, files)],
        stdin=gevent.subprocess.PIPE,
        stdout=gevent.subprocess.PIPE,
    )
    try:
        url = f"https://127.0.0.1:{int(process.stdout.readline())}"
        with gwt.WebTransportProxy(url, config=gwt.ClientConfig(verify=False)) as made:
            yield made
    finally:
        process.stdin.close()
        process.stdout.close()
        assert process.wait(timeout=10) == 0


def test_our_client_tunnels_through_aioquic(proxy):
    with service() as target:
        for _ in range(2):
            with proxy.connect_through_proxy(target) as stream:
                writing = spawn(stream.write_all, LARGE)
                assert stream.read_all(timeout=30) == LARGE
                writing.get()


def test_our_client_is_refused_by_aioquic(proxy):
    with pytest.raises(gwt.ClientError, match=r"502 \(aioquic; error=dns_error\)") as caught:
        proxy.connect_through_proxy("somewhere.invalid:80")
    assert caught.value.__cause__.status == 502
    with service() as target:
        proxy.connect_through_proxy(target).abort()
