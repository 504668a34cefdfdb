"""tools/bench runs its works on its peers; what it measures is not judged here."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from gevent import subprocess

from tests.scale.peer import ROOT

# One for each thing that a client can be told to do; and what is asked of gwt alone.
WORKS = {"download", "stream", "datagram", "session", "busy", "busy-idle", "memory"}
LATENESS = {"late-bulk", "late-streams", "late-datagrams", "late-packets"}

PEERS = ["gwt", "aioquic"]
if Path(
    os.environ.get("GWT_PYWEBTRANSPORT") or ROOT / ".peers" / "pywebtransport" / "bin" / "python"
).exists():
    PEERS.append("pywebtransport")


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


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nothing",),
        ("webtransport", "--only", "nothing"),
        ("webtransport", "--rounds", "0"),
        ("webtransport", "--profile", "memory"),
    ],
)
def test_a_wrong_argument_is_usage(arguments):
    done = bench(*arguments)
    assert done.returncode == 2
    assert b"usage" in done.stderr
