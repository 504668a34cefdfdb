"""The socket of a request, taken by an application: what it does better, and what is guarded."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from typing import Any

import gevent.socket
import pytest
from gevent.event import Event
from gevent.pool import Pool
from gevent.pywsgi import WSGIServer

from gwt.integrations.pywsgi import WebSocketHandler
from tests.helpers import eventually, until

ASKED = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)

SWITCH = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"


class Running:
    """A pywsgi server for an application that is given the socket of its request."""

    def __init__(self, view: Callable[[Any, dict[str, Any]], Any], **options: Any) -> None:
        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
            view(environ["wsgi.input"].raw._sock, environ)
            start_response("200 OK", [("Content-Length", "7")])
            return [b"ignored"]

        self.log = StringIO()
        handler = WebSocketHandler.with_options(**options)
        self.server = WSGIServer(
            ("127.0.0.1", 0), app, log=self.log, handler_class=handler, spawn=Pool()
        )
        self.server.start()

    def ask(self, data: bytes = ASKED) -> Any:
        address = ("127.0.0.1", self.server.server_port)
        sock = gevent.socket.create_connection(address, timeout=10)
        sock.sendall(data)
        return sock

    def told(self, data: bytes = ASKED) -> bytes:
        with self.ask(data) as sock:
            return everything(sock)


def everything(sock: Any) -> bytes:
    data = b""
    while more := sock.recv(65536):
        data += more
    return data


@contextmanager
def serving(view: Callable[[Any, dict[str, Any]], Any], **options: Any) -> Iterator[Running]:
    running = Running(view, **options)
    try:
        yield running
    finally:
        running.server.stop(timeout=1)


def test_nothing_of_http_comes_behind_what_was_sent() -> None:
    def view(sock: Any, environ: dict[str, Any]) -> None:
        assert sock.send(SWITCH) == len(SWITCH)
        sock.sendall(memoryview(b"more"))
        sock.close()

    with serving(view) as where:
        # The second request is not one: this connection was another protocol's.
        assert where.told(ASKED + ASKED) == SWITCH + b"more"
        eventually(lambda: '"GET / HTTP/1.1" 101 ' in where.log.getvalue())
        assert where.log.getvalue().count("GET") == 1


def test_the_log_has_the_status_that_the_application_sent() -> None:
    with serving(lambda sock, _: sock.send(b"HTTP/1.1 418 I am a teapot\r\n\r\n")) as where:
        assert where.told() == b"HTTP/1.1 418 I am a teapot\r\n\r\n"
        eventually(lambda: '"GET / HTTP/1.1" 418 ' in where.log.getvalue())


def test_an_unused_socket_changes_nothing() -> None:
    with serving(lambda sock, _: sock.fileno()) as where, where.ask(ASKED + ASKED) as sock:
        answer = b""
        while answer.count(b"200 OK") < 2 or not answer.endswith(b"ignored"):
            answer += sock.recv(65536) or pytest.fail(f"ended: {answer!r}")


def test_what_came_behind_the_request_is_received_first() -> None:
    def view(sock: Any, environ: dict[str, Any]) -> None:
        sock.send(SWITCH)
        sock.send(sock.recv(2))
        buffer = bytearray(10)
        sock.send(buffer[: sock.recv_into(buffer, 2)])
        copy = sock.dup()
        copy.send(copy.recv(10))
        copy.close()
        sock.send(sock.recv(10).upper())
        sock.send(buffer[: sock.recv_into(buffer)])

    with serving(view) as where, where.ask(ASKED + b"abcdefg") as sock:
        answer = b""
        for wanted, then in ((b"abcdefg", b"h"), (b"H", b"i"), (b"i", b"")):
            while not answer.endswith(wanted):
                answer += sock.recv(100)
            sock.sendall(then)
        assert answer == SWITCH + b"abcdefgHi"


def test_one_request_has_one_websocket() -> None:
    errors: list[bool] = []

    def accepted_first(sock: Any, environ: dict[str, Any]) -> None:
        environ["wsgi.websocket"].accept()
        for use in (lambda: sock.send(b"x"), lambda: sock.recv(1)):
            with pytest.raises(RuntimeError, match="was accepted"):
                use()
        errors.append(True)

    def socket_first(sock: Any, environ: dict[str, Any]) -> None:
        sock.send(SWITCH)
        with pytest.raises(RuntimeError, match="begun to answer"):
            environ["wsgi.websocket"].accept()
        errors.append(True)

    with serving(accepted_first) as where, where.ask() as sock:
        sock.sendall(b"\x88\x80\0\0\0\0")
        assert everything(sock).count(b"HTTP/1.1 101 ") == 1
    with serving(socket_first) as where:
        assert where.told() == SWITCH
    assert len(errors) == 2


def test_a_peer_that_takes_nothing_is_given_up() -> None:
    errors: list[OSError] = []

    def view(sock: Any, environ: dict[str, Any]) -> None:
        with pytest.raises(OSError) as caught:
            sock.send(bytes(2**26))
        errors.append(caught.value)

    with serving(view, ping_interval=0.2, ping_timeout=0.2) as where, where.ask():
        eventually(lambda: errors, 20)
    assert isinstance(errors[0], TimeoutError)


def test_half_a_frame_ends_the_connection() -> None:
    results: list[Any] = []

    def view(sock: Any, environ: dict[str, Any]) -> None:
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
            sock.send(bytes(2**26))
        with pytest.raises(OSError) as caught:
            sock.send(b"more")
        results.append(caught.value)
        results.append(sock.recv(10))

    with serving(view) as where, where.ask() as sock:
        eventually(lambda: len(results) == 2)
        everything(sock)
    assert isinstance(results[0], BrokenPipeError) and results[1] == b""


def test_who_reads_in_another_greenlet_gets_the_end() -> None:
    results: list[Any] = []

    def read(sock: Any) -> None:
        try:
            results.append(sock.recv(10))
        finally:
            sock.close()

    def view(sock: Any, environ: dict[str, Any]) -> None:
        sock.send(SWITCH)
        gevent.spawn(read, sock.dup())
        gevent.sleep(0)

    with serving(view) as where, where.ask() as sock:
        # The peer hears of the end, and says nothing.
        assert everything(sock) == SWITCH
        eventually(lambda: results == [b""])
        eventually(lambda: " 101 " in where.log.getvalue())


def test_it_is_taken_back_when_the_request_is_over() -> None:
    kept: list[Any] = []

    def view(sock: Any, environ: dict[str, Any]) -> None:
        kept.append(sock)

    with serving(view) as where, where.ask(ASKED) as sock:
        until(sock, b"ignored")
        eventually(lambda: " 200 " in where.log.getvalue())
        # It would be part of the answer to the next request.
        with pytest.raises(OSError, match="taken back"):
            kept.pop().send(b"x")


def test_a_server_that_stops_does_not_wait_for_it() -> None:
    began, ended = Event(), []

    def view(sock: Any, environ: dict[str, Any]) -> None:
        sock.send(SWITCH)
        began.set()
        try:
            sock.recv(10)
        finally:
            ended.append(True)

    with serving(view) as where, where.ask() as sock:
        began.wait(5)
        where.server.stop(timeout=0.01)
        assert everything(sock) == SWITCH
    assert ended


def test_nothing_is_left_of_it() -> None:
    left: list[weakref.ref[Any]] = []

    def view(sock: Any, environ: dict[str, Any]) -> None:
        left.append(weakref.ref(environ["wsgi.input"]))
        sock.send(SWITCH)

    with serving(view) as where:
        gc.collect()
        gc.disable()
        try:
            where.told()
            # No cycle: it goes without the collector.
            eventually(lambda: left[0]() is None)
        finally:
            gc.enable()
