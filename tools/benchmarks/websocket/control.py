"""
What the bench and its processes say to each other: one JSON object a line, answered by one.

A peer, ``peer_*.py``, is a server alone; every path of it is a WebSocket that sends each message
back, uncompressed. It first says ``{"port": n, "versions": {name: version}}``, and then answers

    {"do": "usage"}                         {"cpu": seconds of CPU so far}
    {"do": "memory"}                        {"rss": bytes resident}
    {"do": "profile", "file": null}         on gevent: from now on; a file's name: into it

load.py is the other end of all of them; it answers

    {"do": "open", "port": n, "count": 50, "size": 64, "text": false, "tls": false}
                                            connections, each of which echoed one message
    {"do": "echo", "seconds": 1.0}          {"messages": n, "elapsed": seconds}
    {"do": "close"}                         all connections
    {"do": "handshakes", "port": n, "at_once": 8, "seconds": 1.0}
                                            {"handshakes": n, "elapsed": seconds}
    {"do": "fairness", "port": n, "in_flight": 20000, "seconds": 3.0}
                                            seconds: "p50", "p99", "max"; "echoes" and "flood",
                                            how many came back in "elapsed"
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import ssl
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from answers import measure, reply

__all__ = ["allow_descriptors", "answer_next", "arguments", "ready", "tls_context"]


def arguments() -> argparse.Namespace:
    """Read a peer's command line, which is the same for all of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--certificate", help="PEM file of certificate and key: serve TLS")
    return parser.parse_args()


def allow_descriptors() -> None:
    """Let this process have as many sockets as it may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def tls_context(certificate: str | None, kind: type[ssl.SSLContext]) -> ssl.SSLContext | None:
    """Return what a server needs for TLS, gevent's kind or Python's; None: it is to do without."""
    if certificate is None:
        return None
    context = kind(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def ready(port: int, *packages: str, **more: str) -> None:
    """Say that the server listens, and what it is made of."""
    allow_descriptors()
    # What was imported is not walked again, by none of the peers.
    gc.collect()
    gc.freeze()
    versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    reply({"port": port, "versions": {**versions, **more}})


def answer_next(more: Callable[[dict[str, Any]], object] = lambda command: None) -> None:
    """Answer a command that is there on stdin, at once; `more` is told those that are unknown."""
    # The bench waits for each answer, so there is one.
    line = os.read(sys.stdin.fileno(), 65536)
    if not line:
        os._exit(0)
    command = json.loads(line)
    answer = measure(command["do"])
    if answer is None:
        more(command)
    reply(answer or {})
