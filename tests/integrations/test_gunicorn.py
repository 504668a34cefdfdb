"""WebSockets on gunicorn's worker: real processes, on a listening socket that they inherit."""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import gevent.ssl
import pytest
from gevent.event import Event
from gevent.pool import Pool

import gwt
from gwt import certificates
from tests.helpers import eventually

pytest.importorskip("gunicorn")
pytest.importorskip("flask_sock")

ROOT = Path(__file__).resolve().parents[2]


class Gunicorn:
    """A running gunicorn, its address, and what it logs."""

    scheme = "ws"

    def __init__(self, folder: Path, sock: socket.socket, *args: str, **environ: str) -> None:
        folder.mkdir(exist_ok=True)
        self.access, self.error = folder / "access.log", folder / "error.log"
        self.output = folder / "output"
        for each in (self.access, self.error):
            each.touch()
        self.address = sock.getsockname()
        self.idle: list[Any] = []
        variables = {k: v for k, v in os.environ.items() if k != "GUNICORN_CMD_ARGS"}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "gunicorn", "--no-control-socket"),
                    *("--bind", f"fd://{sock.fileno()}", "--chdir", str(Path(__file__).parent)),
                    *("--access-logfile", str(self.access), "--error-logfile", str(self.error)),
                    *("--access-logformat", "%(m)s %(U)s %(s)s %(L)s", "--graceful-timeout", "30"),
                    *("-k", "gwt.integrations.gunicorn.Worker", *args, "gunicorn_app:app"),
                ],
                cwd=folder,
                env={**variables, "PYTHONPATH": str(ROOT), **environ},
                pass_fds=[sock.fileno()],
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def connect(self, path: str = "/echo", **options: Any) -> gwt.WebSocket:
        """Open a WebSocket; connecting waits in the backlog until a worker is there."""
        if isinstance(self.address, str):
            sock = gevent.socket.socket(socket.AF_UNIX)
            sock.connect(self.address)
            return gwt.connect(f"ws://localhost{path}", sock=sock, timeout=20)
        host, port = self.address
        return gwt.connect(
            f"{self.scheme}://{host}:{port}{path}", verify=False, timeout=20, **options
        )

    def get(self, path: str = "/", *headers: str) -> str:
        """Return the body of a plain request's answer."""
        return self.ask(path, "Connection: close", *headers).partition("\r\n\r\n")[2]

    def ask(self, path: str, *headers: str) -> str:
        request = "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *headers, "", ""])
        with self.open() as sock:
            sock.sendall(request.encode())
            return everything(sock)

    def open(self) -> Any:
        family = socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET
        sock = gevent.socket.socket(family)
        sock.settimeout(20)
        sock.connect(self.address)
        return sock

    def workers(self) -> list[int]:
        """Return the pids of the workers that are there."""
        pid = self.process.pid
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def ended(self) -> bool:
        return self.process.poll() is not None

    def stop(self) -> None:
        for pid in self.workers() if self.process.poll() is None else ():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        for sock in self.idle:
            sock.close()


def everything(sock: Any) -> str:
    """Receive until the other side ends."""
    answer = b""
    while more := sock.recv(65536):
        answer += more
    return answer.decode()


@contextmanager
def running(folder: Path, *args: str, unix: bool = False) -> Iterator[Gunicorn]:
    with ExitStack() as stack:
        sock = stack.enter_context(socket.socket(socket.AF_UNIX if unix else socket.AF_INET))
        if unix:
            # The path of a socket has to be short.
            sock.bind(stack.enter_context(tempfile.TemporaryDirectory()) + "/s")
        else:
            sock.bind(("127.0.0.1", 0))
        sock.listen(128)
        gunicorn = Gunicorn(folder, sock, *args)
        stack.callback(gunicorn.stop)
        # Closed at once: what is not served is refused when gunicorn has gone.
        sock.close()
        yield gunicorn


@pytest.fixture(scope="module")
def gunicorn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    """One worker, which has places for two requests."""
    with running(tmp_path_factory.mktemp("gunicorn"), "--worker-connections", "2") as each:
        yield each


def test_an_application_echoes(gunicorn: Gunicorn) -> None:
    with gunicorn.connect() as ws:
        ws.send("one")
        assert ws.recv(5) == "one"
        ws.send(b"x" * 300_000)
        assert ws.recv(5) == b"x" * 300_000


def test_an_application_can_answer_401(gunicorn: Gunicorn) -> None:
    with pytest.raises(gwt.SessionRejected) as caught:
        gunicorn.connect("/guarded")
    assert caught.value.status == 401


def test_plain_requests_are_served_in_a_patched_process(gunicorn: Gunicorn) -> None:
    assert gunicorn.get("/patched") == "True"


def test_the_environ_is_the_one_of_gunicorn(gunicorn: Gunicorn) -> None:
    environ = json.loads(gunicorn.get("/environ?a=%20"))
    assert environ["RAW_URI"] == "/environ?a=%20"
    assert environ["wsgi.url_scheme"] == "http"
    assert environ["SERVER_SOFTWARE"].startswith("gevent/")
    assert "wsgi.websocket" not in environ
    with gunicorn.connect("/keys") as ws:
        keys = set(str(ws.recv(5)).split())
    # Of requests for WebSockets there is more in it, and nothing less.
    assert {"gunicorn.sock", "wsgi.file_wrapper", "wsgi.websocket", "HTTP_UPGRADE"} <= keys
    assert set(environ) <= keys


def test_a_proxy_says_what_the_scheme_was(gunicorn: Gunicorn) -> None:
    # Loopback is in forwarded_allow_ips by default.
    for value, scheme in (("https", "https"), ("http", "http"), ("https,http", "http")):
        environ = json.loads(gunicorn.get("/environ", f"X-Forwarded-Proto: {value}"))
        assert environ["wsgi.url_scheme"] == scheme


def test_the_access_log_has_a_line_when_a_websocket_ends(gunicorn: Gunicorn) -> None:
    def line() -> list[str]:
        lines = gunicorn.access.read_text().splitlines()
        return [each for each in lines if each.startswith("GET /pid ")]

    with gunicorn.connect("/pid") as ws:
        ws.recv(5)
        gunicorn.get()
        assert not line()
    _, _, status, seconds = eventually(line)[0].split()
    assert status == "101"
    assert 0 < float(seconds) < 60


def test_websockets_leave_the_places_of_requests_free(gunicorn: Gunicorn) -> None:
    for _ in range(2):
        with ExitStack() as stack:
            for path in ["/pid", "/from-another-greenlet", "/own"] * 4:
                stack.enter_context(gunicorn.connect(path)).recv(5)
            assert gunicorn.get().isdigit()


def test_what_leaves_a_pool_frees_its_place_once() -> None:
    # What the worker relies on.
    pool, done = Pool(1), Event()
    first = pool.spawn(done.wait)
    assert pool.full()
    pool.discard(first)
    assert pool.free_count() == pool.wait_available(0) == 1
    second = pool.spawn(done.wait)
    assert pool.full()
    done.set()
    gevent.joinall([first, second])
    assert pool.free_count() == pool.wait_available(0) == 1


def test_an_application_that_raises_is_logged_once(gunicorn: Gunicorn) -> None:
    before = gunicorn.error.read_text()
    with gunicorn.connect("/raise") as ws:
        ws.send("x")
        with pytest.raises(gwt.WebSocketClosedError) as caught:
            ws.recv(5)
    assert caught.value.code == 1011
    logged = gunicorn.error.read_text().removeprefix(before)
    # By Flask.
    assert logged.count("Exception on /raise [GET]") == 1
    assert logged.count("Traceback") == logged.count("KeyError: 'mine'") == 1
    assert "Traceback" not in gunicorn.output.read_text()


def test_malformed_requests_leave_no_traceback(gunicorn: Gunicorn) -> None:
    with gunicorn.open() as sock:
        sock.sendall(b"nonsense\r\n\r\n")
        assert everything(sock).startswith("HTTP/1.1 400 ")
    assert "Traceback" not in gunicorn.output.read_text()


def test_a_peer_that_vanishes_leaves_no_traceback(gunicorn: Gunicorn) -> None:
    before = gunicorn.error.read_text(), gunicorn.access.read_text()
    ws = gunicorn.connect()
    ws.send("x")
    ws.recv(5)
    ws.abort()
    eventually(lambda: gunicorn.access.read_text() != before[1])
    assert gunicorn.error.read_text() == before[0]
    assert "Traceback" not in gunicorn.output.read_text()


# The end


def goes_away(ws: gwt.WebSocket) -> None:
    with pytest.raises(gwt.WebSocketClosedOK) as caught:
        ws.recv(5)
    assert caught.value.code == 1001
    ws.close()


@pytest.mark.parametrize("unix", [False, True])
def test_sigterm_closes_websockets_and_waits_for_requests_only(tmp_path: Path, unix: bool) -> None:
    # gunicorn would give all of them 30 seconds, and end them without a close frame.
    with running(tmp_path, "--workers", "2", unix=unix) as gunicorn:
        sockets = []
        first, second = eventually(lambda: len(found := gunicorn.workers()) == 2 and found, 20)
        for stopped, other in ((first, second), (second, first)):
            # Only the other one accepts.
            os.kill(stopped, signal.SIGSTOP)
            pid, own, stuck = map(gunicorn.connect, ("/pid", "/own", "/stuck"))
            assert pid.recv(5) == own.recv(5) == str(other)
            assert stuck.recv(5) == "stuck"
            sockets += [pid, own, stuck]
            gunicorn.idle.append(gunicorn.open())
            gunicorn.idle[-1].sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            eventually(
                lambda: gunicorn.access.read_text().count("GET / 200 ") == len(gunicorn.idle)
            )
            os.kill(stopped, signal.SIGCONT)
        gunicorn.process.terminate()
        for ws in sockets:
            goes_away(ws)
        for idle in gunicorn.idle:
            assert everything(idle).startswith("HTTP/1.1 200 OK\r\n")
        eventually(gunicorn.ended, 10)
        assert gunicorn.process.returncode == 0
    errors = gunicorn.error.read_text()
    assert errors.count("1 WebSockets did not end") == 2
    assert "Traceback" not in errors + gunicorn.output.read_text()
    assert "graceful timeout" not in errors
    assert gunicorn.access.read_text().count(" 101 ") == 6


def test_sigterm_waits_for_a_request(tmp_path: Path) -> None:
    with running(tmp_path, "--graceful-timeout", "1") as gunicorn:
        ws = gunicorn.connect("/pid")
        worker = ws.recv(5)
        with gunicorn.open() as busy, gunicorn.open() as hanging:
            for sock, path in ((busy, "/busy"), (hanging, "/hang")):
                sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            eventually(lambda: sorted(gunicorn.output.read_text().split()) == ["/busy", "/hang"])
            os.kill(int(worker), signal.SIGTERM)
            goes_away(ws)
            assert everything(busy).endswith(worker)
            # This one has its time.
            assert everything(hanging).startswith("HTTP/1.1 500 ")
        eventually(lambda: f"Worker graceful timeout (pid:{worker})" in gunicorn.error.read_text())


def test_a_reload_moves_websockets_to_the_new_worker(tmp_path: Path) -> None:
    with running(tmp_path, "--preload") as gunicorn:
        ws = gunicorn.connect("/pid")
        first = ws.recv(5)
        gunicorn.process.send_signal(signal.SIGHUP)
        goes_away(ws)
        with gunicorn.connect("/pid") as ws:
            assert ws.recv(5) != first


def test_max_requests_replaces_the_worker(tmp_path: Path) -> None:
    with running(tmp_path, "--max-requests", "2") as gunicorn:
        ws = gunicorn.connect("/pid")
        first = ws.recv(5)
        assert gunicorn.get() == gunicorn.get() == first
        goes_away(ws)
        with gunicorn.connect("/pid") as ws:
            assert ws.recv(5) != first


def test_sigint_tells_websockets_too(tmp_path: Path) -> None:
    with running(tmp_path) as gunicorn:
        ws = gunicorn.connect()
        ws.send("x")
        ws.recv(5)
        gunicorn.process.send_signal(signal.SIGINT)
        goes_away(ws)
        eventually(gunicorn.ended, 10)


# Options


def test_tls_and_options_of_ours(tmp_path: Path) -> None:
    cert, key = certificates.write(tmp_path, certificates.generate())
    worker = ("-k", "gunicorn_app.Small")
    with running(tmp_path, *worker, "--certfile", str(cert), "--keyfile", str(key)) as gunicorn:
        gunicorn.scheme = "wss"
        with gunicorn.open() as sock:
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with suppress(ConnectionError):
                assert b"HTTP" not in sock.recv(100)
        with (
            gunicorn.connect(subprotocols=["coffee", "tea"]) as ws,
            gunicorn.connect("/pid") as two,
        ):
            assert ws.subprotocol == "tea"
            two.recv(5)
            with pytest.raises(gwt.SessionRejected) as rejected:
                gunicorn.connect()
            assert rejected.value.status == 503
            ws.send("x" * 10)
            assert ws.recv(5) == "x" * 10
            ws.send("x" * 11)
            with pytest.raises(gwt.WebSocketClosedError) as caught:
                ws.recv(5)
            assert caught.value.code == 1009
            # One that never began its handshake, and one that has made it.
            gunicorn.idle += [gunicorn.open(), gunicorn.open()]
            context = gevent.ssl.SSLContext(gevent.ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, gevent.ssl.CERT_NONE
            gunicorn.idle[-1] = context.wrap_socket(gunicorn.idle[-1])
            gunicorn.process.terminate()
            goes_away(two)
        eventually(gunicorn.ended, 10)
    assert "Traceback" not in gunicorn.error.read_text() + gunicorn.output.read_text()


def test_options_that_are_none_are_refused() -> None:
    from gwt.integrations.gunicorn import Worker

    with pytest.raises(gwt.ConfigError):
        Worker.with_options(max_sizes=10)


def test_without_gunicorn_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gunicorn.workers.ggevent", None)
    monkeypatch.delitem(sys.modules, "gwt.integrations.gunicorn", raising=False)
    with pytest.raises(ImportError, match=r"gwt\.integrations\.gunicorn needs gunicorn"):
        importlib.import_module("gwt.integrations.gunicorn")


def test_without_what_gunicorn_needs_it_says_what_to_install() -> None:
    script = "import sys; sys.modules['packaging.version'] = None; import gwt.integrations.gunicorn"
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=20
    )
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert "pip install 'gunicorn[gevent]'" in last and "packaging.version" in last
