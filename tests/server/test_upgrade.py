"""From a request to a WebSocket: who is let in, what is answered, and what a server keeps."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent import ssl

import gwt
from gwt import certificates
from gwt.net.waiting import Deadline
from gwt.protocol.wsframes import encode_frame
from tests.helpers import until

KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def request(path: str = "/ws", *lines: str, host: str = "localhost") -> bytes:
    head = (
        f"GET {path} HTTP/1.1",
        f"Host: {host}",
        "Connection: keep-alive, Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {KEY}",
        *lines,
    )
    return "\r\n".join([*head, "", ""]).encode()


@contextmanager
def dialled(server: gwt.Server, data: bytes = b"") -> Iterator[Any]:
    with gevent.socket.create_connection(server.address, timeout=5) as sock:
        sock.sendall(data)
        yield sock


def answer(server: gwt.Server, data: bytes) -> tuple[int, str]:
    """Return the status and the rest of what a server answers until it closes, or upgrades."""
    with dialled(server, data) as sock:
        text = b""
        while not (text.startswith(b"HTTP/1.1 101") and b"\r\n\r\n" in text):
            more = sock.recv(65536)
            if not more:
                break
            text += more
    return int(text.split()[1]), text.decode()


def echo(ws: gwt.WebSocket) -> None:
    for message in ws:
        ws.send(message)


@contextmanager
def serving(app: gwt.App | None = None, handler: Any = echo, **options: Any):
    app = app or gwt.App()
    if handler is not None:
        app.websocket("/ws")(handler)
    with gwt.Server(app, "127.0.0.1:0", http3=False, **options) as server:
        yield server


def url(server: gwt.Server, path: str = "/ws", scheme: str = "ws") -> str:
    return "{}://{}:{}{}".format(scheme, *server.address, path)


def eventually(condition) -> None:
    deadline = Deadline(5)
    while not condition():
        assert not deadline.expired
        gevent.sleep(0.001)


class TestWhoIsLetIn:
    def test_answers_with_proof_that_the_key_was_read(self):
        with serving() as server:
            status, text = answer(server, request())
            assert status == 101
            assert "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in text
            assert "content-length" not in text.lower()

    @pytest.mark.parametrize(
        ("data", "status"),
        [
            (request("/nowhere"), 404),
            (request("/ws", "Origin: http://evil.test"), 403),
            (request("/ws", "Origin: http://localhost"), 101),
            (request("/ws", "Content-Length: 5") + b"hello", 400),
            (request().replace(KEY.encode(), b"short"), 400),
            (request().replace(b"Version: 13", b"Version: 8"), 426),
            (request().replace(b"Connection: keep-alive, Upgrade\r\n", b""), 426),
            (request().replace(b"GET", b"POST", 1), 405),
            (request().replace(b"HTTP/1.1", b"HTTP/1.0", 1), 400),
        ],
    )
    def test_refuses_by_status(self, data, status):
        with serving() as server:
            assert answer(server, data)[0] == status

    def test_hosts_that_are_not_allowed(self):
        with serving(allowed_hosts=["example.test"]) as server:
            assert answer(server, request())[0] == 421
            assert answer(server, request(host="example.test"))[0] == 101

    def test_middleware_may_refuse_and_sees_the_request(self):
        app = gwt.App()
        seen = []

        @app.middleware
        def check(request):
            seen.append(request)
            if request.query.get("token") != "right":
                raise gwt.Reject(401, {"WWW-Authenticate": "Bearer"}, b"who are you?")

        with serving(app) as server:
            status, text = answer(server, request("/ws?token=wrong"))
            assert (status, "WWW-Authenticate: Bearer" in text) == (401, True)
            assert text.endswith("who are you?")
            assert (
                answer(server, request("/ws?token=right", "Cookie: a=b", "Cookie: c=d"))[0] == 101
            )
        assert seen[0].protocol == "websocket"
        assert seen[0].path == "/ws"
        assert seen[1].headers["cookie"] == "a=b; c=d"

    def test_broken_middleware_is_a_500_that_is_logged(self, caplog):
        app = gwt.App()

        @app.middleware
        def broken(request):
            raise LookupError("middleware")

        with serving(app) as server, caplog.at_level(logging.ERROR, "gwt.server"):
            assert answer(server, request())[0] == 500
        assert [each.message for each in caplog.records] == ["Middleware failed for /ws."]

    def test_no_more_than_max_handlers(self):
        with serving(max_handlers=1) as server:
            with gwt.connect(url(server)) as ws:
                with pytest.raises(gwt.SessionRejected) as caught:
                    gwt.connect(url(server))
                assert caught.value.status == 503
                ws.close()
            eventually(lambda: server.stats()["handlers"] == 0)
            gwt.connect(url(server)).close()

    def test_no_more_than_max_connections(self):
        with serving(max_connections=2) as server:
            first, second = gwt.connect(url(server)), gwt.connect(url(server))
            assert server.connections.get_stats()["current_count"] == 2
            with pytest.raises(gwt.SessionRejected) as caught:
                gwt.connect(url(server))
            assert caught.value.status == 503
            first.close()
            second.close()

    def test_a_route_has_parameters_and_options_of_its_own(self):
        app = gwt.App()

        @app.websocket("/room/<name>/<int:n>", max_size=10, subprotocols=["chat"])
        def handler(ws, name, n):
            ws.send(f"{name} {n} {ws.subprotocol}")
            ws.recv()

        with (
            serving(app, max_size=100) as server,
            gwt.connect(url(server, "/room/caf%C3%A9/7"), subprotocols=["x", "chat"]) as ws,
        ):
            assert ws.recv(timeout=5) == "café 7 chat"
            ws.send("x" * 11)
            ws.wait_closed(timeout=5)
            assert ws.close_code == 1009
        with pytest.raises(gwt.ConfigError):
            app.websocket("/x", max_handlers=3)

    def test_other_requests_are_the_wsgi_applications(self):
        def wsgi(environ, start_response):
            start_response("200 OK", [("Content-Length", "2")])
            return [b"ok"]

        with serving(gwt.App(wsgi)) as server:
            get = b"GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            assert answer(server, get)[0] == 200
            with dialled(server, request("/other")) as sock:
                assert until(sock, b"ok").startswith(b"HTTP/1.1 200")
            assert answer(server, request())[0] == 101


class TestHandlers:
    def test_that_return_close_with_1000(self):
        with serving(handler=lambda ws: ws.send("bye")) as server:
            ws = gwt.connect(url(server))
            assert list(ws) == ["bye"]
            assert ws.close_code == 1000

    def test_that_raise_close_with_1011_and_are_logged_once(self, caplog):
        def handler(ws):
            raise LookupError("handler")

        with serving(handler=handler) as server, caplog.at_level(logging.ERROR, "gwt.server"):
            ws = gwt.connect(url(server))
            with pytest.raises(gwt.WebSocketClosedError):
                ws.recv(timeout=5)
            assert ws.close_code == 1011
            eventually(lambda: server.stats()["handlers"] == 0)
            assert server.stats()["handler_errors"] == 1
        assert [each.message for each in caplog.records] == ["The handler of /ws failed."]

    def test_whose_peer_has_gone_are_no_failure(self, caplog):
        def handler(ws):
            while True:
                ws.recv()

        with serving(handler=handler) as server, caplog.at_level(logging.WARNING):
            gwt.connect(url(server)).close()
            gwt.connect(url(server)).abort()
            eventually(lambda: server.stats()["handlers"] == 0)
        assert not caplog.records

    def test_get_1001_when_the_server_stops(self):
        with serving() as server:
            clients = [gwt.connect(url(server)) for _ in range(5)]
            server.stop()
            for ws in clients:
                ws.wait_closed(timeout=5)
                assert (ws.close_code, ws.close_reason) == (1001, "The server is stopping")

    def test_that_do_not_end_are_killed_when_the_server_stops(self):
        killed = []

        def handler(ws):
            try:
                gevent.sleep(60)
            except gevent.GreenletExit:
                killed.append(ws)
                raise

        with serving(handler=handler) as server:
            ws = gwt.connect(url(server))
            server.stop(timeout=0.05)
            ws.wait_closed(timeout=5)
        assert len(killed) == 1

    def test_need_not_receive_for_pings_and_closes_to_be_seen(self):
        ended = gevent.event.Event()

        def handler(ws):
            ws.wait_closed()
            ended.set()

        with serving(handler=handler) as server:
            ws = gwt.connect(url(server))
            assert ws.ping().wait(timeout=5)
            ws.close(1000, "done")
            assert ended.wait(5)


class TestTheConnection:
    def test_what_came_behind_the_request_is_not_lost(self):
        masked = b"\x81\x85\x00\x00\x00\x00hello"
        with serving() as server, dialled(server, request() + masked) as sock:
            until(sock, b"\x81\x05hello")

    def test_comes_after_requests_on_the_same_connection(self):
        def wsgi(environ, start_response):
            start_response("200 OK", [("Content-Length", "2")])
            return [b"ok"]

        with serving(gwt.App(wsgi)) as server:
            get = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
            with dialled(server, get + get + request()) as sock:
                assert until(sock, b" 101 ").count(b" 200 OK") == 2

    def test_with_tls(self, tmp_path):
        certificate = certificates.generate()
        cert, key = certificates.write(tmp_path, certificate)
        with serving(certfile=cert, keyfile=key) as server:
            with gwt.connect(
                url(server, scheme="wss"), server_certificate_hashes=[certificate.sha256]
            ) as ws:
                data = bytes(range(256)) * 2000
                for _ in range(5):
                    ws.send(data)
                assert [ws.recv(timeout=5) for _ in range(5)] == [data] * 5
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            with (
                dialled(server) as sock,
                context.wrap_socket(sock) as tls,
            ):
                tls.sendall(request() + b"\x81\x85\x00\x00\x00\x00hello")
                until(tls, b"\x81\x05hello")
            # More than pywsgi's buffer takes of one record.
            with dialled(server) as sock, context.wrap_socket(sock) as tls:
                tls.sendall(request() + encode_frame(0x82, bytes(12_000) + b"end", True))
                until(tls, b"end")

    def test_who_speaks_no_tls_is_let_go(self, tmp_path):
        cert, key = certificates.write(tmp_path, certificates.generate())
        with serving(certfile=cert, keyfile=key, request_timeout=0.1) as server:
            for data in (b"GET / HTTP/1.1\r\n\r\n", b""):
                with dialled(server, data) as sock, suppress(ConnectionResetError):
                    while sock.recv(65536):
                        pass
            assert server.stats()["tls_handshakes_failed"] == 2

    @pytest.mark.parametrize("begun", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: loc"])
    def test_a_header_has_its_time(self, begun):
        with serving(request_timeout=0.1) as server, dialled(server, begun) as sock:
            said = sock.recv(65536)
            assert said.startswith(b"HTTP/1.1 408 ") if begun else not said
            assert sock.recv(65536) == b""
            assert server.stats()["requests_timed_out"] == 1

    def test_slowness_does_not_extend_it(self):
        with serving(request_timeout=0.3) as server, dialled(server) as sock:
            deadline = Deadline(5)
            with pytest.raises(OSError):
                for _ in iter(int, 1):
                    sock.sendall(b"G")
                    assert not deadline.expired
                    gevent.sleep(0.02)

    def test_an_idle_connection_is_closed(self):
        get = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with serving(http_keep_alive_timeout=0.1) as server, dialled(server, get) as sock:
            text = b""
            while more := sock.recv(65536):
                text += more
            assert text.startswith(b"HTTP/1.1 404")

    @pytest.mark.parametrize(
        "lines",
        [
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 5",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Content-Length: 5\r\nContent-Length: 6",
            "Content-Length: +5",
            "Content-Length: 1_0",
            "\r\n".join(f"X-{n}: {'x' * 4000}" for n in range(20)),
        ],
        ids=range(8),
    )
    def test_ambiguous_and_boundless_requests_are_400(self, lines, capsys):
        with serving() as server:
            data = f"POST / HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n\r\n".encode()
            assert answer(server, data)[0] == 400

    def test_a_body_is_still_read(self):
        def wsgi(environ, start_response):
            body = environ["wsgi.input"].read()
            start_response("200 OK", [("Content-Length", str(len(body)))])
            return [body]

        with serving(gwt.App(wsgi)) as server:
            head = "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            plain = f"{head}Content-Length: 5\r\n\r\nhello".encode()
            chunked = f"{head}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".encode()
            for data in (plain, chunked):
                status, text = answer(server, data)
                assert (status, text[-5:]) == (200, "hello")

    def test_hundreds_come_and_go_without_a_trace(self):
        with serving() as server:
            for _ in range(200):
                ws = gwt.connect(url(server))
                ws.send("x")
                assert ws.recv(timeout=5) == "x"
                ws.close()
            eventually(lambda: len(server.connections) == 0)
            stats = server.connections.get_stats()
            assert (stats["total_created"], stats["total_closed"]) == (200, 200)

    def test_the_reaper_ends_the_silent_and_not_those_that_answer_pings(self):
        options = {"connection_idle_timeout": 0.3, "connection_idle_check_interval": 0.05}
        with serving(ping_interval=0.05, **options) as server:
            ws = gwt.connect(url(server), ping_interval=None)
            with pytest.raises(TimeoutError):
                ws.wait_closed(timeout=0.6)
            ws.close()
        with serving(ping_interval=None, **options) as server:
            ws = gwt.connect(url(server), ping_interval=None)
            ws.wait_closed(timeout=5)
            assert ws.close_reason == "Idle timeout"
