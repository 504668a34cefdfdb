"""
WebSocket servers side by side, alternating, in one run: CPU time of the server per message.

Each peer is a server process that echoes; one other process is the client of all of them
(control.py says how they are driven). Every round does every row once with every peer, in turn, so
that whatever else the machine does hits all of them; ratios are taken within a round, and their
median is printed. CPU time is what getrusage says, of the server. Memory and fairness are measured
in processes of their own. TARGETS is what is to be held; docs/performance.md tells more.
"""

from __future__ import annotations

import argparse
import pstats
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import (
    ALLOCATOR,
    Process,
    Rounds,
    Target,
    as_json,
    environment,
    figure,
    make_certificate,
    parsed,
    parser_of,
    prepare,
    python_of,
    ratio,
    take_turns,
    verdicts,
)

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Peer:
    """How to run one implementation: an interpreter and its script."""

    name: str
    python: str
    on_gevent: bool

    def command(self, *more: str) -> list[str]:
        return [self.python, str(HERE / f"peer_{self.name.replace('-', '_')}.py"), *more]


PEERS = {
    peer.name: peer
    for peer in (
        Peer("gwt", sys.executable, True),
        Peer("gwt-wsgi", sys.executable, True),
        Peer("gevent-websocket", python_of("gevent-websocket"), True),
        Peer("websockets", python_of("websockets"), False),
        Peer("aiohttp", python_of("aiohttp"), False),
        Peer("simple-websocket", python_of("simple-websocket"), True),
    )
}


@dataclass(frozen=True)
class Echo:
    """A row: messages of a size go out and come back, one at a time on each connection."""

    size: int
    connections: int
    text: bool = False
    tls: bool = False


ECHOES = {
    "64-50": Echo(64, 50),
    "64-500": Echo(64, 500),
    "16k-50": Echo(16 * 1024, 50),
    "64-50-text": Echo(64, 50, text=True),
    "64-50-tls": Echo(64, 50, tls=True),
    "16k-50-tls": Echo(16 * 1024, 50, tls=True),
}
HANDSHAKES, IDLE, FAIRNESS = "handshakes", "idle", "fairness"
ROWS = [*ECHOES, HANDSHAKES, IDLE, FAIRNESS]

# Connections that open at the same time, and frames of the flooding peer that are under way.
AT_ONCE = 8
IN_FLIGHT = 20_000


def compare(work: str, base: str, sign: str, limit: float, figure: str = "server") -> Target:
    """Return a target for what gwt needs beside a peer for the same row."""
    return Target((work, "gwt"), (work, base), sign, limit, figure)


TARGETS = (
    *(
        target
        for work in ("64-50", "64-500")
        for target in (
            compare(work, "websockets", "<=", 0.9),
            compare(work, "gevent-websocket", "<=", 0.8),
            # The ambition.
            compare(work, "aiohttp", "<=", 1.0),
        )
    ),
    compare("16k-50", "websockets", "<=", 0.9),
    compare(HANDSHAKES, "gevent-websocket", ">=", 0.8, "per_second"),
    # KiB.
    Target((IDLE, "gwt"), None, "<=", 15, "kib"),
    Target((IDLE, "gwt-wsgi"), None, "<=", 24, "kib"),
    # Milliseconds.
    Target((FAIRNESS, "gwt"), None, "<=", 5, "p50"),
    Target((FAIRNESS, "gwt"), None, "<=", 20, "p99"),
)

PACKAGES = ("gevent", "greenlet", "wsproto")

# What is still under way when the client has its answer.
SETTLE = 0.05


class Server:
    """A peer's server, running, and the process that is its client."""

    def __init__(
        self, peer: Peer, load: Process, certificate: str | None = None, taking_turns: bool = False
    ) -> None:
        more = [] if certificate is None else ["--certificate", certificate]
        self.tls = certificate is not None
        self.load = load
        variables = ALLOCATOR if taking_turns else {}
        self.process = Process(peer.command(*more), 5.0, **variables)
        try:
            ready = self.process.answer()
        except BaseException:
            self.process.end()
            raise
        self.port: int = ready["port"]
        self.versions: dict[str, str] = ready["versions"]
        if taking_turns:
            take_turns(self.process)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.end()

    def open(self, count: int, size: int, text: bool = False) -> None:
        self.load.ask(do="open", port=self.port, count=count, size=size, text=text, tls=self.tls)

    def spend(self, operations: str, **command: Any) -> dict[str, float]:
        """Let the client do something; returns microseconds of the server for each operation."""
        time.sleep(SETTLE)
        before = self.process.cpu()
        done = self.load.ask(**command)
        time.sleep(SETTLE)
        spent = self.process.cpu() - before
        count = done[operations]
        return {"server": spent / count * 1e6, "per_second": count / spent}

    def echo(self, row: Echo, seconds: float) -> dict[str, float]:
        self.open(row.connections, row.size, row.text)
        # Once for the caches, uncounted.
        self.load.ask(do="echo", seconds=seconds / 10)
        found = self.spend("messages", do="echo", seconds=seconds)
        self.load.ask(do="close")
        return found

    def handshakes(self, seconds: float) -> dict[str, float]:
        command = {"do": "handshakes", "port": self.port, "at_once": AT_ONCE}
        self.load.ask(**command, seconds=seconds / 10)
        return self.spend("handshakes", **command, seconds=seconds)

    def run(self, row: str, seconds: float) -> dict[str, float]:
        if row == HANDSHAKES:
            return self.handshakes(seconds)
        return self.echo(ECHOES[row], seconds)

    def memory(self, connections: int) -> dict[str, float]:
        """Return KiB of resident memory for each idle connection; all echoed a message."""
        # What the first ones cost is not theirs alone: imports, pools, arenas.
        self.open(20, 64)
        time.sleep(0.5)
        before = self.process.ask(do="memory")["rss"]
        self.open(connections, 64)
        time.sleep(0.5)
        after = self.process.ask(do="memory")["rss"]
        return {"kib": (after - before) / connections / 1024}

    def fairness(self, seconds: float) -> dict[str, float]:
        """Return within how many milliseconds an echo came while another peer floods."""
        found = self.load.ask(do="fairness", port=self.port, in_flight=IN_FLIGHT, seconds=seconds)
        late = {name: 1000 * found[name] for name in ("p50", "p99", "max")}
        return {**late, "echoes": found["echoes"], "flood": found["flood"] / found["elapsed"]}


def start_load(taking_turns: bool) -> Process:
    load = Process([sys.executable, str(HERE / "load.py")], 5.0)
    if taking_turns:
        take_turns(load)
    return load


def measure(
    options: argparse.Namespace, peers: list[Peer], certificate: str
) -> tuple[Rounds, dict[str, dict[str, str]]]:
    """Return for each row and peer what each round measured, and what the peers are made of."""
    found: Rounds = {}
    versions: dict[str, dict[str, str]] = {}
    rows = [row for row in (*ECHOES, HANDSHAKES) if row in options.rows]
    if rows:
        measure_costs(options, rows, peers, certificate, found, versions)
    for row in (IDLE, FAIRNESS):
        for peer in peers if row in options.rows else ():
            times = 1 if row == IDLE else min(options.rounds, 3)
            found[row, peer.name] = [
                alone(peer, row, options.quick, versions) for _ in range(times)
            ]
    return found, versions


def alone(
    peer: Peer, row: str, quick: bool, versions: dict[str, dict[str, str]]
) -> dict[str, float]:
    """Measure a row in processes of its own: memory that another freed would be used again."""
    load = start_load(False)
    try:
        # The server goes first: it need not see what becomes of the connections.
        with Server(peer, load) as server:
            versions[peer.name] = server.versions
            if row == IDLE:
                return server.memory(200 if quick else 2000)
            return server.fairness(0.5 if quick else 3.0)
    finally:
        load.end()


def measure_costs(
    options: argparse.Namespace,
    rows: list[str],
    peers: list[Peer],
    certificate: str,
    found: Rounds,
    versions: dict[str, dict[str, str]],
) -> None:
    """Measure what has a cost for each operation."""
    seconds = 0.2 if options.quick else 1.0
    servers: dict[tuple[str, bool], Server] = {}
    load = start_load(True)

    def run(row: str, peer: Peer, seconds: float) -> dict[str, float]:
        tls = row in ECHOES and ECHOES[row].tls
        key = peer.name, tls
        if key not in servers:
            servers[key] = Server(peer, load, certificate if tls else None, taking_turns=True)
            versions[peer.name] = servers[key].versions
        return servers[key].run(row, seconds)

    try:
        # All of it once for the caches, the allocator included; uncounted.
        for row in rows:
            for peer in peers:
                run(row, peer, 0.2)
        for number in range(options.rounds):
            # Nobody is always the first.
            first = number % len(peers)
            for row in rows:
                for peer in peers[first:] + peers[:first]:
                    found.setdefault((row, peer.name), []).append(run(row, peer, seconds))
            print(f"round {number + 1} of {options.rounds} done", file=sys.stderr)
    finally:
        for server in servers.values():
            server.process.end()
        load.end()


def table(found: Rounds, base: str) -> str:
    """Lay the results out, row by row."""
    lines = [
        f"{'row':<11} {'peer':<17} {'server':>9} {'/ ' + base:>7} {'a CPU second':>12}  targets"
    ]
    for row, rounds in sorted(found.items(), key=lambda item: ROWS.index(item[0][0])):
        work, peer = row
        start = f"{work:<11} {peer:<17} "
        if work == IDLE:
            line = f"{start}{figure(rounds, 'kib'):>9.1f} KiB a connection"
        elif work == FAIRNESS:
            late = ", ".join(f"{key} {figure(rounds, key):.1f}" for key in ("p50", "p99", "max"))
            line = f"{start}{late} ms; flood {figure(rounds, 'flood'):.0f}/s"
        else:
            times = ratio(found, row, (work, base), "server")
            cost, count = figure(rounds, "server"), figure(rounds, "per_second")
            line = f"{start}{cost:>9.1f} {times:>7.2f} {count:>12.0f}"
        lines.append(line + verdicts(TARGETS, found, row))
    return "\n".join(lines)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    epilog = (
        "Costs are CPU microseconds of the server for each message or handshake; a ratio "
        "above 1 means that\nthe peer needs more than the first one."
    )
    parser = parser_of("websocket", __doc__, epilog, ROWS, PEERS)
    parser.add_argument(
        "--profile",
        choices=[*ECHOES, HANDSHAKES],
        metavar="ROW",
        help="instead of measuring, print where the server spends its time in it: gwt's, or "
        "that of the first of --peers, which must be on gevent",
    )
    options = parsed(parser, arguments)
    if options.profile:
        # One is enough.
        del options.peers[1:]
        if not PEERS[options.peers[0]].on_gevent:
            parser.error("--profile needs a peer on gevent")
    return options


def profile(peer: Peer, row: str, seconds: float, certificate: str) -> None:
    """Run a row once unmeasured, then under a profiler in the server."""
    tls = row in ECHOES and ECHOES[row].tls
    load = start_load(True)
    try:
        with Server(peer, load, certificate if tls else None, taking_turns=True) as server:
            server.run(row, 0.2)
            server.process.ask(do="profile", file=None)
            server.run(row, seconds)
            file = str(Path(tempfile.gettempdir(), f"{peer.name}-websocket-{row}.prof"))
            server.process.ask(do="profile", file=file)
    finally:
        load.end()
    print(f"server, the rest is in {file}:\n")
    pstats.Stats(file).sort_stats("tottime").print_stats(40)


def main() -> None:
    options = parse()
    peers = [PEERS[name] for name in options.peers if prepare(name, PEERS[name].python)]
    if not peers:
        raise SystemExit("No peer is left to measure.")
    with tempfile.TemporaryDirectory() as folder:
        certificate = make_certificate(folder)
        if options.profile:
            profile(peers[0], options.profile, 0.5 if options.quick else 3.0, certificate)
            return
        found, versions = measure(options, peers, certificate)
    facts = environment(PACKAGES)
    if options.json:
        more = {"environment": facts, "versions": versions, "rounds": options.rounds}
        print(as_json(found, peers[0].name, "server", TARGETS, **more))
        return
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    for name, parts in versions.items():
        print(f"{name}: " + ", ".join(f"{part} {value}" for part, value in parts.items()))
    print(
        f"Server CPU microseconds per message or handshake, medians of {options.rounds} rounds:\n"
    )
    print(table(found, peers[0].name))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
