"""
What clients cost: connecting, and being there. CPU time and memory of the client's process.

The servers are `gwt serve`, in processes of their own and for all peers the same. Every round has
every peer establish sessions in turn; ratios are those of a round, and their median is printed.
Memory is measured in processes of their own. TARGETS is what is to be held.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import certifi
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from harness import (
    Process,
    Rounds,
    Target,
    as_json,
    environment,
    figure,
    parsed,
    parser_of,
    prepare,
    python_of,
    ratio,
    verdicts,
)

HERE = Path(__file__).resolve().parent

PEERS = {"gwt": sys.executable, "pywebtransport-0.6.1": python_of("pywebtransport-0.6.1")}
SCRIPTS = {"gwt": "peer_gwt.py", "pywebtransport-0.6.1": "peer_pywebtransport061.py"}

# Whether the server's certificate is verified, which is the default of both peers.
ESTABLISH = {"establish": True, "establish-unverified": False}
POOLED = "pooled"

# What is held, and how many of it.
HELD = {"idle-session": ("session", 400), "idle-websocket": ("websocket", 2000)}
ROWS = [*ESTABLISH, *HELD, POOLED]

TARGETS = (
    # Microseconds of CPU for each session: so many times as many for a second of it.
    *(
        Target((row, "pywebtransport-0.6.1"), (row, "gwt"), ">=", 1.6, "client")
        for row in ESTABLISH
    ),
    Target(("idle-session", "gwt"), None, "<=", 85, "KiB"),
    Target(("idle-websocket", "gwt"), None, "<=", 16, "KiB"),
    Target((POOLED, "gwt"), None, "<=", 10, "us"),
)

# What is still under way when the client has its answer: acknowledgements, closing periods.
SETTLE = 0.5

PACKAGES = ("gevent", "greenlet", "aioquic", "cryptography")


@contextmanager
def serving(*options: str) -> Iterator[str]:
    """Run a server; gives its port."""
    command = [sys.executable, "-m", "gwt", "serve", "--bind", "127.0.0.1:0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"://127.0.0.1:(\d+) ", process.stdout.readline())
        try:
            if found is None:
                raise SystemExit("The server did not start.")
            yield found[1]
        finally:
            process.send_signal(signal.SIGTERM)


def make_authority(folder: str) -> tuple[str, str]:
    """Write a server's certificate with its key, and a bundle of certifi's size that knows it."""
    key, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tools/bench")])
    now, day = datetime.now(UTC), timedelta(days=1)

    def signed(subject: x509.Name, public: Any, extension: Any) -> bytes:
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(name)
        builder = builder.public_key(public).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - day).not_valid_after(now + day)
        builder = builder.add_extension(extension, critical=False)
        return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)

    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    certificate, bundle = Path(folder, "server.pem"), Path(folder, "bundle.pem")
    private = own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    certificate.write_bytes(signed(x509.Name([]), own.public_key(), address) + private)
    root = signed(name, key.public_key(), x509.BasicConstraints(True, None))
    bundle.write_bytes(Path(certifi.where()).read_bytes() + root)
    return str(certificate), str(bundle)


def start(peer: str, where: tuple[str, str, str]) -> Process:
    return Process([PEERS[peer], str(HERE / SCRIPTS[peer]), *where], 30.0)


def establish(client: Process, count: int, verify: bool) -> dict[str, float]:
    """Return microseconds of CPU for each session that was opened, 8 at a time, and then closed."""
    before, began = client.cpu(), time.perf_counter()
    client.ask(do="establish", count=count, at_once=8, verify=verify)
    elapsed = time.perf_counter() - began
    time.sleep(SETTLE)
    spent = client.cpu() - before
    client.ask(do="close")
    time.sleep(SETTLE)
    closed = client.cpu() - before
    return {
        "client": spent / count * 1e6,
        "and_close": closed / count * 1e6,
        "elapsed": elapsed / count * 1e6,
    }


def hold(peer: str, where: tuple[str, str, str], kind: str, count: int) -> dict[str, float]:
    """Return KiB of resident memory for each of what is open and idle."""
    client = start(peer, where)
    try:
        # What the first ones cost is not theirs alone: imports, pools, arenas.
        client.ask(do="hold", kind=kind, count=20)
        time.sleep(SETTLE)
        before = client.ask(do="memory")["rss"]
        client.ask(do="hold", kind=kind, count=count)
        time.sleep(SETTLE)
        return {"KiB": (client.ask(do="memory")["rss"] - before) / count / 1024}
    finally:
        client.end()


def measure(options: argparse.Namespace, peers: list[str], folder: str) -> Rounds:
    found: Rounds = {}
    count = 40 if options.quick else 160
    certificate, bundle = make_authority(folder)
    rows = [row for row in ESTABLISH if row in options.rows]
    with serving() as port, serving("--certfile", certificate) as secure:
        where = port, secure, bundle
        clients = {peer: start(peer, where) for peer in peers}
        try:
            for row in rows:
                for client in clients.values():
                    establish(client, 16, ESTABLISH[row])
            for number in range(options.rounds):
                # Nobody is always the first.
                first = number % len(peers)
                for row in rows:
                    for peer in peers[first:] + peers[:first]:
                        result = establish(clients[peer], count, ESTABLISH[row])
                        found.setdefault((row, peer), []).append(result)
                if POOLED in options.rows and "gwt" in clients:
                    result = clients["gwt"].ask(do="pooled", count=2000)
                    found.setdefault((POOLED, "gwt"), []).append({"us": result["seconds"] * 1e6})
                print(f"round {number + 1} of {options.rounds} done", file=sys.stderr)
        finally:
            for client in clients.values():
                client.end()
        for row, (kind, number) in HELD.items():
            for peer in peers:
                if row in options.rows and (kind == "session" or peer == "gwt"):
                    size = number // 10 if options.quick else number
                    found[row, peer] = [hold(peer, where, kind, size)]
    return found


def table(found: Rounds, base: str) -> str:
    """Lay the results out, row by row."""
    lines = [f"{'row':<21} {'peer':<22} {'figure':<62} targets"]
    for row, rounds in sorted(found.items(), key=lambda item: ROWS.index(item[0][0])):
        name, peer = row
        text = ", ".join(f"{key} {figure(rounds, key):.1f}" for key in rounds[0])
        if name in ESTABLISH:
            text += f", {ratio(found, row, (name, base), 'client'):.2f} of {base}"
        lines.append(f"{name:<21} {peer:<22} {text:<62}{verdicts(TARGETS, found, row)}")
    return "\n".join(lines)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    epilog = "Times are microseconds, of the client's CPU and elapsed, for each session."
    parser = parser_of("clients", __doc__, epilog, ROWS, PEERS)
    return parsed(parser, arguments)


def main() -> None:
    options = parse()
    peers = [name for name in options.peers if prepare(name, PEERS[name])]
    if not peers:
        raise SystemExit("No peer is left to measure.")
    about = environment(PACKAGES)
    if not options.json:
        print(", ".join(f"{key} {value}" for key, value in about.items()), file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, peers, folder)
    if options.json:
        print(as_json(found, peers[0], "client", TARGETS, environment=about))
    else:
        print(table(found, peers[0]))


if __name__ == "__main__":
    main()
