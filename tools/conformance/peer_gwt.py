"""
The end of ours that Autobahn talks to: a server that echoes, or a client that asks for the cases.

suite.py starts it. The server prints the port that it listens on, and stops on SIGTERM. The client
runs every case that the fuzzing server has, one after the other, then has the report written.
"""

from __future__ import annotations

import argparse
import sys

import gwt
from gwt.protocol.deflate import Compression

AGENT = "gwt"

# The largest messages of the suite have 16 MiB. What else there is stays as users have it.
MAX_SIZE = 32 * 2**20


def echo(ws: gwt.WebSocket) -> None:
    # Most cases end with an error, which is their point.
    try:
        for message in ws:
            ws.send(message)
    except gwt.WebSocketClosed:
        pass


def serve(compression: Compression, identity: list[str]) -> None:
    app = gwt.App()
    app.websocket("/", compression=compression, max_size=MAX_SIZE)(echo)
    gwt.serve(
        app,
        "127.0.0.1:0",
        http3=False,
        ready=lambda server: print("listening on", server.address[1], flush=True),
        **dict(zip(("certfile", "keyfile"), identity, strict=False)),
    )


def ask(url: str, compression: Compression) -> None:
    def connect(target: str) -> gwt.WebSocket:
        return gwt.connect(
            f"{url}{target}", compression=compression, max_size=MAX_SIZE, verify=False
        )

    with connect("/getCaseCount") as ws:
        count = int(ws.recv(timeout=10))
    for case in range(1, count + 1):
        try:
            ws = connect(f"/runCase?case={case}&agent={AGENT}")
        except (gwt.GwtError, TimeoutError) as exc:
            print(f"case {case} of {count}: {exc}", file=sys.stderr, flush=True)
            continue
        with ws:
            echo(ws)
    with connect(f"/updateReports?agent={AGENT}") as ws:
        ws.wait_closed()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="be a client of the fuzzing server there")
    parser.add_argument("--identity", nargs="*", default=[], help="serve TLS by these two files")
    parser.add_argument("--takeover", action="store_true", help="compress with context takeover")
    options = parser.parse_args()
    compression = Compression(no_context_takeover=not options.takeover)
    if options.url is None:
        serve(compression, options.identity)
    else:
        ask(options.url, compression)


if __name__ == "__main__":
    main()
