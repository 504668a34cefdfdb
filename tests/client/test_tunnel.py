"""
WebTransportProxy over real sockets, with our server as the proxy, also where it misbehaves.

Where it says so, a test is about what pywebtransport 0.6.1 did.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import gevent
import gevent.event
import pytest

import gwt
from gwt.protocol import codes
from gwt.server.connect import ConnectProxy
from tests.helpers import eventually, spawn
from tests.helpers.raw import GOAWAY, frame
from tests.helpers.targets import place, proxying, reaching, service, through


@pytest.fixture
def target() -> Iterator[str]:
    """A TCP service that echoes."""
    with service() as where:
        yield where


@pytest.fixture
def proxy(target) -> Iterator[gwt.WebTransportProxy]:
    """A way to it."""
    with reaching(target) as (_, made):
        yield made


@pytest.fixture
def answers(monkeypatch):
    """Replace what a proxy does with requests; a test sets ``answers.function``."""

    class Answers:
        function = None

    def requested(self, connection, event):
        Answers.function(connection, event)

    monkeypatch.setattr(ConnectProxy, "requested", requested)
    return Answers


def echoes(proxy, target) -> bool:
    with proxy.connect_through_proxy(target) as stream:
        stream.write_all(b"hello")
        return stream.read_all(timeout=5) == b"hello"


def failure(proxy, target, kind=gwt.HandshakeError, **options) -> gwt.ClientError:
    with pytest.raises(gwt.ClientError) as caught:
        proxy.connect_through_proxy(target, **options)
    assert caught.value.target_url == target
    assert isinstance(caught.value.__cause__, kind)
    return caught.value


# The tunnel


def test_a_tunnel_is_a_stream_to_a_tcp_service(proxy, target):
    with proxy.connect_through_proxy(target) as stream:
        assert isinstance(stream, gwt.WebTransportStream)
        stream.write(b"hello")
        assert stream.readexactly(5, timeout=5) == b"hello"
        stream.write_all(b"and the end")
        assert stream.read_all(timeout=5) == b"and the end"
    assert stream.is_closed
    assert stream.session.target == target


def test_the_bytes_behind_the_answer_are_the_tunnels():
    # pywebtransport 0.6.1 read the answer with one read(4096), and lost what came behind it.
    def greet(sock):
        sock.sendall(b"220 ready\r\n" + bytes(5000))

    with service(greet) as target, reaching(target) as (_, proxy):
        stream = proxy.connect_through_proxy(target)
        assert stream.readline(timeout=5) == b"220 ready\r\n"
        assert stream.read_all(timeout=5) == bytes(5000)


def test_the_request_is_a_standard_one(answers, target):
    # pywebtransport 0.6.1 wrote "CONNECT <url> HTTP/1.1" into a stream of a WebTransport session,
    # which nobody but a purpose-made peer understands.
    seen = []

    def refuse(connection, event):
        seen.append(event)
        connection.protocol.reject_tunnel(event.stream_id, 403)
        connection.flush_soon()

    answers.function = refuse
    with reaching(target) as (server, proxy):
        for url in ("https://example.test/path?q", "tcp://[::1]:25", "EXAMPLE.test:80"):
            failure(proxy, url, gwt.SessionRejected)
        assert server.sessions.get_stats()["total_created"] == 0
    pseudo = [[h for h in event.headers if h[0].startswith(b":")] for event in seen]
    assert pseudo == [
        [(b":method", b"CONNECT"), (b":authority", authority)]
        for authority in (b"example.test:443", b"[::1]:25", b"example.test:80")
    ]


def test_any_2xx_is_a_tunnel_whatever_its_text(answers, target):
    # pywebtransport 0.6.1 looked for "200 OK" anywhere in what came.
    def accept(connection, event):
        protocol = connection.protocol
        protocol._h3.send_headers(event.stream_id, [(b":status", b"204"), (b"x-note", b"fine")])
        protocol._open_tunnel(protocol.streams[event.stream_id])
        protocol.send_stream(event.stream_id, b"HTTP/1.1 403 this is data", True)
        connection.flush_soon()

    answers.function = accept
    with reaching(target) as (_, proxy):
        stream = proxy.connect_through_proxy(target)
        assert stream.read_all(timeout=5) == b"HTTP/1.1 403 this is data"
        assert stream.session.headers["x-note"] == "fine"
        stream.abort()


def test_a_tunnel_has_files(proxy, target):
    with proxy.connect_through_proxy(target) as stream:
        with stream.makefile("wb") as out:
            out.write(b"one\ntwo\n")
        with stream.makefile("rb") as lines:
            assert list(lines) == [b"one\n", b"two\n"]


def test_tunnels_share_a_connection_made_once(target):
    with reaching(target) as (server, proxy):
        assert proxy.connection is None
        jobs = [spawn(echoes, proxy, target) for _ in range(50)]
        assert all(job.get(timeout=30) for job in jobs)
        assert server.connections.get_stats()["total_created"] == 1
        assert "tunnels=0" in repr(proxy)


def test_more_tunnels_than_the_proxy_has_streams_wait_their_turn(target):
    with reaching(target, max_incoming_streams=8) as (server, proxy):
        jobs = [spawn(echoes, proxy, target) for _ in range(40)]
        assert all(job.get(timeout=30) for job in jobs)
        held = [proxy.connect_through_proxy(target) for _ in range(8)]
        with pytest.raises(TimeoutError, match="allowed no more tunnels at a time"):
            proxy.connect_through_proxy(target, timeout=0.2)
        held[0].abort()
        assert echoes(proxy, target)
        assert server.stats()["tunnels_opened"] == 40 + 8 + 1


def test_a_connection_that_is_gone_is_made_anew(target):
    with reaching(target) as (server, proxy):
        assert echoes(proxy, target)
        first = proxy.connection
        first.close()
        assert echoes(proxy, target)
        assert proxy.connection is not first
        # Also if the proxy closes it in the moment in which it is asked.
        second = server.connections.get_all_resources()[-1]
        second.close()
        assert echoes(proxy, target)


def test_a_proxy_that_lets_a_connection_run_out_is_asked_on_another(answers, target):
    asked = []

    def take_one_each(connection, event):
        asked.append(connection)
        if asked.count(connection) > 1:
            connection.protocol.cancel_tunnel(event.stream_id, codes.H3_REQUEST_REJECTED)
        else:
            connection.protocol.accept_tunnel(event.stream_id)
        connection.flush_soon()

    answers.function = take_one_each
    with reaching(target) as (server, proxy):
        first = proxy.connect_through_proxy(target)
        second = proxy.connect_through_proxy(target)
        # What runs on the first one goes on.
        assert first.session.connection is not second.session.connection
        assert not first.is_closed
        assert server.connections.get_stats()["total_created"] == 2
        proxy.close()
        assert first.session.connection.is_closed and second.session.connection.is_closed


def test_a_proxy_that_goes_away_is_asked_on_another_connection(target):
    with reaching(target) as (server, proxy):
        first = proxy.connect_through_proxy(target)
        [connection] = server.connections.get_all_resources()
        connection.protocol.quic.write(3, frame(GOAWAY, b"\x04"))
        connection.flush_soon()
        eventually(lambda: first.session.connection.protocol.going_away)
        assert echoes(proxy, target)
        assert server.connections.get_stats()["total_created"] == 2
        first.write_all(b"still here")
        assert first.read_all(timeout=5) == b"still here"


def test_an_unused_connection_does_not_stay_for_ever(target):
    with proxying(target) as server, through(server, idle_timeout=0.5) as proxy:
        assert echoes(proxy, target)
        eventually(lambda: proxy.connection.is_closed)
        assert echoes(proxy, target)


def test_headers_and_credentials_go_to_the_proxy(answers, target):
    seen = []

    def refuse(connection, event):
        seen.append(dict(event.headers))
        connection.protocol.reject_tunnel(event.stream_id, 407)
        connection.flush_soon()

    answers.function = refuse
    with proxying(target) as server:
        hashes = [server.certificate_hash]
        config = gwt.ClientConfig(server_certificate_hashes=hashes, headers={"X-All": "1"})
        url = f"https://me:se%3Acret@{place(server.address)}"
        with gwt.WebTransportProxy.create(url, config=config) as proxy:
            error = failure(proxy, target, gwt.SessionRejected, proxy_headers={"X-This": "2"})
            assert str(error).endswith("User and password were not accepted.")
            given = {"Proxy-Authorization": "x"}
            failure(proxy, target, gwt.SessionRejected, proxy_headers=given)
            assert "se" not in repr(proxy) and "cret" not in str(error)
        with through(server) as proxy:
            error = failure(proxy, target, gwt.SessionRejected)
            assert str(error).endswith("User and password are missing from its URL.")
            error = failure(proxy, target, gwt.SessionRejected, proxy_headers=given)
            assert str(error).endswith("User and password were not accepted.")
    assert seen[0][b"proxy-authorization"] == b"Basic bWU6c2U6Y3JldA=="
    assert (seen[0][b"x-all"], seen[0][b"x-this"]) == (b"1", b"2")
    assert seen[0][b"user-agent"].startswith(b"gwt/")
    assert seen[1][b"proxy-authorization"] == b"x"
    assert b"proxy-authorization" not in seen[2]


def test_a_refusal_says_who_refused_what_and_why(target):
    with reaching("example.test:80") as (server, proxy):
        error = failure(proxy, target, gwt.SessionRejected)
        assert str(error) == (
            f"The proxy {place(server.address)}: A tunnel to {target} was refused with HTTP "
            "status 403 (gwt; error=http_request_denied)."
        )
        assert error.__cause__.status == 403


def test_what_a_proxy_says_is_shown_harmless_and_short(answers, target):
    def refuse(connection, event):
        said = [(b"proxy-status", b"\x1b[2Jevil; details=" + b"x" * 5000)]
        connection.protocol.reject_tunnel(event.stream_id, 502, said)
        connection.flush_soon()

    answers.function = refuse
    with reaching(target) as (_, proxy):
        error = failure(proxy, target, gwt.SessionRejected)
        assert "(?[2Jevil; details=xxx" in str(error)
        assert len(str(error)) < 400
        assert error.__cause__.headers["proxy-status"].startswith("\x1b")


@pytest.mark.parametrize(
    "url",
    [
        "example.test",
        "tcp://example.test",
        "ftp://example.test:21",
        "https://",
        "https://me:secret@example.test",
        "example.test:0",
        "example.test:65536",
        "[fe80::1%lo]:80",
        "two names:80",
        " example.test:80",
        "example.test\0:80",
        "",
        5,
    ],
)
def test_a_target_that_is_none_is_refused_before_anything_is_asked(proxy, url):
    error = failure(proxy, url, gwt.ConfigError)
    assert error.__cause__.field == "target_url"
    assert "secret" not in str(error)
    assert proxy.connection is None


@pytest.mark.parametrize("url", ["127.0.0.1:1", "http://127.0.0.1:1", "https://", 5])
def test_a_proxy_that_is_none_is_refused_at_once(url):
    with pytest.raises(gwt.ConfigError) as caught:
        gwt.WebTransportProxy(url)
    assert caught.value.field == "proxy_url"


@pytest.mark.parametrize("headers", [{"bad name": "x"}, {"x": "a\r\nb"}, {"x": 1}, [("a",)], 5])
def test_a_header_that_cannot_be_sent_is_refused(proxy, target, headers):
    error = failure(proxy, target, gwt.ConfigError, proxy_headers=headers)
    assert error.__cause__.field == "proxy_headers"


# Proxies that are none, or misbehave


def test_headers_that_are_too_large_cost_no_other_tunnel(proxy, target):
    with proxy.connect_through_proxy(target) as stream:
        large = {"x": "y" * 20_000}
        error = failure(proxy, target, gwt.ConfigError, proxy_headers=large)
        assert "takes 16384 bytes of headers" in str(error)
        assert error.__cause__.field == "proxy_headers"
        stream.write_all(b"still here")
        assert stream.read_all(timeout=5) == b"still here"


def test_a_proxy_client_belongs_to_its_thread(proxy, target):
    def use():
        for call in (lambda: proxy.connect_through_proxy(target), proxy.close):
            with pytest.raises(RuntimeError, match="another thread"):
                call()
        return True

    assert gevent.get_hub().threadpool.apply(use)
    assert not proxy.is_closed
    assert echoes(proxy, target)


def test_a_closed_port_fails_at_once():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        unused.bind(("127.0.0.1", 0))
        where = place(unused.getsockname())
    with gwt.WebTransportProxy(f"https://{where}") as proxy:
        error = failure(proxy, "example.test:80")
        assert error.__cause__.stage == "connect"
        assert f"through the proxy {where}: Nobody answers" in str(error)


def test_a_name_that_nobody_knows():
    with gwt.WebTransportProxy("https://no-such-host.invalid") as proxy:
        assert failure(proxy, "example.test:80").__cause__.stage == "resolve"


def test_a_proxy_without_http3_never_answers():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        with gwt.WebTransportProxy(f"https://{place(silent.getsockname())}") as proxy:
            with pytest.raises(TimeoutError, match=r"within 0\.2 s, while shaking hands with"):
                proxy.connect_through_proxy("example.test:80", timeout=0.2)
            assert proxy.connection is None


def test_a_certificate_that_is_not_trusted(target):
    with proxying(target) as server:
        with gwt.WebTransportProxy(f"https://{place(server.address)}") as proxy:
            failure(proxy, target, gwt.CertificateError)
        with gwt.WebTransportProxy(
            f"https://{place(server.address)}",
            config=gwt.ClientConfig(server_certificate_hashes=["00" * 32]),
        ) as proxy:
            failure(proxy, target, gwt.CertificateError)


def test_a_server_that_is_no_proxy(target):
    with reaching() as (_, proxy):
        assert failure(proxy, target, gwt.SessionRejected).__cause__.status == 501


def test_a_proxy_that_never_answers_the_request(answers, target):
    answers.function = lambda connection, event: None
    with reaching(target) as (server, proxy):
        with pytest.raises(TimeoutError) as caught:
            proxy.connect_through_proxy(target, timeout=0.2)
        assert isinstance(caught.value, gwt.ClientError) and caught.value.target_url == target
        assert str(caught.value) == (
            f"No tunnel to {target} through the proxy {place(server.address)} within 0.2 s, "
            "while waiting for the proxy's answer."
        )
        # The connection is as good as before.
        assert not proxy.connection.is_closed
        assert not proxy.connection.protocol.sessions and "tunnels=0" in repr(proxy)


def test_a_proxy_that_resets_the_request(answers, target):
    def reset(connection, event):
        connection.protocol.cancel_tunnel(event.stream_id, codes.H3_REQUEST_REJECTED)
        connection.flush_soon()

    answers.function = reset
    with reaching(target) as (_, proxy):
        error = failure(proxy, target)
        assert str(error).endswith("reset with code 0x10b: the proxy had not begun with it.")


def test_a_proxy_that_closes_instead_of_an_answer(answers, target):
    asked = []

    def close(connection, event):
        asked.append(event)
        gevent.get_hub().loop.run_callback(connection.close, 0, "no tunnels here")

    answers.function = close
    with reaching(target) as (server, proxy):
        error = failure(proxy, target)
        assert error.__cause__.stage == "http3"
        assert "no tunnels here" in str(error)
        # One that was open already is tried anew, and that once.
        assert len(asked) == 1
        eventually(lambda: len(server.connections) == 0)


def test_a_proxy_that_accepts_and_closes(answers, target):
    def accept(connection, event):
        connection.protocol.accept_tunnel(event.stream_id)
        connection.protocol.send_stream(event.stream_id, b"hello")
        connection.send_now()
        gevent.get_hub().loop.run_callback(connection.close, 5, "bye")

    answers.function = accept
    with reaching(target) as (_, proxy):
        stream = proxy.connect_through_proxy(target)
        # What came before can be read.
        assert stream.readexactly(5, timeout=5) == b"hello"
        with pytest.raises(gwt.ConnectionClosed, match="bye"):
            stream.read(timeout=5)


def ignore(connection, event):
    connection.protocol.accept_tunnel(event.stream_id)
    connection.flush_soon()


def fill(stream):
    while True:
        stream.write(bytes(1 << 20))


@pytest.mark.parametrize("end", ["the proxy closes", "the proxy resets", "we close", "we abort"])
@pytest.mark.parametrize(
    "operation",
    [
        lambda stream: stream.read(),
        lambda stream: stream.readexactly(10),
        lambda stream: stream.readline(),
        lambda stream: stream.read_all(),
        fill,
        lambda stream: (stream.write(bytes(200_000)), stream.flush()),
        lambda stream: stream.makefile("rb").read(),
    ],
    ids=["read", "readexactly", "readline", "read_all", "write", "flush", "file"],
)
def test_an_end_in_the_middle_of_an_operation(answers, target, operation, end):
    accepted = []

    def accept(connection, event):
        ignore(connection, event)
        accepted.append((connection, event.stream_id))

    answers.function = accept
    with reaching(target) as (_, proxy):
        stream = proxy.connect_through_proxy(target)
        job = spawn(operation, stream)
        gevent.sleep(0)
        connection, stream_id = accepted[0]
        if end == "the proxy closes":
            connection.close(7, "midway")
        elif end == "the proxy resets":
            connection.protocol.cancel_tunnel(stream_id, codes.H3_CONNECT_ERROR)
            connection.flush_soon()
        elif end == "we close":
            proxy.connection.close()
        else:
            stream.abort()
        with pytest.raises((gwt.StreamError, gwt.ConnectionClosed)):
            job.get(timeout=5)
        eventually(lambda: stream.is_closed)
        assert "tunnels=0" in repr(proxy)


# The end


def test_close_ends_everything_and_is_final():
    go = gevent.event.Event()
    with service(lambda sock: go.wait(20)) as target, reaching(target) as (server, proxy):
        streams = [proxy.connect_through_proxy(target) for _ in range(3)]
        readers = [spawn(stream.read) for stream in streams]
        gevent.sleep(0)
        proxy.close()
        assert proxy.is_closed and proxy.connection.is_closed
        assert all(stream.is_closed for stream in streams)
        for reader in readers:
            with pytest.raises((gwt.StreamError, gwt.ConnectionClosed)):
                reader.get(timeout=5)
        proxy.close()
        with pytest.raises(gwt.ClientError, match="is closed"):
            proxy.connect_through_proxy(target)
        eventually(lambda: server.stats()["tunnels"] == 0)
        go.set()


def test_close_before_anything_was_asked():
    proxy = gwt.WebTransportProxy("https://no-such-host.invalid")
    proxy.close()
    with pytest.raises(gwt.ClientError, match="is closed"):
        proxy.connect_through_proxy("example.test:80")


def test_what_was_written_before_close_arrives():
    got = []

    def keep(sock):
        while data := sock.recv(100_000):
            got.append(data)
        got.append(b"end")

    with service(keep) as target, reaching(target) as (_, proxy):
        stream = proxy.connect_through_proxy(target)
        stream.write(bytes(500_000))
        proxy.close()
        eventually(lambda: got and got[-1] == b"end")
        assert sum(map(len, got)) == 500_003


def test_it_belongs_to_its_thread(target):
    refused = []

    def elsewhere():
        for call in (lambda: proxy.connect_through_proxy(target), proxy.close):
            try:
                call()
            except RuntimeError:
                refused.append(call)

    with reaching(target) as (_, proxy):
        assert echoes(proxy, target)
        gevent.get_hub().threadpool.apply(elsewhere)
        assert len(refused) == 2 and not proxy.is_closed and echoes(proxy, target)


def test_close_while_others_wait_for_an_answer(answers, target):
    answers.function = lambda connection, event: None
    with reaching(target) as (_, proxy):
        jobs = [spawn(proxy.connect_through_proxy, target) for _ in range(3)]
        eventually(lambda: "tunnels=3" in repr(proxy))
        proxy.close()
        for job in jobs:
            with pytest.raises(gwt.ClientError, match="closed meanwhile"):
                job.get(timeout=5)


def arrived(sock) -> bool:
    try:
        return bool(sock.recv(2000))
    except BlockingIOError:
        return False


def test_close_while_the_connection_is_made():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        proxy = gwt.WebTransportProxy(f"https://{place(silent.getsockname())}")
        jobs = [spawn(proxy.connect_through_proxy, "a.test:1", timeout=None) for _ in range(2)]
        eventually(lambda: proxy.stats["connections"]["attempted"] == 2)
        proxy.close()
        for job in jobs:
            with pytest.raises(gwt.ClientError, match="closed meanwhile") as caught:
                job.get(timeout=2)
            assert caught.value.target_url == "a.test:1"
        assert proxy.stats["connections"]["failed"] == 2
        assert proxy.connection is None


def test_killing_who_asks_takes_the_request_back(answers, target):
    asked = []
    answers.function = lambda connection, event: asked.append((connection, event.stream_id))
    with reaching(target) as (_, proxy):
        asking = gevent.spawn(proxy.connect_through_proxy, target)
        eventually(lambda: asked)
        asking.kill()
        connection, stream_id = asked[0]
        eventually(lambda: stream_id not in connection.protocol.streams)
        assert "tunnels=0" in repr(proxy)
        answers.function = ignore
        proxy.connect_through_proxy(target).abort()


def test_killing_who_makes_the_connection_lets_the_next_one(target):
    with reaching(target) as (_, proxy):
        first = gevent.spawn(proxy.connect_through_proxy, target)
        gevent.sleep(0)
        second = spawn(echoes, proxy, target)
        gevent.sleep(0)
        first.kill()
        assert second.get(timeout=10)
