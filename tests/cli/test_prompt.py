"""``gwt connect`` on a terminal: a pty, whose other end a terminal emulator reads and types at."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import stat
import struct
import termios
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent.socket
import pyte
import pytest
from gevent.event import Event
from gevent.queue import Queue

import gwt
from gwt.cli.demo import make_app
from gwt.cli.display import brief, escaped, hexdump
from gwt.cli.prompt import history_file, load_history, save_history
from tests.helpers import eventually, live

UP, LEFT, HOME, CTRL_C, CTRL_D, ENTER = "\x1b[A", "\x1b[D", "\x01", "\x03", "\x04", "\r"


def _take_terminal() -> None:
    """Make stdin the terminal of this process, so that keys can be signals."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """What somebody sees and types."""

    def __init__(self) -> None:
        self.ours, self.theirs = pty.openpty()
        size = struct.pack("HHHH", 24, 80, 0, 0)
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, size)
        os.set_blocking(self.ours, False)
        self.settings = termios.tcgetattr(self.theirs)
        self.screen = pyte.HistoryScreen(80, 24, history=100_000)
        self._stream = pyte.ByteStream(self.screen)

        # All that was written to it.
        self.raw = b""

    def close(self) -> None:
        os.close(self.ours)
        os.close(self.theirs)

    def type(self, *keys: str) -> None:
        data = "".join(keys).encode()
        while data:
            gevent.socket.wait_write(self.ours, 10)
            data = data[os.write(self.ours, data) :]

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display if line.strip()]

    def until(self, true: Callable[[], Any]) -> None:
        """Show what is written until something is true."""
        deadline = time.monotonic() + 15
        while not true():
            left = deadline - time.monotonic()
            assert left > 0, self.lines
            try:
                gevent.socket.wait_read(self.ours, min(left, 0.1))
            except TimeoutError:
                continue
            self._read()

    def _read(self) -> None:
        data = os.read(self.ours, 65536)
        self.raw += data
        self._stream.feed(data)

    def clear(self) -> None:
        """Empty the screen, also of what nobody has looked at yet."""
        while select.select([self.ours], [], [], 0)[0]:
            self._read()
        self.screen.reset()

    def shows(self, *lines: str) -> None:
        """Wait until these lines are what is on the screen."""
        self.until(lambda: self.lines == list(lines))

    @property
    def is_as_it_was(self) -> bool:
        return termios.tcgetattr(self.theirs) == self.settings


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


@pytest.fixture
def state(tmp_path) -> Any:
    return tmp_path / "state"


@pytest.fixture
def talk(start, terminal, state) -> Callable[..., Any]:
    """talk(*args): start ``gwt connect`` on the terminal, and wait for its prompt."""

    def talking(*args: str, prompt: bool = True, **env: str) -> Any:
        env = {"TERM": "xterm", "NO_COLOR": "", "XDG_STATE_HOME": str(state), **env}
        process = start(
            "connect",
            *args,
            stdin=terminal.theirs,
            stdout=terminal.theirs,
            preexec_fn=_take_terminal,
            env=env,
        )
        terminal.clear()
        if prompt:
            terminal.until(lambda: terminal.lines[-1:] == [">"])
        return process

    return talking


@pytest.fixture
def server() -> Iterator[gwt.Server]:
    with live.serving(make_app()) as server:
        yield server


@pytest.fixture(params=["ws", "https", "datagrams"])
def echo(request, server) -> list[str]:
    """What follows ``gwt connect`` to reach the echo, by each way."""
    if request.param == "ws":
        return ["ws://{}:{}/echo".format(*server.address)]
    options = ["--datagrams"] if request.param == "datagrams" else []
    return [live.url(server, "/echo"), "--insecure", *options]


@pytest.fixture
def ws_echo(server) -> str:
    return "ws://{}:{}/echo".format(*server.address)


def websocket(handler: Callable[..., Any]) -> gwt.App:
    app = gwt.App()
    app.websocket("/")(handler)
    return app


def ws_url(server: gwt.Server) -> str:
    return "ws://{}:{}/".format(*server.address)


def test_line_is_edited_and_answered_and_ctrl_d_ends_it(talk, terminal, echo):
    process = talk(*echo)
    terminal.type("helo", LEFT, "l")
    terminal.shows("> hello")
    terminal.type(HOME, "+", ENTER)
    terminal.shows("> +hello", "< +hello", ">")
    terminal.type("Grüße", ENTER)
    terminal.shows("> +hello", "< +hello", "> Grüße", "< Grüße", ">")
    terminal.type(CTRL_D)
    assert process.wait(timeout=10) == 0
    assert process.stderr.read() == b""
    assert terminal.is_as_it_was


def test_what_comes_meanwhile_does_not_touch_what_is_typed(talk, terminal):
    def handler(ws):
        news.wait(10)
        ws.send("news")
        ws.send("and more")
        got.put(ws.recv())
        ws.recv()

    news, got = Event(), Queue()
    with live.serving(websocket(handler)) as server:
        process = talk(ws_url(server))
        terminal.type("half a li")
        terminal.shows("> half a li")
        news.set()
        terminal.shows("< news", "< and more", "> half a li")
        assert terminal.screen.cursor.x == len("> half a li")
        terminal.type("ne", ENTER)
        assert got.get(timeout=10) == "half a line"
        terminal.type(CTRL_D)
        assert process.wait(timeout=10) == 0


def test_flood_does_not_touch_what_is_typed(talk, terminal):
    def handler(ws):
        go.wait(10)
        for number in range(3000):
            ws.send(f"{number}")
        got.put(ws.recv())

    go, got = Event(), Queue()
    with live.serving(websocket(handler)) as server:
        process = talk(ws_url(server))
        terminal.type("one ")
        terminal.shows("> one ".rstrip())
        go.set()
        terminal.until(lambda: len(terminal.lines) == 24)
        terminal.type("two")
        terminal.until(lambda: terminal.lines[-2:] == ["< 2999", "> one two"])
        terminal.type(ENTER)
        assert got.get(timeout=10) == "one two"
        assert process.wait(timeout=10) == 0
    shown = [
        "".join(line[column].data for column in range(80)).rstrip()
        for line in terminal.screen.history.top
    ]
    numbers = [line for line in shown + terminal.lines if line.startswith("< ")]
    assert numbers == [f"< {number}" for number in range(3000)]


def test_history_is_there_the_next_time(talk, terminal, ws_echo, state):
    process = talk(ws_echo)
    terminal.type("first", ENTER)
    terminal.shows("> first", "< first", ">")
    # Twice is once.
    terminal.type("second", ENTER, "second", ENTER)
    terminal.until(lambda: terminal.lines.count("< second") == 2)
    terminal.type(CTRL_D)
    assert process.wait(timeout=10) == 0
    path = state / "gwt" / "connect_history"
    assert path.read_text() == "first\nsecond\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    process = talk(ws_echo)
    terminal.type(UP)
    terminal.until(lambda: terminal.lines[-1] == "> second")
    terminal.type(UP)
    terminal.until(lambda: terminal.lines[-1] == "> first")
    terminal.type("!", ENTER)
    terminal.until(lambda: terminal.lines[-2:] == ["< first!", ">"])
    terminal.type(CTRL_D)
    assert process.wait(timeout=10) == 0
    assert path.read_text() == "first\nsecond\nfirst!\n"


def test_history_that_cannot_be_kept_is_no_harm(talk, terminal, ws_echo, tmp_path):
    (tmp_path / "file").write_text("")
    process = talk(ws_echo, XDG_STATE_HOME=str(tmp_path / "file"))
    terminal.type("line", ENTER)
    terminal.shows("> line", "< line", ">")
    terminal.type(CTRL_D)
    assert process.wait(timeout=10) == 0
    assert process.stderr.read() == b""


COLOURS = [b"\x1b[3%dm" % colour for colour in range(8)]


@pytest.mark.parametrize("no_color", ["", "1"])
def test_colours_are_left_out_when_nobody_wants_them(talk, terminal, ws_echo, no_color):
    process = talk(ws_echo, NO_COLOR=no_color)
    terminal.type("line", ENTER)
    terminal.shows("> line", "< line", ">")
    assert any(colour in terminal.raw for colour in COLOURS) is not bool(no_color)
    terminal.type(CTRL_D)
    assert process.wait(timeout=10) == 0


HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\rx\u202e"
HARMLESS = r"\x1b]0;owned\x07\x1b[2J\x9b31m\rx\u202e"


def test_orders_to_the_terminal_are_shown_instead_of_obeyed(talk, terminal):
    def handler(ws):
        ws.send(f"{HOSTILE}\n! of ours?")
        ws.send(b"\x1b[2J")
        ws.recv()
        ws.close(4000, HOSTILE)

    with live.serving(websocket(handler)) as server:
        process = talk(ws_url(server), prompt=False)
        terminal.shows(f"< {HARMLESS}", "< ! of ours?", "< <binary 4 bytes: 1b 5b 32 4a>", ">")
        terminal.type("x", ENTER)
        assert process.wait(timeout=10) == 1
    assert (
        process.stderr.read()
        .decode()
        .endswith(
            # A carriage return is a space in a line.
            "with code 4000: {}.\n".format(HARMLESS.replace(r"\r", " "))
        )
    )
    assert terminal.screen.title == ""


def test_all_that_a_session_brings_is_shown_and_marked(talk, terminal):
    def handler(session):
        answer = session.accept_bidirectional_stream(timeout=10)
        assert answer.readline() == b"go\n"
        answer.write(b"name? ")
        assert answer.readline() == b"ann\n"
        session.create_unidirectional_stream().write_all(b"\x1b[2J\r\nno UTF-8: \xff")
        assert answer.readline() == b"more\n"
        session.send_datagram(b"\x1bc")
        session.wait_closed(timeout=10)

    with live.serving(handler) as server:
        process = talk(live.url(server), "--insecure")
        terminal.type("go", ENTER)
        # A question is no line.
        shown = ["> go", "< name?"]
        terminal.shows(*shown, ">")
        terminal.type("ann", ENTER)
        terminal.until(lambda: terminal.lines[-2].endswith("no UTF-8: \\xff"))
        mark = terminal.lines[-2].partition("]")[0]
        assert mark.startswith("[stream ")
        shown += ["> ann", rf"{mark}] \x1b[2J", rf"{mark}] no UTF-8: \xff"]
        assert terminal.lines == [*shown, ">"]
        terminal.type("more", ENTER)
        terminal.until(lambda: terminal.lines == [*shown, "> more", r"[datagram] \x1bc", ">"])
        terminal.type(CTRL_C)
        assert process.wait(timeout=10) == 130


def test_ctrl_c_gives_the_terminal_back(talk, terminal, echo):
    process = talk(*echo)
    terminal.type("half", CTRL_C)
    assert process.wait(timeout=10) == 130
    assert process.stderr.read() == b""
    assert terminal.is_as_it_was


def test_ctrl_c_ends_it_while_nobody_reads_it(talk, terminal):
    def handler(ws):
        eventually(lambda: ws.stats()["messages_unread"])
        full.set()
        over.wait(20)

    app, full, over = gwt.App(), Event(), Event()
    # Behind a message that waits, the ping is not seen.
    app.websocket("/", max_queue=1)(handler)
    with live.serving(app) as server:
        process = talk(ws_url(server))
        terminal.type("a", ENTER)
        assert full.wait(10)
        terminal.type("/ping", ENTER)
        terminal.until(
            lambda: (
                terminal.lines[-1] == "> /ping"
                and termios.tcgetattr(terminal.theirs)[3] & termios.ISIG
            )
        )
        # What is typed now is for the next prompt, but this is a signal.
        terminal.type("half", CTRL_C)
        assert process.wait(timeout=10) == 130
        over.set()
    assert b"half" not in terminal.raw
    assert terminal.is_as_it_was


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_give_the_terminal_back(talk, terminal, ws_echo, number, code):
    process = talk(ws_echo)
    terminal.type("half")
    terminal.shows("> half")
    process.send_signal(number)
    assert process.wait(timeout=10) == code
    assert process.stderr.read() == b""
    assert terminal.is_as_it_was


@pytest.mark.parametrize(("code", "exit_code"), [(1000, 0), (4000, 1)])
def test_servers_close_is_told_below_what_is_typed(talk, terminal, code, exit_code):
    def handler(ws):
        go.wait(10)
        ws.close(code, "enough")

    go = Event()
    with live.serving(websocket(handler)) as server:
        process = talk(ws_url(server))
        terminal.type("half")
        terminal.shows("> half")
        go.set()
        assert process.wait(timeout=10) == exit_code
    assert process.stderr.read().decode().endswith(f"by the peer with code {code}: enough.\n")
    assert terminal.is_as_it_was


def test_once_is_one_line_and_its_answer(talk, terminal, echo):
    process = talk(*echo, "--once")
    terminal.type("line", ENTER)
    terminal.shows("> line", "< line")
    assert process.wait(timeout=10) == 0
    assert process.stderr.read() == b""


def test_commands_are_few_and_can_be_sent_all_the_same(talk, terminal, echo):
    process = talk(*echo)
    terminal.type("/ping", ENTER)
    terminal.until(lambda: len(terminal.lines) == 3)
    assert terminal.lines[1].startswith("! ") and terminal.lines[1].endswith(" ms")
    terminal.type("//ping", ENTER)
    terminal.until(lambda: terminal.lines[-2:] == ["< /ping", ">"])
    terminal.type("/join //x", ENTER)
    terminal.until(lambda: terminal.lines[-2:] == ["< /join //x", ">"])
    terminal.type("/close no number", ENTER)
    terminal.until(lambda: terminal.lines[-2].startswith("! The code of /close is a number"))
    terminal.type("/close", ENTER)
    assert process.wait(timeout=10) == 0
    assert process.stderr.read() == b""


@pytest.mark.parametrize("kind", ["ws", "https"])
def test_close_is_heard_by_the_server(talk, terminal, kind):
    def session_handler(session):
        session.wait_closed(timeout=10)
        closed.put((session.close_code, session.close_reason))

    def websocket_handler(ws):
        try:
            ws.recv()
        except gwt.WebSocketClosed as exc:
            closed.put((exc.code, exc.reason))

    closed: Queue = Queue()
    app = websocket(websocket_handler)
    app.webtransport("/")(session_handler)
    with live.serving(app) as server:
        url = ws_url(server) if kind == "ws" else live.url(server)
        process = talk(url, "--insecure")
        terminal.type("/close 4001 that is all", ENTER)
        assert closed.get(timeout=10) == (4001, "that is all")
        assert process.wait(timeout=10) == 0
    assert process.stderr.read() == b""


def test_datagram_that_is_too_large_is_said_and_left_out(talk, terminal, server):
    process = talk(live.url(server, "/echo"), "--insecure", "--datagrams")
    terminal.type("x" * 1500, ENTER)
    terminal.until(lambda: any(line.startswith("! ") for line in terminal.lines))
    assert "1500 bytes is too large" in " ".join(terminal.lines)
    terminal.type("small", ENTER)
    terminal.until(lambda: terminal.lines[-2:] == ["< small", ">"])
    terminal.type(CTRL_D)
    assert process.wait(timeout=10) == 0


def test_terminal_that_can_only_print_gets_lines(talk, terminal, ws_echo):
    process = talk(ws_echo, prompt=False, TERM="dumb")
    terminal.type("line\n")
    terminal.shows("line", "line")
    assert b"\x1b" not in terminal.raw
    terminal.type(CTRL_D)
    assert process.wait(timeout=10) == 0


def test_binary_is_shown_in_hexadecimal(talk, terminal, echo):
    process = talk(*echo, "--binary", prompt=False)
    terminal.type("one\n")
    terminal.shows("one", f"00000000  {'6f 6e 65 0a':<47}  |one.|")
    terminal.type(CTRL_D)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) in (0, 130)


class TestDisplay:
    """What is made of what a peer sends."""

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("", ""),
            ("Grüße, 日本\t👩\u200d👧", "Grüße, 日本\t👩\u200d👧"),
            (HOSTILE, HARMLESS),
            ("\x7f\u2028\ud800\x00", r"\x7f\u2028\ud800\x00"),
        ],
    )
    def test_control_characters_are_escaped(self, text, shown):
        assert escaped(text) == shown

    def test_binary_messages_are_shown_in_brief(self):
        assert brief(b"") == "<binary 0 bytes>"
        assert brief(b"\x00\xff") == "<binary 2 bytes: 00 ff>"
        assert brief(bytes(1000)) == f"<binary 1000 bytes: {bytes(16).hex(' ')} ...>"

    def test_hexdump_has_16_bytes_a_line(self):
        first, second = hexdump(bytes(range(0x38, 0x49)))
        digits = "38 39 3a 3b 3c 3d 3e 3f 40 41 42 43 44 45 46 47"
        assert first == f"00000000  {digits}  |89:;<=>?@ABCDEFG|"
        assert second == f"00000010  48{' ' * 45}  |H|"


class TestHistory:
    """The file, which anybody may have done anything to."""

    def test_it_is_where_the_standard_says(self, monkeypatch):
        monkeypatch.setenv("HOME", "/home/ann")
        for value in ("", "relative"):
            monkeypatch.setenv("XDG_STATE_HOME", value)
            assert str(history_file()) == "/home/ann/.local/state/gwt/connect_history"
        monkeypatch.setenv("XDG_STATE_HOME", "/state")
        assert str(history_file()) == "/state/gwt/connect_history"

    def test_it_does_not_grow_for_ever(self, tmp_path):
        path = tmp_path / "history"
        path.write_text("".join(f"{number}\n" for number in range(100_000)))
        newest = [f"{number}" for number in range(99_000, 100_000)]
        assert load_history(path) == newest
        # It is shorter now, and for nobody else.
        assert path.read_text().split() == newest
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert list(tmp_path.iterdir()) == [path]

    def test_what_is_no_history_is_none(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        for path in (None, tmp_path / "none", tmp_path, tmp_path / "pipe"):
            assert load_history(path) == []
            save_history(path, "line")
        assert not (tmp_path / "none").is_dir()

    def test_others_may_not_read_it_any_more(self, tmp_path):
        path = tmp_path / "history"
        path.write_bytes(b"\xff\n")
        path.chmod(0o644)
        save_history(path, "line\udcff")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert load_history(path) == ["\ufffd", "line?"]

    def test_what_is_several_lines_or_too_long_is_left_out(self, tmp_path):
        path = tmp_path / "history"
        save_history(path, "one\ntwo")
        save_history(path, "x" * 2**20)
        assert load_history(path) == []
