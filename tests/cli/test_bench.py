"""``gwt bench``: every mode, its figures, failures, Ctrl-C, a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import resource
import signal
import struct
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import gevent
import gevent.socket
import gevent.subprocess
import pytest

import gwt
from gwt import certificates, cli
from gwt.cli import bench_load
from gwt.cli.bench_report import Distribution, advice, limit
from gwt.cli.demo import echo, make_app
from tests.helpers import eventually, live, spawn

ROOT = Path(__file__).resolve().parents[2]

KEYS = {
    "url": str,
    "mode": str,
    "clients": int,
    "connected": int,
    "ended_early": int,
    "size": int,
    "duration": float,
    "connect_duration": float,
    "operations": int,
    "rate": float,
    "target_rate": (float, type(None)),
    "bytes": int,
    "bytes_per_second": float,
    "lost": int,
    "errors": dict,
    "error_messages": dict,
    "latency_ms": dict,
    "connect_ms": dict,
    "client_cpu": float,
    "hub_late": float,
    "hub_lateness_ms": dict,
    "limited_by": str,
    "interrupted": bool,
}
TIMES = ["min", "mean", "p50", "p90", "p99", "p99.9", "max"]

SHORT = ("--duration", "0.3", "--clients", "3", "--json")


@pytest.fixture
def server() -> Iterator[gwt.Server]:
    with live.serving(make_app()) as server:
        yield server


def webtransport(server: gwt.Server, path: str = "") -> list[str]:
    return [live.url(server, path), "--cert-hash", server.certificate_hash]


def websocket(server: gwt.Server, path: str = "") -> list[str]:
    return [live.url(server, path).replace("https", "ws")]


def check(measured: dict) -> None:
    """What holds for every run: which keys there are, and how they hang together."""
    assert list(measured) == list(KEYS)
    for key, kind in KEYS.items():
        assert isinstance(measured[key], kind), key
    for key in ("latency_ms", "connect_ms", "hub_lateness_ms"):
        assert list(measured[key]) == TIMES
        times = [measured[key][name] for name in TIMES if name != "mean"]
        if times[0] is not None:
            assert times == sorted(times)
            assert times[0] <= measured[key]["mean"] <= times[-1]
    assert measured["rate"] == pytest.approx(
        measured["operations"] / measured["duration"], rel=0.02
    )
    assert measured["connected"] <= measured["clients"]
    assert measured["limited_by"] in ("client", "server or network", "rate")
    assert set(measured["errors"]) == set(measured["error_messages"])


@pytest.mark.parametrize("mode", ["echo", "datagram", "stream", "upload", "connect"])
def test_webtransport_in_every_mode(run, server, mode):
    result = run("bench", *webtransport(server), "--mode", mode, *SHORT)
    assert (result.code, result.stderr) == (0, "")
    measured = json.loads(result.stdout)
    check(measured)
    assert measured["connected"] == 3 and measured["operations"] > 0 and not measured["errors"]
    assert measured["url"] == live.url(server, "/upload" if mode == "upload" else "/echo")
    size = {"upload": 2**20, "connect": 0}.get(mode, 64)
    assert measured["bytes"] == size * measured["operations"]


@pytest.mark.parametrize("mode", ["echo", "connect"])
def test_websocket_in_every_mode(run, server, mode):
    result = run("bench", *websocket(server), "--mode", mode, *SHORT)
    assert (result.code, result.stderr) == (0, "")
    measured = json.loads(result.stdout)
    check(measured)
    assert measured["connected"] == 3 and measured["operations"] > 0 and not measured["errors"]
    assert measured["url"].endswith("/echo")


def test_websocket_over_tls(run, tmp_path):
    cert, key = certificates.write(tmp_path, certificates.generate())
    with live.serving(make_app(), certfile=cert, keyfile=key) as server:
        url = live.url(server, "").replace("https", "wss")
        result = run("bench", url, "--cert-hash", server.certificate_hash, *SHORT)
    assert (result.code, result.stderr) == (0, "")
    measured = json.loads(result.stdout)
    check(measured)
    assert measured["connected"] == 3 and measured["operations"] > 0 and not measured["errors"]


@pytest.mark.parametrize("scheme", ["https", "ws"])
def test_request_says_what_was_asked_for(run, scheme):
    app = gwt.App()
    app.websocket("/echo", subprotocols=["b"], origins="*")(echo_messages)
    app.webtransport("/echo", subprotocols=["b"], origins="*")(echo)
    asked = []

    @app.middleware
    def listen(request):
        asked.append((request.headers.get("x-token"), request.headers.get("origin")))

    with live.serving(app) as server:
        url = (webtransport if scheme == "https" else websocket)(server)
        said = ("--header", "X-Token: abc", "--origin", "https://a.example", "--subprotocol", "b")
        measured = json.loads(run("bench", *url, *said, *SHORT).stdout)
    assert measured["connected"] == 3 and not measured["errors"]
    assert asked == [("abc", "https://a.example")] * 3


def test_password_in_the_url_is_not_shown(run, server):
    url = websocket(server)[0].replace("://", "://ann:secret@")
    result = run("bench", url, *SHORT)
    assert result.code == 0
    assert b"secret" not in result.stdout and b"***@" in result.stdout


def test_table_is_text_without_escapes_where_there_is_no_terminal(run, server):
    result = run("bench", *webtransport(server), "--mode", "datagram", "--duration", "0.3")
    assert (result.code, result.stderr) == (0, "")
    text = result.stdout.decode("ascii")
    assert "\x1b" not in text
    for word in ("10 of 10 connected", "a second", "MB/s", "lost", "p99.9", "max", "the limit"):
        assert word in text, word


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_reader_of_the_figures_may_leave(run, server, form):
    reader, writer = os.pipe()
    os.close(reader)
    options = ("--duration", "0.3", *form)
    try:
        result = run("bench", *websocket(server), *options, stdout=writer)
    finally:
        os.close(writer)
    assert (result.code, result.stderr) == (0, "")


def test_size_is_what_goes_each_way(run, server):
    for url in (webtransport(server), websocket(server)):
        measured = json.loads(run("bench", *url, "--size", "100000", *SHORT).stdout)
        check(measured)
        assert measured["operations"] > 0 and not measured["errors"]
        assert measured["bytes"] == 100_000 * measured["operations"]


# What is counted, and from when


def test_window_begins_when_all_are_connected(run):
    app = gwt.App()
    app.websocket("/echo")(echo_messages)
    waits = iter([0.8, 0.0, 0.4])
    app.middleware(lambda request: gevent.sleep(next(waits)))
    with live.serving(app) as server:
        measured = json.loads(run("bench", *websocket(server), *SHORT).stdout)
    check(measured)
    assert measured["connected"] == 3
    assert measured["connect_duration"] >= 0.8
    assert measured["latency_ms"]["max"] <= 1000 * measured["duration"]
    assert measured["connect_ms"]["max"] >= 800


def echo_messages(ws):
    for message in ws:
        ws.send(message)


def test_open_loop_keeps_to_its_rate(run, server):
    result = run("bench", *websocket(server), "--rate", "40", "--duration", "1", "--json")
    measured = json.loads(result.stdout)
    check(measured)
    assert measured["target_rate"] == 40
    assert 0 < measured["operations"] <= 52


def test_open_loop_counts_the_time_that_operations_were_late(run):
    # Half of what is asked for can be had, so that the last ones begin half a second late.
    def slowly(ws):
        for message in ws:
            gevent.sleep(0.02)
            ws.send(message)

    app = gwt.App()
    app.websocket("/echo")(slowly)
    one = ("--clients", "1", "--duration", "1", "--json")
    with live.serving(app) as server:
        waiting = json.loads(run("bench", *websocket(server), "--rate", "100", *one).stdout)
        asking = json.loads(run("bench", *websocket(server), *one).stdout)
    check(waiting)
    assert waiting["latency_ms"]["max"] >= 300
    assert waiting["limited_by"] != "rate"
    assert asking["latency_ms"]["p50"] < waiting["latency_ms"]["p50"]


def test_lost_datagrams_are_counted_and_the_next_ones_sent(run):
    def lossy(session):
        for number, data in enumerate(session.incoming_datagrams()):
            if number % 3 != 2:
                session.send_datagram(data)

    options = ("--mode", "datagram", "--loss-timeout", "0.05", *SHORT)
    with live.serving(lossy, "/echo") as server:
        measured = json.loads(run("bench", *webtransport(server), *options).stdout)
    check(measured)
    assert measured["lost"] > 0 and measured["operations"] > 0
    assert not measured["errors"] and not measured["ended_early"]


def test_answer_that_is_late_is_no_other_datagrams(run):
    # Each one comes back behind the next, when it has been given up.
    def late(session):
        held = None
        for data in session.incoming_datagrams():
            if held is not None:
                session.send_datagram(held)
            held = data

    options = ("--mode", "datagram", "--loss-timeout", "0.05", *SHORT)
    with live.serving(late, "/echo") as server:
        result = run("bench", *webtransport(server), *options)
    assert result.code == 1
    assert result.error.startswith("gwt bench: None of 3 datagrams came back")


# Failures


def test_what_some_clients_meet_is_counted_and_the_others_go_on(run):
    app = gwt.App()
    app.websocket("/echo")(echo_messages)
    asked = iter(range(1000))

    @app.middleware
    def every_second(request):
        if next(asked) % 2 == 0:
            raise gwt.Reject(503)

    with live.serving(app) as server:
        url = websocket(server)
        measured = json.loads(run("bench", *url, "--clients", "6", *SHORT[:2], "--json").stdout)
        check(measured)
        assert measured["connected"] == 3 and measured["operations"] > 0
        assert measured["errors"] == {"SessionRejected 503": 3}
        assert "503" in measured["error_messages"]["SessionRejected 503"]
        result = run("bench", *url, "--clients", "6", *SHORT[:2])
        assert result.code == 0
        assert re.search(
            r"^ +3 +SessionRejected 503 +The server refused", result.stdout.decode(), re.M
        )


def test_client_whose_connection_ends_is_out_and_counted(run):
    left = iter([5, 10**9, 10**9])
    app = gwt.App()

    @app.websocket("/echo")
    def some(ws):
        for _ in range(next(left)):
            ws.send(ws.recv())
        ws.close(4007, "enough")

    with live.serving(app) as server:
        measured = json.loads(run("bench", *websocket(server), *SHORT).stdout)
    check(measured)
    assert (measured["connected"], measured["ended_early"]) == (3, 1)
    assert measured["errors"] == {"WebSocketClosedError 4007": 1}
    assert "enough" in measured["error_messages"]["WebSocketClosedError 4007"]


def test_window_ends_when_nobody_is_left(run):
    app = gwt.App()

    @app.websocket("/echo")
    def five(ws):
        for _ in range(5):
            ws.send(ws.recv())
        ws.close(4007)

    with live.serving(app) as server:
        options = ("--clients", "2", "--duration", "600", "--json")
        result = run("bench", *websocket(server), *options)
    if result.code == 0:
        # Some came back between the beginning of the window and its end.
        assert json.loads(result.stdout)["ended_early"] == 2
    else:
        assert result.error == "gwt bench: The WebSocket was closed by the peer with code 4007."


@pytest.mark.parametrize("scheme", ["https", "ws", "wss"])
def test_nobody_there_is_one_line(run, scheme):
    with gevent.socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"{scheme}://127.0.0.1:{sock.getsockname()[1]}"
        result = run("bench", url, "--clients", "100")
    assert (result.code, result.stdout) == (1, b"")
    assert result.error.startswith("gwt bench: Nobody answers on")


@pytest.mark.parametrize(
    ("path", "options", "says"),
    [
        # A path that is there is not changed.
        ("/", (), "The server rejected the session with HTTP status 404."),
        ("/echo", ("--mode", "upload"), "did not answer with the number of bytes"),
        ("/upload", ("--timeout", "0.5"), "was connected to, but did nothing for 0.5 s"),
        ("/close/9/go", (), "The session was closed by the peer with code 9: go."),
    ],
)
def test_server_that_does_something_else_is_one_line(run, server, path, options, says):
    result = run("bench", *webtransport(server, path), *options, "--duration", "0.3")
    assert (result.code, result.stdout) == (1, b"")
    assert says in result.error


def test_certificate_is_verified_unless_told_otherwise(run, server):
    url = live.url(server, "")
    error = run("bench", url, *SHORT).error
    assert "certificate" in error and error.endswith(
        "(--insecure accepts any, --cert-hash HEX the one with this SHA-256)"
    )
    error = run("bench", url, "--cert-hash", "00" * 32, *SHORT).error
    assert server.certificate_hash in error and "--insecure" not in error
    assert run("bench", url, "--insecure", *SHORT).code == 0


def test_nobody_asks_a_thousand_times_who_does_not_answer():
    with gevent.socket.socket(type=gevent.socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        load = make_load(f"https://127.0.0.1:{silent.getsockname()[1]}/", 1000, 0.2)
        load.connect()
    load.stop()
    assert load.connected == 0
    assert bench_load.CONNECTING <= load.tried <= 3 * bench_load.CONNECTING
    assert load.tally.errors == {"TimeoutError": load.tried}


def test_timeout_of_a_connect_does_not_run_before_its_turn(monkeypatch):
    monkeypatch.setattr(bench_load, "CONNECTING", 1)
    app = gwt.App()
    app.websocket("/echo")(echo_messages)
    app.middleware(lambda request: gevent.sleep(0.8))
    with live.serving(app) as server:
        load = make_load(websocket(server, "/echo")[0], 3, 2.0)
        began = time.monotonic()
        load.connect()
        assert time.monotonic() - began > 2.0
        load.stop()
        assert (load.connected, load.tally.errors) == (3, {})
        # Polite: each said good-bye.
        eventually(lambda: not server.connections.get_stats()["current_count"])


def make_load(url, clients, timeout):
    config = gwt.ClientConfig(connect_timeout=timeout, verify=False)
    options = {"clients": clients, "size": 64, "timeout": timeout, "loss_timeout": 1.0}
    return bench_load.Load(url, "echo", config, **options)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["ws://localhost", "--mode", "datagram"], "--mode datagram is for https:// URLs"),
        (["wss://localhost", "--mode", "stream"], "--mode stream is for https:// URLs"),
        (["ws://localhost", "--mode", "upload"], "echo with a large --size moves data"),
        (["https://localhost", "--mode", "dance"], "dance"),
        (["https://localhost", "--clients", "0"], "--clients must be at least 1"),
        (["https://localhost", "--size", "0"], "--size must be from 1 to 1,048,576"),
        (["https://localhost", "--size", "7", "--mode", "datagram"], "--size must be from 8"),
        (["https://localhost", "--size", "1048577"], "--size must be"),
        (["https://localhost", "--duration", "0"], "--duration must be a finite number above 0"),
        (["https://localhost", "--duration", "inf"], "--duration must be"),
        (["https://localhost", "--timeout", "-1"], "--timeout must be"),
        (["https://localhost", "--loss-timeout", "nan"], "--loss-timeout must be"),
        (["https://localhost", "--rate", "0"], "--rate must be"),
        (["https://localhost", "--cert-hash", "abc"], "abc"),
        (["ftp://localhost"], '"https://" or "ws://"'),
        (["https://[::1"], "https://[::1"),
        (["ws://localhost", "--clients", "1000000000"], "where this process may have"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(capsys, argv, says):
    assert cli.main(["bench", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("gwt bench: ") and captured.err.count("\n") == 1
    assert says in captured.err


def test_datagram_that_does_not_fit_is_wrong_usage(run, server):
    result = run("bench", *webtransport(server), "--mode", "datagram", "--size", "5000")
    assert result.code == 2
    assert re.search(r"--size is 5000, but a datagram .* may have \d+ bytes", result.error)


def test_soft_limit_of_descriptors_is_raised(run, server):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]

    def few():
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))

    options = ("--clients", "100", "--duration", "0.3", "--json")
    measured = json.loads(run("bench", *websocket(server), *options, preexec_fn=few).stdout)
    assert measured["connected"] == 100 and not measured["errors"]


# Ctrl-C


def test_ctrl_c_prints_what_was_measured(start, server):
    process = start("bench", *webtransport(server), "--duration", "600", "--json")
    eventually(lambda: server.sessions.get_stats()["current_count"] == 10, 15)
    sessions = list(server.sessions)
    eventually(lambda: all(each.stats()["streams_accepted"] for each in sessions), 15)
    gevent.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=15)
    assert (process.returncode, err) == (130, b"")
    measured = json.loads(out)
    check(measured)
    assert measured["interrupted"] and measured["operations"] > 0
    assert measured["duration"] < 60 and not measured["errors"]
    eventually(lambda: not server.sessions.get_stats()["current_count"])


def test_ctrl_c_while_connecting(start):
    app = gwt.App()
    app.websocket("/echo")(echo_messages)
    asked = []
    app.middleware(lambda request: (asked.append(request), gevent.sleep(1000)))
    with live.serving(app) as server:
        process = start("bench", *websocket(server), "--timeout", "600")
        eventually(lambda: len(asked) == 10, 15)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=15)
    assert (process.returncode, err) == (130, b"")
    assert b"0 of 10 connected" in out and b"interrupted" in out


# A terminal


def test_bar_is_drawn_on_a_terminal_and_taken_away(start, server):
    ours, theirs = pty.openpty()
    process = start("bench", *websocket(server), "--duration", "1")
    process.wait(timeout=20)
    quiet = process.stderr.read()
    assert quiet == b""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "80"}
    with gevent.subprocess.Popen(
        [sys.executable, "-m", "gwt", "bench", *websocket(server), "--duration", "1", "--json"],
        stdout=gevent.subprocess.PIPE,
        stderr=theirs,
        env=env,
    ) as process:
        os.close(theirs)
        shown = spawn(read_terminal, ours)
        out, _ = process.communicate(timeout=20)
        text = shown.get().decode()
    os.close(ours)
    check(json.loads(out))
    assert process.returncode == 0
    assert "echo" in text and "a second, 10 clients" in text
    # The cursor is there again, and the bar is not.
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert "\x1b[2K" in text


def on_terminal(*args, columns, **env):
    """Return what a command shows on a terminal so wide."""
    ours, theirs = pty.openpty()
    size = struct.pack("HHHH", 24, columns, 0, 0)
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
    with gevent.subprocess.Popen(
        [sys.executable, "-m", "gwt", *args],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", **env},
    ) as process:
        os.close(theirs)
        shown = spawn(read_terminal, ours)
        assert process.wait(timeout=20) == 0
        text = shown.get().decode()
    os.close(ours)
    return text


def test_narrow_terminal_breaks_lines_and_no_figures(server):
    text = on_terminal("bench", *websocket(server), "--duration", "0.5", columns=30, NO_COLOR="1")
    assert "latency" in text and "throughput" in text
    table = text[text.index("ms ") :]
    assert "…" not in table


def test_terminal_that_can_only_print_gets_the_table_alone(server):
    text = on_terminal("bench", *websocket(server), "--duration", "0.5", columns=80, TERM="dumb")
    assert text.startswith("url ") and "\x1b" not in text


def read_terminal(descriptor):
    data = b""
    while True:
        gevent.socket.wait_read(descriptor)
        try:
            chunk = os.read(descriptor, 65536)
        except OSError:
            # EIO: whoever wrote is gone.
            return data
        if not chunk:
            return data
        data += chunk


# Figures, pure


def test_percentiles_are_right_to_three_digits():
    distribution = Distribution()
    distribution.add(1000 * micros for micros in range(1, 100_001))
    times = distribution.milliseconds()
    assert len(distribution) == 100_000
    assert list(times) == TIMES
    expected = [0.001, 50.0, 50.0, 90.0, 99.0, 99.9, 100.0]
    assert list(times.values()) == [pytest.approx(each, rel=0.002) for each in expected]


def test_one_time_is_every_percentile():
    distribution = Distribution()
    distribution.add([2_500_000])
    for each in distribution.milliseconds().values():
        assert each == pytest.approx(2.5, rel=0.001)


def test_nothing_has_no_percentiles():
    assert Distribution().milliseconds() == dict.fromkeys(TIMES)


def test_times_that_are_taken_are_gone_and_extremes_are_held():
    distribution = Distribution()
    times = [0, 10**18]
    distribution.take(times)
    assert times == [] and len(distribution) == 2
    assert distribution.milliseconds()["min"] == 0.001
    assert distribution.milliseconds()["max"] == pytest.approx(3_600_000, rel=0.001)


@pytest.mark.parametrize(
    ("cpu", "late", "rate", "target", "limited_by"),
    [
        (0.95, 0.5, 100.0, None, "client"),
        (0.2, 0.95, 100.0, None, "client"),
        (0.5, 0.5, 100.0, None, "server or network"),
        (0.5, 0.5, 100.0, 100.5, "rate"),
        (0.5, 0.1, 100.0, 200.0, "server or network"),
        (0.95, 0.5, 100.0, 100.0, "client"),
    ],
)
def test_what_the_limit_was(cpu, late, rate, target, limited_by):
    assert limit(cpu, late, rate, target) == limited_by
    line = advice({"client_cpu": cpu, "hub_late": late, "limited_by": limited_by})
    assert f"{cpu:.0%} of a core" in line and "\n" not in line
    own = limited_by == "server or network" and late >= 0.5
    assert ("may be its own" in line) == own
    assert ("on another" in line or "several gwt bench processes" in line) == (
        limited_by == "client"
    )


def test_every_key_is_documented():
    page = (ROOT / "docs" / "bench.md").read_text()
    for key in KEYS:
        assert f"`{key}`" in page, key
