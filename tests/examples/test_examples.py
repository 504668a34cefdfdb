"""Every example runs, and says what it is meant to say; the README shows three."""

from __future__ import annotations

import hashlib
import re
import signal
import socket
import sys
from pathlib import Path

import pytest
from gevent import subprocess
from gevent.resolver.ares import Resolver

import gwt

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = ROOT / "examples"

MOST_LINES = 60


def start(name: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", RUN, str(EXAMPLES / name), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


# As `python examples/name.py` in an environment that has gwt.
RUN = f"""
import runpy, sys
sys.path.insert(0, {str(ROOT)!r})
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(name: str, *arguments: str) -> list[str]:
    """Run an example to its end; return the lines it printed."""
    with start(name, *arguments) as process:
        try:
            out, err = process.communicate()
        finally:
            if process.poll() is None:
                process.kill()
    assert process.returncode == 0, err.decode()
    return out.decode().splitlines()


# Those that something else runs: Locust, in tests/integrations/test_locust.py.
ELSEWHERE = ["locustfile.py"]


def test_every_example_is_short_and_has_a_test():
    here = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'"{path.name}"' in here
        assert len(path.read_text().splitlines()) <= MOST_LINES, path


@pytest.mark.parametrize(
    ("name", "most"),
    [("echo_server.py", 15), ("echo_client.py", 10), ("websocket_server.py", 25)],
)
def test_the_readme_shows_its_scripts_as_they_are(name, most):
    script = (EXAMPLES / name).read_text()
    assert len(script.splitlines()) <= most
    assert f"```python\n{script}```\n" in (ROOT / "README.md").read_text()


def test_the_two_scripts_of_the_readme_work():
    with start("echo_server.py", "127.0.0.1:0") as server:
        try:
            host, port, certificate_hash = server.stdout.readline().decode().split()
            url = f"https://{host}:{port}/echo"
            assert run("echo_client.py", url, certificate_hash) == ["hello"]
            server.send_signal(signal.SIGTERM)
            out, err = server.communicate()
        finally:
            if server.poll() is None:
                server.kill()
    assert (server.returncode, out, err) == (0, b"", b"")


def test_the_websocket_server_of_the_readme_works():
    with start("websocket_server.py", "127.0.0.1:0") as server:
        try:
            url = "ws://{}:{}/echo/ann".format(*server.stdout.readline().decode().split())
            with gwt.connect(url, timeout=10) as ws:
                ws.send("hello")
                assert [ws.recv(timeout=5) for _ in range(2)] == ["hello, ann", "hello"]
                server.send_signal(signal.SIGTERM)
                ws.wait_closed(timeout=10)
                assert ws.close_code == 1001
            out, err = server.communicate()
        finally:
            if server.poll() is None:
                server.kill()
    assert (server.returncode, out, err) == (0, b"", b"")


def test_datagrams():
    *lost, answer, too_large = run("datagrams.py")
    assert set(lost) <= {"lost, and sent again"}
    assert answer == "12 squared is 144"
    assert too_large == "100000 bytes do not fit into a packet"


def test_many_streams():
    assert run("many_streams.py") == ["100 streams, the last one said b'STREAM 99\\nBYE\\n'"]


def test_upload(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 10_000)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert run("upload.py", str(path)) == [f"{digest} {path}"]


def test_middleware_and_origins():
    assert run("middleware_and_origins.py") == [
        "no token: rejected with status 401",
        "a token: welcome to tea",
        "a friend: welcome to tea",
        "a stranger: rejected with status 403",
        "nowhere: rejected with status 404",
    ]


def test_wsgi_and_webtransport():
    assert run("wsgi_and_webtransport.py") == [
        "/ 200 an ordinary page",
        "/about 200 an ordinary page",
        "2 visits so far",
    ]


def test_websocket():
    assert run("websocket.py") == [
        "text stays text",
        "b'bytes stay bytes'",
        "a ping came back",
        "tick 0",
        "tick 1",
        "tick 2",
        "closed with 1000",
    ]


def test_chat():
    assert run("chat.py") == [
        f"ann hears {text}"
        for text in (
            "here: ann",
            "here: ann, bob",
            "ann: hello, bob",
            "bob: hello, ann, by WebTransport",
            "here: ann",
        )
    ]


def test_websocket_client():
    assert run("websocket_client.py") == [
        "/feed news in json",
        "401 Basic who are you?",
        "/feed news in None",
        "after 0.2 s, while waiting for the server to accept the WebSocket.",
    ]


def test_client():
    assert run("client.py") == [
        "hello ann",
        "hello bob",
        "failed: The server rejected the session with HTTP status 404.",
        "2 of 3 connects succeeded",
        "issues: []",
    ]


def test_client_pool():
    assert run("client_pool.py") == [
        "you are ann",
        "you are bob",
        "you are ann",
        "connected: ['you are ann', 'you are bob']",
        "failed: ['The server refused the WebSocket with HTTP status 403.']",
        "4 of 6 connects succeeded",
    ]


def test_pooled_client():
    assert run("pooled_client.py") == [
        "the sum of the squares is 328350",
        "5 connects, 95 reused",
        "closed 1",
        "free within 0.1 s: 5 of 5 are out.",
    ]


def test_async_application():
    lines = run("async_application.py")
    assert [line for line in lines if line.startswith("ann")] == [
        "ann 1 in all",
        "ann 3 in all",
        "ann nothing more",
    ]
    assert [line for line in lines if line.startswith("bob")] == [
        "bob 10 in all",
        "bob 30 in all",
        "bob nothing more",
    ]


def test_tunnel():
    assert run("tunnel.py") == [
        "HTTP/1.1 200 OK",
        "hello from the inside",
        "403 gwt; error=http_request_denied",
        '407 Basic realm="proxy"',
    ]


def test_dns_server():
    with start("dns_server.py", "127.0.0.1:0") as server:
        try:
            host, port = server.stdout.readline().decode().split()
            # A DNS client that is not ours: c-ares, as gevent has it.
            resolver = Resolver(servers=[host], udp_port=port, timeout=5, tries=1)
            try:
                for name in ("printer.home", "PRINTER.home"):
                    assert resolver.gethostbyname(name) == "192.168.1.20"
                with pytest.raises(socket.gaierror):
                    resolver.gethostbyname("nobody.home")
            finally:
                resolver.close()
            server.send_signal(signal.SIGINT)
            # gevent says on stderr whom the interrupt hit.
            out, _ = server.communicate()
        finally:
            if server.poll() is None:
                server.kill()
    assert (server.returncode, out) == (0, b"")


def test_benchmark():
    *lines, times = run("benchmark.py")
    assert lines == [
        "50 requests are done",
        "40 of them succeeded",
        "10 SessionRejected 503 The server rejected the session with HTTP status 503.",
    ]
    half, most = map(float, re.fullmatch(r"p50 ([\d.]+) ms, p99 ([\d.]+) ms", times).groups())
    assert 0 < half <= most


def test_thousands_of_clients():
    # Few of them: how many it can be is tests/scale's affair.
    assert run("thousands_of_clients.py", "200") == [
        "200 sessions are open",
        f"the sum of their answers is {sum(range(1, 201))}",
    ]


def test_two_thousand_clients():
    # Few of them, again.
    assert run("two_thousand_clients.py", "100") == [
        "100 clients are connected",
        "welcome: sent 100, dropped 0, closed 0",
        "all have heard hello and welcome",
        "0 clients are left",
    ]


def test_reconnecting_client():
    assert run("reconnecting_client.py") == [
        "established 1 + 2 = 3",
        "lost None",
        "established 3 + 4 = 7",
        "more events: []",
        "failed 3 times, at connect",
    ]


def test_browser():
    assert run("browser.py") == [
        "this is home",
        "this is news",
        "this is sport",
        "back: this is news",
        "dead: 404",
        "still here: this is news",
        "forward: this is sport - and then None",
        "['/home', '/news', '/sport']",
    ]


def test_monitor():
    assert run("monitor.py") == [
        "low_success_rate: Low connection success rate: 75.00%",
        "1 alert",
        "{'attempted': 12, 'successful': 9, 'failed': 3, 'success_rate': 0.75}",
    ]


def test_connectivity():
    *lines, no_name, tcp_alone = run("connectivity.py")
    assert lines == [
        "as it should be: webtransport, draft 16, TLSv1.3",
        "another path: webtransport failed. The server rejected the session with HTTP status 404. "
        "Is the path right?",
        "not trusted: tls failed. The certificate of '127.0.0.1' was not accepted: self-signed "
        "certificate. Give its authority as cafile=, or its hash as server_certificate_hashes=; "
        "while developing, verify=False accepts any.",
        "no TLS there: tls failed. The TLS handshake with '127.0.0.1' failed: the server answers, "
        "but not by TLS. Is this the port of a server with TLS, and does it speak TLS 1.2 or "
        "later?",
    ]
    # What the resolver says depends on the machine.
    assert no_name.startswith("no such name: resolve failed. The name 'server.invalid' cannot be")
    assert tcp_alone.startswith("TCP alone: connect failed. Nobody answers on UDP 127.0.0.1 port ")
    assert "TCP answers there, UDP does not" in tcp_alone
