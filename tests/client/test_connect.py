"""connect(): every way in which no session comes about, and what is said about it."""

from __future__ import annotations

import datetime
import re
import socket
import time

import gevent
import pytest

import gwt
from gwt import certificates
from gwt.client.sockets import ClientHub
from gwt.client.target import parse_url
from tests.helpers import eventually, spawn
from tests.helpers.live import connect, echo, serving, url


@pytest.fixture
def server():
    with serving(echo) as server:
        yield server


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("http://localhost/", "https"),
        ("localhost:4433", "https"),
        ("https://", "no host"),
        ("https://a:b/", "[Pp]ort"),
        ("https://a:70000/", "[Pp]ort"),
        ("https://a:0/", "port 0"),
        ("https://user@a/", "user names"),
        ("https://a/#b", "fragment"),
        (None, "no string"),
    ],
)
def test_a_bad_url_is_refused_saying_why(text, why):
    with pytest.raises(gwt.ConfigError, match=why) as info:
        gwt.connect(text)
    assert info.value.field == "url"


@pytest.mark.parametrize(
    ("text", "host", "port", "authority", "path"),
    [
        ("https://example.com", "example.com", 443, "example.com", "/"),
        ("https://EXAMPLE.com:443/a?b=c", "example.com", 443, "example.com", "/a?b=c"),
        ("https://[::1]:4433/x", "::1", 4433, "[::1]:4433", "/x"),
        ("https://bücher.example/ü x", "xn--bcher-kva.example", 443, None, "/%C3%BC%20x"),
    ],
)
def test_urls_are_taken_apart(text, host, port, authority, path):
    target = parse_url(text)
    assert (target.host, target.port, target.path) == (host, port, path)
    assert target.authority == (authority or host)


def test_an_unknown_option_is_refused_by_name():
    with pytest.raises(TypeError, match="verfy"):
        gwt.connect("https://localhost/", verfy=False)


def test_an_option_and_its_twin_are_refused():
    with pytest.raises(TypeError, match="server_name"):
        gwt.connect("https://localhost/", server_name="a", server_hostname="b")


@pytest.mark.parametrize(
    "headers",
    [{"bad name": "x"}, {"x": "a\r\nb"}, {"connection": "close"}, {"x": 1}, [("a",)]],
)
def test_a_header_that_cannot_be_sent_is_refused_before_connecting(headers):
    with pytest.raises(gwt.ConfigError) as info:
        gwt.connect("https://127.0.0.1:1/", headers=headers)
    assert info.value.field == "headers"


def test_an_unresolvable_name_is_named():
    with pytest.raises(gwt.HandshakeError, match=r"no-such-host\.invalid") as info:
        gwt.connect("https://no-such-host.invalid/", timeout=5)
    assert info.value.stage == "resolve"


def test_a_closed_port_fails_at_once():
    # pywebtransport 0.21.1 waited its full 30 seconds.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(gwt.HandshakeError, match=f"127.0.0.1 port {port}.*refused") as info:
        gwt.connect(f"https://127.0.0.1:{port}/", timeout=10)
    assert info.value.stage == "connect"
    assert isinstance(info.value, ConnectionError)
    assert time.monotonic() - began < 5


def test_a_closed_port_does_not_harm_connections_on_the_same_socket(server):
    with connect(server, client_sockets=1) as session:
        for _ in range(3):
            with pytest.raises(gwt.HandshakeError):
                gwt.connect("https://127.0.0.1:1/", client_sockets=1, timeout=5)
        with session.create_bidirectional_stream() as stream:
            stream.write_all(b"x")
            assert stream.read_all(timeout=5) == b"x"


def test_a_server_that_never_answers_times_out_saying_what_was_waited_for():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        with pytest.raises(TimeoutError, match="shaking hands") as info:
            gwt.connect(f"https://127.0.0.1:{silent.getsockname()[1]}/", timeout=0.2)
    assert "0.2 s" in str(info.value)


def test_a_handler_that_is_never_accepted_times_out_saying_so():
    app = gwt.App()
    app.webtransport("/")(echo)
    app.middleware(lambda request: gevent.sleep(60))
    with serving(app) as server, pytest.raises(TimeoutError, match="accept the session"):
        connect(server, timeout=0.3)


def test_only_max_connecting_handshakes_are_in_flight_and_queueing_is_told():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        where = f"https://127.0.0.1:{silent.getsockname()[1]}/"

        def attempt(timeout):
            with pytest.raises(TimeoutError) as info:
                gwt.connect(where, timeout=timeout, max_connecting=1)
            return str(info.value)

        texts = [job.get(timeout=5) for job in [spawn(attempt, 0.5), spawn(attempt, 0.2)]]
    assert "shaking hands" in texts[0] and "queued" not in texts[0]
    assert re.search(r"after 0\.2 s, 0\.\d s of them queued, while waiting for a free", texts[1])


def test_waiting_for_a_connection_that_another_greenlet_makes_is_told_as_queueing():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        where = f"https://127.0.0.1:{silent.getsockname()[1]}/"

        def attempt():
            with pytest.raises(TimeoutError) as info:
                gwt.connect(where, timeout=0.3, share_connection=True)
            return str(info.value)

        first, second = (job.get(timeout=5) for job in [spawn(attempt), spawn(attempt)])
    assert "shaking hands" in first and "queued" not in first
    assert re.search(r"0\.\d s of them queued", second)


def test_an_untrusted_certificate_is_refused_by_default(server):
    with pytest.raises(gwt.CertificateError, match="self-signed") as info:
        gwt.connect(url(server))
    assert info.value.stage == "tls"
    gwt.connect(url(server), verify=False).close()


def test_a_certificate_of_another_name_is_refused(tmp_path):
    # pywebtransport 0.6.1 accepted a certificate for other.example.
    cert, key = certificates.write(tmp_path, certificates.generate(["other.example"]))
    with serving(echo, certfile=cert, keyfile=key) as server:
        with pytest.raises(gwt.CertificateError, match=r"127\.0\.0\.1"):
            gwt.connect(url(server), cafile=cert)
        gwt.connect(url(server), cafile=cert, server_name="other.example").close()


def test_a_certificate_of_the_right_name_and_authority_is_accepted(tmp_path):
    cert, key = certificates.write(tmp_path, certificates.generate())
    with serving(echo, certfile=cert, keyfile=key) as server:
        gwt.connect(url(server), cafile=cert).close()


@pytest.mark.parametrize("options", [{}, {"verify": False}, {"share_connection": True}])
def test_a_cafile_without_certificates_is_named_before_connecting(tmp_path, options):
    # It used to be an internal error, once the server had answered.
    (tmp_path / "empty.pem").touch()
    with pytest.raises(gwt.ConfigError, match=r"empty\.pem' holds no certificates") as info:
        gwt.connect("https://127.0.0.1:1/", cafile=tmp_path / "empty.pem", **options)
    assert info.value.field == "cafile"


def test_an_expired_certificate_is_refused(tmp_path):
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=30)
    cert, key = certificates.write(tmp_path, certificates.generate(now=past))
    with serving(echo, certfile=cert, keyfile=key) as server:
        with pytest.raises(gwt.CertificateError, match="no longer valid"):
            gwt.connect(url(server), cafile=cert)
        with pytest.raises(gwt.CertificateError):
            connect(server)


def test_a_pinned_certificate_must_be_the_one(server):
    with pytest.raises(gwt.CertificateError):
        connect(server, server_certificate_hashes=["00" * 32])
    connect(server, server_certificate_hashes=["00" * 32, bytes.fromhex(server.certificate_hash)])


@pytest.mark.parametrize("value", ["abc", b"abc", 5])
def test_a_hash_that_is_none_is_refused(value):
    with pytest.raises(gwt.ConfigError):
        gwt.connect("https://127.0.0.1/", server_certificate_hashes=[value])


def test_headers_and_origin_arrive():
    seen = []

    def handler(session):
        seen.append(session.headers)

    with serving(handler) as server:
        connect(
            server,
            headers=[("X-Token", "a"), ("x-token", "b")],
            origin=url(server).rstrip("/"),
            user_agent="me",
        ).wait_closed(timeout=5)
    assert seen[0]["x-token"] == "a, b"
    assert seen[0]["user-agent"] == "me"
    assert seen[0]["origin"].startswith("https://127.0.0.1:")


def test_sockets_are_shared_and_closed_with_the_last_connection(server):
    sessions = [connect(server, client_sockets=2) for _ in range(6)]
    ports = {session.local_address[1] for session in sessions}
    assert len(ports) == 2
    for session in sessions:
        session.close()
    hub = ClientHub.current()
    eventually(lambda: not any(hub._sockets.values()))


def test_each_connection_may_have_a_socket_of_its_own(server):
    sessions = [connect(server, client_sockets=None) for _ in range(4)]
    assert len({session.local_address[1] for session in sessions}) == 4
    for session in sessions:
        session.close()


def test_sessions_may_share_a_connection(server):
    first = connect(server, share_connection=True)
    second = connect(server, share_connection=True)
    assert first.connection is second.connection
    assert first.stream_id != second.stream_id
    first.close()
    with second.create_bidirectional_stream() as stream:
        stream.write_all(b"x")
        assert stream.read_all(timeout=5) == b"x"
    alone = connect(server)
    assert alone.connection is not second.connection
    alone.close()
    second.close()
    assert second.connection.is_closed
    third = connect(server, share_connection=True)
    assert third.connection is not second.connection
    third.close()


def test_many_greenlets_share_one_connection_from_the_start(server):
    jobs = [spawn(connect, server, share_connection=True) for _ in range(8)]
    sessions = [job.get(timeout=5) for job in jobs]
    assert len({session.connection for session in sessions}) == 1
    for session in sessions:
        session.close()


def test_keep_alive_keeps_a_quiet_session():
    with serving(echo, idle_timeout=0.6) as server, connect(server) as session:
        with pytest.raises(TimeoutError):
            session.wait_closed(timeout=1.5)
        assert session.is_ready


def test_without_keep_alive_a_quiet_session_ends():
    with serving(echo, idle_timeout=0.3) as server:
        session = connect(server, keep_alive=False)
        session.wait_closed(timeout=5)
        assert "Idle timeout" in str(session.connection.closed)


def test_killing_a_connecting_greenlet_leaves_nothing():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        job = gevent.spawn(gwt.connect, f"https://127.0.0.1:{silent.getsockname()[1]}/")
        eventually(lambda: any(ClientHub.current()._sockets.values()))
        job.kill()
    hub = ClientHub.current()
    eventually(lambda: not any(hub._sockets.values()))


def test_ipv6_works():
    app = gwt.App()
    app.webtransport("/")(echo)
    with gwt.Server(app, "[::1]:0") as server:
        host, port = server.address
        session = gwt.connect(
            f"https://[{host}]:{port}/", server_certificate_hashes=[server.certificate_hash]
        )
        with session, session.create_bidirectional_stream() as stream:
            stream.write_all(b"x")
            assert stream.read_all(timeout=5) == b"x"
        assert session.remote_address == ("::1", port)


def test_a_name_with_several_addresses_is_tried_until_one_answers(server):
    # localhost is ::1 first on most machines; nobody listens there.
    session = gwt.connect(
        f"https://localhost:{server.address[1]}/",
        server_certificate_hashes=[server.certificate_hash],
    )
    session.close()


def test_aborting_when_the_server_is_gone_leaves_nothing_for_long():
    # The connection used to stay until its idle timeout, waiting for an acknowledgement.
    with serving(echo) as server:
        session = connect(server, close_timeout=0.2)
        for connection in list(server.connections):
            connection.fail(OSError("the machine went away"))
        session.abort()
        session.connection.wait_closed(timeout=5)


def test_close_waits_for_the_connection_also_when_the_peer_closed_first():
    # The process may end right behind it, and then nobody would close the connection.
    with serving(lambda session: session.close(3, "bye")) as closing:
        session = connect(closing)
        session.wait_closed(timeout=5)
        session.close()
        assert session.connection.is_closed
