"""Tunnels on a server, over real sockets: what is let through, what is refused, and every end."""

from __future__ import annotations

import errno
import logging
import socket as _stdlib_socket
import struct
import time
from collections.abc import Iterator

import gevent
import gevent.socket
import pytest
from gevent.event import Event
from gevent.queue import Queue

import gwt
from gwt.protocol import codes
from gwt.server import connect
from tests.helpers import eventually, live
from tests.helpers.targets import place, proxying, reaching, service

LARGE = bytes(range(256)) * 32 * 1024
RESET = struct.pack("ii", 1, 0)


@pytest.fixture
def target() -> Iterator[str]:
    """A TCP service that echoes."""
    with service() as where:
        yield where


def refused(proxy, target, **options) -> gwt.SessionRejected:
    with pytest.raises(gwt.ClientError) as caught:
        proxy.connect_through_proxy(target, **options)
    cause = caught.value.__cause__
    assert isinstance(cause, gwt.SessionRejected)
    return cause


def echoes(proxy, target) -> bool:
    """Whether a tunnel leads to a service that echoes."""
    with proxy.connect_through_proxy(target) as stream:
        stream.write_all(b"hello")
        return stream.read_all(timeout=5) == b"hello"


def unused() -> str:
    """A port on which nobody listens."""
    with gevent.socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return place(sock.getsockname())


def at_rest(server) -> None:
    """Wait until no tunnel, no handler and no child of one is left."""
    eventually(lambda: server.stats()["tunnels"] == 0 and server.stats()["handlers"] == 0)


# What is carried


def test_large_transfers_both_ways_at_once(target):
    with reaching(target) as (server, proxy):
        stream = proxy.connect_through_proxy(target)
        writer = gevent.spawn(stream.write_all, LARGE)
        assert stream.read_all(timeout=60) == LARGE
        writer.get()
        at_rest(server)
        stats = server.stats()
    assert stats["tunnels_opened"] == 1
    assert not [name for name in stats if name.startswith("tunnels_") and name != "tunnels_opened"]


def test_the_targets_end_is_the_streams_and_the_other_way_goes_on():
    got = Queue()

    def speak_first(sock):
        sock.sendall(b"bye")
        sock.shutdown(_stdlib_socket.SHUT_WR)
        while data := sock.recv(1000):
            got.put(data)
        got.put(b"end")

    with service(speak_first) as target, reaching(target) as (server, proxy):
        stream = proxy.connect_through_proxy(target)
        assert stream.read_all(timeout=5) == b"bye"
        stream.write(b"still here")
        assert got.get(timeout=5) == b"still here"
        stream.finish()
        assert got.get(timeout=5) == b"end"
        at_rest(server)


def test_the_streams_end_is_the_targets_and_the_other_way_goes_on():
    ended = Event()
    go = Event()

    def answer_late(sock):
        while sock.recv(1000):
            pass
        ended.set()
        go.wait(5)
        sock.sendall(b"late answer")

    with service(answer_late) as target, reaching(target) as (server, proxy):
        stream = proxy.connect_through_proxy(target)
        stream.write_all(b"question")
        assert ended.wait(5)
        go.set()
        assert stream.read_all(timeout=5) == b"late answer"
        at_rest(server)


def test_a_client_that_does_not_read_stops_the_target():
    taken = []

    def pour(sock):
        sock.setsockopt(_stdlib_socket.SOL_SOCKET, _stdlib_socket.SO_SNDBUF, 65536)
        for _ in range(512):
            sock.sendall(bytes(65536))
            taken.append(65536)

    with service(pour) as target, reaching(target) as (_, proxy):
        stream = proxy.connect_through_proxy(target)
        settled(lambda: len(taken))
        # The stream's window and its send buffer, one piece, and what the kernel holds.
        assert 0 < sum(taken) < 16 * 1024 * 1024
        assert len(stream.read_all(None, timeout=60)) == 32 * 1024 * 1024


def test_a_target_that_does_not_read_stops_the_client():
    go = Event()
    size = Queue()

    def wait(sock):
        go.wait(20)
        total = 0
        while data := sock.recv(1 << 20):
            total += len(data)
        size.put(total)

    with service(wait) as target, reaching(target) as (_, proxy):
        stream = proxy.connect_through_proxy(target)
        writer = gevent.spawn(stream.write_all, bytes(32 * 1024 * 1024))
        settled(lambda: stream.bytes_sent)
        assert not writer.dead
        assert 0 < stream.bytes_sent < 16 * 1024 * 1024
        go.set()
        writer.get(timeout=60)
        assert size.get(timeout=60) == 32 * 1024 * 1024


def settled(value) -> None:
    """Wait until a number has not moved for a while."""
    last, since = value(), time.monotonic()
    until = since + 30
    while time.monotonic() < min(since + 0.5, until):
        gevent.sleep(0.05)
        if value() != last:
            last, since = value(), time.monotonic()


def test_many_tunnels_at_a_time(target):
    def one(number):
        with proxy.connect_through_proxy(target) as stream:
            said = b"%d" % number * 5000
            stream.write_all(said)
            return stream.read_all(timeout=30) == said

    with reaching(target) as (server, proxy):
        greenlets = [gevent.spawn(one, number) for number in range(200)]
        assert all(greenlet.get(timeout=60) for greenlet in greenlets)
        assert server.connections.get_stats()["total_created"] == 1
        at_rest(server)
        assert server.stats()["tunnels_opened"] == 200


# Ends that are none


def test_a_target_that_resets_is_a_connect_error():
    go = Event()

    def break_off(sock):
        sock.recv(100)
        go.wait(5)
        sock.setsockopt(_stdlib_socket.SOL_SOCKET, _stdlib_socket.SO_LINGER, RESET)
        sock.close()

    with service(break_off) as target, reaching(target) as (server, proxy):
        stream = proxy.connect_through_proxy(target)
        stream.write(b"x")
        go.set()
        with pytest.raises(gwt.StreamReset) as caught:
            stream.read(timeout=5)
        assert caught.value.code == codes.H3_CONNECT_ERROR
        assert str(caught.value) == (
            f"The tunnel to {target} was reset, with code 0x10f: "
            "its TCP connection broke, or was silent for too long."
        )
        with pytest.raises(gwt.StreamStopped, match="takes nothing any more, with code 0x10f"):
            while True:
                stream.write(b"more", timeout=5)
                gevent.sleep(0.01)
        at_rest(server)
        assert server.stats()["tunnels_broken"] == 1


def test_what_a_target_said_before_it_reset_can_be_read():
    # As a web server does that refuses an upload.
    go = Event()

    def refuse(sock):
        sock.recv(1)
        sock.sendall(b"413 too much")
        go.wait(5)
        sock.setsockopt(_stdlib_socket.SOL_SOCKET, _stdlib_socket.SO_LINGER, RESET)
        sock.close()

    with service(refuse) as target, reaching(target) as (server, proxy):
        stream = proxy.connect_through_proxy(target)
        stream.write(b"an upload")
        eventually(lambda: stream.stats()["bytes_received"] == len(b"413 too much"))
        go.set()
        at_rest(server)
        with pytest.raises(gwt.StreamStopped):
            while True:
                stream.write(b"more", timeout=5)
                gevent.sleep(0.01)
        assert stream.readexactly(12, timeout=5) == b"413 too much"
        with pytest.raises(gwt.StreamReset):
            stream.read(timeout=5)
        assert stream.is_closed


def test_what_a_target_said_up_to_its_end_arrives_whatever_becomes_of_the_other_way():
    go = Event()

    def answer_and_leave(sock):
        sock.sendall(LARGE[:200_000])
        sock.shutdown(_stdlib_socket.SHUT_WR)
        go.wait(5)
        # With what it has not read, that is a reset.
        sock.close()

    window = {"initial_stream_window": 16384, "stream_window": 16384}
    with service(answer_and_leave) as target, reaching(target, client=window) as (server, proxy):
        stream = proxy.connect_through_proxy(target)
        stream.write(b"unread")
        (tunnel,) = server._proxy._tunnels
        eventually(lambda: tunnel.stream.bytes_sent == 200_000)
        go.set()
        with pytest.raises(gwt.StreamStopped):
            while True:
                stream.write(b"more", timeout=5)
                gevent.sleep(0.01)
        assert stream.read_all(timeout=5) == LARGE[:200_000]
        at_rest(server)
        assert server.stats()["tunnels_broken"] == 1


@pytest.mark.parametrize("how", ["abort", "reset", "close the connection"])
def test_a_client_that_breaks_off_resets_the_target(how):
    seen = Queue()

    def watch(sock):
        try:
            while sock.recv(1000):
                seen.put("data")
            seen.put("end")
        except ConnectionResetError:
            seen.put("reset")

    with service(watch) as target, reaching(target) as (server, proxy):
        stream = proxy.connect_through_proxy(target)
        stream.write(b"x")
        assert seen.get(timeout=5) == "data"
        if how == "close the connection":
            proxy.connection.close()
        else:
            getattr(stream, how)()
        assert seen.get(timeout=5) == "reset"
        at_rest(server)
        assert server.stats()["tunnels_reset"] == 1


def test_what_was_written_before_a_close_arrives_at_the_target():
    got = Queue()

    def slowly(sock):
        total = 0
        while data := sock.recv(10_000):
            total += len(data)
            gevent.sleep(0)
        got.put(total)

    with service(slowly) as target, reaching(target) as (server, proxy):
        with proxy.connect_through_proxy(target) as stream:
            stream.write(bytes(1_000_000))
        assert got.get(timeout=20) == 1_000_000
        at_rest(server)
        assert "tunnels_reset" not in server.stats()


def test_a_client_that_stops_reading_and_is_silent_is_not_waited_for():
    with service(lambda sock: sock.recv(1)) as target, reaching(target) as (server, proxy):
        stream = proxy.connect_through_proxy(target)
        stream.stop()
        stream.finish()
        at_rest(server)


def test_silence_ends_a_tunnel(target):
    with reaching(target, tunnel_idle_timeout=0.2) as (server, proxy):
        stream = proxy.connect_through_proxy(target)
        with pytest.raises(gwt.StreamReset) as caught:
            stream.read(timeout=5)
        assert caught.value.code == codes.H3_CONNECT_ERROR
        at_rest(server)
        assert server.stats()["tunnels_idle"] == 1


def test_one_who_speaks_now_and_then_is_not_idle(target):
    with reaching(target, tunnel_idle_timeout=0.8) as (server, proxy):
        stream = proxy.connect_through_proxy(target)
        for _ in range(8):
            stream.write(b"x")
            assert stream.readexactly(1, timeout=5) == b"x"
            gevent.sleep(0.15)
        assert server.stats()["tunnels"] == 1


def test_a_stalled_transfer_is_idle_whichever_side_stalls_it():
    go = Event()

    def wait(sock):
        go.wait(20)

    options = {"tunnel_idle_timeout": 0.3}
    with service(wait) as target, reaching(target, **options) as (server, proxy):
        stream = proxy.connect_through_proxy(target)
        with pytest.raises(gwt.StreamError):
            stream.write(bytes(32 * 1024 * 1024), timeout=20)
        at_rest(server)
        go.set()


def test_a_server_that_stops_ends_its_tunnels(target):
    with reaching(target) as (server, proxy):
        stream = proxy.connect_through_proxy(target)
        stream.write(b"x")
        assert stream.read(timeout=5) == b"x"
        server.stop(timeout=0.1)
        with pytest.raises((gwt.StreamError, gwt.ConnectionClosed)):
            stream.read(timeout=5)


def test_a_server_that_stops_lets_tunnels_finish(target):
    with reaching(target) as (server, proxy):
        stream = proxy.connect_through_proxy(target)
        stopping = gevent.spawn(server.stop, timeout=5)
        eventually(lambda: refused(proxy, target).status == 503)
        stream.write_all(b"last words")
        assert stream.read_all(timeout=5) == b"last words"
        stopping.get(timeout=10)


# What is refused


def test_without_targets_there_are_no_tunnels(target):
    with reaching() as (_, proxy):
        assert refused(proxy, target).status == 501


def test_a_target_that_is_not_listed(target):
    with reaching("example.test:80") as (server, proxy):
        error = refused(proxy, target)
        assert error.status == 403
        assert error.headers["proxy-status"] == "gwt; error=http_request_denied"
        assert server.stats()["tunnels_rejected"] == 1
        at_rest(server)


def test_a_name_that_leads_inside_is_refused_unless_it_is_listed(target, monkeypatch):
    port = target.rpartition(":")[2]
    looked = []

    def resolve(host, port):
        looked.append(host)
        return [(_stdlib_socket.AF_INET, ("127.0.0.1", port))]

    monkeypatch.setattr(connect, "lookup", resolve)
    with reaching(f"*.test:{port}", f"db.internal:{port}") as (_, proxy):
        for name in ("rebound.test", "db.internal"):
            error = refused(proxy, f"{name}:{port}")
            assert error.status == 403
            assert error.headers["proxy-status"] == "gwt; error=destination_ip_prohibited"
    with reaching(f"*.test:{port}", target) as (_, proxy):
        assert echoes(proxy, f"rebound.test:{port}")
    # What was checked is connected to: the name is asked about once.
    assert looked == ["rebound.test", "db.internal", "rebound.test"]


def test_wildcards_do_not_lead_to_what_listens_on_our_public_addresses(target, monkeypatch):
    # A firewall in front of this machine does not see what goes to it from itself.
    found = [(_stdlib_socket.AF_INET, ("93.184.215.14", 443))]
    asked = []
    monkeypatch.setattr(connect, "lookup", lambda *_: found)
    monkeypatch.setattr(connect, "is_ours", lambda *place: asked.append(place) or True)
    monkeypatch.setattr(connect, "connected", lambda *_: pytest.fail("connected"))
    with reaching("*:443") as (_, proxy):
        for name in ("self.test:443", "93.184.215.14:443"):
            error = refused(proxy, name)
            assert error.status == 403
            assert error.headers["proxy-status"] == "gwt; error=destination_ip_prohibited"
    assert asked == found * 2


def test_addresses_of_this_machine_are_known():
    assert connect.is_ours(_stdlib_socket.AF_INET, ("127.0.0.1", 443))
    assert not connect.is_ours(_stdlib_socket.AF_INET, ("198.51.100.1", 443))
    # Not reachable at all.
    assert not connect.is_ours(_stdlib_socket.AF_INET, ("255.255.255.255", 443))
    # Of a family that this machine has not.
    assert not connect.is_ours(12345, ("2001:db8::1", 443))


def test_localhost_by_its_name(target):
    port = target.rpartition(":")[2]
    with reaching(f"localhost:{port}") as (_, proxy):
        assert echoes(proxy, f"LOCALHOST:{port}")


@pytest.mark.parametrize(
    "host",
    ["127.1", "2130706433", "0x7f.1", "0177.0.0.1", "0", "[::1]", "[::ffff:7f00:1]", "[::]"],
)
def test_spellings_of_this_machine_are_not_public(target, host):
    port = target.rpartition(":")[2]
    with reaching("*:*") as (server, proxy):
        tunnel = None
        with pytest.raises(gwt.ClientError) as caught:
            tunnel = proxy.connect_through_proxy(f"{host}:{port}")
        assert tunnel is None
        # Where the resolver does not take it for an address, it is a name that nobody knows.
        assert caught.value.__cause__.status in (403, 502)
        assert "tunnels_opened" not in server.stats()


def test_a_name_that_nobody_knows(monkeypatch):
    def fail(*_, **__):
        raise _stdlib_socket.gaierror(_stdlib_socket.EAI_NONAME, "not known")

    monkeypatch.setattr(connect, "lookup", fail)
    with reaching("*:80") as (server, proxy):
        error = refused(proxy, "nobody.test:80")
        assert error.status == 502
        assert error.headers["proxy-status"] == "gwt; error=dns_error"
        assert server.stats()["tunnels_failed"] == 1


@pytest.mark.parametrize("host", ["a..test", ".", "a" * 64, "a" * 255])
def test_what_can_be_no_name_is_no_resolver_s_affair(host, monkeypatch):
    # gevent prints what is raised in its threads, once for each request of anybody's.
    monkeypatch.setattr(gevent.socket, "getaddrinfo", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(UnicodeError):
        connect.lookup(host, 80)


def test_a_port_where_nobody_listens():
    target = unused()
    with reaching(target) as (_, proxy):
        error = refused(proxy, target)
        assert error.status == 502
        assert error.headers["proxy-status"] == "gwt; error=connection_refused"


def test_a_resolver_that_never_answers(monkeypatch):
    monkeypatch.setattr(connect, "lookup", lambda *_: gevent.sleep(60))
    with reaching("*:80", connect_timeout=0.1) as (_, proxy):
        error = refused(proxy, "nobody.test:80")
        assert error.status == 504
        assert error.headers["proxy-status"] == "gwt; error=dns_timeout"


@pytest.fixture
def silence() -> Iterator[str]:
    """A port whose backlog is full, so that connecting to it waits."""
    with gevent.socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        fillers = []
        try:
            for _ in range(4):
                filler = gevent.socket.socket()
                fillers.append(filler)
                filler.setblocking(False)
                filler.connect_ex(sock.getsockname())
            gevent.sleep(0.05)
            yield place(sock.getsockname())
        finally:
            for filler in fillers:
                filler.close()


def test_a_target_that_never_answers(silence):
    with reaching(silence, connect_timeout=0.2) as (_, proxy):
        error = refused(proxy, silence)
        assert error.status == 504
        assert error.headers["proxy-status"] == "gwt; error=connection_timeout"


def test_a_silent_address_leaves_time_for_the_next(silence, target, monkeypatch):
    places = [(host, int(port)) for host, port in (p.split(":") for p in (silence, target))]
    found = [(_stdlib_socket.AF_INET, where) for where in places]
    monkeypatch.setattr(connect, "lookup", lambda *_: found)
    with reaching("*:80", "127.0.0.1:80", connect_timeout=0.6) as (_, proxy):
        assert echoes(proxy, "two.test:80")


@pytest.mark.parametrize("when", ["connected", "is_ours"])
def test_a_server_out_of_descriptors_says_so(target, monkeypatch, when):
    def fail(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(connect, when, fail)
    with reaching(target) as (server, proxy):
        assert refused(proxy, target).status == 503
        assert server.stats()["tunnels_refused"] == 1


def test_a_request_that_is_taken_back_ends_the_connect(silence):
    with reaching(silence, connect_timeout=20.0) as (server, proxy):
        asking = gevent.spawn(proxy.connect_through_proxy, silence)
        eventually(lambda: server.stats()["tunnels"] == 1)
        asking.kill()
        at_rest(server)
        assert server.stats()["tunnels_cancelled"] == 1


def test_a_request_that_is_taken_back_at_once_leaves_nothing(target, monkeypatch):
    requested = connect.ConnectProxy.requested

    def taken_back(self, connection, event):
        requested(self, connection, event)
        # Before the greenlet of the request has had its turn.
        connection.protocol.quic_stream_reset(event.stream_id, codes.H3_REQUEST_CANCELLED)
        connection.pump()

    monkeypatch.setattr(connect.ConnectProxy, "requested", taken_back)
    with reaching(target) as (server, proxy):
        with pytest.raises(gwt.ClientError, match="was reset with code 0x10c"):
            proxy.connect_through_proxy(target)
        at_rest(server)
        assert "tunnels_opened" not in server.stats()


def test_no_more_than_max_tunnels(target):
    with reaching(target, max_tunnels=2) as (server, proxy):
        first, _ = [proxy.connect_through_proxy(target) for _ in range(2)]
        assert refused(proxy, target).status == 503
        assert server.stats()["tunnels_refused"] == 1
        first.abort()
        eventually(lambda: server.stats()["tunnels"] == 1)
        assert echoes(proxy, target)


def test_no_more_than_max_tunnels_per_address(target):
    with reaching(target, max_tunnels_per_address=1) as (server, proxy):
        stream = proxy.connect_through_proxy(target)
        assert refused(proxy, target).status == 503
        stream.abort()
        eventually(lambda: server.stats()["tunnels"] == 0)
        proxy.connect_through_proxy(target).abort()


def test_a_tunnel_counts_until_its_target_is_done_with(target, monkeypatch):
    # A client that ends its side, and a target that takes nothing, must not make room for more.
    done = Event()
    monkeypatch.setattr(connect._Relay, "run", lambda _: done.wait(10))
    with reaching(target, max_tunnels_per_address=1) as (server, proxy):
        proxy.connect_through_proxy(target).abort()
        eventually(lambda: not proxy.connection.stats()["tunnels"])
        assert refused(proxy, target).status == 503
        monkeypatch.undo()
        done.set()
        at_rest(server)
        assert echoes(proxy, target)


def test_middleware_sees_the_request_and_may_want_a_password(target):
    app = gwt.App()
    seen = []

    @app.middleware
    def check(request):
        seen.append(request)
        if request.headers.get("proxy-authorization") != "Basic bWU6c2VjcmV0":
            raise gwt.Reject(407, {"Proxy-Authenticate": "Basic"}, b"who are you?")

    with proxying(target, app=app) as server:
        host, port = server.address
        options = gwt.ClientConfig(server_certificate_hashes=[server.certificate_hash])
        with gwt.WebTransportProxy(f"https://me:wrong@{host}:{port}", config=options) as proxy:
            error = refused(proxy, target)
            assert (error.status, error.headers["proxy-authenticate"]) == (407, "Basic")
        with gwt.WebTransportProxy(f"https://me:secret@{host}:{port}", config=options) as proxy:
            proxy.connect_through_proxy(target).abort()
    request = seen[-1]
    assert (request.method, request.protocol, request.path) == ("CONNECT", "connect", "")
    assert request.authority == target
    assert request.remote_address[0] == "127.0.0.1"


def test_middleware_that_fails_is_a_500(target, caplog):
    app = gwt.App()

    @app.middleware
    def fail(request):
        raise RuntimeError("oops")

    with caplog.at_level(logging.CRITICAL), reaching(target, app=app) as (server, proxy):
        assert refused(proxy, target).status == 500
        at_rest(server)


def test_sessions_go_on_beside_tunnels(target):
    app = gwt.App()

    @app.webtransport("/echo")
    def handler(session):
        for stream in session:
            stream.write_all(stream.read_all())

    with reaching(target, app=app) as (server, proxy), live.connect(server, "/echo") as session:
        tunnel = proxy.connect_through_proxy(target)
        stream = session.create_bidirectional_stream()
        stream.write_all(b"in a session")
        assert stream.read_all(timeout=5) == b"in a session"
        tunnel.write_all(b"in a tunnel")
        assert tunnel.read_all(timeout=5) == b"in a tunnel"


def test_a_tunnel_keeps_its_connection_in_use(target):
    with reaching(target, unused_timeout=0.2) as (server, proxy):
        with proxy.connect_through_proxy(target) as stream:
            gevent.sleep(0.6)
            stream.write_all(b"still here")
            assert stream.read_all(timeout=5) == b"still here"
        eventually(lambda: len(server.connections) == 0)
