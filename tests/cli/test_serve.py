"""``gwt serve``: the line it prints, what it refuses, and how signals end it."""

from __future__ import annotations

import json
import re
import signal
import socket

import gevent.socket
import gevent.ssl
import pytest

import gwt
from gwt import certificates, cli
from tests.helpers import eventually

LINE = re.compile(
    r"listening on http://127\.0\.0\.1:(\d+) https://127\.0\.0\.1:\1 \(h3\) "
    r"certificate sha-256 ([0-9a-f]{64})\n"
)


@pytest.fixture
def listening(start):
    """listening(*args): start a server; returns it and the line it has printed."""

    def starting(*args):
        process = start("serve", *args)
        return process, process.stdout.readline().decode()

    return starting


def get(host: str, port: int, path: str) -> bytes:
    """The answer to a request over plain TCP, with its head."""
    with gevent.socket.create_connection((host, port), timeout=10) as sock:
        sock.sendall(f"GET {path} HTTP/1.0\r\nHost: {host}:{port}\r\n\r\n".encode())
        answer = b""
        while part := sock.recv(65536):
            answer += part
    return answer


def test_line_tells_where_the_demo_listens(listening):
    process, line = listening("--bind", "127.0.0.1:0")
    port, digest = LINE.fullmatch(line).groups()
    health = json.loads(get("127.0.0.1", int(port), "/health").partition(b"\r\n\r\n")[2])
    assert health["status"] == "ok"
    assert health["certificate_hash"] == digest
    url = f"https://127.0.0.1:{port}/echo"
    with gwt.connect(url, server_certificate_hashes=[digest]) as session:
        stream = session.create_bidirectional_stream()
        stream.write_all(b"hello")
        assert stream.read_all(timeout=5) == b"hello"
    process.terminate()
    assert process.wait(timeout=10) == 0
    # Exactly one line, and nothing to complain about.
    assert process.stdout.read() == b""
    assert process.stderr.read() == b""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signal_closes_live_sessions_in_good_order(listening, number, code):
    process, line = listening("--bind", "127.0.0.1:0")
    port, digest = LINE.fullmatch(line).groups()
    session = gwt.connect(f"https://127.0.0.1:{port}/echo", server_certificate_hashes=[digest])
    process.send_signal(number)
    session.wait_closed(timeout=10)
    assert (session.close_code, session.close_reason) == (0, "The server is stopping")
    assert process.wait(timeout=10) == code
    assert process.stderr.read() == b""


def test_second_signal_does_not_wait_for_anybody(listening):
    process, line = listening("--bind", "127.0.0.1:0")
    port, digest = LINE.fullmatch(line).groups()
    session = gwt.connect(f"https://127.0.0.1:{port}/echo", server_certificate_hashes=[digest])
    # The drain waits for it, for stop_timeout.
    stream = session.create_bidirectional_stream()
    stream.write(b"x")
    assert stream.read(timeout=5) == b"x"
    process.send_signal(signal.SIGINT)
    # The first one has been heard: DRAIN is what it makes the server send.
    eventually(lambda: session.state is gwt.SessionState.DRAINING)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=3) == 130
    # Nobody is there any more to acknowledge a session's close.
    session.connection.close()


def test_ipv6_is_shown_in_brackets(listening):
    _, line = listening("--bind", "[::1]:0")
    assert re.match(r"listening on http://\[::1\]:(\d+) https://\[::1\]:\1 \(h3\) ", line)


def test_without_http3_only_tcp_is_named(listening):
    _, line = listening("--bind", "127.0.0.1:0", "--no-http3")
    port = re.fullmatch(r"listening on http://127\.0\.0\.1:(\d+)\n", line)[1]
    health = json.loads(get("127.0.0.1", int(port), "/health").partition(b"\r\n\r\n")[2])
    assert health["webtransport"] is False


def test_with_a_certificate_tcp_speaks_tls_and_https_stands_alone(listening, tmp_path):
    certificate = certificates.generate()
    certfile, keyfile = certificates.write(tmp_path, certificate)
    _, line = listening(
        "--bind", "127.0.0.1:0", "--certfile", str(certfile), "--keyfile", str(keyfile)
    )
    found = re.fullmatch(
        r"listening on https://127\.0\.0\.1:(\d+) \(h3\) certificate sha-256 (\w+)\n", line
    )
    assert found[2] == certificate.sha256
    context = gevent.ssl.create_default_context(cafile=str(certfile))
    with (
        gevent.socket.create_connection(("127.0.0.1", int(found[1])), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as sock,
    ):
        sock.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 OK")


APPLICATIONS = """
import gwt

app = gwt.App()

@app.webtransport("/hello")
def hello(session):
    session.create_unidirectional_stream().write_all(b"hello from app")

def wsgi(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello from wsgi"]

class Holder:
    inner = wsgi

number = 7
"""


def test_application_of_the_current_directory_is_served(listening, tmp_path):
    (tmp_path / "applications.py").write_text(APPLICATIONS)
    _, line = listening("applications:app", "--bind", "127.0.0.1:0")
    port, digest = LINE.fullmatch(line).groups()
    url = f"https://127.0.0.1:{port}/hello"
    with gwt.connect(url, server_certificate_hashes=[digest]) as session:
        stream = session.accept_unidirectional_stream(timeout=5)
        assert stream.read_all(timeout=5) == b"hello from app"


def test_wsgi_application_is_served(listening, tmp_path):
    (tmp_path / "applications.py").write_text(APPLICATIONS)
    _, line = listening("applications:Holder.inner", "--bind", "127.0.0.1:0")
    port, _ = LINE.fullmatch(line).groups()
    assert get("127.0.0.1", int(port), "/").endswith(b"hello from wsgi")


@pytest.mark.parametrize(
    ("application", "said"),
    [
        ("applications", "MODULE:ATTR"),
        (":app", "MODULE:ATTR"),
        ("nowhere:app", "no module 'nowhere'"),
        ("applications:nothing", "no 'nothing'"),
        ("applications:number", "of type int"),
        ("broken:app", "ZeroDivisionError in "),
        ("crooked:app", "SyntaxError"),
        ("needy:app", "no module 'not_installed'"),
    ],
)
def test_application_that_cannot_be_served_is_one_line_and_exit_code_2(
    run, tmp_path, application, said
):
    (tmp_path / "applications.py").write_text(APPLICATIONS)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "crooked.py").write_text("def\n")
    (tmp_path / "needy.py").write_text("import not_installed\n")
    result = run("serve", application, "--bind", "127.0.0.1:0")
    assert result.code == 2
    assert said in result.error
    assert result.stdout == b""


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["TCP", "UDP"])
def test_port_in_use_is_one_line_and_exit_code_1(capsys, kind):
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            sock.listen()
        port = sock.getsockname()[1]
        assert cli.main(["serve", "--bind", f"127.0.0.1:{port}"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert f"127.0.0.1:{port}" in captured.err and "in use" in captured.err


@pytest.mark.parametrize("bind", ["8000", "127.0.0.1:x", "127.0.0.1:70000", "::1:8000"])
def test_impossible_bind_is_one_line_and_exit_code_2(capsys, bind):
    assert cli.main(["serve", "--bind", bind]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "bind" in captured.err


def test_certificate_that_does_not_exist_is_named(capsys, tmp_path):
    missing = str(tmp_path / "missing.pem")
    assert cli.main(["serve", "--bind", "127.0.0.1:0", "--certfile", missing]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and missing in captured.err


def test_certificate_that_is_none_is_named(capsys, tmp_path):
    (tmp_path / "cert.pem").write_text("nothing")
    argv = ["serve", "--bind", "127.0.0.1:0", "--certfile", str(tmp_path / "cert.pem")]
    assert cli.main(argv) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "cert.pem" in captured.err
