"""WebSocketMiddleware on the servers that people run already, as processes of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import gevent.ssl
import pytest
from gevent.pool import Pool
from gevent.pywsgi import WSGIServer

import gwt
from gwt import certificates
from gwt.integrations.middleware import WebSocketMiddleware
from gwt.integrations.pywsgi import WebSocketHandler
from gwt.net.waiting import Deadline

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
CLOSE = b"\x88\x82\0\0\0\0\x03\xe8"


class Host:
    """A server in a process of its own."""

    def __init__(self, name: str, tmp_path: Path) -> None:
        self.name = name
        kind, _, tls = name.partition("+")
        self.tls = bool(tls)
        files = [str(f) for f in certificates.write(tmp_path, certificates.generate())] * self.tls
        self.log_path = tmp_path / "log"
        listener = socket.create_server(("127.0.0.1", 0))
        number = listener.fileno()
        self.address = listener.getsockname()
        if kind.startswith("gunicorn"):
            command = ["-m", "gunicorn", "-k", kind.partition(" ")[2], "--bind", f"fd://{number}"]
            command += ["--access-logfile", "-"]
            # More than one would make gthread of sync.
            command += ["--threads", "16"] if "gthread" in kind else []
            command += ["--no-control-socket", "--keep-alive", "5", "--graceful-timeout", "1"]
            if self.tls:
                command += ["--certfile", files[0], "--keyfile", files[1]]
            command += ["wsgi_hosts:application"]
        else:
            command = ["wsgi_hosts.py", kind, str(number), *files]
        with open(self.log_path, "wb") as log, listener:
            self.process = subprocess.Popen(
                [sys.executable, "-u", *command],
                cwd=HERE,
                env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[number],
            )

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def connect(self, path: str, **options: Any) -> gwt.WebSocket:
        scheme = "wss" if self.tls else "ws"
        url = f"{scheme}://127.0.0.1:{self.address[1]}{path}"
        return gwt.connect(url, verify=False, timeout=15, **options)

    def dial(self) -> Any:
        sock = gevent.socket.create_connection(self.address, timeout=15)
        if not self.tls:
            return sock
        context = gevent.ssl.SSLContext(gevent.ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = gevent.ssl.CERT_NONE
        return context.wrap_socket(sock)

    def told(self, data: bytes, *more: tuple[bytes, bytes]) -> bytes:
        """Send bytes, others behind an answer that ends so, and return all that the server says."""
        with self.dial() as sock:
            sock.sendall(data)
            everything, steps = b"", list(more)
            with suppress(ConnectionResetError):
                while some := sock.recv(65536):
                    everything += some
                    if steps and everything.endswith(steps[0][0]):
                        sock.sendall(steps.pop(0)[1])
            return everything

    def get(self, path: str) -> bytes:
        reply = self.told(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert reply.startswith(b"HTTP/1.1 200 "), reply
        return reply.partition(b"\r\n\r\n")[2]

    def over(self, path: str) -> int:
        """Return how often the access log says that a WebSocket of a path has ended."""
        return len(re.findall(rf"GET {path} HTTP/1\.1[^ ]* 101 ", self.log))

    def state(self) -> dict[str, int]:
        state: dict[str, int] = json.loads(self.get("/state"))
        return state


def asked(path: str, *lines: str, key: str = KEY) -> bytes:
    head = (
        f"GET {path} HTTP/1.1",
        "Host: localhost",
        "Connection: keep-alive,Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
        *lines,
    )
    return "\r\n".join([*head, "", ""]).encode()


def until(condition: Callable[[], object]) -> None:
    deadline = Deadline(10)
    while not condition():
        assert deadline.remaining(), condition()
        gevent.sleep(0.02)


@contextmanager
def running(name: str, path: Path) -> Iterator[Host]:
    host = Host(name, path)
    try:
        yield host
    finally:
        host.stop()


HOSTS = [
    "pywsgi",
    "pywsgi+tls",
    "gunicorn gevent",
    "gunicorn gevent+tls",
    "gunicorn gevent_pywsgi",
    "gunicorn gthread",
    "gunicorn gthread+tls",
    "werkzeug",
    "werkzeug+tls",
]


@pytest.fixture(scope="module", params=HOSTS)
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param.startswith("gunicorn"):
        pytest.importorskip("gunicorn")
    with running(request.param, tmp_path_factory.mktemp("host")) as host:
        yield host


def test_messages_come_back(host: Host) -> None:
    with host.connect("/echo") as ws:
        for message in ("text", b"binary", "", b"x" * 300_000, "ä" * 100_000):
            ws.send(message)
            assert ws.recv(10) == message
        ws.ping(b"there?").wait(10)
    assert ws.close_code == 1000


def test_routes_have_parameters_and_know_the_request(host: Host) -> None:
    with host.connect("/rooms/tea%20room/7?a=b", subprotocols=["coffee", "tea"]) as ws:
        assert ws.subprotocol == "tea"
        assert ws.recv(10) == "tea room 7 /rooms/tea room/7 tea {'a': 'b'}"
        port = ws.local_address[1]
        assert ws.recv(10) == f"{port} {port} GET"


def test_frames_behind_the_request_are_not_lost(host: Host) -> None:
    data = asked("/echo") + b"\x81\x82\0\0\0\0hi\x82\xfe\x27\x10\0\0\0\0" + b"y" * 9000
    reply = host.told(data, (b"hi", b"y" * 1000), (b"y" * 1000, CLOSE))
    head, _, frames = reply.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n") and head.count(b"HTTP/1.1") == 1
    assert frames == b"\x81\x02hi\x82\x7e\x27\x10" + b"y" * 10_000 + b"\x88\x02\x03\xe8"


def test_an_application_without_a_route_has_a_lazy_one(host: Host) -> None:
    with host.connect("/lazy") as ws:
        ws.send("hello")
        assert ws.recv(10) == "hello"
    reply = host.told(asked("/lazy") + CLOSE)
    assert b"\r\nX-Kind: green\r\n" in reply and b"ignored" not in reply
    with host.connect("/generator") as ws:
        ws.send("hello")
        assert list(ws) == ["hello"]
        assert ws.close_code == 1000


def test_an_application_may_take_the_socket_itself(host: Host) -> None:
    if "pywsgi" in host.name:
        pytest.skip("it has no name for its socket")
    with host.dial() as sock:
        sock.sendall(asked("/own"))
        reply = b""
        while not reply.endswith(b"\r\n\r\n"):
            reply += sock.recv(1)
        sock.sendall(b"hello")
        assert reply.startswith(b"HTTP/1.1 101 ")
        assert sock.recv(100) == b"hello"


def test_an_application_refuses(host: Host) -> None:
    with pytest.raises(gwt.SessionRejected) as caught:
        host.connect("/401")
    assert caught.value.status == 401 and caught.value.headers["www-authenticate"] == "Basic"
    with pytest.raises(gwt.SessionRejected) as caught:
        host.connect("/reject")
    assert caught.value.status == 403 and caught.value.headers["x-why"] == "no"
    with pytest.raises(gwt.SessionRejected) as caught:
        host.connect("/raise")
    assert caught.value.status == 500
    with pytest.raises(gwt.SessionRejected) as caught:
        host.connect("/slow_page")
    assert caught.value.status == 203


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (asked("/echo", "Origin: https://evil.example"), 403),
        (asked("/lazy", "Origin: https://evil.example"), 403),
        (asked("/echo", key="short"), 400),
        (asked("/echo").replace(b"Version: 13", b"Version: 8"), 426),
        (asked("/echo").replace(b"keep-alive,Upgrade", b"keep-alive"), 426),
        (asked("/echo", f"Sec-WebSocket-Key: {KEY}"), 400),
        (asked("/echo").replace(b"GET", b"PUT"), 405),
    ],
)
def test_bad_requests_are_refused(host: Host, data: bytes, status: int) -> None:
    with host.dial() as sock:
        sock.sendall(data)
        assert sock.recv(65536).startswith(b"HTTP/1.1 %d " % status)


def test_http_goes_on_before_and_after(host: Host) -> None:
    page = b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n"
    with host.dial() as sock:
        # Werkzeug's server closes after each.
        for _ in range(1 if "werkzeug" in host.name else 3):
            sock.sendall(page)
            reply = b""
            while not reply.endswith(b"\r\n\r\nplain"):
                reply += sock.recv(65536)
        if "werkzeug" not in host.name:
            # And then a WebSocket, on the same connection.
            sock.sendall(asked("/close/1000"))
            reply = b""
            while not reply.endswith(b"why"):
                reply += sock.recv(65536)
            assert reply.startswith(b"HTTP/1.1 101 ")
    assert host.get("/echo") == b"plain"


def test_what_comes_behind_the_end_is_no_request(host: Host) -> None:
    before = host.log.count("/smuggled")
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    host.told(asked("/close/1000"), (b"why", CLOSE + smuggled))
    host.told(asked("/abort") + b"\x81\x82\0\0\0\0hi" + smuggled * 100)
    host.get("/echo")
    assert host.log.count("/smuggled") == before == 0


def test_close_codes(host: Host) -> None:
    ws = host.connect("/close/4321")
    with pytest.raises(gwt.WebSocketClosedError) as caught:
        ws.recv(10)
    assert (caught.value.code, caught.value.reason) == (4321, "why")
    ws.close()


def test_a_handler_that_raises_closes_with_an_error_and_is_logged_once(host: Host) -> None:
    before = host.log.count("KeyError: 'mine'")
    for path in ("/fail", "/swallow"):
        ws = host.connect(path)
        ws.send("x")
        with pytest.raises(gwt.WebSocketClosedError) as caught:
            ws.recv(10)
        assert caught.value.code == 1011
        ws.close()
    until(lambda: host.log.count("KeyError: 'mine'") == before + 1)


def test_a_peer_that_goes_is_no_error(host: Host) -> None:
    before = host.log.count("Traceback")
    ended = host.over("/endless")
    host.connect("/endless").abort()
    host.connect("/endless").close()
    ws = host.connect("/abort")
    ws.send("x")
    ws.wait_closed(10)
    assert ws.close_code == 1006
    # Each has its line in the access log, written when it is over.
    until(lambda: host.over("/endless") == ended + 2)
    assert host.log.count("Traceback") == before


def test_the_access_log_has_a_line_for_each(host: Host) -> None:
    with host.connect("/rooms/logged/1") as ws:
        ws.recv(10)
    until(lambda: host.over("/rooms/logged/1") == 1)


def test_several_at_once(host: Host) -> None:
    sockets = [host.connect("/echo") for _ in range(8)]
    for number, ws in enumerate(sockets):
        ws.send(str(number))
    assert [ws.recv(10) for ws in sockets] == [str(number) for number in range(8)]
    # Others are served meanwhile.
    assert host.get("/") == b"plain"
    for ws in sockets:
        ws.close()


@pytest.mark.deadline(90)
def test_nothing_is_left(host: Host) -> None:
    def some(count: int) -> None:
        for number in range(count):
            ws = host.connect("/echo" if number % 3 else "/lazy")
            ws.send("x")
            assert ws.recv(10) == "x"
            ws.abort() if number % 5 == 0 else ws.close()
        # A handler that leaves greenlets behind leaves them, but no hub.
        ws = host.connect("/spawn")
        assert "127.0.0.1" in ws.recv(10)
        ws.close()

    log = len(host.log)
    some(4)
    before: dict[str, int] = {}

    def steady() -> bool:
        # What the first ones left to be collected, and threads that end.
        nonlocal before
        last, before = before, host.state()
        return last == before

    until(steady)
    some(200 if host.name == "gunicorn gthread" else 30)
    until(lambda: host.state()["hubs"] <= before["hubs"])
    until(lambda: host.state()["descriptors"] <= before["descriptors"])
    assert host.state()["greenlets"] <= before["greenlets"] + 10
    assert not re.search("error|Exception|Traceback", host.log[log:], re.IGNORECASE)


@pytest.mark.parametrize("name", ["pywsgi", "gunicorn gthread", "gunicorn gevent+tls"])
def test_all_are_closed_from_any_thread(name: str, tmp_path: Path) -> None:
    with running(name, tmp_path) as host:
        sockets = [host.connect("/echo" if number else "/lazy") for number in range(4)]
        assert host.get("/close_all") == b"done"
        for ws in sockets:
            with pytest.raises(gwt.WebSocketClosed) as caught:
                ws.recv(10)
            assert caught.value.code == 1001
            ws.close()
        with pytest.raises(gwt.SessionRejected) as refused:
            host.connect("/echo")
        assert refused.value.status == 503
        assert host.get("/") == b"plain"
        assert "Traceback" not in host.log


def test_hosts_without_sockets_say_what_to_do(tmp_path: Path) -> None:
    for name in ("wsgiref", "gunicorn sync"):
        path = tmp_path / name
        path.mkdir()
        with running(name, path) as host:
            for path in ("/echo", "/lazy"):
                with pytest.raises(gwt.SessionRejected) as caught:
                    host.connect(path)
                assert caught.value.status == 501
            with pytest.raises(gwt.SessionRejected) as caught:
                host.connect("/401")
            assert caught.value.status == 401
            with host.dial() as sock:
                sock.sendall(asked("/echo").replace(b"Version: 13", b"Version: 8"))
                assert b" 426 " in sock.recv(65536)
            assert "Traceback" not in host.log
            assert host.log.count("python -m gwt serve") == 1


# In this process


def respond(app: Any, **environ: Any) -> tuple[str, dict[str, str], bytes]:
    """Ask an application as a WSGI server that nobody knows does."""
    answer: list[Any] = []
    written = b""

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], None]:
        answer[:] = [status, dict(headers)]

        def write(data: bytes) -> None:
            nonlocal written
            written += data

        return write

    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/ws",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "localhost",
        "HTTP_UPGRADE": "websocket",
        "HTTP_CONNECTION": "Upgrade",
        "HTTP_SEC_WEBSOCKET_VERSION": "13",
        "HTTP_SEC_WEBSOCKET_KEY": KEY,
        "wsgi.multithread": True,
        **environ,
    }
    body = b"".join(app(environ, start_response))
    assert "wsgi.websocket" not in environ
    return answer[0], answer[1], written + body


def page(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"page"]


def unused(ws: Any) -> None:
    raise AssertionError("called")


def test_a_socket_of_many_requests_is_not_taken(caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        app = WebSocketMiddleware(page, {"/ws": unused})
        http2 = {"SERVER_PROTOCOL": "HTTP/2.0", "gunicorn.socket": ours}
        status, headers, body = respond(app, **http2)
        assert status == "501 Not Implemented" and b"python -m gwt serve" in body
        assert int(headers["Content-Length"]) == len(body)
        assert respond(app, **http2 | {"PATH_INFO": "/"})[2] == b"page"
        ours.sendall(b"still there")
    # Said once, however often it happens.
    respond(app, SERVER_PROTOCOL="HTTP/1.1")
    assert len(caplog.records) == 1


def test_a_target_is_made_of_what_wsgi_has() -> None:
    seen = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.append((environ["wsgi.websocket"].path, environ["wsgi.websocket"].request))
        return page(environ, start_response)

    path = "/ü b%c?".encode().decode("latin-1")
    respond(
        WebSocketMiddleware(app),
        SCRIPT_NAME="/mounted",
        PATH_INFO=path,
        QUERY_STRING="d=%20",
        REMOTE_ADDR="192.0.2.1",
        REMOTE_PORT="80",
        HTTP_COOKIE="e=f",
    )
    [(path, request)] = seen
    assert path == "/mounted/ü b%c?"
    assert (request.query, request.remote_address) == ({"d": " "}, ("192.0.2.1", 80))
    assert request.headers["cookie"] == "e=f" and request.authority == "localhost"


def test_an_application_that_began_to_answer_cannot_accept() -> None:
    closed = []

    class Result:
        def __iter__(self) -> Iterator[bytes]:
            yield b""
            yield b"one"
            with pytest.raises(gwt.WebSocketClosedError, match="answered without it"):
                self.ws.accept()
            yield b"two"

        def close(self) -> None:
            closed.append(True)

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        result = Result()
        result.ws = environ["wsgi.websocket"]  # type: ignore[attr-defined]
        start_response("500 Error", [])
        start_response("200 OK", [], (None, None, None))(b"zero")
        with pytest.raises(RuntimeError, match="begun to answer"):
            result.ws.accept()  # type: ignore[attr-defined]
        return result

    # respond() does not close what it iterates, as a server would.
    assert respond(WebSocketMiddleware(app)) == ("200 OK", {}, b"zeroonetwo")
    assert not closed


def test_a_refusal_has_one_length() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        headers = {"Content-Length": "7", "Transfer-Encoding": "chunked", "Connection": "x"}
        environ["wsgi.websocket"].reject(403, headers, b"no")
        return []

    expected = ("403 Forbidden", {"Content-Length": "2"}, b"no")
    assert respond(WebSocketMiddleware(app)) == expected


def test_results_of_applications_are_closed() -> None:
    closed = []

    class Result(list[bytes]):
        def __iter__(self) -> Iterator[bytes]:
            raise KeyError("mine")

        def close(self) -> None:
            closed.append(True)

    class Iterable:
        __iter__, close = Result.__iter__, Result.close

    with pytest.raises(KeyError):
        respond(WebSocketMiddleware(lambda environ, start_response: Iterable()))
    assert closed


def test_options_and_routes_are_checked() -> None:
    with pytest.raises(gwt.ConfigError):
        WebSocketMiddleware(page, {"/<": unused})
    with pytest.raises(gwt.ConfigError, match="cannot be called"):
        WebSocketMiddleware(page, {"/ws": "handler"})  # type: ignore[dict-item]
    with pytest.raises(gwt.ConfigError):
        WebSocketMiddleware(page, {"/ws": unused}, max_sizes=10)
    app = WebSocketMiddleware(page, {"/ws": unused}, allowed_hosts=["gwt.example"])
    assert respond(app)[0].startswith("421 ")


@pytest.fixture(params=["WebSocketHandler", "gwt.Server"])
def serve(request: pytest.FixtureRequest) -> Any:
    """Make something that puts a WebSocket into the environ itself."""

    @contextmanager
    def ours(app: Any) -> Iterator[str]:
        if request.param == "gwt.Server":
            with gwt.Server(app, "127.0.0.1:0", http3=False) as server:
                yield "ws://{}:{}".format(*server.address)
        else:
            server = WSGIServer(
                ("127.0.0.1", 0), app, log=None, handler_class=WebSocketHandler, spawn=Pool()
            )
            server.start()
            yield f"ws://127.0.0.1:{server.server_port}"
            server.stop(timeout=1)

    return ours


def test_the_servers_own_websocket_is_used(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    def echo(ws: Any, name: str) -> None:
        for message in ws:
            ws.send(f"{name} {message}")

    def fail(ws: Any) -> None:
        raise KeyError("mine")

    def lazy(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if "wsgi.websocket" not in environ:
            return page(environ, start_response)
        environ["wsgi.websocket"].send("lazy")
        return []

    app = WebSocketMiddleware(lazy, {"/ws/<name>": echo, "/fail": fail}, max_size=10)
    with serve(app) as url:
        with gwt.connect(f"{url}/ws/me") as ws:
            ws.send("x")
            assert ws.recv(5) == "me x"
            ws.send("x" * 11)
            with pytest.raises(gwt.WebSocketClosedError) as caught:
                ws.recv(5)
            assert caught.value.code == 1009
        with gwt.connect(f"{url}/other") as ws:
            assert list(ws) == ["lazy"]
        assert not caplog.records
        with gwt.connect(f"{url}/fail") as ws:
            ws.wait_closed(5)
            assert ws.close_code == 1011
        assert len(caplog.records) == 1
        with gwt.connect(f"{url}/ws/me") as ws:
            app.close_all()
            ws.wait_closed(5)
            assert ws.close_code == 1001
        with pytest.raises(gwt.SessionRejected) as refused:
            gwt.connect(f"{url}/ws/me")
        assert refused.value.status == 503
