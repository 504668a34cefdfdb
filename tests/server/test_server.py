"""The server: its life, its routes, who is let in, and what handlers may do."""

from __future__ import annotations

import socket

import gevent
import pytest

import gwt
from tests.helpers import eventually, spawn, until
from tests.helpers.live import connect, echo, serving, url


def roundtrip(session, data=b"x"):
    with session.create_bidirectional_stream() as stream:
        stream.write_all(data)
        return stream.read_all(timeout=5)


def test_it_serves_tcp_and_udp_on_one_port():
    def wsgi(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"plain http"]

    app = gwt.App(wsgi)
    app.webtransport("/echo")(echo)
    with serving(app) as server:
        with connect(server, "/echo") as session:
            assert roundtrip(session) == b"x"
        with gevent.socket.create_connection(server.address) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            response = client.makefile("rb").read()
        assert response.startswith(b"HTTP/1.1 200 OK") and response.endswith(b"plain http")


def test_a_wsgi_application_may_be_served_as_it_is():
    def wsgi(environ, start_response):
        start_response("204 No Content", [])
        return []

    with gwt.Server(wsgi, "127.0.0.1:0") as server, pytest.raises(gwt.SessionRejected) as info:
        connect(server)
    assert info.value.status == 404


def test_it_can_be_stopped_and_started_again():
    app = gwt.App()
    app.webtransport("/")(echo)
    server = gwt.Server(app, "127.0.0.1:0")
    for _ in range(2):
        server.start()
        server.start()
        with connect(server) as session:
            assert roundtrip(session) == b"x"
        server.stop()
        server.stop()


def test_a_port_in_use_is_named():
    with serving(echo) as server:
        host, port = server.address
        with pytest.raises(OSError, match=f"{host}:{port}.*in use"):
            gwt.Server(gwt.App(), f"{host}:{port}").start()
        with connect(server) as session:
            assert roundtrip(session) == b"x"


def test_a_port_that_only_udp_has_in_use_is_named():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        # Many ports may still be those of TCP connections that have ended.
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
            taken.bind(("127.0.0.1", port))
        with pytest.raises(OSError, match=f"UDP 127.0.0.1:{port}"):
            gwt.Server(gwt.App(), f"127.0.0.1:{port}").start()


@pytest.mark.parametrize(
    "bind", ["", "localhost", "127.0.0.1:http", "127.0.0.1:70000", "::1:80", 80]
)
def test_a_bad_bind_is_refused_by_name(bind):
    with pytest.raises(gwt.ConfigError) as info:
        gwt.Server(gwt.App(), bind)
    assert info.value.field == "bind"


def test_a_missing_certificate_is_named():
    with pytest.raises(gwt.ConfigError, match=r"nowhere\.pem"):
        gwt.Server(gwt.App(), "127.0.0.1:0", certfile="nowhere.pem")


def test_an_unknown_option_is_refused_by_name():
    with pytest.raises(TypeError, match="max_conections"):
        gwt.Server(gwt.App(), max_conections=1)


def test_routes_give_parameters():
    app = gwt.App()
    seen = []

    @app.webtransport("/chat/<room>/<int:n>")
    def chat(session, room, n):
        seen.append((room, n, session.path))

    with serving(app) as server:
        connect(server, "/chat/caf%C3%A9/7?x=1").wait_closed(timeout=5)
        for path in ("/chat/a/b", "/chat", "/"):
            with pytest.raises(gwt.SessionRejected) as info:
                connect(server, path)
            assert info.value.status == 404
    assert seen == [("café", 7, "/chat/caf%C3%A9/7?x=1")]


def test_a_bad_route_is_refused_when_it_is_made():
    with pytest.raises(gwt.ConfigError):
        gwt.App().webtransport("no-slash")(echo)
    with pytest.raises(TypeError):
        gwt.App().webtransport("/", no_such_option=1)
    with pytest.raises(gwt.ConfigError, match="whole server"):
        gwt.App().webtransport("/", max_connections=1)
    with pytest.raises(gwt.ConfigError):
        gwt.App().webtransport(5)(echo)


def test_middleware_may_reject_with_status_headers_and_body():
    app = gwt.App()
    app.webtransport("/")(echo)

    @app.middleware
    def guard(request):
        if request.headers.get("authorization") != "secret":
            raise gwt.Reject(401, {"WWW-Authenticate": "Token"}, b"who are you?")
        assert request.query == {"a": "1"} and request.protocol == "webtransport"

    with serving(app) as server:
        with pytest.raises(gwt.SessionRejected) as info:
            connect(server, "/?a=1")
        assert info.value.status == 401
        assert info.value.headers["www-authenticate"] == "Token"
        with connect(server, "/?a=1", headers={"Authorization": "secret"}) as session:
            assert roundtrip(session) == b"x"


def test_middleware_that_fails_is_a_500_and_logged_once(caplog):
    app = gwt.App()
    app.webtransport("/")(echo)

    @app.middleware
    def broken(request):
        raise KeyError("oops")

    with serving(app) as server, pytest.raises(gwt.SessionRejected) as info:
        connect(server)
    assert info.value.status == 500
    assert caplog.text.count("KeyError: 'oops'") == 1


def test_a_handler_that_returns_closes_with_0_and_loses_nothing():
    data = b"x" * 300_000

    def handler(session):
        session.create_unidirectional_stream().write(data)

    with serving(handler) as server:
        session = connect(server)
        assert session.accept_stream(timeout=5).read_all(timeout=5) == data
        session.wait_closed(timeout=5)
        assert session.close_code == 0


@pytest.mark.parametrize("error", [KeyError("oops"), SystemExit(3)])
def test_a_handler_that_raises_closes_with_an_error_and_is_logged_once(caplog, error):
    def handler(session):
        raise error

    with serving(handler) as server:
        session = connect(server)
        session.wait_closed(timeout=5)
        assert session.close_code == 1011
        assert caplog.text.count("Traceback") == 1
        assert server.stats()["handler_errors"] == 1


def test_a_peer_that_leaves_is_not_an_error_of_the_handler(caplog):
    def handler(session):
        session.receive_datagram()

    with serving(handler) as server:
        connect(server).close(3)
        eventually(lambda: server.stats()["handlers"] == 0)
        assert "handler_errors" not in server.stats()
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("origin", "options", "allowed"),
    [
        ("https://evil.example", {}, False),
        ("https://evil.example", {"origins": ["https://evil.example"]}, True),
        ("https://evil.example", {"origins": "*"}, True),
        ("https://other.example", {"origins": ["https://evil.example"]}, False),
        ("null", {}, False),
        (None, {}, True),
        (None, {"allowed_hosts": ["example.com"]}, False),
        (None, {"allowed_hosts": ["127.0.0.1"]}, True),
    ],
)
def test_origins_and_hosts_are_checked(origin, options, allowed):
    with serving(echo, **options) as server:
        if allowed:
            with connect(server, origin=origin) as session:
                assert roundtrip(session) == b"x"
        else:
            with pytest.raises(gwt.SessionRejected) as info:
                connect(server, origin=origin)
            assert info.value.status == (403 if origin else 421)


def test_a_page_of_the_server_itself_is_allowed_under_any_loopback_name():
    with serving(echo) as server:
        port = server.address[1]
        for origin in (f"http://localhost:{port}", f"https://127.0.0.1:{port}"):
            connect(server, origin=origin).close()
        with pytest.raises(gwt.SessionRejected):
            connect(server, origin=f"http://localhost:{port + 1}")


def test_options_of_a_route_override_those_of_the_server():
    app = gwt.App()
    app.webtransport("/open", origins="*")(echo)
    app.webtransport("/own", subprotocols=["v2"])(echo)
    with serving(app) as server:
        connect(server, "/open", origin="https://evil.example").close()
        with pytest.raises(gwt.SessionRejected):
            connect(server, "/own", origin="https://evil.example")
        with connect(server, "/own", subprotocols=["v1", "v2"]) as session:
            assert session.subprotocol == "v2"


@pytest.mark.parametrize(
    ("offered", "chosen"), [([], None), (["a"], "a"), (["b", "a"], "a"), (["c"], None)]
)
def test_the_server_chooses_its_best_subprotocol(offered, chosen):
    with (
        serving(echo, subprotocols=["a", "b"]) as server,
        connect(server, subprotocols=offered) as session,
    ):
        assert session.subprotocol == chosen


def test_more_handlers_than_allowed_are_refused_with_503():
    with serving(echo, max_handlers=1) as server:
        with connect(server) as session:
            with pytest.raises(gwt.SessionRejected) as info:
                connect(server)
            assert info.value.status == 503
            assert roundtrip(session) == b"x"
        eventually(lambda: server.stats()["handlers"] == 0)
        connect(server).close()


def test_more_sessions_than_allowed_are_refused_with_503():
    with serving(echo, max_sessions=1) as server, connect(server):
        with pytest.raises(gwt.SessionRejected) as info:
            connect(server)
        assert info.value.status == 503


def test_more_connections_than_allowed_refuse_that_one_peer_only():
    # pywebtransport 0.6.1 closed the shared server socket: the third client killed the server.
    with serving(echo, max_connections=2) as server:
        with connect(server) as first, connect(server) as second:
            with pytest.raises(gwt.HandshakeError, match="too many connections"):
                connect(server)
            assert roundtrip(first) == roundtrip(second) == b"x"
        eventually(lambda: len(server.connections) == 0)
        with connect(server) as again:
            assert roundtrip(again) == b"x"
        assert server.stats()["udp"]["connections_refused"] == 1


def test_managers_see_what_the_server_has():
    with serving(echo) as server, connect(server) as session:
        assert len(server.connections) == len(server.sessions) == 1
        (served,) = server.sessions
        assert server.sessions.get_resource(served.session_id) is served
        assert server.sessions.get_sessions_by_state(gwt.SessionState.CONNECTED) == [served]
        assert served.connection in server.connections
        session.close()
        eventually(lambda: len(server.connections) == len(server.sessions) == 0)
        assert server.sessions.get_stats()["total_closed"] == 1


def test_a_silent_connection_is_reaped():
    with (
        serving(echo, connection_idle_timeout=0.2, connection_idle_check_interval=0.05) as server,
        connect(server, keep_alive=False) as session,
    ):
        session.wait_closed(timeout=5)
        assert "Idle timeout" in str(session.connection.closed)


def test_stop_drains_and_closes_what_is_idle_at_once():
    with serving(echo) as server:
        session = connect(server)
        roundtrip(session)
        states = []
        watcher = spawn(lambda: [states.append(session.state), session.wait_closed(timeout=5)])
        gevent.idle()
        server.stop(timeout=5)
        watcher.get(timeout=5)
        assert (session.close_code, session.close_reason) == (0, "The server is stopping")


def test_stop_waits_for_work_under_way():
    started, release = gevent.event.Event(), gevent.event.Event()

    def handler(session):
        with session.accept_bidirectional_stream() as stream:
            started.set()
            release.wait()
            stream.write_all(b"finished")

    with serving(handler) as server:
        session = connect(server)
        stream = session.create_bidirectional_stream()
        stream.write_all(b"go")
        started.wait(5)
        stopping = spawn(server.stop, 10)
        eventually(lambda: session.state is gwt.SessionState.DRAINING)
        with pytest.raises(gwt.HandshakeError, match="stopping"):
            connect(server)
        release.set()
        assert stream.read_all(timeout=5) == b"finished"
        stopping.get(timeout=5)


def test_stop_kills_a_handler_that_never_returns():
    def handler(session):
        gevent.event.Event().wait()

    with serving(handler) as server:
        session = connect(server)
        server.stop(timeout=0.2)
        session.wait_closed(timeout=5)
        assert server.stats()["handlers"] == 0


def test_call_runs_on_the_servers_hub_from_any_thread():
    with serving(echo) as server:
        assert server.call(len, server.connections) == 0
        pool = gevent.get_hub().threadpool
        hub = gevent.get_hub()
        assert pool.spawn(server.call, lambda: gevent.get_hub() is hub).get(timeout=5) is True

        def fail():
            raise LookupError("there")

        def outcome():
            try:
                server.call(fail)
            except LookupError as exc:
                return str(exc)

        assert pool.spawn(outcome).get(timeout=5) == "there"


def test_startup_and_shutdown_functions_run_once_in_order():
    app = gwt.App()
    calls = []
    app.on_startup(lambda: calls.append("up 1"))
    app.on_startup(lambda: calls.append("up 2"))
    app.on_shutdown(lambda: calls.append("down 1"))
    app.on_shutdown(lambda: calls.append("down 2"))
    with serving(app):
        assert calls == ["up 1", "up 2"]
    assert calls == ["up 1", "up 2", "down 2", "down 1"]


def test_garbage_harms_nobody():
    with serving(echo) as server, connect(server) as session:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as attacker:
            for size in (0, 1, 5, 20, 1200, 1400):
                for first in (0x00, 0x40, 0x80, 0xC0, 0xFF):
                    attacker.sendto(bytes([first]) + bytes(max(0, size - 1)), server.address)
        assert roundtrip(session) == b"x"


def test_an_unknown_version_is_answered_with_those_that_are_known():
    with serving(echo) as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        hello = b"\xc0\x1a\x2a\x3a\x4a\x08" + b"d" * 8 + b"\x04" + b"s" * 4
        client.sendto(hello.ljust(1200, b"\0"), server.address)
        gevent.socket.wait_read(client.fileno(), timeout=5)
        answer = client.recv(2000)
        assert answer[1:5] == b"\0\0\0\0" and b"\x00\x00\x00\x01" in answer[-8:]


def test_without_http3_only_tcp_is_served():
    with serving(echo, http3=False) as server, pytest.raises(gwt.HandshakeError):
        gwt.connect(url(server), verify=False, timeout=2)


def test_a_stop_that_was_interrupted_leaves_nothing_and_can_be_followed_by_a_start():
    with serving(lambda session: gevent.sleep(100)) as server:
        connect(server)
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
            server.stop(timeout=20)
        assert not server.started
        server.start()
        assert server.started


def test_a_stop_that_is_interrupted_tells_the_clients_and_forgets_their_connections():
    with serving(lambda session: gevent.sleep(100)) as server:
        sessions = [connect(server) for _ in range(2)]
        for session in sessions:
            # Without a stream it would be closed before the time is up.
            session.create_bidirectional_stream().write(b"x")
        eventually(lambda: all(session.streams for session in server.sessions))
        gone: list[str] = []
        for connection in server.connections:
            connection.on_gone(lambda: gone.append("gone"))
        # One that is closing as it is.
        next(iter(server.connections)).close()
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
            server.stop(timeout=20)
        assert len(gone) == 2 and len(server.connections) == 0
        for session in sessions:
            assert session.connection.wait_closed(timeout=5) is None
            assert session.connection.closed.remote


def test_a_function_of_on_shutdown_that_raises_does_not_hang_serve_forever(caplog):
    app, called = gwt.App(), []
    app.on_shutdown(lambda: called.append(1))
    app.on_shutdown(lambda: 1 / 0)
    server = gwt.Server(app, "127.0.0.1:0")
    greenlet = spawn(server.serve_forever)
    eventually(lambda: server.started)
    server.stop()
    greenlet.get(timeout=5)
    assert called == [1] and "on_shutdown" in caplog.text


def test_a_timeout_of_middleware_is_a_500_and_a_bad_reject_too(caplog):
    app = gwt.App()
    app.webtransport("/")(echo)
    failures = [gevent.Timeout(1), SystemExit(1)]

    @app.middleware
    def fail(request):
        if failures:
            raise failures.pop()
        raise gwt.Reject(200)

    with serving(app) as server:
        for _ in range(3):
            with pytest.raises(gwt.SessionRejected) as info:
                connect(server)
            assert info.value.status == 500


def test_a_ready_function_that_raises_stops_the_server():
    seen = []

    def ready(server):
        seen.append(server)
        raise LookupError

    with pytest.raises(LookupError):
        gwt.serve(gwt.App(), "127.0.0.1:0", ready=ready)
    assert not seen[0].started


def test_a_stopped_server_answers_no_connection_that_was_kept_alive():
    def wsgi(environ, start_response):
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with (
        gwt.Server(wsgi, "127.0.0.1:0") as server,
        gevent.socket.create_connection(server.address, timeout=5) as client,
    ):
        client.sendall(request)
        assert until(client, b"ok").startswith(b"HTTP/1.1 200")
        server.stop()
        assert client.recv(1000) == b""
