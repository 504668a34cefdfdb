"""How many connections an address may have, over TCP, TLS and QUIC."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import gevent
import gevent.socket
import pytest

import gwt
from gwt import certificates
from gwt.observe import Counters
from gwt.server.peers import Peers
from tests.helpers import eventually, spawn, until

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class TestCounting:
    def test_without_a_limit_nothing_is_kept(self):
        peers = Peers(None, Counters())
        for port in range(1000):
            peers.enter(("192.0.2.1", port))
        assert len(peers) == 0
        assert peers.admit(("192.0.2.1", 1))
        peers.leave(("192.0.2.1", 1))

    def test_ports_are_one_address_and_who_leaves_is_forgotten(self):
        counters = Counters()
        peers = Peers(2, counters)
        assert not peers.crowded(("192.0.2.1", 1))
        for port in (1, 2):
            assert peers.admit(("192.0.2.1", port))
            peers.enter(("192.0.2.1", port))
            assert peers.crowded(("192.0.2.1", 9))
        assert not peers.admit(("192.0.2.1", 3))
        assert peers.admit(("192.0.2.2", 1))
        assert counters == {"addresses_refused": 1}
        for port in (1, 2):
            peers.leave(("192.0.2.1", port))
        assert peers.admit(("192.0.2.1", 3))
        assert len(peers) == 0

    def test_ipv6_counts_by_network(self):
        peers = Peers(1, Counters())
        peers.enter(("2001:db8:0:1::1", 1))
        assert not peers.admit(("2001:db8:0:1:ffff::2", 2, 0, 0))
        assert peers.admit(("2001:db8:0:2::1", 1))
        peers.enter(("fe80::1%eth0", 1))
        assert not peers.admit(("fe80::2%eth0", 1))

    def test_what_has_no_address_has_no_limit(self):
        peers = Peers(1, Counters())
        for _ in range(3):
            assert peers.admit("")
            peers.enter("")
        assert len(peers) == 0


def echo(ws: gwt.WebSocket) -> None:
    for message in ws:
        ws.send(message)


@pytest.fixture(params=["plain", "tls"])
def reach(request: pytest.FixtureRequest, tmp_path: Any) -> Any:
    """The options of a server, and what connects a WebSocket to it."""
    options: dict[str, Any] = {}
    if request.param == "tls":
        cert, key = certificates.write(tmp_path, certificates.generate())
        options = {"certfile": cert, "keyfile": key}
    scheme = "wss" if options else "ws"

    def connect(server: gwt.Server) -> gwt.WebSocket:
        url = "{}://{}:{}/".format(scheme, *server.address)
        return gwt.connect(url, verify=not options)

    return options, connect


def serving(**options: Any) -> gwt.Server:
    app = gwt.App()
    app.websocket("/")(echo)
    app.webtransport("/")(lambda session: session.wait_closed())
    return gwt.Server(app, "127.0.0.1:0", **options)


def test_websockets_beyond_it_are_503_until_one_goes(reach):
    options, connect = reach
    with serving(max_connections_per_address=3, http3=False, **options) as server:
        open_ones = [connect(server) for _ in range(3)]
        with pytest.raises(gwt.SessionRejected) as caught:
            connect(server)
        assert caught.value.status == 503
        assert server.stats()["addresses_refused"] == 1
        open_ones.pop().close()
        eventually(lambda: len(server.connections) == 2)
        open_ones.append(connect(server))
        open_ones[0].send("still here")
        assert open_ones[0].recv(timeout=5) == "still here"
        for ws in open_ones:
            ws.close()
        eventually(lambda: len(server._door.peers) == 0)


def test_connections_that_say_nothing_count_too(reach):
    options, connect = reach
    with (
        serving(max_connections_per_address=2, http3=False, **options) as server,
        ExitStack() as stack,
    ):
        for _ in range(2):
            stack.enter_context(gevent.socket.create_connection(server.address))
        eventually(lambda: server.stats()["http_connections"] == 2)
        with pytest.raises(gwt.SessionRejected):
            connect(server)


def test_a_crowd_beyond_it_is_not_told_for_ever(reach):
    options, connect = reach
    with (
        serving(max_connections_per_address=1, http3=False, **options) as server,
        ExitStack() as stack,
    ):
        ws = connect(server)
        # At the same time: who has been told has a second.
        dialing = [spawn(gevent.socket.create_connection, server.address) for _ in range(80)]
        crowd = [stack.enter_context(each.get()) for each in dialing]
        eventually(lambda: server.stats().get("addresses_refused") == 80)
        # Those that there is no time for are closed at once.
        heard = [spawn(each.recv, 65536) for each in crowd]
        stack.callback(gevent.killall, [each.greenlet for each in heard])
        eventually(lambda: any(each.done and each.get() == b"" for each in heard))
        ws.send("still here")
        assert ws.recv(timeout=5) == "still here"
        ws.close()


def test_quic_connections_count_with_the_others():
    with serving(max_connections_per_address=2) as server:
        url = "https://{}:{}/".format(*server.address)

        def connect():
            return gwt.connect(url, server_certificate_hashes=[server.certificate_hash])

        first = connect()
        # From half of the limit on an address has to prove itself.
        second = connect()
        assert server.stats()["udp"]["retries_sent"] == 1
        with pytest.raises(gwt.HandshakeError) as caught:
            connect()
        assert "too many connections" in str(caught.value)
        with pytest.raises(gwt.SessionRejected):
            gwt.connect("ws://{}:{}/".format(*server.address))
        assert server.stats()["addresses_refused"] == 2
        first.close()
        eventually(lambda: len(server.connections) == 1)
        gwt.connect("ws://{}:{}/".format(*server.address)).close()
        second.close()


def test_http_connections_are_bounded_and_idle_ones_give_way():
    def wsgi(environ, start_response):
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    with (
        gwt.Server(gwt.App(wsgi), "127.0.0.1:0", http3=False, max_connections=2) as server,
        ExitStack() as stack,
    ):
        first, second, third = (
            stack.enter_context(gevent.socket.create_connection(server.address, timeout=5))
            for _ in range(3)
        )
        eventually(lambda: server.stats()["http_connections"] == 2)
        # The third waits; the first has had its turn as soon as it was answered.
        third.sendall(GET)
        first.sendall(GET)
        assert until(first, b"ok").startswith(b"HTTP/1.1 200")
        assert first.recv(65536) == b""
        assert until(third, b"ok").startswith(b"HTTP/1.1 200")
        second.sendall(GET)
        assert until(second, b"ok").startswith(b"HTTP/1.1 200")
