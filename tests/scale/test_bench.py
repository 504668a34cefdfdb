"""tools/bench runs its works on its peers; what it measures is not judged here."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
from gevent import subprocess

from tests.scale.peer import ROOT

# One for each thing that a client can be told to do; and what is asked of gwt alone.
WORKS = {"download", "stream", "datagram", "session", "busy", "busy-idle", "memory"}
LATENESS = {"late-bulk", "late-streams", "late-datagrams", "late-packets"}

# Of tools/bench websocket.
ROWS = {
    "64-50",
    "64-500",
    "16k-50",
    "64-50-text",
    "64-50-tls",
    "16k-50-tls",
    "handshakes",
    "idle",
    "fairness",
}

# Of tools/bench rooms: of all peers, and of gwt alone.
ROOMS = {"1000", "5000", "1000-ten", "1000-tls"}
OF_GWT = {
    "100-webtransport": "server",
    "100-webtransport-ten": "server",
    "late-5000": "cpu_max",
    "reaper": "ms",
    "joining": "times",
    "instances": "us",
}

PEERS = ["gwt", "aioquic"]
if Path(
    os.environ.get("GWT_PYWEBTRANSPORT") or ROOT / ".peers" / "pywebtransport" / "bin" / "python"
).exists():
    PEERS.append("pywebtransport")

# Those that need no environment of their own, and those whose is there.
WEBSOCKET_PEERS = ["gwt", "gwt-wsgi"] + [
    name
    for name in ("gevent-websocket", "websockets", "aiohttp", "simple-websocket")
    if (ROOT / ".peers" / name / "bin" / "python").exists()
]


def bench(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [ROOT / "tools" / "bench", *arguments],
        env={**os.environ, "GWT_PYTHON": sys.executable, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow
@pytest.mark.deadline(180)
def test_works_are_measured_on_every_peer():
    works = ",".join(WORKS | LATENESS)
    options = ["--quick", "--rounds", "1", "--json", "--only", works, "--peers", ",".join(PEERS)]
    done = bench("webtransport", *options)
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    assert found["environment"]["python"]
    assert set(found["works"]) == WORKS | LATENESS
    for work in WORKS:
        assert set(found["works"][work]) == set(PEERS)
        for result in found["works"][work].values():
            assert result["server"] > 0
            assert work == "memory" or result["ratio"] > 0
    for work in LATENESS:
        assert set(found["works"][work]) == {"gwt"}
        late = found["works"][work]["gwt"]
        assert 0 <= late["cpu_max"] <= late["max"]
    # A target is there when what it compares was measured.
    judged = {(*target["row"], *(target["base"] or ())) for target in found["targets"]}
    assert ("download", "aioquic", "download", "gwt") in judged
    assert ("busy-idle", "gwt", "busy", "gwt") in judged
    assert ("late-bulk", "gwt") in judged
    assert ("stream", "gwt", "stream", "pywebtransport") in judged or len(PEERS) == 2


@pytest.mark.slow
@pytest.mark.deadline(300)
def test_rows_are_measured_on_every_websocket_peer():
    options = ["--quick", "--rounds", "1", "--json", "--peers", ",".join(WEBSOCKET_PEERS)]
    done = bench("websocket", *options)
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    assert found["environment"]["gevent"]
    assert set(found["versions"]) == set(WEBSOCKET_PEERS)
    assert set(found["works"]) == ROWS
    for row in ROWS:
        assert set(found["works"][row]) == set(WEBSOCKET_PEERS)
        for result in found["works"][row].values():
            if row == "idle":
                assert result["kib"] > 0
            elif row == "fairness":
                assert 0 < result["p50"] <= result["p99"] <= result["max"]
                assert result["echoes"] > 0
            else:
                assert result["server"] > 0
                assert result["ratio"] > 0
    for peer in ("gwt", "gwt-wsgi"):
        assert found["works"]["fairness"][peer]["flood"] > 0
    judged = {tuple(target["row"]) for target in found["targets"]}
    assert {("idle", "gwt"), ("idle", "gwt-wsgi"), ("fairness", "gwt")} <= judged


@pytest.mark.slow
@pytest.mark.deadline(180)
def test_rows_of_rooms_are_measured_on_every_peer():
    peers = ["gwt", "sequential", *(set(WEBSOCKET_PEERS) & {"websockets"})]
    rows = ",".join([*ROOMS, *OF_GWT])
    options = ["--quick", "--rounds", "1", "--json", "--rows", rows, "--peers", ",".join(peers)]
    done = bench("rooms", *options)
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    assert set(found["versions"]) == set(peers)
    assert set(found["works"]) == ROOMS | set(OF_GWT)
    for row in ROOMS:
        assert set(found["works"][row]) == set(peers)
        for result in found["works"][row].values():
            assert result["server"] > 0
            assert result["turn"] > 0
            assert result["ratio"] > 0
    for row, figure in OF_GWT.items():
        assert set(found["works"][row]) == {"gwt"}
        assert found["works"][row]["gwt"][figure] > 0
    judged = {(*target["row"], *(target["base"] or ())) for target in found["targets"]}
    assert ("1000", "gwt", "1000", "sequential") in judged
    assert ("1000-ten", "gwt", "1000", "gwt") in judged
    assert {(row, "gwt") for row in ("late-5000", "reaper", "joining", "instances")} <= judged


def test_a_room_is_as_large_as_descriptors_allow():
    options = "rooms --quick --rounds 1 --rows 1000 --peers gwt --json"
    command = f"ulimit -n 150; exec {ROOT / 'tools' / 'bench'} {options}"
    done = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "GWT_PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"100 members need more than the 150 descriptors" in done.stderr
    assert json.loads(done.stdout)["works"]["1000"]["gwt"]["members"] == 50


@pytest.mark.slow
def test_a_profile_names_the_functions_of_a_broadcast(tmp_path):
    done = bench("rooms", "--quick", "--profile", "1000", TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr.decode()
    assert [path.name for path in tmp_path.glob("*.prof")] == ["gwt-rooms-1000.prof"]
    assert b"(broadcast_to_room)" in done.stdout


@pytest.mark.parametrize("peers", ["gwt,websockets", "websockets"])
def test_a_websocket_peer_that_is_not_there_is_left_out(peers):
    options = ["--quick", "--rounds", "1", "--rows", "64-50", "--peers", peers]
    done = bench("websocket", *options, GWT_WEBSOCKETS="/nowhere")
    assert b"going on without websockets" in done.stderr
    assert done.returncode == (0 if "gwt" in peers else 1)
    assert (b"masking" in done.stdout) == ("gwt" in peers)


@pytest.mark.slow
@pytest.mark.parametrize("peer", ["gwt", "gwt-wsgi"])
def test_a_profile_names_the_functions_of_a_websocket_server(tmp_path, peer):
    options = ["--quick", "--profile", "handshakes", "--peers", peer]
    done = bench("websocket", *options, TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr.decode()
    assert [path.name for path in tmp_path.glob("*.prof")] == [f"{peer}-websocket-handshakes.prof"]
    assert b"(check_upgrade)" in done.stdout


@pytest.mark.parametrize(
    ("peers", "returncode"), [("gwt,pywebtransport", 0), ("pywebtransport", 1)]
)
def test_a_peer_that_is_not_there_is_left_out(peers, returncode):
    options = ["--quick", "--rounds", "1", "--json", "--only", "datagram", "--peers", peers]
    done = bench("webtransport", *options, GWT_PYWEBTRANSPORT="/nowhere")
    assert done.returncode == returncode
    assert b"going on without pywebtransport" in done.stderr
    if returncode == 0:
        found = json.loads(done.stdout)
        assert set(found["works"]["datagram"]) == {"gwt"}
        assert found["targets"] == []


@pytest.mark.slow
def test_a_profile_names_the_functions_of_both_ends(tmp_path):
    done = bench("webtransport", "--quick", "--profile", "datagram", TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr.decode()
    assert len(list(tmp_path.glob("*.prof"))) == 2
    for role in (b"server", b"client"):
        assert role + b", the rest is in " in done.stdout
    assert done.stdout.count(b"(receive_datagram)") >= 2


@pytest.mark.slow
@pytest.mark.deadline(120)
def test_what_clients_cost_is_measured():
    peers = ["gwt"]
    if (ROOT / ".peers" / "pywebtransport-0.6.1" / "bin" / "python").exists():
        peers.append("pywebtransport-0.6.1")
    done = bench("clients", "--quick", "--rounds", "1", "--json", "--peers", ",".join(peers))
    assert done.returncode == 0, done.stderr.decode()
    works = json.loads(done.stdout)["works"]
    assert {name: set(of) for name, of in works.items()} == {
        "establish": set(peers),
        "establish-unverified": set(peers),
        "idle-session": set(peers),
        "idle-websocket": {"gwt"},
        "pooled": {"gwt"},
    }
    for peer in peers:
        assert set(works["establish"][peer]) >= {"client", "and_close", "elapsed", "ratio"}
        assert works["idle-session"][peer]["KiB"] > 0
    assert works["pooled"]["gwt"]["us"] > 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("clients", "--rows", "nothing"),
        (),
        ("nothing",),
        ("webtransport", "--only", "nothing"),
        ("webtransport", "--rounds", "0"),
        ("webtransport", "--profile", "memory"),
        ("websocket", "--rows", "nothing"),
        ("websocket", "--rounds", "0"),
        ("websocket", "--profile", "idle"),
        ("websocket", "--profile", "64-50", "--peers", "aiohttp"),
        ("rooms", "--rows", "nothing"),
        ("rooms", "--rounds", "0"),
        ("rooms", "--profile", "reaper"),
        ("rooms", "--profile", "1000", "--peers", "websockets"),
    ],
)
def test_a_wrong_argument_is_usage(arguments):
    done = bench(*arguments)
    assert done.returncode == 2
    assert b"usage" in done.stderr


@pytest.mark.slow
@pytest.mark.deadline(120)
def test_the_scale_of_one_process_is_shown():
    command = [ROOT / "tools" / "scale", "--sessions", "40", "--websockets", "60"]
    environment = {**os.environ, "GWT_PYTHON": sys.executable}
    output = subprocess.check_output(command, env=environment, text=True)
    assert "40 of 40 WebTransport sessions" in output and "60 of 60 WebSockets" in output
    assert output.count("connected") == output.count("echoed") == output.count("closed") == 2
    # Once, unless that was half a minute ago: the machine may be slow.
    assert re.search(r"the name was resolved [12] times", output)
