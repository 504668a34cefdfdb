"""``gwt connect`` through pipes, files and a terminal, against servers in this process."""

from __future__ import annotations

import os
import pty
import signal
import termios
from collections.abc import Iterator

import gevent
import gevent.event
import gevent.socket
import gevent.subprocess
import pytest
from gevent.queue import Queue

import gwt
from gwt import certificates
from gwt.cli.demo import make_app
from tests.helpers import live, spawn


@pytest.fixture
def server() -> Iterator[gwt.Server]:
    with live.serving(make_app()) as server:
        yield server


@pytest.fixture
def echo(server) -> list[str]:
    """What follows ``gwt connect`` to reach the echo."""
    return [live.url(server, "/echo"), "--cert-hash", server.certificate_hash]


def test_line_goes_there_and_back_once(run, echo):
    result = run("connect", *echo, "--once", input=b"hi\n")
    assert result == (0, b"hi\n", "")


def test_end_of_a_pipe_ends_the_stream_and_its_answer_the_command(run, echo):
    # Not only lines.
    data = b"one\ntwo\n\xff\x00 without end"
    assert run("connect", *echo, input=data) == (0, data, "")


def test_nothing_is_answered_with_nothing(run, echo):
    assert run("connect", *echo) == (0, b"", "")


def test_more_than_all_buffers_hold_goes_through_pipes(run, echo):
    data = os.urandom(2**20) * 6
    result = run("connect", *echo, input=data)
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout == data


def test_reader_that_is_late_gets_everything(start, echo):
    process = start("connect", *echo)
    data = os.urandom(2**20) * 4
    writing = spawn(process.stdin.write, data)
    # All that fits into the pipe is in there, and the hub of the command waits, not its process.
    gevent.socket.wait_read(process.stdout.fileno(), 10)
    reading = spawn(process.stdout.read)
    writing.get()
    process.stdin.close()
    assert reading.get(timeout=20) == data
    assert process.wait(timeout=10) == 0


def test_answer_comes_while_input_is_still_open(start, echo):
    process = start("connect", *echo)
    for line in (b"one\n", b"two\n"):
        process.stdin.write(line)
        process.stdin.flush()
        assert process.stdout.readline() == line
    process.stdin.close()
    assert process.wait(timeout=10) == 0


def test_file_is_read_and_written(start, echo, tmp_path):
    data = os.urandom(300_000)
    (tmp_path / "in").write_bytes(data)
    with open(tmp_path / "in", "rb") as stdin, open(tmp_path / "out", "wb") as stdout:
        process = start("connect", *echo, stdin=stdin, stdout=stdout)
        assert process.wait(timeout=20) == 0
    assert (tmp_path / "out").read_bytes() == data


def test_input_that_is_missing_is_empty(start, echo):
    process = start("connect", *echo, stdin=gevent.subprocess.DEVNULL)
    assert process.wait(timeout=10) == 0


def test_pipes_stay_blocking_for_whoever_shares_them(start, echo):
    read_end, write_end = os.pipe()
    try:
        with os.fdopen(read_end, "rb") as stdin:
            process = start("connect", *echo, stdin=stdin)
            os.write(write_end, b"x\n")
            assert process.stdout.readline() == b"x\n"
            assert os.get_blocking(stdin.fileno())
    finally:
        os.close(write_end)
    assert process.wait(timeout=10) == 0


def test_whoever_reads_the_output_may_stop(start, echo):
    process = start("connect", *echo)
    process.stdin.write(b"one\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"one\n"
    process.stdout.close()
    process.stdin.write(b"two\n")
    process.stdin.flush()
    assert process.wait(timeout=10) == 0
    assert process.stderr.read() == b""


def test_datagrams_are_lines(run, echo):
    # Each is awaited, since they may overtake each other.
    result = run("connect", *echo, "--datagrams", "--wait", "0.5", input=b"one\ntwo\n\nlast")
    assert (result.code, result.stderr) == (0, "")
    assert sorted(result.stdout.split(b"\n")) == [b"", b"", b"last", b"one", b"two"]


def test_many_datagrams_are_not_sent_faster_than_they_are_read(run, echo):
    lines = b"".join(b"%d\n" % number for number in range(5000))
    result = run("connect", *echo, "--datagrams", "--wait", "0.5", input=lines)
    assert (result.code, result.stderr) == (0, "")
    # A few may be lost all the same, on a busy machine.
    assert result.stdout.count(b"\n") > 4500


def test_once_is_one_datagram_and_its_answer(run, echo):
    result = run("connect", *echo, "--datagrams", "--once", input=b"one\ntwo\n")
    assert result == (0, b"one\n", "")


def test_binary_datagrams_are_as_large_as_they_may_be(run, echo):
    data = os.urandom(5000)
    result = run("connect", *echo, "--datagrams", "--binary", "--wait", "0.5", input=data)
    assert (result.code, result.stderr) == (0, "")
    assert len(result.stdout) == 5000


def test_datagrams_come_until_the_session_ends(start):
    def handler(session):
        for number in range(3):
            session.send_datagram(b"%d" % number)
        assert session.receive_datagram(timeout=10) == b"enough"
        session.close()

    with live.serving(handler) as server:
        process = start("connect", live.url(server), "--insecure", "--datagrams")
        assert [process.stdout.readline() for _ in range(3)] == [b"0\n", b"1\n", b"2\n"]
        process.stdin.write(b"enough\n")
        process.stdin.close()
        assert process.wait(timeout=10) == 0


def test_datagram_that_nobody_answers_is_a_failure(run, server):
    url = live.url(server, "/upload")
    result = run(
        "connect", url, "--insecure", "--datagrams", "--once", "--timeout", "1", input=b"x\n"
    )
    assert result.code == 1
    assert "No datagram came back" in result.error


def test_datagram_that_is_too_large_is_a_failure_of_once(run, echo):
    result = run("connect", *echo, "--datagrams", "--once", input=b"x" * 5000)
    assert result.code == 1
    assert "5000 bytes is too large" in result.error


def test_datagram_that_is_too_large_is_said_and_left_out(run, echo):
    lines = b"x" * 5000 + b"\nsmall\n"
    result = run("connect", *echo, "--datagrams", "--wait", "0.5", input=lines)
    assert (result.code, result.stdout) == (0, b"small\n")
    assert "5000 bytes is too large" in result.error


def test_streams_that_the_server_opens_are_printed_too(run, server):
    result = run("connect", live.url(server, "/download/300000"), "--insecure")
    assert (result.code, len(result.stdout)) == (0, 300_000)


def test_upload_from_a_pipe_is_answered(run, server):
    url = live.url(server, "/upload")
    assert run("connect", url, "--insecure", "--once", input=bytes(5000)) == (0, b"5000", "")


def test_close_with_a_code_is_a_failure_and_named(run, server):
    result = run("connect", live.url(server, "/close/42/by%C3%A9"), "--insecure")
    assert result.code == 1
    assert "code 42: byé" in result.error


def test_close_without_a_code_is_an_end_that_is_told(run, server):
    result = run("connect", live.url(server, "/close/0/bye%1B[2J"), "--insecure")
    assert (result.code, result.stdout) == (0, b"")
    # Nor does it give orders to a terminal.
    assert result.error.endswith(r"by the peer with code 0: bye\x1b[2J.")


def test_close_instead_of_the_answer_is_a_failure(run, server):
    result = run("connect", live.url(server, "/close/0/bye"), "--insecure", "--once")
    assert (result.code, result.stdout) == (1, b"")
    assert result.error.endswith("code 0: bye.")


def test_stream_that_is_not_answered_is_left_after_the_time_out(run):
    with live.serving(lambda session: session.wait_closed(timeout=20)) as server:
        url = live.url(server)
        result = run("connect", url, "--insecure", "--once", "--timeout", "1", input=b"x\n")
        assert (result.code, result.stdout) == (1, b"")
        assert "No answer came within 1 s." in result.error
        # Nobody asked for an answer.
        result = run("connect", url, "--insecure", "--wait", "0.1", input=b"x\n")
        assert result == (0, b"", "")


def test_server_that_vanishes_is_a_failure(start, server):
    process = start("connect", live.url(server, "/echo"), "--insecure")
    process.stdin.write(b"x\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"x\n"
    for connection in list(server.connections):
        connection.close(0x102, "gone")
    assert process.wait(timeout=10) == 1
    told = "gwt connect: The connection was closed by the peer with code 258: gone.\n"
    assert process.stderr.read().decode() == told


def test_path_that_nobody_serves_is_one_line_and_exit_code_1(run, server):
    result = run("connect", live.url(server, "/nowhere"), "--insecure")
    assert result.code == 1
    assert "404" in result.error


@pytest.mark.parametrize(
    ("kind", "shown"), [("text/plain", " Not \\x1b[31mtoday."), ("text/html", "")]
)
def test_reason_of_a_refusal_is_shown_if_it_is_text(run, kind, shown):
    app = make_app()

    @app.middleware
    def refuse(request):
        raise gwt.Reject(403, {"Content-Type": kind}, b"Not \x1b[31mtoday.\nMore.\n")

    with live.serving(app) as server:
        result = run("connect", live.url(server, "/echo").replace("https", "ws"))
    refused = "gwt connect: The server refused the WebSocket with HTTP status 403."
    assert (result.code, result.error) == (1, refused + shown)


def test_certificate_is_verified_unless_told_otherwise(run, server):
    result = run("connect", live.url(server, "/echo"))
    assert result.code == 1
    assert "certificate" in result.error
    result = run("connect", live.url(server, "/echo"), "--cert-hash", "00" * 32)
    assert result.code == 1
    assert server.certificate_hash in result.error


def test_port_where_nobody_listens_is_one_line_and_exit_code_1(run):
    with gevent.socket.socket(gevent.socket.AF_INET, gevent.socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    result = run("connect", f"https://127.0.0.1:{port}/")
    assert result.code == 1
    assert f"127.0.0.1 port {port}" in result.error


@pytest.mark.parametrize("number", [signal.SIGINT])
@pytest.mark.parametrize("options", [[], ["--datagrams"]])
def test_ctrl_c_ends_it_with_130_and_tells_the_server(start, number, options):
    ended: Queue = Queue()

    def handler(session):
        session.create_unidirectional_stream().write_all(b"ready\n")
        session.send_datagram(b"ready")
        session.wait_closed(timeout=10)
        ended.put(session.close_code)

    with live.serving(handler) as server:
        process = start("connect", live.url(server), "--insecure", *options)
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.wait(timeout=10) == 130
        assert ended.get(timeout=5) == 0
    assert process.stderr.read() == b""


def test_ctrl_c_ends_the_wait_for_the_one_answer(start):
    def handler(session):
        session.receive_datagram(timeout=10)
        asked.set()
        session.wait_closed(timeout=10)

    asked = gevent.event.Event()
    with live.serving(handler) as server:
        process = start("connect", live.url(server), "--insecure", "--datagrams", "--once")
        process.stdin.write(b"x\n")
        process.stdin.flush()
        assert asked.wait(10)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130
    assert (process.stdout.read(), process.stderr.read()) == (b"", b"")


class TestTerminal:
    """stdin is a terminal: the other end of a pty."""

    @pytest.fixture
    def terminal(self) -> Iterator[tuple[int, int]]:
        ours, theirs = pty.openpty()
        # What is typed is not to come back by itself.
        settings = termios.tcgetattr(theirs)
        settings[3] &= ~termios.ECHO
        termios.tcsetattr(theirs, termios.TCSANOW, settings)
        yield ours, theirs
        os.close(ours)
        os.close(theirs)

    def test_lines_go_out_as_they_are_typed_until_ctrl_d(self, start, echo, terminal):
        ours, theirs = terminal
        process = start("connect", *echo, stdin=theirs)
        for line in (b"one\n", b"two\n"):
            os.write(ours, line)
            assert process.stdout.readline() == line
        os.write(ours, b"\x04")
        assert process.wait(timeout=10) == 0
        assert os.get_blocking(theirs)

    @pytest.mark.parametrize("options", [[], ["--datagrams"]])
    def test_once_is_one_line(self, start, echo, terminal, options):
        ours, theirs = terminal
        process = start("connect", *echo, "--once", *options, stdin=theirs)
        os.write(ours, b"one\n")
        assert process.stdout.read() == b"one\n"
        assert process.wait(timeout=10) == 0

    def test_ctrl_d_closes_a_websocket(self, start, base, terminal):
        ours, theirs = terminal
        process = start("connect", f"{base}/echo", stdin=theirs)
        os.write(ours, b"one\n")
        assert process.stdout.readline() == b"one\n"
        os.write(ours, b"\x04")
        assert process.wait(timeout=10) == 0
        assert process.stderr.read() == b""

    def test_binary_messages_are_shown_so_that_they_do_no_harm(self, start, base, terminal):
        ours, theirs = terminal
        process = start("connect", f"{base}/echo", stdout=theirs)
        process.stdin.write("Grüße\n".encode() + b"\x1b[2J\xff\n")
        process.stdin.flush()
        shown = b""
        while shown.count(b"\n") < 2:
            gevent.socket.wait_read(ours, 10)
            shown += os.read(ours, 65536)
        assert shown.split(b"\r\n") == [
            "Grüße".encode(),
            b"<binary 5 bytes: 1b 5b 32 4a ff>",
            b"",
        ]
        process.stdin.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130


@pytest.fixture
def base(server) -> str:
    return "ws://{}:{}".format(*server.address)


class TestWebSocket:
    """``gwt connect ws://``: a message a line."""

    def test_whoever_reads_the_output_of_many_lines_may_stop(self, start, base):
        process = start("connect", f"{base}/echo")
        # Answers come although there is no end of lines.
        writing = spawn(process.stdin.write, b"y\n" * 2**20)
        assert process.stdout.readline() == b"y\n"
        process.stdout.close()
        assert process.wait(timeout=10) == 0
        with pytest.raises(BrokenPipeError):
            writing.get(timeout=10)
        assert process.stderr.read() == b""

    def test_certificates_of_wss_are_verified_unless_told_otherwise(self, run, tmp_path):
        cert, key = certificates.write(tmp_path, certificates.generate())
        with live.serving(make_app(), certfile=cert, keyfile=key, http3=False) as server:
            url = "wss://{}:{}/echo".format(*server.address)
            result = run("connect", url, "--once", input=b"hi\n")
            assert (result.code, result.stdout) == (1, b"")
            assert "certificate" in result.error
            for option in (["--insecure"], ["--cert-hash", server.certificate_hash]):
                assert run("connect", url, "--once", *option, input=b"hi\n") == (0, b"hi\n", "")

    def test_a_url_that_is_none_names_those_there_are(self, run):
        result = run("connect", "http://127.0.0.1/")
        assert result.code == 2
        assert '"https://" or "ws://" or "wss://" is needed' in result.error

    def test_lines_are_messages_that_come_back(self, run, base):
        lines = "hi\nGrüße\n".encode() + b"\xff\x00"
        result = run("connect", f"{base}/echo", "--wait", "0.5", input=lines)
        assert result == (0, lines + b"\n", "")

    def test_a_file_is_answered_as_a_whole(self, run, base):
        lines = b"".join(b"%d\n" % number for number in range(20_000))
        result = run("connect", f"{base}/echo", "--wait", "1", input=lines)
        assert (result.code, result.stderr) == (0, "")
        assert result.stdout == lines

    def test_once_is_one_line_and_its_answer(self, run, base):
        assert run("connect", f"{base}/echo", "--once", input=b"one\ntwo\n") == (0, b"one\n", "")

    def test_once_waits_for_the_answer_as_long_as_it_is_told(self, run):
        app = gwt.App()
        app.websocket("/")(lambda ws: list(ws))
        with live.serving(app) as server:
            url = "ws://{}:{}/".format(*server.address)
            result = run("connect", url, "--once", "--timeout", "1", input=b"x\n")
            assert (result.code, result.stdout) == (1, b"")
            assert "No message came back within 1 s." in result.error

    def test_binary_is_bytes_in_and_bytes_out(self, run, base):
        data = os.urandom(300_000) + b"\n"
        result = run("connect", f"{base}/echo", "--binary", "--wait", "1", input=data)
        assert result == (0, data, "")

    def test_binary_once_is_one_message(self, run, base):
        data = os.urandom(300_000)
        assert run("connect", f"{base}/echo", "--binary", "--once", input=data) == (0, data, "")

    def test_binary_once_of_nothing_is_nothing(self, run, base):
        assert run("connect", f"{base}/echo", "--binary", "--once") == (0, b"", "")

    def test_a_message_may_be_as_long_as_a_line(self, run):
        app = gwt.App()
        app.websocket("/")(lambda ws: ws.send("x" * (int(ws.recv()) * 2**20)))
        with live.serving(app) as server:
            url = "ws://{}:{}/".format(*server.address)
            result = run("connect", url, "--once", input=b"15\n")
            assert (result.code, len(result.stdout)) == (0, 15 * 2**20 + 1)
            result = run("connect", url, "--once", input=b"17\n")
            assert (result.code, result.stdout) == (1, b"")
            assert "1009" in result.error

    def test_a_line_without_end_is_not_kept(self, start, base):
        process = start("connect", f"{base}/echo")
        writing = spawn(process.stdin.write, b"x" * (17 * 2**20))
        assert process.wait(timeout=20) == 1
        with pytest.raises(BrokenPipeError):
            writing.get(timeout=10)
        assert b"A line of stdin is longer" in process.stderr.read()

    def test_input_waits_for_a_server_that_does_not_read(self, start):
        def handler(ws):
            ws.recv()
            go.wait(10)
            for _ in ws:
                pass

        go = gevent.event.Event()
        app = gwt.App()
        app.websocket("/", max_queue=1)(handler)
        with live.serving(app) as server:
            process = start("connect", "ws://{}:{}/".format(*server.address), "--wait", "0.1")
            line = b"x" * 65535 + b"\n"
            size = 64 * 2**20
            writing = spawn(process.stdin.write, line * (size // len(line)))
            # As long as it takes a reader without bounds to take all of it.
            writing.greenlet.join(0.5)
            assert not writing.done
            go.set()
            writing.get(timeout=20)
            with open(f"/proc/{process.pid}/status") as status:
                peak = next(line for line in status if line.startswith("VmHWM"))
            assert int(peak.split()[1]) < 120_000
            process.stdin.close()
            assert process.wait(timeout=20) == 0

    def test_headers_origin_and_subprotocols_are_sent(self, run):
        def handler(ws):
            seen.put((ws.headers["x-one"], ws.headers["x-two"], ws.origin, ws.subprotocol))

        seen: Queue = Queue()
        app = gwt.App()
        app.websocket("/", subprotocols=["chat"], origins=["https://here.example"])(handler)
        with live.serving(app) as server:
            options = ["--header", "X-One: 1", "--header", "X-Two:a:b", "--subprotocol", "chat"]
            url = "ws://{}:{}/".format(*server.address)
            result = run("connect", url, *options, "--origin", "https://here.example")
        assert result.code == 0
        assert seen.get(timeout=5) == ("1", "a:b", "https://here.example", "chat")

    def test_the_servers_normal_close_is_the_end(self, run, base):
        result = run("connect", f"{base}/close/1000/ok")
        assert (result.code, result.stdout) == (0, b"")
        assert result.error.endswith("by the peer with code 1000: ok.")

    def test_a_close_instead_of_the_answer_is_a_failure(self, run, base):
        result = run("connect", f"{base}/close/1000/ok", "--once", input=b"x\n")
        assert (result.code, result.stdout) == (1, b"")
        assert result.error.endswith("code 1000: ok.")

    def test_a_server_that_goes_away_is_a_failure(self, run, base):
        result = run("connect", f"{base}/close/1001/later")
        assert (result.code, result.stdout) == (1, b"")
        assert result.error.endswith("code 1001: later.")

    @pytest.mark.parametrize(
        ("path", "options", "code", "text"),
        [
            ("/close/4000/bad", (), 1, "with code 4000: bad."),
            ("/close/1005", (), 1, "1011: code 1005 is none to close with."),
            ("/nowhere", (), 1, "HTTP status 404. Not found"),
            ("/echo", ("--datagrams",), 2, "A WebSocket has no datagrams."),
        ],
    )
    def test_failures_are_one_line(self, run, base, path, options, code, text):
        result = run("connect", f"{base}{path}", *options)
        assert (result.code, result.stdout, result.stderr.count("\n")) == (code, b"", 1)
        assert result.stderr.endswith(f"{text}\n")
