"""
A process of its own for tests of scale: a server or a client that does what it is told.

Run as ``python -m tests.scale.peer server [OPTIONS]`` (as JSON) or ``... client PORT``. It answers
one JSON object a line with one; what a command does stands at the methods of Common, Serving and
Connecting, by its name. `Peer`, at the end, is the other end of that, for a test.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import gevent
from gevent import subprocess
from gevent.event import Event
from gevent.fileobject import FileObjectPosix

import gwt

ROOT = Path(__file__).resolve().parent.parent.parent

CHUNK = 16 * 1024


def pattern(start: int, size: int) -> bytes:
    """Return bytes that differ from place to place, so that nothing can be missing or twice."""
    first, last = start // 8, (start + size + 7) // 8
    data = b"".join(number.to_bytes(8, "big") for number in range(first, last))
    return data[start % 8 :][:size]


def status(key: str) -> int:
    """Return a figure of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


class Common:
    """What both roles can do."""

    def __init__(self) -> None:
        # Bytes that write() has taken, over all streams.
        self.taken = 0
        # Streams that were accepted and are not read.
        self.unread: list[Any] = []
        self.awake = Event()

    def memory(self) -> dict[str, Any]:
        """Tell the resident memory now, and the most there was since the last command of this."""
        peak = status("VmHWM")
        # "5" resets the peak.
        Path("/proc/self/clear_refs").write_text("5")
        return {"now": status("VmRSS"), "peak": peak}

    def progress(self) -> dict[str, Any]:
        """Tell how many bytes were taken for sending so far, and how many arrived unread."""
        return {"taken": self.taken, "unread": sum(s.bytes_received for s in self.unread)}

    def wake(self) -> dict[str, Any]:
        """Let what sleeps before it reads go on."""
        self.awake.set()
        return {}

    def pour(self, session: gwt.WebTransportSession, streams: int, size: int) -> None:
        """Send `size` bytes in all over so many streams, half of them bidirectional, and end."""

        def write(bidirectional: bool, size: int) -> None:
            make = (
                session.create_bidirectional_stream
                if bidirectional
                else session.create_unidirectional_stream
            )
            try:
                stream = make(timeout=None)
                sent = 0
                while sent < size:
                    piece = pattern(sent, min(CHUNK, size - sent))
                    stream.write(piece)
                    sent += len(piece)
                    self.taken += len(piece)
                stream.finish()
            except gwt.GwtError:
                # The test is over.
                return

        for number in range(streams):
            gevent.spawn(write, bool(number % 2), size // streams)

    def accept(self, session: gwt.WebTransportSession) -> None:
        """Accept streams and read none."""
        for stream in session:
            self.unread.append(stream)

    def digest(self, stream: gwt.WebTransportReceiveStream) -> str:
        """Read a stream to its end once awake; return its length and SHA-256."""
        self.awake.wait()
        digest, size = hashlib.sha256(), 0
        for data in stream:
            digest.update(data)
            size += len(data)
        return f"{size} {digest.hexdigest()}"


class Serving(Common):
    """A server with one path for each way to treat a session."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        app = gwt.App()
        app.webtransport("/echo")(self.echo)
        app.webtransport("/ignore")(lambda session: session.wait_closed())
        app.webtransport("/accept")(self.accept)
        app.webtransport("/digest")(self.answer_digest)
        app.webtransport("/pour/<int:streams>/<int:size>")(self.pour_and_wait)
        self.server = gwt.Server(app, "127.0.0.1:0", stop_timeout=0.5, **options)

    def echo(self, session: gwt.WebTransportSession) -> None:
        def datagrams() -> None:
            for data in session.incoming_datagrams():
                session.send_datagram(data)

        def stream_back(stream: gwt.WebTransportStream) -> None:
            try:
                for data in stream:
                    stream.write(data)
                stream.finish()
            except gwt.GwtError:
                # Its session ended.
                return

        gevent.spawn(datagrams)
        for stream in session:
            gevent.spawn(stream_back, stream)

    def answer_digest(self, session: gwt.WebTransportSession) -> None:
        stream = session.accept_bidirectional_stream()
        stream.write_all(self.digest(stream).encode())
        session.wait_closed()

    def pour_and_wait(self, session: gwt.WebTransportSession, streams: int, size: int) -> None:
        self.pour(session, streams, size)
        session.wait_closed()

    def stats(self) -> dict[str, Any]:
        """Tell the server's statistics."""
        return self.server.stats()

    def run(self) -> None:
        # A descriptor for each connection is not needed, but 2,000 clients may be less frugal.
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        with self.server:
            say({"port": self.server.address[1]})
            serve_commands(self)


class Connecting(Common):
    """A client."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.url = f"https://127.0.0.1:{port}"
        self.sessions: list[gwt.WebTransportSession] = []

    def connect(self, path: str, sessions: int = 1) -> dict[str, Any]:
        """Open sessions, each on a connection of its own."""
        for _ in range(sessions):
            self.sessions.append(gwt.connect(self.url + path, verify=False, timeout=30))
        return {}

    def echo(self) -> dict[str, Any]:
        """Have a session of its own echo a little, so that all code has run once."""
        with gwt.connect(f"{self.url}/echo", verify=False) as session:
            stream = session.create_bidirectional_stream()
            stream.write_all(bytes(100_000))
            assert len(stream.read_all()) == 100_000
        return {}

    def upload(self, streams: int, size: int) -> dict[str, Any]:
        """Begin to send `size` bytes on each session."""
        for session in self.sessions:
            self.pour(session, streams, size)
        return {}

    def accept_all(self) -> dict[str, Any]:
        """Begin to accept what comes on each session, without reading it."""
        for session in self.sessions:
            gevent.spawn(self.accept, session)
        return {}

    def run(self) -> None:
        serve_commands(self)
        for session in self.sessions:
            session.abort()
        # The packets that say so still have to go.
        gevent.sleep(0.1)


def say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def serve_commands(role: Common) -> None:
    with FileObjectPosix(sys.stdin.fileno(), "rb", closefd=False) as lines:
        for line in lines:
            command = json.loads(line)
            say(getattr(role, command.pop("do"))(**command))


class Peer:
    """A process in one of the roles, as a test sees it; leaving it ends the process."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.scale.peer", *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    @classmethod
    def server(cls, **options: Any) -> Self:
        peer = cls("server", json.dumps(options))
        peer.port = peer._answer()["port"]
        peer.url = f"https://127.0.0.1:{peer.port}"
        return peer

    @classmethod
    def client(cls, server: Peer) -> Self:
        return cls("client", str(server.port))

    def ask(self, do: str, **command: Any) -> dict[str, Any]:
        self.process.stdin.write(json.dumps({"do": do, **command}).encode() + b"\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        assert line, f"the peer ended with {self.process.wait()}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        finally:
            self.process.stdout.close()


def rest(*peers: Peer) -> list[int]:
    """Wait until no byte is taken or arrives for half a second; return what each has taken."""
    last: list[dict[str, Any]] = []
    quiet = 0
    while quiet < 10:
        now = [peer.ask("progress") for peer in peers]
        quiet = quiet + 1 if now == last else 0
        last = now
        gevent.sleep(0.05)
    return [each["taken"] for each in last]


if __name__ == "__main__":
    if sys.argv[1] == "server":
        Serving(**json.loads(sys.argv[2])).run()
    else:
        Connecting(int(sys.argv[2])).run()
