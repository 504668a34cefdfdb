"""
pywebtransport 0.21 in both roles: the newest draft, with session flow control.

It needs a Python of its own (3.12 or later); GWT_PYWEBTRANSPORT names its interpreter, or it is
looked for in `.peers/pywebtransport`, where tools/test puts it.
"""

from __future__ import annotations

import os
from pathlib import Path

import gevent
import pytest
from gevent import subprocess

import gwt
from gwt import certificates
from tests.helpers import spawn
from tests.helpers.live import echo, serving, url

ROOT = Path(__file__).resolve().parents[2]
PEER = Path(__file__).with_name("peer_pywebtransport.py")
PYTHON = Path(
    os.environ.get("GWT_PYWEBTRANSPORT") or ROOT / ".peers" / "pywebtransport" / "bin" / "python"
)

pytestmark = pytest.mark.skipif(
    not PYTHON.exists(),
    reason="pywebtransport is not installed; tools/test does it where it finds Python 3.12",
)


def start(*arguments):
    return subprocess.Popen(
        [str(PYTHON), str(PEER), *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )


def test_its_client_talks_to_our_server():
    ends = []
    keys = []

    def handler(session):
        keys.append(session.export_keying_material("label", 48, b"more").hex())
        # Before the end: once both sides are done, the protocol forgets the session.
        draft = session.connection.protocol.sessions[0].draft.number
        try:
            echo(session)
        finally:
            ends.append((draft, session.close_code, session.close_reason))

    with serving(handler) as server:
        peer = start("client", url(server))
        lines, _ = peer.communicate(timeout=20)
    assert peer.returncode == 0
    assert lines.splitlines() == [
        "bidirectional 1000000",
        "streams 60",
        f"keys {keys[0]}",
        "unidirectional one way",
        "datagram",
        "closed",
    ]
    assert ends == [(16, 55, "enough")]


def test_our_client_talks_to_its_server(tmp_path):
    cert, key = certificates.write(tmp_path, certificates.generate())
    peer = start("server", cert, key)
    try:
        with gevent.Timeout(10):
            port = int(peer.stdout.readline())
        session = gwt.connect(f"https://127.0.0.1:{port}/", cafile=cert)
        assert session.connection.protocol.draft.number == 16
        stream = session.create_bidirectional_stream()
        writing = spawn(stream.write_all, bytes(1_000_000))
        assert stream.read_all(timeout=10) == bytes(1_000_000)
        writing.get(timeout=5)
        for index in range(60):
            stream = session.create_bidirectional_stream()
            stream.write_all(b"%d" % index)
            assert stream.read_all(timeout=5) == b"%d" % index
        session.create_unidirectional_stream().write_all(b"one way")
        assert session.accept_stream(timeout=5).read_all(timeout=5) == b"one way"
        session.send_datagram(b"datagram")
        assert session.receive_datagram(timeout=5) == b"datagram"
        session.close()
        assert session.connection.is_closed
    finally:
        peer.terminate()
        peer.communicate()
