"""What a server that serves both families says of addresses: QUIC and HTTP alike."""

from __future__ import annotations

import socket

import gevent.socket
import pytest
from gevent.event import AsyncResult

import gwt
from gwt.net.udpsocket import shown
from tests.helpers.live import echo


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("192.0.2.1", 5), "192.0.2.1"),
        (("::ffff:192.0.2.1", 5, 0, 0), "192.0.2.1"),
        (("::1", 5, 0, 0), "::1"),
        (("2001:db8::1", 5, 7, 0), "2001:db8::1"),
        (("fe80::1", 5, 0, 3), "fe80::1%3"),
        # No IPv4 address: those have four numbers.
        (("::ffff:0:1", 5, 0, 0), "::ffff:0:1"),
        (("", 5), ""),
    ],
)
def test_addresses_are_shown_as_users_write_them(address, text):
    assert shown(address) == (text, 5)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1"])
def test_both_families_are_served_and_shown_plainly(host):
    accepted: AsyncResult[tuple[object, object]] = AsyncResult()
    asked: AsyncResult[object] = AsyncResult()
    app = gwt.App()

    @app.middleware
    def see(request):
        asked.set(request.remote_address)

    @app.webtransport("/")
    def handler(session):
        accepted.set((session.remote_address, session.local_address))
        echo(session)

    with gwt.Server(app, "[::]:0") as server:
        port = server.address[1]
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        hashes = [server.certificate_hash]
        with gwt.connect(f"https://{where}/", server_certificate_hashes=hashes) as session:
            remote, local = accepted.get(timeout=5)
            peer = "127.0.0.1" if host == "127.0.0.2" else host
            assert remote == asked.get(timeout=5) == (peer, session.local_address[1])
            assert local == session.remote_address == (host, port)
            # What is sent goes to the form that the socket wants.
            with session.create_bidirectional_stream() as stream:
                stream.write_all(b"x")
                assert stream.read_all(timeout=5) == b"x"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_wsgi_application_gets_plain_addresses_as_well(host):
    seen: AsyncResult[str] = AsyncResult()

    def application(environ, start_response):
        seen.set(environ["REMOTE_ADDR"])
        start_response("200 OK", [("Content-Length", "0")])
        return []

    with (
        gwt.Server(application, "[::]:0") as server,
        gevent.socket.create_connection((host, server.address[1]), timeout=5) as sock,
    ):
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert seen.get(timeout=5) == host
        while sock.recv(1000):
            pass


def test_a_server_on_one_ipv6_address_serves_that_one_only():
    with gwt.Server(gwt.App(), "[::1]:0") as server:
        assert server.address[0] == "::1"
        with pytest.raises(OSError):
            gevent.socket.create_connection(("127.0.0.1", server.address[1]), timeout=5).close()


def test_an_ipv6_port_in_use_is_named_with_brackets():
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as taken:
        taken.bind(("::1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"TCP \[::1\]:{port}"):
            gwt.Server(gwt.App(), f"[::1]:{port}").start()
