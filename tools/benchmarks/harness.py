"""
What the benches share: processes that are driven, peers' environments, targets, and the figures
of a report.

A bench measures rows, a work and who did it, once a round; what it prints of a row is the median
of the rounds, and of two rows the median of the ratios within a round. answers.py is the other
end of a process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = [
    "ALLOCATOR",
    "ROOT",
    "Process",
    "Rounds",
    "Row",
    "Target",
    "as_json",
    "environment",
    "figure",
    "listed",
    "make_certificate",
    "parsed",
    "parser_of",
    "prepare",
    "python_of",
    "ratio",
    "take_turns",
    "verdicts",
]

ROOT = Path(__file__).resolve().parent.parent.parent

# asyncio asks for 256 KiB at each read. What glibc does for that, a part of its heap or a mapping
# made and undone each time, depends on what was freed before, by luck: half of a message's cost.
# All peers get the former. It would be in the way where memory is measured.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**26)}

# A line of the table: a work, and who did it.
Row = tuple[str, str]

# What each round measured of it.
Rounds = dict[Row, list[dict[str, float]]]


def python_of(name: str) -> str:
    """Return the interpreter of a peer that has an environment of its own: ensure_peer's."""
    variable = "GWT_" + name.upper().replace("-", "_").replace(".", "_")
    return os.environ.get(variable) or str(ROOT / ".peers" / name / "bin" / "python")


def prepare(name: str, python: str) -> bool:
    """Make the environment of a peer that has its own; tells whether it is there."""
    if python == sys.executable:
        return True
    command = '. "$0" && ensure_peer "$1"'
    return not subprocess.call(["bash", "-c", command, ROOT / "tools" / "common.sh", name])


class Process:
    """A peer in one of its roles, or whatever else answers lines."""

    def __init__(self, command: list[str], deadline: float, **variables: str) -> None:
        self.deadline = deadline
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **variables},
        )

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(map(str, self.process.args))} ended unexpectedly.")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, **command: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def cpu(self) -> float:
        """Return the seconds of CPU time that it spent so far."""
        return float(self.ask(do="usage")["cpu"])

    def end(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self.process.wait(self.deadline)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def take_turns(process: Process) -> None:
    """
    Let a process run on the same core as the others, and never in place of one that has work.

    Then a server runs until it waits, the client sends the next message on all connections that
    it has an answer from, and a wake-up of the server finds them all. On cores of their own, the
    time between two messages, and so how many of them a wake-up is for, and so the cost of one,
    would be what the rest of the machine makes of it.
    """
    process_id = process.process.pid
    os.sched_setaffinity(process_id, {max(os.sched_getaffinity(0))})
    os.sched_setscheduler(process_id, os.SCHED_BATCH, os.sched_param(0))


def make_certificate(folder: str) -> str:
    """Write a certificate and its key into one file; returns its name."""
    from gwt import certificates

    path = Path(folder, "certificate.pem")
    path.write_bytes(b"".join(certificates.generate().pem()))
    return str(path)


def figure(rounds: list[dict[str, float]], key: str) -> float:
    """Return what stands for all rounds: the median, or the worst of what is a maximum."""
    return (max if key.endswith("max") else statistics.median)(each[key] for each in rounds)


def ratio(found: Rounds, row: Row, base: Row, key: str) -> float:
    """Return the median of what two rows' figures were to each other in each round."""
    pairs = zip(found[row], found[base], strict=True)
    return statistics.median(mine[key] / theirs[key] for mine, theirs in pairs)


@dataclass(frozen=True)
class Target:
    """What is to be held: the ratio of a row's figure to that of another row, or the figure."""

    row: Row
    base: Row | None
    sign: str
    limit: float
    figure: str = "both"

    def value(self, found: Rounds) -> float | None:
        """Return what was measured, or None if it was not."""
        if self.row not in found or (self.base is not None and self.base not in found):
            return None
        if self.base is None:
            return figure(found[self.row], self.figure)
        return ratio(found, self.row, self.base, self.figure)

    def met(self, value: float) -> bool:
        return value >= self.limit if self.sign == ">=" else value <= self.limit

    def verdict(self, value: float) -> str:
        if self.base is None:
            name = self.row[1]
        elif self.row[0] == self.base[0]:
            name = f"{self.row[1]}/{self.base[1]}"
        else:
            name = f"{self.row[0]}/{self.base[0]}"
        verdict = "met" if self.met(value) else "MISSED"
        return f"{name} {value:.2f} {self.sign} {self.limit:g} {verdict}"


def verdicts(targets: Iterable[Target], found: Rounds, row: Row) -> str:
    """Return the targets that a row shows, each in the later one of its two rows."""
    order = list(found)
    texts = [""]
    for target in targets:
        value = target.value(found)
        if value is not None and row == max(target.row, target.base or target.row, key=order.index):
            texts.append(target.verdict(value))
    return "  ".join(texts)


def environment(packages: Iterable[str]) -> dict[str, Any]:
    """Return what was measured with, and on: Python, packages, machine."""
    versions = {}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": platform.python_version(),
        **versions,
        "system": f"{platform.system()} {platform.release()}",
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
    }


def as_json(found: Rounds, base: str, key: str, targets: Iterable[Target], **more: Any) -> str:
    """Return everything; ratios are those of `key`, to `base`, where a row has that figure."""
    works: dict[str, Any] = {}
    for (work, peer), measured in found.items():
        entry = {name: figure(measured, name) for name in measured[0]}
        if key in entry:
            entry["ratio"] = ratio(found, (work, peer), (work, base), key)
        works.setdefault(work, {})[peer] = {**entry, "rounds": measured}
    judged = [(target, target.value(found)) for target in targets]
    return json.dumps(
        {
            **more,
            "base": base,
            "works": works,
            "targets": [
                {**asdict(target), "value": value, "met": target.met(value)}
                for target, value in judged
                if value is not None
            ],
        },
        indent=2,
    )


def listed(known: list[str]) -> Callable[[str], list[str]]:
    """Return the argparse type of some of these names with commas between them."""

    def split(text: str) -> list[str]:
        chosen = text.split(",")
        for name in chosen:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return chosen

    return split


def parser_of(
    name: str, about: str | None, epilog: str, rows: list[str], peers: Iterable[str]
) -> argparse.ArgumentParser:
    """Return the parser of a bench that has rows and peers; more can be added to it."""
    known = list(peers)
    parser = argparse.ArgumentParser(
        prog=f"tools/bench {name}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=epilog,
    )
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="how often (5)")
    add("--rows", type=listed(rows), default=rows, metavar="A,B", help=", ".join(rows))
    about_peers = f"{', '.join(known)}; ratios are to the first"
    add("--peers", type=listed(known), default=known, metavar="A,B", help=about_peers)
    add("--quick", action="store_true", help="less of everything")
    add("--json", action="store_true", help="everything, as JSON")
    return parser


def parsed(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """Return the options, or leave with what is wrong with them."""
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options
