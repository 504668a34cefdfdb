"""Flask-SocketIO with a real client: by WebSocket at once, and by an upgrade from polling."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from gevent import subprocess

from tests.helpers import eventually
from tests.helpers.hosts import APPS, HOSTS, Host, serving

# python-engineio takes the raw socket, or finds gevent-websocket's names, which are ours.
DRIVERS = {"raw socket": "socketio_app:app", "wsgi.websocket": "socketio_driver_app:app"}


@pytest.fixture(
    scope="module",
    params=[
        *[(host, driver) for host in HOSTS for driver in DRIVERS],
        ("python", "socketio_run.py"),
    ],
    ids=lambda each: ", ".join(each),
)
def server(request: pytest.FixtureRequest) -> Iterator[Host]:
    host, driver = request.param
    with serving(host, DRIVERS.get(driver, driver)) as running:
        yield running


@pytest.mark.deadline(60)
@pytest.mark.parametrize("transports", [["websocket"], ["polling", "websocket"]], ids="+".join)
def test_a_client_does_all_it_can(server: Host, transports: list[str]) -> None:
    gone = server.output.count("gone:")
    client = subprocess.Popen(
        [sys.executable, "socketio_client.py", f"http://127.0.0.1:{server.port}", *transports],
        cwd=APPS,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        out, err = client.communicate()
    finally:
        if client.poll() is None:
            client.kill()
            client.wait()
    assert (client.returncode, out) == (0, b"done\n"), err.decode() + server.output
    eventually(lambda: server.output.count("gone:") >= gone + 2)
    assert "Traceback" not in server.output, server.output
