"""What HTTP/1.1 peers may do: malformed requests, slow bodies, responses that nobody reads."""

from __future__ import annotations

import itertools
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import gevent.event
import gevent.socket
import pytest
from gevent import ssl

import gwt
from gwt import certificates
from gwt.server import http
from tests.helpers import eventually

HOST = b"Host: localhost\r\n"


def respond(start_response: Any, body: bytes) -> list[bytes]:
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def counting(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Answer with how long the body is."""
    return respond(start_response, str(len(environ["wsgi.input"].read())).encode())


@contextmanager
def serving(wsgi: Any = counting, **options: Any) -> Iterator[gwt.Server]:
    with gwt.Server(gwt.App(wsgi), "127.0.0.1:0", http3=False, **options) as server:
        yield server


@contextmanager
def dialled(server: gwt.Server, data: bytes = b"") -> Iterator[Any]:
    with gevent.socket.create_connection(server.address, timeout=10) as sock:
        if server.config.certfile is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            with context.wrap_socket(sock) as tls:
                tls.sendall(data)
                yield tls
        else:
            sock.sendall(data)
            yield sock


def rest(sock: Any) -> bytes:
    """Read until the server ends."""
    data = b""
    while more := sock.recv(65536):
        data += more
    return data


def ask(server: gwt.Server, data: bytes) -> bytes:
    with dialled(server, data) as sock:
        return rest(sock)


@pytest.fixture(params=["plain", "tls"])
def options(request: pytest.FixtureRequest, tmp_path: Any) -> dict[str, Any]:
    if request.param == "plain":
        return {}
    return by_tls(tmp_path)


def by_tls(directory: Any) -> dict[str, Any]:
    cert, key = certificates.write(directory, certificates.generate())
    return {"certfile": cert, "keyfile": key}


class TestRequestsThatCouldBeReadInTwoWays:
    @pytest.mark.parametrize(
        "data",
        [
            b"GET / HTTP/1.1\n" + HOST + b"\r\n",
            b"GET / HTTP/1.1\r\nHost: localhost\n\r\n",
            b"GET / HTTP/1.1\r\n" + HOST + b"X: a\rContent-Length: 5\r\n\r\n",
            b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length : 5\r\n\r\nhello",
            b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
            b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
            b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
            b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: identity\r\n\r\n",
            b"POST / HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5, 5\r\n\r\nhello",
            b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length:\r\n\r\nhello",
            b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
            b"GET / HTTP/1.1\r\n X: a\r\n" + HOST + b"\r\n",
            b"GET / HTTP/1.1\r\n" + HOST + b"no colon\r\n\r\n",
            b"GET / HTTP/1.1\r\n" + HOST + b": no name\r\n\r\n",
            b"GET / HTTP/1.1\r\n" + HOST + b"X: a\0b\r\n\r\n",
            b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"GET /\r\n" + HOST + b"\r\n",
            b"GET\t/ HTTP/1.1\r\n" + HOST + b"\r\n",
            b"GET /\0 HTTP/1.1\r\n" + HOST + b"\r\n",
            b"GET / HTTP/2.0\r\n" + HOST + b"\r\n",
            b"GET / HTTP/1.1\r\n"
            + HOST
            + b"".join(b"X-%d: a\r\n" % n for n in range(200))
            + b"\r\n",
        ],
        ids=range(23),
    )
    def test_are_400_and_nothing_behind_them_is_read(self, data, capsys):
        with serving() as server:
            answer = ask(server, data + b"GET /smuggled HTTP/1.1\r\n" + HOST + b"\r\n")
            assert answer.startswith(b"HTTP/1.1 400 ")
            assert answer.count(b"HTTP/1.1") == 1
            assert server.stats()["requests_malformed"] == 1
        # A peer may not write into the log, either.
        assert capsys.readouterr().err == ""

    def test_a_header_cut_off_is_no_request(self):
        with serving() as server, dialled(server, b"GET / HTTP/1.1\r\n" + HOST) as sock:
            sock.shutdown(socket.SHUT_WR)
            assert rest(sock).startswith(b"HTTP/1.1 400 ")

    @pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost", b"nonsense\r\n\r\n"])
    def test_a_peer_that_resets_leaves_no_traceback(self, begun, capsys):
        with serving() as server:
            for data in (b"GET / HTTP/1.1\r\n" + HOST + b"\r\n" + begun, begun):
                sock = gevent.socket.create_connection(server.address)
                sock.sendall(data)
                if data != begun:
                    assert b"200 OK" in sock.recv(65536)
                linger = struct.pack("ii", 1, 0)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                sock.close()
            assert b"200 OK" in ask(
                server, b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
            )
        assert capsys.readouterr().err == ""

    def test_an_empty_line_before_a_request_is_forgiven(self):
        get = b"\r\nGET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
        with serving() as server:
            assert ask(server, get).startswith(b"HTTP/1.1 200 ")

    def test_a_request_with_a_body_does_not_bare_the_connection(self):
        head = b"POST / HTTP/1.1\r\n" + HOST + b"Connection: upgrade\r\nUpgrade: h2c\r\n"
        last = b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
        with serving() as server:
            answer = ask(server, head + b"Content-Length: 5\r\n\r\nhello" + last)
        assert answer.count(b"HTTP/1.1 200 ") == 2


class TestSlowBodies:
    @pytest.mark.parametrize(
        "begun",
        [
            b"Content-Length: 100\r\n\r\nhello",
            b"Content-Length: 100\r\nExpect: 100-continue\r\n\r\n",
            b"Transfer-Encoding: chunked\r\n\r\n",
            b"Transfer-Encoding: chunked\r\n\r\n5\r\nhe",
            b"Transfer-Encoding: chunked\r\n\r\n5;extension\nhello\r\n",
            b"Transfer-Encoding: chunked\r\n\r\n0\r\nTrailer: x",
        ],
    )
    def test_are_408_and_the_end(self, options, begun, capsys):
        with serving(body_grace=0.05, **options) as server:
            with dialled(server, b"POST / HTTP/1.1\r\n" + HOST + begun) as sock:
                answer = rest(sock).removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert answer.count(b"HTTP/1.1") == 1
            assert server.stats()["bodies_too_slow"] == 1
        assert capsys.readouterr().err == ""

    def test_are_not_saved_by_a_byte_now_and_then(self):
        with (
            serving(body_grace=0.2, min_body_rate=10_000) as server,
            dialled(
                server, b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 100000\r\n\r\n"
            ) as sock,
        ):
            reading = gevent.spawn(rest, sock)
            with gevent.Timeout(5):
                while not reading.ready():
                    sock.sendall(b"x")
                    gevent.sleep(0.005)
            assert reading.get().startswith(b"HTTP/1.1 408 ")

    def test_that_are_fast_enough_are_read_for_longer_than_the_grace(self, options):
        size, pieces = 20_000, 20
        with (
            serving(body_grace=0.1, min_body_rate=10_000, **options) as server,
            dialled(
                server,
                b"POST / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n"
                b"Content-Length: %d\r\n\r\n" % (size * pieces),
            ) as sock,
        ):
            for _ in range(pieces):
                sock.sendall(bytes(size))
                gevent.sleep(0.02)
            assert rest(sock).endswith(b"\r\n\r\n400000")

    def test_are_not_the_fault_of_an_application_that_reads_slowly(self, options):
        def slow(environ, start_response):
            total = 0
            while data := environ["wsgi.input"].read(50_000):
                gevent.sleep(0.06)
                total += len(data)
            return respond(start_response, str(total).encode())

        head = (
            b"POST / HTTP/1.1\r\n" + HOST + b"Connection: close\r\nContent-Length: 200000\r\n\r\n"
        )
        with serving(slow, body_grace=0.05, **options) as server:
            assert ask(server, head + bytes(200_000)).endswith(b"\r\n\r\n200000")

    def test_that_came_while_the_hub_stood_still_are_not_late(self, options):
        reading = gevent.event.Event()

        def wsgi(environ, start_response):
            reading.set()
            return counting(environ, start_response)

        with (
            serving(wsgi, body_grace=0.1, **options) as server,
            dialled(
                server,
                b"POST / HTTP/1.1\r\n" + HOST + b"Connection: close\r\nContent-Length: 5\r\n\r\n",
            ) as sock,
        ):
            assert reading.wait(5)
            sock.sendall(b"hello")
            time.sleep(0.2)
            assert rest(sock).endswith(b"\r\n\r\n5")

    def test_that_are_not_read_by_the_application_are_no_other_request(self):
        def ignoring(environ, start_response):
            return respond(start_response, b"done")

        with serving(ignoring, body_grace=0.05) as server:
            begun = b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 100\r\n\r\nhello"
            answer = ask(server, begun)
            assert answer.endswith(b"done")
            assert server.stats()["bodies_too_slow"] == 1

    def test_end_an_application_that_has_begun_to_answer(self, options):
        def streaming(environ, start_response):
            start_response("200 OK", [])
            yield b"begun"
            environ["wsgi.input"].read()

        begun = b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 100\r\n\r\nhello"
        with serving(streaming, body_grace=0.05, **options) as server:
            answer = ask(server, begun)
        # Cut off, as the client can see: the last chunk is missing.
        assert answer.endswith(b"\r\n\r\n5\r\nbegun\r\n")

    def test_are_a_broken_pipe_to_an_application_that_answers_all_the_same(self):
        errors = []

        def stubborn(environ, start_response):
            try:
                environ["wsgi.input"].read()
            except TimeoutError as exc:
                errors.append(exc)
            write = start_response("200 OK", [])
            try:
                write(b"all the same")
            except BrokenPipeError as exc:
                errors.append(exc)
            return []

        begun = b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 100\r\n\r\nhello"
        with serving(stubborn, body_grace=0.05) as server:
            answer = ask(server, begun)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert answer.count(b"HTTP/1.1") == 1
        assert len(errors) == 2

    def test_do_not_concern_websockets(self):
        app = gwt.App()

        @app.websocket("/")
        def echo(ws):
            for message in ws:
                ws.send(message)

        with (
            gwt.Server(app, "127.0.0.1:0", http3=False, body_grace=0.02) as server,
            gwt.connect("ws://{}:{}/".format(*server.address)) as ws,
        ):
            gevent.sleep(0.1)
            ws.send("still here")
            assert ws.recv(timeout=5) == "still here"


class TestResponsesThatAreNotRead:
    def test_are_given_up(self, options):
        # More than the buffers of both kernels take.
        body = bytes(64 * 2**20)
        ended = gevent.event.Event()

        def large(environ, start_response):
            start_response("200 OK", [("Content-Length", str(len(body)))])
            try:
                yield body
            finally:
                ended.set()

        with (
            serving(large, response_timeout=0.1, **options) as server,
            dialled(server, b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"),
        ):
            assert ended.wait(10)
            assert server.stats()["responses_stalled"] == 1

    def test_are_not_those_of_which_something_leaves(self, monkeypatch):
        # What a slow reader takes makes the socket writable again only a megabyte later.
        kernel = itertools.chain(range(9, 1, -1), itertools.repeat(1))
        monkeypatch.setattr(http, "_unacknowledged", lambda descriptor: next(kernel))

        def large(environ, start_response):
            return respond(start_response, bytes(64 * 2**20))

        with (
            serving(large, response_timeout=0.02) as server,
            dialled(server, b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"),
        ):
            eventually(lambda: server.stats().get("responses_stalled"))
        # Not before it held still.
        assert next(kernel) == 1


POST = b"POST / HTTP/1.1\r\n" + HOST


class TestPeersThatBreakOff:
    @pytest.mark.parametrize("rate", [None, 1000])
    @pytest.mark.parametrize(
        "begun",
        [
            POST + b"Content-Length: 10\r\n\r\nabc",
            POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
            POST + b"Transfer-Encoding: chunked\r\n\r\n",
        ],
        ids=["length", "chunk", "chunks"],
    )
    def test_within_a_body_leave_no_traceback(self, begun, rate, options, capsys):
        asked = gevent.event.Event()
        errors: list[OSError] = []

        def reading(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            asked.set()
            try:
                return counting(environ, start_response)
            except OSError as exc:
                errors.append(exc)
                raise

        with serving(reading, min_body_rate=rate, **options) as server:
            with dialled(server, begun):
                asked.wait()
            eventually(lambda: server.stats()["http_connections"] == 0)
        assert len(errors) <= 1 and not any(isinstance(each, ssl.SSLError) for each in errors)
        assert "Traceback" not in capsys.readouterr().err

    @pytest.mark.parametrize("path", [b"/", b"/ws"])
    def test_tls_leave_no_traceback(self, path, tmp_path, capsys):
        asked, go = gevent.event.Event(), gevent.event.Event()

        def answering(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            asked.set()
            go.wait()
            return respond(start_response, bytes(2**20))

        upgrade = b"Upgrade: websocket\r\n" if path == b"/ws" else b""
        with serving(answering, **by_tls(tmp_path)) as server:
            request = b"GET " + path + b" HTTP/1.1\r\n" + HOST + upgrade + b"\r\n"
            with dialled(server, request) as sock:
                if not upgrade:
                    asked.wait()
                # A record that nobody can decipher, below TLS.
                gevent.socket.socket.sendall(sock, b"\x17\x03\x03\x00\x20" + bytes(32))
            go.set()
            eventually(lambda: server.stats()["http_connections"] == 0)
        assert capsys.readouterr().err == ""

    def test_tls_is_not_negotiated_twice(self, tmp_path):
        with serving(**by_tls(tmp_path)) as server:
            context = server._tcp._server.wrap_socket.__self__
            assert context.options & ssl.OP_NO_RENEGOTIATION
