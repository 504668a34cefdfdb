"""
Rooms side by side with what else sends one message to many, alternating, in one run: CPU time of
the server for each delivery.

Each peer is a server process with one room; another process holds the members, and is not measured
(audience.py; audience_sessions.py for WebTransport). One member speaks, and all hear it, the
speaker too. Every round does every row once with every peer, in turn; ratios are taken within a
round, and their median is printed. How late another greenlet runs, and what costs something without
any message, is asked of gwt alone. TARGETS is what is to be held; docs/performance.md tells more.
"""

from __future__ import annotations

import argparse
import pstats
import resource
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

# How to run each peer.
PEERS = {
    "gwt": sys.executable,
    "sequential": sys.executable,
    "websockets": python_of("websockets"),
}
ON_GEVENT = ("gwt", "sequential")


@dataclass(frozen=True)
class Room:
    """A row: so many members, one of whom says so many things at once."""

    members: int
    together: int = 1
    tls: bool = False


ROOMS = {
    "1000": Room(1000),
    "5000": Room(5000),
    "1000-ten": Room(1000, together=10),
    "1000-tls": Room(1000, tls=True),
}

# Members that are WebTransport sessions; no peer has them.
SESSIONS = {
    "100-webtransport": Room(100, tls=True),
    "100-webtransport-ten": Room(100, together=10, tls=True),
}

# Of gwt alone: what is measured while a room is spoken to, and what inside.py does.
LATE = {"late-5000": Room(5000)}
INSIDE = ("reaper", "joining", "instances")
SPOKEN = {**ROOMS, **SESSIONS}
ROWS = [*SPOKEN, *LATE, *INSIDE]


def held(work: str, base: str | None, limit: float, figure: str = "server") -> Target:
    """Return a target for gwt: beside a peer, or, without one, for the figure itself."""
    return Target((work, "gwt"), None if base is None else (work, base), "<=", limit, figure)


TARGETS = (
    held("1000", "websockets", 1.0),
    held("1000", "sequential", 0.75),
    held("5000", "websockets", 0.8),
    held("5000", "sequential", 0.75),
    # Ten broadcasts in a turn, to one.
    Target(("1000-ten", "gwt"), ("1000", "gwt"), "<=", 3.0, "turn"),
    # Milliseconds.
    held("late-5000", None, 10.0, "cpu_max"),
    held("reaper", None, 5.0, "ms"),
    # Microseconds.
    held("instances", None, 5.0, "us"),
    # With 100,000 rooms to with ten.
    held("joining", None, 1.5, "times"),
)

PACKAGES = ("gevent", "greenlet", "wsproto")

# What is still under way when all have heard everything.
SETTLE = 0.05

# Descriptors that a process needs for other things than members.
OTHERS = 100


def fitting(room: Room, quick: bool) -> Room:
    """Return a room that this machine has descriptors for; says so if it is a smaller one."""
    members = room.members // 10 if quick else room.members
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and members > most - OTHERS:
        print(
            f"{members} members need more than the {most} descriptors that a process may have: "
            f"{most - OTHERS} are measured.",
            file=sys.stderr,
        )
        members = most - OTHERS
    return Room(members, room.together, room.tls)


class Server:
    """A peer's server, running, and the process that holds the members."""

    def __init__(self, peer: str, audience: Process, certificate: str | None) -> None:
        more = [] if certificate is None else ["--certificate", certificate]
        self.tls = certificate is not None
        self.audience = audience
        command = [PEERS[peer], str(HERE / f"peer_{peer}.py"), *more]
        self.process = Process(command, 5.0, **ALLOCATOR)
        try:
            ready = self.process.answer()
        except BaseException:
            self.process.end()
            raise
        self.port: int = ready["port"]
        self.versions: dict[str, str] = ready["versions"]
        take_turns(self.process)

    def speak(self, together: int, seconds: float) -> dict[str, float]:
        return self.audience.ask(do="speak", together=together, seconds=seconds)

    def enter(self, room: Room) -> None:
        """Fill the room, and say something, for the caches."""
        self.audience.ask(do="enter", port=self.port, count=room.members, tls=self.tls)
        # What making so many connections left is not walked while they are spoken to.
        self.process.ask(do="settle")
        self.speak(room.together, 0.1)

    def leave(self) -> None:
        self.audience.ask(do="close")

    def run(self, room: Room, seconds: float) -> dict[str, float]:
        """Return microseconds of the server for a delivery, and milliseconds for a turn."""
        self.enter(room)
        time.sleep(SETTLE)
        before = self.process.cpu()
        done = self.speak(room.together, seconds)
        time.sleep(SETTLE)
        spent = self.process.cpu() - before
        self.leave()
        return {
            "server": spent / done["deliveries"] * 1e6,
            "turn": spent / done["turns"] * 1e3,
            "members": room.members,
        }

    def lateness(self, room: Room, seconds: float) -> dict[str, float]:
        """Return by how many milliseconds a greenlet was late while the room is spoken to."""
        self.enter(room)
        self.process.ask(do="ticker")
        self.speak(room.together, seconds)
        found = self.process.ask(do="lateness")
        self.leave()
        return {name: 1000 * late for name, late in found.items()}


def start_audience(row: str) -> Process:
    script = "audience_sessions.py" if row in SESSIONS else "audience.py"
    audience = Process([sys.executable, str(HERE / script)], 5.0)
    take_turns(audience)
    return audience


def inside(row: str, quick: bool) -> dict[str, float]:
    """Let a process of its own measure something."""
    more = ["--quick"] if quick else []
    process = Process([sys.executable, str(HERE / "inside.py"), row, *more], 5.0)
    try:
        return process.answer()
    finally:
        process.end()


def measure(
    options: argparse.Namespace, peers: list[str], certificate: str
) -> tuple[Rounds, dict[str, dict[str, str]]]:
    """Return for each row and peer what each round measured, and what the peers are made of."""
    found: Rounds = {}
    versions: dict[str, dict[str, str]] = {}
    audiences: dict[bool, Process] = {}
    servers: dict[tuple[str, bool, bool], Server] = {}
    seconds = 0.2 if options.quick else 1.0

    def server(peer: str, row: str, tls: bool) -> Server:
        sessions = row in SESSIONS
        if sessions not in audiences:
            audiences[sessions] = start_audience(row)
        key = peer, tls, sessions
        if key not in servers:
            servers[key] = Server(peer, audiences[sessions], certificate if tls else None)
            versions[peer] = servers[key].versions
        return servers[key]

    def run(row: str, peer: str) -> dict[str, float]:
        if row in INSIDE:
            return inside(row, options.quick)
        if row in LATE:
            room = fitting(LATE[row], options.quick)
            return server(peer, row, room.tls).lateness(room, seconds)
        room = fitting(SPOKEN[row], options.quick)
        return server(peer, row, room.tls).run(room, seconds)

    rows = [row for row in ROWS if row in options.rows]
    try:
        for number in range(options.rounds):
            # Nobody is always the first.
            first = number % len(peers)
            for row in rows:
                doing = peers[first:] + peers[:first] if row in ROOMS else ["gwt"]
                for peer in doing:
                    if peer in peers:
                        found.setdefault((row, peer), []).append(run(row, peer))
            print(f"round {number + 1} of {options.rounds} done", file=sys.stderr)
    finally:
        for each in servers.values():
            each.process.end()
        for audience in audiences.values():
            audience.end()
    return found, versions


def table(found: Rounds, base: str) -> str:
    """Lay the results out, row by row."""
    lines = [f"{'row':<21} {'peer':<11} {'server':>7} {'/ ' + base:>7} {'turn, ms':>9}  targets"]
    for row, rounds in sorted(found.items(), key=lambda item: ROWS.index(item[0][0])):
        work, peer = row
        start = f"{work:<21} {peer:<11} "
        if work in SPOKEN:
            times = ratio(found, row, (work, base), "server")
            cost, turn = figure(rounds, "server"), figure(rounds, "turn")
            line = f"{start}{cost:>7.2f} {times:>7.2f} {turn:>9.2f}"
        else:
            parts = ", ".join(f"{key} {figure(rounds, key):.2f}" for key in rounds[0])
            line = f"{start}{parts}"
        lines.append(line + verdicts(TARGETS, found, row))
    return "\n".join(lines)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    epilog = (
        "Costs are CPU microseconds of the server for each delivery; a ratio above 1 means "
        "that the\npeer needs more than the first one."
    )
    parser = parser_of("rooms", __doc__, epilog, ROWS, PEERS)
    parser.add_argument(
        "--profile",
        choices=list(SPOKEN),
        metavar="ROW",
        help="instead of measuring, print where the server spends its time in it: gwt's, or "
        "that of the first of --peers, which must be on gevent",
    )
    options = parsed(parser, arguments)
    if options.profile:
        # One is enough.
        del options.peers[1:]
        if options.peers[0] not in ON_GEVENT:
            parser.error("--profile needs a peer on gevent")
    return options


def profile(peer: str, row: str, quick: bool, certificate: str) -> None:
    """Fill a room, then speak under a profiler in the server."""
    room = fitting(SPOKEN[row], quick)
    audience = start_audience(row)
    try:
        server = Server(peer, audience, certificate if room.tls else None)
        try:
            server.enter(room)
            server.process.ask(do="profile", file=None)
            server.speak(room.together, 0.5 if quick else 3.0)
            file = str(Path(tempfile.gettempdir(), f"{peer}-rooms-{row}.prof"))
            server.process.ask(do="profile", file=file)
            server.leave()
        finally:
            server.process.end()
    finally:
        audience.end()
    print(f"server, the rest is in {file}:\n")
    pstats.Stats(file).sort_stats("tottime").print_stats(40)


def main() -> None:
    options = parse()
    peers = [name for name in options.peers if prepare(name, PEERS[name])]
    if not peers:
        raise SystemExit("No peer is left to measure.")
    with tempfile.TemporaryDirectory() as folder:
        certificate = make_certificate(folder)
        if options.profile:
            profile(peers[0], options.profile, options.quick, certificate)
            return
        found, versions = measure(options, peers, certificate)
    facts = environment(PACKAGES)
    if options.json:
        more: dict[str, Any] = {
            "environment": facts,
            "versions": versions,
            "rounds": options.rounds,
        }
        print(as_json(found, peers[0], "server", TARGETS, **more))
        return
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    for name, parts in versions.items():
        print(f"{name}: " + ", ".join(f"{part} {value}" for part, value in parts.items()))
    print(f"Server CPU microseconds per delivery, medians of {options.rounds} rounds:\n")
    print(table(found, peers[0]))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
