"""A WebSocket in the environ of a WSGI request: opened, refused, used, and ended with it."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import StringIO
from typing import Any

import gevent
import gevent.socket
import gevent.ssl
import pytest
from gevent.pool import Pool
from gevent.pywsgi import WSGIServer

import gwt
from gwt import certificates
from gwt.integrations.pywsgi import WebSocketHandler
from gwt.net.waiting import Deadline
from gwt.states import WebSocketState

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
CLOSE = b"\x88\x82\0\0\0\0\x03\xe8"

WSGI = Callable[[dict[str, Any], Callable[..., Any]], Any]


def echo(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    for message in environ["wsgi.websocket"]:
        environ["wsgi.websocket"].send(message)
    return []


def plain(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    assert "wsgi.websocket" not in environ
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"plain"]


class Running:
    """A pywsgi server with our handler, and what it logs."""

    def __init__(self, app: WSGI, handler: type[WebSocketHandler], **options: Any) -> None:
        self.log = StringIO()
        self.handler = handler
        self.server = WSGIServer(
            ("127.0.0.1", 0), app, log=self.log, handler_class=handler, spawn=Pool(), **options
        )
        self.server.start()
        self.scheme = "wss" if self.server.ssl_enabled else "ws"

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.server.server_port

    def url(self, path: str = "/") -> str:
        return f"{self.scheme}://127.0.0.1:{self.server.server_port}{path}"


@contextmanager
def serving(
    app: WSGI, handler: type[WebSocketHandler] = WebSocketHandler, **options: Any
) -> Iterator[Running]:
    running = Running(app, handler, **options)
    try:
        yield running
    finally:
        running.server.stop(timeout=1)


@pytest.fixture(params=["plain", "tls", "gwt.Server"])
def serve(request: pytest.FixtureRequest, tmp_path: Any) -> Any:
    """Make something that serves a WSGI application: they all behave alike."""
    if request.param == "plain":
        return serving
    if request.param == "tls":
        files = certificates.write(tmp_path, certificates.generate())
        context = gevent.ssl.SSLContext(gevent.ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*files)
        return lambda app: serving(app, ssl_context=context)

    @contextmanager
    def ours(app: WSGI) -> Iterator[Any]:
        with gwt.Server(app, "127.0.0.1:0", http3=False) as server:
            server.url = lambda path="/": "ws://{}:{}{}".format(*server.address, path)
            yield server

    return ours


def connect(where: Any, path: str = "/", **options: Any) -> gwt.WebSocket:
    return gwt.connect(where.url(path), verify=False, timeout=5, **options)


def asked(*lines: str, path: str = "/", key: str = KEY) -> bytes:
    head = (
        f"GET {path} HTTP/1.1",
        "Host: localhost",
        "Connection: keep-alive, Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
        *lines,
    )
    return "\r\n".join([*head, "", ""]).encode()


def told(where: Any, data: bytes, wanted: bytes = b"", then: bytes = b"") -> bytes:
    """Send bytes to a plain server, others after its answer, and return all that it says."""
    with gevent.socket.create_connection(where.address, timeout=5) as sock:
        sock.sendall(data)
        everything = b""
        while more := sock.recv(65536):
            everything += more
            if then and wanted in everything:
                sock.sendall(then)
                then = b""
        return everything


def until(condition: Callable[[], bool]) -> None:
    deadline = Deadline(5)
    while not condition():
        assert deadline.remaining()
        gevent.sleep(0.01)


# Opened


def test_an_application_echoes(serve: Any) -> None:
    with serve(echo) as where, connect(where) as ws:
        ws.send("one")
        assert ws.recv(5) == "one"
        ws.send(b"x" * 300_000)
        assert ws.recv(5) == b"x" * 300_000


@pytest.mark.parametrize(
    "use",
    [
        lambda ws: ws.recv(0.01),
        lambda ws: next(ws.recv_streaming()),
        lambda ws: next(iter(ws)),
        lambda ws: ws.receive(0.01),
        lambda ws: ws.send("hello"),
        lambda ws: ws.send_text("hello"),
        lambda ws: ws.send_bytes(b"hello"),
        lambda ws: ws.ping(),
        lambda ws: ws.wait_closed(0.01),
        lambda ws: ws.accept(),
    ],
)
def test_whatever_uses_it_opens_it(use: Any) -> None:
    states = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        ws = environ["wsgi.websocket"]
        states.append((ws.state, ws.accepted))
        assert not ws.is_reusable
        with suppress(TimeoutError, gwt.WebSocketClosed):
            use(ws)
        states.append((ws.state, ws.accepted))
        return []

    with serving(app) as where, connect(where) as ws:
        with suppress(gwt.WebSocketClosed):
            ws.send("for those who wait")
        ws.wait_closed(5)
    assert states[0] == (WebSocketState.CONNECTING, False)
    assert states[1][1] is True


def test_accept_chooses_a_subprotocol_and_adds_headers() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        ws = environ["wsgi.websocket"]
        with pytest.raises(gwt.LocalProtocolError, match="does not offer"):
            ws.accept("cup")
        ws.accept("tea", {"X-Kind": "green"})
        assert ws.subprotocol == ws.protocol == "tea"
        with pytest.raises(RuntimeError, match="accepted already"):
            ws.accept()
        ws.send("done")
        return []

    with serving(app) as where:
        with connect(where, subprotocols=["coffee", "tea"]) as ws:
            assert ws.recv(5) == "done"
            assert ws.subprotocol == "tea"
        reply = told(where, asked("Sec-WebSocket-Protocol: tea") + b"\x88\x80\0\0\0\0")
    assert b"\r\nX-Kind: green\r\n" in reply


def test_options_are_those_of_the_server() -> None:
    handler = WebSocketHandler.with_options(
        subprotocols=["tea"], max_size=10, compression="deflate"
    )
    assert handler.gate is not WebSocketHandler.gate
    with serving(echo, handler) as where:
        with connect(where, subprotocols=["coffee", "tea"]) as ws:
            assert ws.subprotocol == "tea"
            ws.send("x" * 11)
            with pytest.raises(gwt.WebSocketClosedError) as caught:
                ws.recv(5)
        assert caught.value.code == 1009
        assert b"permessage-deflate" in told(
            where, asked("Sec-WebSocket-Extensions: permessage-deflate") + b"\x88\x80\0\0\0\0"
        )
    with pytest.raises(gwt.ConfigError):
        WebSocketHandler.with_options(max_sizes=10)


def test_what_came_behind_the_request_is_not_lost() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["wsgi.websocket"].send(environ["wsgi.websocket"].recv())
        return []

    with serving(app) as where:
        reply = told(where, asked() + b"\x81\x82\0\0\0\0hi", b"hi\x88", CLOSE)
    assert reply.endswith(b"\r\n\r\n\x81\x02hi\x88\x02\x03\xe8")


def test_it_knows_the_request() -> None:
    seen: dict[str, Any] = {}

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        ws = environ["wsgi.websocket"]
        seen.update(
            path=ws.path,
            origin=ws.origin,
            version=environ["wsgi.websocket_version"],
            mine=ws.environ is environ,
            cookie=ws.headers["cookie"],
            remote=ws.remote_address,
            query=ws.request.query,
            early=(ws.closed, ws.close_code, ws.latency, ws.stats(), ws.subprotocol),
        )
        ws.accept()
        seen["local"] = ws.local_address
        return []

    with serving(app) as where:
        headers = {"Cookie": "a=b"}
        with connect(where, "/a%20b?c=d", headers=headers, origin=None) as ws:
            ws.wait_closed(5)
            assert seen["remote"] == ws.local_address
            assert seen["local"] == ws.remote_address
    assert seen["path"] == "/a b" and seen["query"] == {"c": "d"}
    assert seen["version"] == "13" and seen["mine"] and seen["cookie"] == "a=b"
    assert seen["early"] == (False, None, 0.0, {}, None)


# Refused


def test_an_application_can_answer_401_as_ever(serve: Any) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("401 Unauthorized", [("WWW-Authenticate", "Basic")])
        return [b"who are you?"]

    with serve(app) as where:
        with pytest.raises(gwt.SessionRejected) as caught:
            connect(where)
        assert caught.value.status == 401
        assert caught.value.headers["www-authenticate"] == "Basic"


@pytest.mark.parametrize("how", ["reject", "close", "abort", "begin_close", "with"])
def test_it_can_be_refused(how: str) -> None:
    errors: list[Exception] = []
    ended: list[Any] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        ws = environ["wsgi.websocket"]
        ws.on_end(ended.append)
        if how == "reject":
            ws.reject(403, {"X-Why": "no"}, b"go away")
        elif how == "with":
            with ws:
                pass
        else:
            getattr(ws, how)()
        for use in (ws.recv, ws.accept, lambda: ws.send("x"), ws.ping):
            with pytest.raises(gwt.WebSocketClosedError, match="refused with HTTP status 403"):
                use()
        with pytest.raises(RuntimeError, match="answered already"):
            ws.reject(404)
        ws.close()
        ws.wait_closed()
        assert ws.closed and ws.close_code == 1006 and ws.receive() is None
        errors.append(ws.state)
        start_response("200 OK", [])
        return [b"nobody hears this"]

    with serving(app) as where:
        reply = told(where, asked())
        assert len(ended) == 1
    assert reply.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert reply.count(b"HTTP/1.1") == 1 and b"nobody" not in reply
    if how == "reject":
        assert b"\r\nX-Why: no\r\n" in reply and reply.endswith(b"\r\n\r\ngo away")
    assert errors == [WebSocketState.CLOSED]
    assert " 403 " in where.log.getvalue()


def test_one_that_was_not_used_does_not_take_the_next_request(serve: Any) -> None:
    kept: list[Any] = []
    ended: list[Any] = []
    errors: list[str] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if not kept:
            kept.append(environ["wsgi.websocket"])
            kept[0].on_end(ended.append)
        else:
            ws = kept[0]
            for use in (ws.accept, ws.recv, lambda: ws.send("x"), ws.ping, lambda: next(iter(ws))):
                with pytest.raises(gwt.WebSocketClosedError, match="answered without it") as caught:
                    use()
                errors.append(str(caught.value))
            with pytest.raises(RuntimeError, match="answered already"):
                ws.reject(403)
            ws.close()
            assert ws.closed and ws.state is WebSocketState.CLOSED and ws.close_code == 1006
        start_response("401 Unauthorized", [("Content-Length", "0")])
        return []

    with serve(app) as where:
        for _ in range(2):
            with pytest.raises(gwt.SessionRejected) as caught:
                connect(where)
            assert caught.value.status == 401
    assert ended == kept and len(errors) == 5


def test_what_cannot_be_an_answer_is_refused_before_anything_is_sent() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        for status in (200, 101, 600):
            with pytest.raises(gwt.ConfigError):
                environ["wsgi.websocket"].reject(status)
        for header in (("X", "a\r\nSet-Cookie: b"), ("X Y", "a"), ("X", "\u20ac"), ("", "a")):
            with pytest.raises(gwt.ConfigError, match="cannot be sent"):
                environ["wsgi.websocket"].reject(403, [header])
        environ["wsgi.websocket"].reject(404, {"Retry-After": 5})
        return []

    with serving(app) as where:
        reply = told(where, asked())
    assert reply.startswith(b"HTTP/1.1 404 ") and b"\r\nRetry-After: 5\r\n" in reply


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (asked("Origin: https://evil.example"), 403),
        (asked(key="short"), 400),
        (asked().replace(b"Version: 13", b"Version: 8"), 426),
        (asked().replace(b"Connection: keep-alive, Upgrade", b"Connection: keep-alive"), 426),
        (asked("Sec-WebSocket-Extensions: permessage-deflate; x=\xff"), 400),
    ],
)
def test_bad_requests_do_not_reach_the_application(data: bytes, status: int) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        raise AssertionError("reached")

    with serving(app) as where:
        assert told(where, data).startswith(b"HTTP/1.1 %d " % status)


def test_other_origins_when_they_are_listed() -> None:
    handler = WebSocketHandler.with_options(origins=["https://friend.example"])
    with serving(echo, handler) as where, connect(where, origin="https://friend.example") as ws:
        ws.send("x")
        assert ws.recv(5) == "x"


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("before", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"])
@pytest.mark.parametrize("begun", [b"GET / HT", asked()[:-10]])
def test_half_a_handshake_is_not_waited_for(
    begun: bytes, before: bytes, tls: bool, tmp_path: Any
) -> None:
    handler = WebSocketHandler.with_options(request_timeout=0.1)
    options = {}
    if tls:
        server_side = gevent.ssl.SSLContext(gevent.ssl.PROTOCOL_TLS_SERVER)
        server_side.load_cert_chain(*certificates.write(tmp_path, certificates.generate()))
        options["ssl_context"] = server_side
    with serving(plain, handler, **options) as where:
        sock = gevent.socket.create_connection(where.address, timeout=5)
        if tls:
            context = gevent.ssl.SSLContext(gevent.ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, gevent.ssl.CERT_NONE
            sock = context.wrap_socket(sock)
        with sock:
            sock.sendall(before)
            reply = b""
            while before and b"\r\n\r\nplain" not in reply:
                reply += sock.recv(65536)
            # Before a request there is all the time that pywsgi gives.
            with pytest.raises(TimeoutError):
                sock.settimeout(0.2)
                sock.recv(65536)
            sock.settimeout(5)
            sock.sendall(begun)
            assert b"".join(iter(lambda: sock.recv(65536), b"")).startswith(b"HTTP/1.1 408 ")
        assert handler.gate.counters["requests_timed_out"] == 1
    assert where.log.getvalue().count("\n") == bool(before) + 1


def test_an_application_has_more_time_than_a_header() -> None:
    def slow(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"].read(1)
        gevent.sleep(0.05)
        start_response("200 OK", [])
        return [body]

    with serving(slow, WebSocketHandler.with_options(request_timeout=0.03)) as where:
        head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n"
        with gevent.socket.create_connection(where.address, timeout=5) as sock:
            sock.sendall(head + b"Connection: close\r\n\r\n")
            gevent.sleep(0.05)
            sock.sendall(b"x")
            assert b"".join(iter(lambda: sock.recv(65536), b"")).startswith(b"HTTP/1.1 200 ")


def test_requests_beyond_the_limit_are_refused() -> None:
    handler = WebSocketHandler.with_options(max_connections=1)
    with serving(echo, handler) as where:
        with connect(where) as ws:
            ws.send("x")
            ws.recv(5)
            with pytest.raises(gwt.SessionRejected) as caught:
                connect(where)
            assert caught.value.status == 503
        with connect(where) as ws:
            ws.send("x")
            assert ws.recv(5) == "x"


def test_other_requests_are_left_alone() -> None:
    with serving(plain) as where:
        twice = b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n"
        reply = told(where, twice + b"Connection: close\r\n\r\n")
    assert reply.count(b"200 OK") == 2


def test_an_application_that_began_to_answer_cannot_accept() -> None:
    errors = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "2"), ("Connection", "close")])(b"a")
        with pytest.raises(RuntimeError, match="begun to answer") as caught:
            environ["wsgi.websocket"].accept()
        errors.append(caught.value)
        return [b"b"]

    with serving(app) as where:
        assert told(where, asked()).endswith(b"\r\n\r\nab")
    assert errors


# The end


def test_the_applications_return_closes_it(serve: Any) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["wsgi.websocket"].send("bye")
        # As Flask does for what a view returns.
        start_response("200 OK", [("Content-Length", "0")])
        return [b"ignored"]

    with serve(app) as where:
        ws = connect(where)
        assert list(ws) == ["bye"]
        assert ws.close_code == 1000
        ws.close()
        if serve is serving:
            until(lambda: '"GET / HTTP/1.1" 101 ' in where.log.getvalue())


def test_an_application_that_raises_closes_with_an_error(
    serve: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["wsgi.websocket"].recv()
        raise KeyError("mine")

    with serve(app) as where, caplog.at_level(logging.ERROR):
        ws = connect(where)
        ws.send("x")
        with pytest.raises(gwt.WebSocketClosedError) as caught:
            ws.recv(5)
        assert caught.value.code == 1011
        ws.close()
    assert [record.exc_info is not None for record in caplog.records] == [True]


def test_a_framework_that_answers_500_closes_with_an_error(serve: Any) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["wsgi.websocket"].recv()
        start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
        return [b"it was logged"]

    with serve(app) as where:
        ws = connect(where)
        ws.send("x")
        with pytest.raises(gwt.WebSocketClosedError) as caught:
            ws.recv(5)
        assert caught.value.code == 1011
        ws.close()


def test_a_peer_that_goes_is_no_error_of_the_application(
    serve: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        while True:
            environ["wsgi.websocket"].recv()

    with serve(app) as where, caplog.at_level(logging.WARNING):
        for end in (lambda ws: ws.close(), lambda ws: ws.abort()):
            ws = connect(where)
            end(ws)
            ws.wait_closed(5)
    assert not caplog.records


def test_one_that_raises_before_answers_500(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    hub = gevent.get_hub()
    monkeypatch.setattr(hub, "handle_error", lambda *args: seen.append(args[1]))

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        raise KeyError("mine")

    with serving(app) as where:
        assert told(where, asked()).startswith(b"HTTP/1.1 500 ")
    assert seen == [KeyError]


def test_an_application_that_does_not_answer_is_said_to_have_failed(
    serve: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with serve(lambda environ, start_response: []) as where, caplog.at_level(logging.ERROR):
        with pytest.raises(gwt.SessionRejected) as caught:
            connect(where)
        assert caught.value.status == 500
    assert "has not answered a request for /" in caplog.text


def test_the_body_of_a_request_for_a_websocket_is_empty() -> None:
    bodies = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"]
        bodies.append((body.read(), body.read(5), body.readline(), body.readlines(), list(body)))
        return echo(environ, start_response)

    with serving(app) as where, connect(where) as ws:
        ws.send("x")
        assert ws.recv(5) == "x"
    assert bodies == [(b"", b"", b"", [], [])]


def test_stopping_the_server_says_1001() -> None:
    with serving(echo) as where:
        ws = connect(where)
        ws.send("x")
        ws.recv(5)
        where.server.stop(timeout=0.01)
        with pytest.raises(gwt.WebSocketClosedOK) as caught:
            ws.recv(5)
        assert caught.value.code == 1001
        ws.close()


def test_all_can_be_closed_before_the_server_is() -> None:
    handler = WebSocketHandler.with_options()
    with serving(echo, handler) as where:
        ws = connect(where)
        ws.send("x")
        ws.recv(5)
        handler.close_all()
        with pytest.raises(gwt.WebSocketClosedOK) as caught:
            ws.recv(5)
        assert caught.value.code == 1001
        ws.close()
        with pytest.raises(gwt.SessionRejected):
            connect(where)


def test_nothing_is_left_of_it() -> None:
    left: list[weakref.ref[Any]] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        left.append(weakref.ref(environ["wsgi.websocket"]))
        return echo(environ, start_response)

    with serving(app, WebSocketHandler.with_options()) as where:
        gc.collect()
        gc.disable()
        try:
            with connect(where) as ws:
                ws.send("x")
                ws.recv(5)
            del ws
            # No cycle: it goes without the collector.
            until(lambda: left[0]() is None)
        finally:
            gc.enable()
        assert not where.handler.gate.open
