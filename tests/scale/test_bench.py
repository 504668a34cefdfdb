"""tools/bench runs its works on its peers; what it measures is not judged here."""

from __future__ import annotations

import json
import os
import sys

import pytest
from gevent import subprocess

from tests.scale.peer import ROOT

# One for each thing that a client can be told to do.
WORKS = {"download", "upload", "stream", "datagram", "session", "memory"}


def bench(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [ROOT / "tools" / "bench", *arguments],
        env={**os.environ, "GWT_PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow
@pytest.mark.deadline(120)
def test_works_are_measured_on_every_peer():
    done = bench("webtransport", "--quick", "--rounds", "1", "--json", "--only", ",".join(WORKS))
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    assert found["environment"]["python"]
    assert set(found["works"]) == WORKS
    for work, peers in found["works"].items():
        assert set(peers) == {"gwt", "aioquic"}
        for result in peers.values():
            assert result["server"] > 0
            assert work == "memory" or result["ratio"] > 0


@pytest.mark.parametrize(
    "arguments",
    [(), ("nothing",), ("webtransport", "--only", "nothing"), ("webtransport", "--rounds", "0")],
)
def test_a_wrong_argument_is_usage(arguments):
    done = bench(*arguments)
    assert done.returncode == 2
    assert b"usage" in done.stderr
