"""What a WebSocket's request may ask for, and how those that are open are told of the end."""

from __future__ import annotations

import logging
from contextlib import ExitStack

import gevent.socket
import pytest

import gwt
from gwt.server import gate
from tests.helpers import eventually


def ask(server: gwt.Server, path: str, *lines: str, host: str = "localhost") -> tuple[str, ...]:
    """Return the status, and the lines behind it, of the answer to a request for a WebSocket."""
    with gevent.socket.create_connection(server.address, timeout=5) as sock:
        sock.sendall(request(path, *lines, host=host))
        return head(sock)


def request(path: str, *lines: str, host: str = "localhost") -> bytes:
    text = [
        f"GET {path} HTTP/1.1",
        f"Host: {host}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *lines,
    ]
    return "\r\n".join([*text, "", ""]).encode()


def head(sock) -> tuple[str, ...]:
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(65536)
        assert more, data
        data += more
    status, *lines = data.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    return (status.split()[1], *lines)


@pytest.fixture
def server():
    app = gwt.App()
    app.websocket("/ws")(lambda ws: None)
    app.websocket("/other", subprotocols=["c"], origins="*")(lambda ws: None)
    app.websocket("/listed", origins=["https://page.test:8443"])(lambda ws: None)
    with gwt.Server(app, "127.0.0.1:0", http3=False, subprotocols=["a", "b"]) as server:
        yield server


@pytest.mark.parametrize(
    ("path", "offered", "chosen"),
    [
        ("/ws", ["b, a"], "a"),
        ("/ws", ["b", "a"], "a"),
        ("/ws", ["b,x"], "b"),
        ("/ws", ["x"], None),
        ("/ws", [""], None),
        ("/other", ["a, c"], "c"),
        ("/other", ["a"], None),
    ],
)
def test_of_subprotocols_the_servers_best_is_chosen(server, path, offered, chosen):
    status, *lines = ask(server, path, *(f"Sec-WebSocket-Protocol: {each}" for each in offered))
    assert status == "101"
    answer = [line for line in lines if line.lower().startswith("sec-websocket-protocol")]
    assert answer == ([f"Sec-WebSocket-Protocol: {chosen}"] if chosen else [])


@pytest.mark.parametrize(
    ("path", "host", "origin", "status"),
    [
        ("/ws", "page.test", "http://page.test", "101"),
        ("/ws", "Page.Test", "https://PAGE.test", "101"),
        ("/ws", "page.test:443", "http://page.test:80", "101"),
        ("/ws", "page.test:8000", "http://page.test", "403"),
        ("/ws", "page.test", "http://evil.test", "403"),
        ("/ws", "page.test", "null", "403"),
        ("/ws", "localhost:8000", "http://127.0.0.1:8000", "101"),
        ("/ws", "[::1]:8000", "http://localhost:8000", "101"),
        ("/ws", "localhost:8000", "http://localhost:9000", "403"),
        ("/other", "page.test", "http://evil.test", "101"),
        ("/other", "page.test", "null", "101"),
        ("/listed", "x.test", "https://Page.test:8443", "101"),
        ("/listed", "x.test", "http://page.test:8443", "403"),
        ("/listed", "x.test", "http://x.test", "101"),
    ],
)
def test_pages_of_other_origins_are_refused_unless_listed(server, path, host, origin, status):
    assert ask(server, path, f"Origin: {origin}", host=host)[0] == status


def test_why_a_page_is_refused_is_said_to_it_and_in_the_log_but_not_for_ever(server, caplog):
    caplog.set_level(logging.WARNING, "gwt.server")
    why = "A page of 'https://shop.test' may not connect to 'app:8000': see origins."
    for _ in range(20):
        with gevent.socket.create_connection(server.address, timeout=5) as sock:
            sock.sendall(request("/ws", "Origin: https://shop.test", host="app:8000"))
            reply = b"".join(iter(lambda s=sock: s.recv(65536), b"")).decode()
        first, _, body = reply.partition("\r\n\r\n")
        assert first.startswith("HTTP/1.1 403 ") and "\r\nContent-Type: text/plain" in first
        assert body == f"{why}\n"
    assert 1 <= len(caplog.messages) <= 5
    assert set(caplog.messages) == {f"Refused with status 403: {why}"}


def test_how_messages_are_compressed_can_be_said():
    app = gwt.App()
    how = gwt.Compression(threshold=0, no_context_takeover=False)
    app.websocket("/ws", compression=how)(lambda ws: None)
    with gwt.Server(app, "127.0.0.1:0", http3=False) as server:
        status, *lines = ask(server, "/ws", "Sec-WebSocket-Extensions: permessage-deflate")
    assert status == "101" and "Sec-WebSocket-Extensions: permessage-deflate" in lines


def test_middleware_does_not_say_how_long_its_body_is():
    app = gwt.App()
    app.websocket("/ws")(lambda ws: None)

    @app.middleware
    def refuse(request):
        headers = {"Content-Length": "3", "Transfer-Encoding": "chunked", "X": "y"}
        raise gwt.Reject(401, headers, b"longer")

    with gwt.Server(app, "127.0.0.1:0", http3=False) as server:
        status, *lines = ask(server, "/ws")
    assert status == "401"
    assert "X: y" in lines
    assert [line for line in lines if "ength" in line or "ncoding" in line] == ["Content-Length: 6"]


def test_those_that_never_answer_do_not_hold_up_the_end():
    app = gwt.App()

    @app.websocket("/listens")
    def listens(ws):
        for _ in ws:
            pass

    @app.websocket("/talks")
    def talks(ws):
        while True:
            ws.send(bytes(65536))

    with gwt.Server(app, "127.0.0.1:0", http3=False) as server, ExitStack() as stack:
        url = "ws://{}:{}/listens".format(*server.address)
        polite = [gwt.connect(url) for _ in range(10)]
        silent = []
        for number in range(20):
            sock = stack.enter_context(gevent.socket.create_connection(server.address, timeout=5))
            sock.sendall(request("/talks" if number % 2 else "/listens"))
            silent.append(sock)
        eventually(lambda: server.stats()["handlers"] == 30)
        server.stop(timeout=0.1)
        assert server.stats()["handlers"] == 0
        for ws in polite:
            ws.wait_closed(timeout=5)
            assert ws.close_code == 1001
        # To those that read nothing it came too late.
        for sock in silent[::2]:
            last = b""
            while more := sock.recv(2**20):
                last = (last + more)[-40:]
            assert last.endswith(b"\x03\xe9The server is stopping")


def test_one_that_never_answers_is_given_up_long_before_the_others(monkeypatch):
    monkeypatch.setattr(gate, "FAREWELL", 0.05)
    app = gwt.App()
    ends = []

    @app.websocket("/ws")
    def handler(ws):
        with pytest.raises(gwt.WebSocketClosedError, match="no close frame came back") as caught:
            ws.recv()
        ends.append(caught.value.sent)

    with gwt.Server(app, "127.0.0.1:0", http3=False) as server, ExitStack() as stack:
        sock = stack.enter_context(gevent.socket.create_connection(server.address, timeout=5))
        sock.sendall(request("/ws"))
        assert head(sock)[0] == "101"
        # Without a limit: the handler's end is waited for.
        server.stop(timeout=None)
    assert ends == [(1001, "The server is stopping")]
