"""
What tools/demo runs: the demo server in a process of its own, and the proof that it works.

The proof is a few dozen client greenlets in this process. It checks every byte that comes back,
and prints how fast that was and what it cost; the figures are an impression, not a benchmark,
which is tools/bench.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import gevent
import gevent.subprocess
from gevent.pool import Group

import gwt

SESSIONS = 50
MIB = 2**20


class ProofFailed(Exception):
    """The demo did not do what it should."""


class DemoServer:
    """``gwt serve`` in a process of its own."""

    def __init__(self, bind: str) -> None:
        # A session of its own: Ctrl-C is for this process, which tells the server in good order.
        self._process = gevent.subprocess.Popen(
            [sys.executable, "-m", "gwt", "serve", "--bind", bind],
            stdout=gevent.subprocess.PIPE,
            start_new_session=True,
        )
        self.line = self._process.stdout.readline().decode().strip()
        if not self.line.startswith("listening on "):
            # It has said why on stderr.
            raise ProofFailed(f"the server ended with exit code {self._process.wait()}")
        words = self.line.split()
        self._page, self._origin, self.certificate_hash = words[2], words[3], words[-1]

    @property
    def page(self) -> str:
        """The URL to open: browsers have WebTransport on localhost without TLS."""
        for local in ("//127.0.0.1:", "//0.0.0.0:", "//[::1]:", "//[::]:"):
            self._page = self._page.replace(local, "//localhost:")
        return f"{self._page}/"

    def connect(self, path: str) -> gwt.WebTransportSession:
        origin = self._origin.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
        return gwt.connect(
            origin + path, server_certificate_hashes=[self.certificate_hash], timeout=20
        )

    def connect_websocket(self, path: str) -> gwt.WebSocket:
        return gwt.connect(self.page.rstrip("/").replace("http", "ws", 1) + path, timeout=20)

    def cpu(self) -> float:
        """Seconds of CPU that it has used; 0.0 where there is no /proc."""
        try:
            with open(f"/proc/{self._process.pid}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def wait(self) -> int:
        code: int = self._process.wait()
        return code

    def stop(self) -> int:
        """End it, and return its exit code."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=15)
            except gevent.subprocess.TimeoutExpired:
                self._process.kill()
        self._process.stdout.close()
        return self.wait()


class Row(NamedTuple):
    """A line of the table."""

    what: str
    operations: int
    # Operations, or MiB, a second.
    rate: str
    p50: float | None
    p99: float | None
    # Microseconds of CPU an operation.
    client: float
    server: float


def expect(found: object, expected: object, what: str) -> None:
    if found != expected:
        raise ProofFailed(f"{what}: {str(found)[:60]!r} instead of {str(expected)[:60]!r}")


def echo_stream(session: gwt.WebTransportSession, number: int) -> None:
    message = b"%08d" % number * 128
    with session.create_bidirectional_stream() as stream:
        stream.write_all(message)
        expect(stream.read_all(timeout=20), message, "an echo on a stream")


def echo_back(session: gwt.WebTransportSession, number: int) -> None:
    message = b"%08d" % number * 128
    session.create_unidirectional_stream().write_all(message)
    answer = session.accept_unidirectional_stream(timeout=20).read_all(timeout=20)
    expect(answer, message, "an echo on a unidirectional stream")


def echo_datagram(session: gwt.WebTransportSession, number: int) -> None:
    message = b"%08d" % number
    # Datagrams may be lost. On one machine none is, unless it is very busy.
    for _ in range(3):
        session.send_datagram(message)
        try:
            while session.receive_datagram(timeout=2) != message:
                # The answer to one that had been given up.
                pass
        except TimeoutError:
            continue
        return
    raise ProofFailed("three datagrams in a row were lost")


def upload(server: DemoServer, size: int) -> None:
    block = bytes(256 * 1024)
    with server.connect("/upload") as session, session.create_bidirectional_stream() as stream:
        for _ in range(size // len(block)):
            stream.write(block, timeout=20)
        stream.finish()
        expect(int(stream.read_all(timeout=20)), size, "the bytes of an upload")


def download(server: DemoServer, size: int) -> None:
    with server.connect(f"/download/{size}") as session:
        stream = session.accept_unidirectional_stream(timeout=20)
        received = 0
        while chunk := stream.read(timeout=20):
            received += len(chunk)
        expect(received, size, "the bytes of a download")


class Guest:
    """One of a chat's room, in which every other one is a WebSocket."""

    def __init__(self, server: DemoServer, number: int) -> None:
        path = f"/chat/proof?name={number}"
        if number % 2:
            self.peer: Any = server.connect_websocket(path)
            self.say = self.peer.send
            self._told = iter(self.peer)
        else:
            self.peer = server.connect(path)
            stream = self.peer.create_unidirectional_stream()
            self.say = lambda text: stream.write(gwt.encode_message(text))
            self._told = gwt.read_messages(self.peer.accept_unidirectional_stream(timeout=20))
        self.number = number
        # Of oneself, at least: that is when one is in the room.
        next(self._told)

    def talk(self) -> None:
        """Say one thing, and hear what everybody says."""
        heard: list[str] = []
        with gevent.Timeout(20, ProofFailed("a chat was silent for too long")):
            self.say(str(self.number))
            while len(heard) < SESSIONS:
                told = json.loads(next(self._told))
                if told["type"] == "message":
                    heard.append(told["text"])
        expect(sorted(heard, key=int), [str(each) for each in range(SESSIONS)], "a chat")


def together(functions: Iterable[Callable[[], object]]) -> list[Any]:
    """Run each in a greenlet; returns what they return, or raises what the first to fail did."""
    greenlets = [gevent.spawn(function) for function in functions]
    try:
        return [each.get() for each in gevent.joinall(greenlets, raise_error=True)]
    finally:
        gevent.killall(greenlets)


class Proof:
    """The table of what was measured, made line by line."""

    def __init__(self, server: DemoServer) -> None:
        self.server = server
        self.rows: list[Row] = []
        self._sessions: list[gwt.WebTransportSession] = []

    def run(self) -> None:
        try:
            self._each("connect", 1, lambda index, _: self._connect())
            self._each("echo, stream", 40, self._with_session(echo_stream))
            self._each("echo, unidirectional", 20, self._with_session(echo_back))
            self._each("echo, datagram", 100, self._with_session(echo_datagram))
        finally:
            closing = Group()
            for session in self._sessions:
                closing.spawn(session.close)
            closing.join()
        self._chat()
        self._bulk("upload, MiB", 16, upload)
        self._bulk("download, MiB", 16, download)

    def _connect(self) -> None:
        self._sessions.append(self.server.connect("/echo"))

    def _with_session(
        self, operation: Callable[[gwt.WebTransportSession, int], None]
    ) -> Callable[[int, int], None]:
        return lambda index, number: operation(self._sessions[index], number)

    def _each(self, what: str, count: int, operation: Callable[[int, int], None]) -> None:
        """Do it `count` times in a row in each of SESSIONS greenlets."""
        times: list[float] = []

        def work(index: int) -> None:
            for number in range(count):
                began = time.perf_counter()
                operation(index, number)
                times.append(time.perf_counter() - began)

        took, client, server = self._measure(
            lambda: together(partial(work, index) for index in range(SESSIONS))
        )
        times.sort()
        self.rows.append(
            Row(
                what,
                len(times),
                f"{len(times) / took:,.0f}/s",
                times[len(times) // 2],
                times[len(times) * 99 // 100],
                client / len(times) * 1e6,
                server / len(times) * 1e6,
            )
        )

    def _chat(self) -> None:
        """All in one room, half of them WebSockets: what each says reaches all."""
        guests = together(partial(Guest, self.server, number) for number in range(SESSIONS))
        took, client, server = self._measure(lambda: together(each.talk for each in guests))
        together(each.peer.close for each in guests)
        heard = SESSIONS**2
        rate = f"{heard / took:,.0f}/s"
        self.rows.append(
            Row("chat, both", heard, rate, None, None, client / heard * 1e6, server / heard * 1e6)
        )

    def _bulk(self, what: str, count: int, operation: Callable[[DemoServer, int], None]) -> None:
        took, client, server = self._measure(lambda: operation(self.server, count * MIB))
        rate = f"{count / took:,.0f} MiB/s"
        self.rows.append(
            Row(what, count, rate, None, None, client / count * 1e6, server / count * 1e6)
        )

    def _measure(self, work: Callable[[], None]) -> tuple[float, float, float]:
        """Run it; return seconds of the clock, of our CPU, and of the server's."""
        began, ours, theirs = time.perf_counter(), _cpu(), self.server.cpu()
        work()
        return time.perf_counter() - began, _cpu() - ours, self.server.cpu() - theirs

    def table(self) -> str:
        lines = [("", "done", "rate", "p50", "p99", "client", "server")]
        for row in self.rows:
            lines.append(
                (
                    row.what,
                    f"{row.operations:,}",
                    row.rate,
                    _milliseconds(row.p50),
                    _milliseconds(row.p99),
                    f"{row.client:,.0f} µs",
                    f"{row.server:,.0f} µs",
                )
            )
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        return "\n".join(
            "  ".join(
                text.ljust(width) if column == 0 else text.rjust(width)
                for column, (text, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        )


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1000:.1f} ms"


def prove(server: DemoServer) -> None:
    """Print the table; raises ProofFailed, or what a client met."""
    proof = Proof(server)
    proof.run()
    print(f"\n{SESSIONS} sessions, as many greenlets, 1 KiB a stream; CPU time an operation:\n")
    print(proof.table(), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/demo", description="Serve and prove the demo.")
    parser.add_argument("--once", action="store_true", help="leave after the proof")
    parser.add_argument(
        "--bind", metavar="HOST:PORT", help="default: 127.0.0.1:8000, with --once any free port"
    )
    args = parser.parse_args()
    # Either signal ends this process, and the server never outlives it. An interrupt that Python
    # raises in the hub would be printed there.
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, gevent.kill, gevent.getcurrent(), KeyboardInterrupt)
    server: DemoServer | None = None
    proven = False
    code = 0
    try:
        server = DemoServer(args.bind or ("127.0.0.1:0" if args.once else "127.0.0.1:8000"))
        print(server.line, flush=True)
        prove(server)
        proven = True
        if not args.once:
            print(f"\nOpen {server.page} in a browser. Ctrl-C ends it.", flush=True)
            raise ProofFailed(f"the server ended with exit code {server.wait()}")
    except (ProofFailed, gwt.GwtError, OSError) as exc:
        print(f"tools/demo: {exc}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        code = 0 if proven else 130
    finally:
        if server is not None and server.stop() != 0 and code == 0:
            print("tools/demo: the server did not end in good order", file=sys.stderr)
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
