"""``gwt bench``: every mode, its figures, failures, Ctrl-C, a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

import gwt
from gwt.cli.demo import make_app
from tests.helpers import live

KEYS = {
    "url": str,
    "mode": str,
    "clients": int,
    "connected": int,
    "ended_early": int,
    "size": int,
    "duration": float,
    "connect_duration": float,
    "operations": int,
    "rate": float,
    "target_rate": (float, type(None)),
    "bytes": int,
    "bytes_per_second": float,
    "lost": int,
    "errors": dict,
    "error_messages": dict,
    "latency_ms": dict,
    "connect_ms": dict,
    "client_cpu": float,
    "hub_lateness_ms": dict,
    "limited_by": str,
    "interrupted": bool,
}
TIMES = ["min", "mean", "p50", "p90", "p99", "p99.9", "max"]

SHORT = ("--duration", "0.3", "--clients", "3", "--json")


@pytest.fixture
def server() -> Iterator[gwt.Server]:
    with live.serving(make_app()) as server:
        yield server


def webtransport(server: gwt.Server, path: str = "") -> list[str]:
    return [live.url(server, path), "--cert-hash", server.certificate_hash]


def websocket(server: gwt.Server, path: str = "") -> list[str]:
    return [live.url(server, path).replace("https", "ws")]


def check(measured: dict) -> None:
    """What holds for every run: which keys there are, and how they hang together."""
    assert list(measured) == list(KEYS)
    for key, kind in KEYS.items():
        assert isinstance(measured[key], kind), key
    for key in ("latency_ms", "connect_ms", "hub_lateness_ms"):
        assert list(measured[key]) == TIMES
        times = [measured[key][name] for name in TIMES if name != "mean"]
        if times[0] is not None:
            assert times == sorted(times)
            assert times[0] <= measured[key]["mean"] <= times[-1]
    assert measured["rate"] == pytest.approx(
        measured["operations"] / measured["duration"], rel=0.02
    )
    assert measured["connected"] <= measured["clients"]
    assert measured["limited_by"] in ("client", "server or network", "rate")
    assert set(measured["errors"]) == set(measured["error_messages"])


@pytest.mark.parametrize("mode", ["echo", "datagram", "stream", "upload", "connect"])
def test_webtransport_in_every_mode(run, server, mode):
    result = run("bench", *webtransport(server), "--mode", mode, *SHORT)
    assert (result.code, result.stderr) == (0, "")
    measured = json.loads(result.stdout)
    check(measured)
    assert measured["connected"] == 3 and measured["operations"] > 0 and not measured["errors"]
    assert measured["url"] == live.url(server, "/upload" if mode == "upload" else "/echo")
    size = {"upload": 2**20, "connect": 0}.get(mode, 64)
    assert measured["bytes"] == size * measured["operations"]


@pytest.mark.parametrize("mode", ["echo", "connect"])
def test_websocket_in_every_mode(run, server, mode):
    result = run("bench", *websocket(server), "--mode", mode, *SHORT)
    assert (result.code, result.stderr) == (0, "")
    measured = json.loads(result.stdout)
    check(measured)
    assert measured["connected"] == 3 and measured["operations"] > 0 and not measured["errors"]
