"""
The same WebTransport work on several peers, alternating, in one run: CPU time per operation.

Each peer is a server process and a client process that talk over loopback (control.py says how
they are driven). Every round runs every work once on every peer, in turn, so that whatever else
the machine does hits all of them; ratios are taken within a round, and their median is printed.
CPU time is what getrusage says, of both ends; elapsed time is for the curious only. Memory, and how
late a busy server's greenlets run, are measured in processes of their own. TARGETS is what is to be
held; docs/performance.md tells more.
"""

from __future__ import annotations

import argparse
import pstats
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import (
    Process,
    Rounds,
    Target,
    as_json,
    environment,
    figure,
    listed,
    make_certificate,
    prepare,
    python_of,
    ratio,
    verdicts,
)

HERE = Path(__file__).resolve().parent
MIB = 1024 * 1024


@dataclass(frozen=True)
class Peer:
    """How to run one implementation: an interpreter, its script, and what to add."""

    name: str
    script: str
    arguments: tuple[str, ...] = ()
    # Another environment's, for a peer that cannot live in ours.
    python: str = sys.executable
    # What it differs in; the other works it does only when it is asked for by name.
    mainly: tuple[str, ...] = ()

    @property
    def has_greenlets(self) -> bool:
        return self.script == "peer_gwt.py"

    def command(self, role: str, *more: str) -> list[str]:
        return [self.python, str(HERE / self.script), role, *self.arguments, *more]


PEERS = {
    peer.name: peer
    for peer in (
        Peer("gwt", "peer_gwt.py"),
        Peer(
            "gwt-1452",
            "peer_gwt.py",
            ("--udp-payload", "1452"),
            mainly=("download", "upload"),
        ),
        Peer("aioquic", "peer_aioquic.py"),
        Peer("pywebtransport", "peer_pywebtransport.py", python=python_of("pywebtransport")),
    )
}


@dataclass(frozen=True)
class Work:
    """One row: what the client is told to do, and what an operation is."""

    name: str
    unit: str
    path: str | None
    command: dict[str, Any]
    quick: dict[str, Any] = field(default_factory=dict)
    # Streams that are open and idle on the same connection meanwhile.
    idle: int = 0
    # Streams that the server is told to allow at once, if its defaults do not do.
    streams: int | None = None


# Enough for the idle ones; gwt gives half of what it allows to a connection's first session.
IDLE = 1000
STREAMS = 2 * (IDLE + 100)

WORKS = [
    Work(
        "download",
        "MiB",
        "/download",
        {"work": "download", "size": 32 * MIB},
        {"size": 8 * MIB},
    ),
    Work("upload", "MiB", "/upload", {"work": "upload", "size": 32 * MIB}, {"size": 8 * MIB}),
    Work(
        "stream",
        "round trip",
        "/echo",
        {"work": "streams", "count": 1000, "at_once": 1},
        {"count": 200},
    ),
    Work(
        "streams-100",
        "round trip",
        "/echo",
        {"work": "streams", "count": 4000, "at_once": 100},
        {"count": 1000},
    ),
    Work(
        "datagram",
        "round trip",
        "/echo",
        {"work": "datagrams", "count": 2000, "at_once": 1},
        {"count": 400},
    ),
    Work(
        "datagrams-32",
        "round trip",
        "/echo",
        {"work": "datagrams", "count": 8000, "at_once": 32},
        {"count": 2000},
    ),
    Work(
        "session",
        "connect and close",
        None,
        {"work": "connects", "count": 80, "at_once": 8},
        {"count": 24},
    ),
    Work(
        "busy",
        "MiB",
        "/sink",
        {"work": "upload", "size": 8 * MIB},
        {"size": MIB},
        streams=STREAMS,
    ),
    Work(
        "busy-idle",
        "MiB",
        "/sink",
        {"work": "upload", "size": 8 * MIB},
        {"size": MIB},
        idle=IDLE,
        streams=STREAMS,
    ),
]
MEMORY = "memory"

# What keeps gwt's server busy while another of its greenlets wants to run: big echoes, streams
# and datagrams as fast as one connection can, and UDP packets that belong to none.
LATENESS = {f"late-{load}": load for load in ("bulk", "streams", "datagrams", "packets")}


def compare(work: str, peer: str, base: str, sign: str, limit: float) -> Target:
    """Return a target for what two peers need for the same work."""
    return Target((work, peer), (work, base), sign, limit)


# The table shows each where both of its rows are known. A UDP payload is 1200 bytes with gwt and
# aioquic, 1452 with gwt-1452, and what it finds out, from 1200 to 1472, with pywebtransport.
TARGETS = (
    compare("download", "aioquic", "gwt", ">=", 1.9),
    compare("download", "aioquic", "gwt-1452", ">=", 2.2),
    compare("upload", "aioquic", "gwt", ">=", 1.9),
    compare("upload", "aioquic", "gwt-1452", ">=", 2.2),
    compare("upload", "gwt", "pywebtransport", "<=", 3.0),
    compare("stream", "gwt", "pywebtransport", "<=", 0.5),
    compare("streams-100", "gwt", "pywebtransport", "<=", 0.6),
    compare("datagram", "gwt", "pywebtransport", "<=", 0.75),
    compare("datagrams-32", "gwt", "pywebtransport", "<=", 0.25),
    compare("session", "gwt", "aioquic", "<=", 0.8),
    compare("session", "gwt", "pywebtransport", "<=", 4.0),
    Target(("busy-idle", "gwt"), ("busy", "gwt"), "<=", 1.5),
    # KiB. 75 is the ambition.
    Target(("memory", "gwt"), None, "<=", 85, "server"),
    # Milliseconds.
    *(Target((work, "gwt"), None, "<=", 20, "cpu_max") for work in LATENESS),
)

PACKAGES = ("gevent", "greenlet", "aioquic", "cryptography")

# What is still under way when the client has its answer: acknowledgements, closing periods.
SETTLE = 0.1


class Pair:
    """A peer's server and client, running."""

    def __init__(self, peer: Peer, certificate: str, streams: int | None = None) -> None:
        more = ["--certificate", certificate]
        if streams is not None:
            more += ["--streams", str(streams)]
        self.server = Process(peer.command("server", *more), 5.0)
        try:
            port = self.server.answer()["port"]
            self.client = Process(peer.command("client", "--port", str(port)), 5.0)
        except BaseException:
            self.server.end()
            raise

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.end()
        self.server.end()

    def cpu(self) -> tuple[float, float]:
        return self.server.cpu(), self.client.cpu()

    def run(self, work: Work, command: dict[str, Any]) -> dict[str, float]:
        """Do a work once; returns microseconds per operation."""
        if work.path is not None:
            self.client.ask(do="open", path=work.path, count=1)
        if work.idle:
            self.client.ask(do="idle", count=work.idle)
        time.sleep(SETTLE)
        before, began = self.cpu(), time.perf_counter()
        operations = self.client.ask(do="run", **command)["operations"]
        elapsed = time.perf_counter() - began
        time.sleep(SETTLE)
        after = self.cpu()
        self.client.ask(do="close")
        server, client = (
            (late - early) / operations * 1e6 for late, early in zip(after, before, strict=True)
        )
        return {
            "server": server,
            "client": client,
            "both": server + client,
            "elapsed": elapsed / operations * 1e6,
        }

    def lateness(self, load: str, seconds: float) -> dict[str, float]:
        """Return by how many milliseconds a greenlet of the server was late under a load."""
        self.client.ask(do="open", path="/echo", count=1)
        self.server.ask(do="ticker")
        self.client.ask(do="run", work="flood", load=load, seconds=seconds)
        found = self.server.ask(do="lateness")
        self.client.ask(do="close")
        return {name: 1000 * late for name, late in found.items()}

    def memory(self, sessions: int) -> dict[str, float]:
        """Return KiB of the server's resident memory for each idle connection with a session."""
        # What the first ones cost is not theirs alone: imports, pools, arenas.
        self.client.ask(do="open", path="/echo", count=10)
        time.sleep(1.0)
        before = self.server.ask(do="memory")["rss"]
        self.client.ask(do="open", path="/echo", count=sessions)
        time.sleep(1.0)
        after = self.server.ask(do="memory")["rss"]
        return {"server": (after - before) / sessions / 1024}


def measure(options: argparse.Namespace, peers: list[Peer], certificate: str) -> Rounds:
    """Return for each work and peer what each round measured."""
    found: Rounds = {}
    pairs: dict[tuple[str, int | None], Pair] = {}
    works = [work for work in WORKS if work.name in options.only]

    def doing(work: str) -> list[Peer]:
        return [
            peer
            for peer in peers
            if work in options.only and (options.named or not peer.mainly or work in peer.mainly)
        ]

    try:
        for work in works:
            for peer in doing(work.name):
                key = peer.name, work.streams
                if key not in pairs:
                    pairs[key] = Pair(peer, certificate, work.streams)
                # Once for the caches, uncounted. With idle streams it is slow, and nothing new.
                if not work.idle:
                    pairs[key].run(work, {**work.command, **work.quick})
        for number in range(options.rounds if works else 0):
            for work in works:
                command = {**work.command, **(work.quick if options.quick else {})}
                turns = doing(work.name)
                # Nobody is always the first.
                first = number % len(turns)
                for peer in turns[first:] + turns[:first]:
                    result = pairs[peer.name, work.streams].run(work, command)
                    found.setdefault((work.name, peer.name), []).append(result)
            print(f"round {number + 1} of {options.rounds} done", file=sys.stderr)
    finally:
        for pair in pairs.values():
            pair.__exit__()
    # Processes of their own: memory that another work freed would be used again.
    for peer in doing(MEMORY):
        with Pair(peer, certificate) as pair:
            found[MEMORY, peer.name] = [pair.memory(100 if options.quick else 400)]
    for work, load in LATENESS.items():
        for peer in [peer for peer in doing(work) if peer.has_greenlets]:
            with Pair(peer, certificate) as pair:
                found[work, peer.name] = [
                    pair.lateness(load, 0.5 if options.quick else 2.0)
                    for _ in range(options.rounds)
                ]
    return found


def table(found: Rounds, base: str) -> str:
    """Lay the results out, in the order of their measurement."""
    lines = [
        f"{'work':<14} {'per':<18} {'peer':<15} {'server':>9} {'client':>9} {'both':>9} "
        f"{'elapsed':>9} {'/ ' + base:>9}  targets"
    ]
    units = {work.name: work.unit for work in WORKS}
    for row, rounds in found.items():
        work, peer = row
        if work in units:
            figures = " ".join(
                f"{figure(rounds, key):>9.1f}" for key in ("server", "client", "both", "elapsed")
            )
            times = ratio(found, row, (work, base), "both")
            line = f"{work:<14} {units[work]:<18} {peer:<15} {figures} {times:>9.2f}"
        elif work == MEMORY:
            kib = figure(rounds, "server")
            line = f"{work:<14} {'idle connection':<18} {peer:<15} {kib:>9.1f} KiB on the server"
        else:
            late = {key: figure(rounds, key) for key in rounds[0]}
            line = (
                f"{work:<14} {'lateness, ms':<18} {peer:<15} CPU max {late['cpu_max']:.1f} p99 "
                f"{late['cpu_p99']:.1f}, elapsed max {late['max']:.1f} p99 {late['p99']:.1f}"
            )
        lines.append(line + verdicts(TARGETS, found, row))
    return "\n".join(lines)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    names = [*(work.name for work in WORKS), MEMORY, *LATENESS]
    parser = argparse.ArgumentParser(
        prog="tools/bench webtransport",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Times are CPU microseconds per operation; a ratio above 1 means that the peer "
        "needs more\nthan the first one.",
    )

    parser.add_argument("--rounds", type=int, default=5, help="how often (5)")
    parser.add_argument(
        "--only", type=listed(names), default=names, metavar="A,B", help=", ".join(names)
    )
    parser.add_argument(
        "--peers",
        type=listed(list(PEERS)),
        metavar="A,B",
        help=f"{', '.join(PEERS)}; ratios are to the first (all, gwt-1452 for bulk only)",
    )
    parser.add_argument(
        "--profile",
        choices=[name for name in names if name != MEMORY],
        metavar="WORK",
        help="instead of measuring, print where gwt's client and server spend their time in it",
    )
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    options.named = options.peers is not None
    options.peers = options.peers or list(PEERS)
    return options


def profile(name: str, quick: bool) -> None:
    """Run a work once, unmeasured and then under a profiler in both of gwt's processes."""
    work = next((work for work in WORKS if work.name == name), None)
    with (
        tempfile.TemporaryDirectory() as folder,
        Pair(PEERS["gwt"], make_certificate(folder), work and work.streams) as pair,
    ):

        def run(short: bool) -> None:
            if work is None:
                pair.lateness(LATENESS[name], 0.5 if short else 2.0)
            else:
                pair.run(work, {**work.command, **(work.quick if short else {})})

        run(True)
        for end in (pair.server, pair.client):
            end.ask(do="profile", file=None)
        run(quick)
        for role, end in (("server", pair.server), ("client", pair.client)):
            file = str(Path(tempfile.gettempdir(), f"gwt-{name}-{role}.prof"))
            end.ask(do="profile", file=file)
            print(f"\n{role}, the rest is in {file}:\n")
            pstats.Stats(file).sort_stats("tottime").print_stats(40)


def main() -> None:
    options = parse()
    if options.profile:
        profile(options.profile, options.quick)
        return
    peers = [PEERS[name] for name in options.peers if prepare(name, PEERS[name].python)]
    if not peers:
        raise SystemExit("No peer is left to measure.")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, peers, make_certificate(folder))
    if options.json:
        facts = {"environment": environment(PACKAGES), "rounds": options.rounds}
        print(as_json(found, peers[0].name, "both", TARGETS, **facts))
        return
    print(", ".join(f"{name} {value}" for name, value in environment(PACKAGES).items()))
    print(f"CPU microseconds per operation, medians of {options.rounds} rounds:\n")
    print(table(found, peers[0].name))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
