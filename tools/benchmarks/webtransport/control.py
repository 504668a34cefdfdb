"""
What the bench and a peer's process say to each other: one JSON object a line, answered by one.

A peer is two scripts' worth of roles in one file, ``peer_*.py server`` and ``peer_*.py client``.
Both answer

    {"do": "usage"}                                     {"cpu": seconds of CPU so far}
    {"do": "memory"}                                    {"rss": bytes resident}

(../answers.py). A server first says ``{"port": n}``. It serves four paths: ``/echo``
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

__all__ = ["arguments", "chunk"]


def arguments() -> argparse.Namespace:
    """Read a peer's command line, which is the same for all of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=("server", "client"))
    parser.add_argument("--certificate", help="PEM file of certificate and key: server")
    parser.add_argument("--port", type=int, default=0, help="where the server listens: client")
    parser.add_argument("--udp-payload", type=int, default=1200)
    parser.add_argument("--streams", type=int, default=256, help="allowed at once: server")
    return parser.parse_args()


def chunk(size: int) -> bytes:
    """Return `size` bytes to send."""
    return bytes(size)
