"""
How many sessions and WebSockets the greenlets of one process hold, and what that takes.

The server is `gwt serve` in a process of its own, spoken to by name. For each kind, as many
greenlets as there are to be sessions connect, at one time; when all are connected each has
something echoed and checks it; then all close. Prints what it took.
"""

from __future__ import annotations

import argparse
import gc
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
from gevent.event import Event
from gevent.lock import Semaphore
from ticker import Ticker

import gwt

# How long anything may take: many want the same, and the machine may have other work.
PATIENCE = 300

# How many talk at a time. All connect at once: gwt itself has them wait for each other.
AT_A_TIME = 500

PHASES = ("connected", "echoed", "closed")

# How many are told to go on in a turn of the loop.
SLICE = 100

# After how many connects the collector is told to leave alone what is there.
FREEZE = 250

# Of the descriptors that a process may have, in percent, those that are for WebSockets.
SHARE = 90


def resident() -> int:
    """Return how many bytes of memory this process has."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024


@contextmanager
def server() -> Iterator[tuple[str, str]]:
    """Run `gwt serve`; gives its "localhost:port", and the hash of its certificate."""
    # Both loopback addresses, since nobody knows which one the name is.
    command = [sys.executable, "-m", "gwt", "serve", "--bind", "[::]:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://\S+:(\d+) .* sha-256 (\w+)", line)
        try:
            if found is None:
                raise SystemExit("The server did not start.")
            yield f"localhost:{found[1]}", found[2]
        finally:
            process.send_signal(signal.SIGINT)


def converse(session: Any) -> None:
    """Have something echoed, on a stream of a WebTransport session."""
    data = session.id.encode()
    stream = session.create_bidirectional_stream(timeout=PATIENCE)
    stream.write_all(data)
    assert stream.read_all() == data, "the echo is another one"


def chat(ws: gwt.WebSocket) -> None:
    """The same by WebSocket."""
    ws.send(ws.id)
    assert ws.recv() == ws.id, "the echo is another one"


@dataclass
class Phase:
    """One thing that all did: how long it took, and how late a greenlet was meanwhile."""

    what: str
    seconds: float
    cpu: float
    late: dict[str, float]


class Crowd:
    """Greenlets that do the same at one time, each with a connection of its own."""

    def __init__(self, count: int, url: str, talk: Callable[[Any], None], options: Any) -> None:
        self.count, self.url, self.talk, self.options = count, url, talk, options
        # One each: an Event wakes all who wait for it in one turn of the loop.
        self.go = [Event() for _ in range(count)]
        self.working = 0
        self.window = Semaphore(AT_A_TIME)
        self.done = Event()
        self.errors: Counter[str] = Counter()

    def one(self, go: Event) -> None:
        """A client: connects, talks when it is told to, and closes when it is told to."""
        session = None
        try:
            session = gwt.connect(self.url, timeout=PATIENCE, **self.options)
            # The collector would look at all of them whenever there are a quarter more.
            if not self.working % FREEZE:
                gc.freeze()
            self.rest(go)
            with self.window:
                self.talk(session)
            self.rest(go)
            with self.window:
                session.close(timeout=PATIENCE)
        except (gwt.GwtError, OSError, AssertionError) as exc:
            self.errors[f"{type(exc).__name__}: {exc}"] += 1
            if session is not None:
                session.abort()
        self.rest(go)

    def rest(self, go: Event) -> None:
        """Wait for the next phase, which begins when all have come here."""
        self.working -= 1
        if not self.working:
            self.done.set()
        go.clear()
        go.wait()

    def run(self) -> tuple[list[Phase], int]:
        """Return what each phase took, and how many bytes all of them were when connected."""
        # What is imported, and loaded, when it is used first.
        gwt.connect(self.url, **self.options).close()
        gc.collect()
        gc.freeze()
        before, ticker = resident(), Ticker()
        phases: list[Phase] = []
        greenlets: list[gevent.Greenlet] = []
        held = 0
        for what in PHASES:
            self.working = self.count
            self.done.clear()
            began, spent = time.perf_counter(), time.process_time()
            ticker.start()
            first = not greenlets
            for number, go in enumerate(self.go):
                if first:
                    greenlets.append(gevent.spawn(self.one, go))
                else:
                    go.set()
                # Telling thousands is work, too, that would keep others waiting.
                if not number % SLICE:
                    gc.freeze()
                    gevent.sleep(0)
            self.done.wait()
            seconds, cpu = time.perf_counter() - began, time.process_time() - spent
            phases.append(Phase(what, seconds, cpu, ticker.stop()))
            held = held or resident() - before
        gevent.killall(greenlets)
        return phases, held


def report(name: str, crowd: Crowd, phases: list[Phase], held: int) -> None:
    good = crowd.count - sum(crowd.errors.values())
    print(f"\n{good} of {crowd.count} {name}, {held / crowd.count / 1024:.1f} KiB each")
    for phase in phases:
        late = {key: seconds * 1e3 for key, seconds in phase.late.items()}
        rate, each = crowd.count / phase.seconds, phase.cpu / crowd.count * 1e3
        figures = f"{phase.seconds:6.1f} s, {rate:6.0f} a second, {each:.2f} ms of CPU time each;"
        print(f"  {phase.what:<10}{figures}")
        print(
            f"            another greenlet late by {late['cpu_max']:.0f} ms of it at most"
            f" ({late['max']:.0f} elapsed), 99 of 100 times by less than {late['cpu_p99']:.0f}"
        )
    for text, number in crowd.errors.most_common(5):
        print(f"  {number} times {text}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/scale", description=__doc__)
    parser.add_argument("--sessions", type=int, default=5000, help="WebTransport sessions")
    parser.add_argument("--websockets", type=int, default=20_000)
    args = parser.parse_args()

    limit = gwt.raise_descriptor_limit()
    websockets = min(args.websockets, limit * SHARE // 100)
    print(f"This process may have {limit} descriptors.", end=" ")
    if websockets < args.websockets:
        print(f"So there are {websockets} WebSockets, {SHARE} % of them.", end="")
    print()

    asked: Counter[str] = Counter()
    resolver = gevent.socket.getaddrinfo

    def counted(host: str, *rest: Any, **options: Any) -> Any:
        asked[host] += 1
        return resolver(host, *rest, **options)

    gevent.socket.getaddrinfo = counted
    with server() as (where, certificate_hash):
        options = {"server_certificate_hashes": [certificate_hash]}
        crowds = []
        if args.sessions:
            crowds.append(
                (
                    "WebTransport sessions",
                    Crowd(args.sessions, f"https://{where}/echo", converse, options),
                )
            )
        if websockets:
            crowds.append(("WebSockets", Crowd(websockets, f"ws://{where}/echo", chat, {})))
        for name, crowd in crowds:
            asked.clear()
            report(name, crowd, *crowd.run())
            print(f"  the name was resolved {sum(asked.values())} times")
    return 1 if any(crowd.errors for _, crowd in crowds) else 0


if __name__ == "__main__":
    sys.exit(main())
