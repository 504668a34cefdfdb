"""The short way from the first bytes to a WebSocket differs in nothing from pywsgi's."""

from __future__ import annotations

import pytest

import gwt
from gwt.server import quick, upgrade
from tests.server.test_upgrade import KEY, dialled, request, serving

FRAME = b"\x81\x82\0\0\0\0hi"


@pytest.fixture(params=["at once", "in two pieces", "pywsgi's way"])
def ask(request, monkeypatch):
    """Ask a server, and return what it says until it closes or has answered with 101."""
    if request.param == "pywsgi's way":
        monkeypatch.setattr(upgrade.Door, "open_at_once", lambda *_: False)

    def asking(server: gwt.Server, data: bytes) -> bytes:
        said = b""
        with dialled(server) as sock:
            pieces = [data] if request.param != "in two pieces" else [data[:20], data[20:]]
            for piece in pieces:
                sock.sendall(piece)
                if len(pieces) > 1:
                    # The server has seen the first, since another connection was served meanwhile.
                    with dialled(server, b"GET / HTTP/1.0\r\n\r\n") as other:
                        while other.recv(4096):
                            pass
            while not said.startswith(b"HTTP/1.1 101") or not said.endswith(b"hi"):
                more = sock.recv(65536)
                if not more:
                    break
                said += more
        return said

    return asking


CASES = {
    "a frame behind it": request() + FRAME,
    "a query": request("/ws?a=b%20c") + FRAME,
    "an absolute target": request("http://localhost/ws") + FRAME,
    "HTTP/1.0": request().replace(b"HTTP/1.1", b"HTTP/1.0"),
    "POST": request().replace(b"GET", b"POST"),
    "another path": request("/other"),
    "another origin": request("/ws", "Origin: https://evil.example"),
    "two hosts": request("/ws", "Host: localhost"),
    "no host": request().replace(b"Host: localhost\r\n", b""),
    "a body": request("/ws", "Content-Length: 2") + b"hi",
    "an empty body": request("/ws", "Content-Length: 0") + FRAME,
    "chunks": request("/ws", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "a bad key": request().replace(KEY.encode(), b"short"),
    "an old version": request().replace(b"Version: 13", b"Version: 8"),
    "folded": request("/ws", "X: a", " b"),
    "a bare LF": request().replace(b"\r\nUpgrade", b"\nUpgrade"),
    "refused by middleware": request("/refused"),
    "middleware that fails": request("/fails"),
    "no upgrade": b"GET /ws HTTP/1.0\r\nHost: localhost\r\n\r\n",
    "garbage": b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n",
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("wsgi", [False, True])
def test_answers_are_alike(ask, case, wsgi, caplog):
    def application(environ, start_response):
        body = b"wsgi.websocket" if "wsgi.websocket" in environ else b"plain"
        start_response("200 OK", [("Content-Length", str(len(body))), ("Connection", "close")])
        return [body]

    app = gwt.App(application if wsgi else None)
    asked: list[str] = []

    @app.middleware
    def guard(request: gwt.Request) -> None:
        asked.append(request.path)
        if request.path == "/refused":
            raise gwt.Reject(401, {"WWW-Authenticate": "Basic"}, b"who?")
        if request.path == "/fails":
            raise KeyError("mine")

    for path in ("/refused", "/fails"):
        app.websocket(path)(lambda ws: None)
    with serving(app) as server:
        said = ask(server, CASES[case])
    expected = {
        "a frame behind it": b"101",
        "a query": b"101",
        "an absolute target": b"101",
        "an empty body": b"101",
        "HTTP/1.0": b"400",
        "POST": b"405",
        "another path": b"200" if wsgi else b"404",
        "another origin": b"403",
        "no upgrade": b"200" if wsgi else b"404",
        "an old version": b"426",
        "refused by middleware": b"401",
        "middleware that fails": b"500",
    }.get(case, b"400")
    assert said.startswith(b"HTTP/1.1 " + expected), said
    if expected == b"101":
        assert said.endswith(b"\r\n\r\n\x81\x02hi")
    if case == "another path" and wsgi:
        assert said.endswith(b"wsgi.websocket")
    if case == "refused by middleware":
        assert b"WWW-Authenticate: Basic\r\n" in said and said.endswith(b"who?")
    # Never twice.
    assert len(asked) == (1 if expected in (b"101", b"401", b"500") else 0)


def test_the_short_way_is_taken(monkeypatch):
    monkeypatch.setattr(upgrade.Handler, "__init__", None)
    with serving() as server, gwt.connect("ws://{}:{}/ws".format(*server.address)) as ws:
        ws.send("x")
        assert ws.recv(5) == "x"


def test_a_server_without_routes_does_not_look():
    assert not gwt.App().serves("websocket")
    app = gwt.App()
    app.websocket("/<name>")(lambda ws, name: None)
    assert app.serves("websocket") and not app.serves("webtransport")


def test_first_bytes_that_never_become_a_request_have_a_limit():
    with serving(request_timeout=0.3) as server, dialled(server, b"GET") as sock:
        assert sock.recv(1) == b""
        assert server.counters["requests_timed_out"] == 1
    assert quick.read_upgrade(b"GET") is None
