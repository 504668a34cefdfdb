"""
What the bench and a peer's process say to each other: one JSON object a line, answered by one.

A peer is two scripts' worth of roles in one file, ``peer_*.py server`` and ``peer_*.py client``;
it imports nothing but this file and what it measures, so that it can run in an environment of
its own. Both roles answer

    {"do": "usage"}                                     {"cpu": seconds of CPU so far}
    {"do": "memory"}                                    {"rss": bytes resident}

and leave when stdin ends. A server first says ``{"port": n}``. It serves four paths: ``/echo``
(each bidirectional stream and each datagram comes back), ``/download`` (a stream holds a decimal
number, and that many bytes come back on it), ``/upload`` (a stream is read to its end, and its
length comes back in decimal) and ``/sink`` (the same, for many streams at once). A client answers

    {"do": "open", "path": "/echo", "count": 1}         sessions, each on its own connection
    {"do": "idle", "count": 1000}                       streams of a byte each, left open
    {"do": "run", "work": name, ...}                    {"operations": n}, as in WORKS of bench.py
    {"do": "close"}                                     all its sessions

gwt, which has greenlets, also answers

    {"do": "profile", "file": null}                     from now on; a file's name: into it
    {"do": "ticker"}                                    a server: watch a greenlet from now on
    {"do": "lateness"}                                  seconds: "max", "p99", "cpu_max", "cpu_p99"
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import sys
from typing import Any

__all__ = ["arguments", "chunk", "measure", "reply"]

_PAGE = os.sysconf("SC_PAGE_SIZE")


def arguments() -> argparse.Namespace:
    """Read a peer's command line, which is the same for all of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=("server", "client"))
    parser.add_argument("--certificate", help="PEM file of certificate and key: server")
    parser.add_argument("--port", type=int, default=0, help="where the server listens: client")
    parser.add_argument("--udp-payload", type=int, default=1200)
    parser.add_argument("--streams", type=int, default=256, help="allowed at once: server")
    return parser.parse_args()


def measure(what: str) -> dict[str, float] | None:
    """Return the answer to a question about this process, or None if `what` is none."""
    if what == "usage":
        spent = resource.getrusage(resource.RUSAGE_SELF)
        return {"cpu": spent.ru_utime + spent.ru_stime}
    if what == "memory":
        gc.collect()
        with open("/proc/self/statm") as file:
            return {"rss": int(file.read().split()[1]) * _PAGE}
    return None


def reply(answer: dict[str, Any]) -> None:
    """Answer a command."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def chunk(size: int) -> bytes:
    """Return `size` bytes to send."""
    return bytes(size)
