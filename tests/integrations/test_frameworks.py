"""Applications of Flask, Django and Bottle on each host: what they are, WebSockets included."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import gwt
from tests.helpers import eventually
from tests.helpers.hosts import APPS, HOSTS, ROOT, Host, serving


@pytest.fixture(
    scope="module",
    params=[(host, app) for host in HOSTS for app in ("flask", "django", "bottle")],
    ids=lambda each: " ".join(each),
)
def server(request: pytest.FixtureRequest) -> Iterator[Host]:
    host, app = request.param
    with serving(host, f"{app}_app:app") as running:
        yield running


def test_messages_come_back(server: Host) -> None:
    with server.connect() as ws:
        for message in ("text", b"binary", "x" * 200_000):
            ws.send(message)
            assert ws.recv(20) == message


def test_the_end_of_the_view_closes_normally(server: Host) -> None:
    with server.connect() as ws:
        ws.send("bye")
        assert list(ws) == []
        assert ws.close_code == 1000


def test_a_view_can_refuse(server: Host) -> None:
    with pytest.raises(gwt.SessionRejected) as caught:
        server.connect("/private")
    assert caught.value.status == 401
    with pytest.raises(gwt.SessionRejected) as caught:
        server.connect("/nowhere")
    assert caught.value.status == 404


def test_pages_are_as_ever(server: Host) -> None:
    answer = server.get()
    assert answer.startswith("HTTP/1.1 200 OK\r\n") and "a page" in answer


def test_a_peer_that_goes_leaves_no_traceback(server: Host) -> None:
    for end in (gwt.WebSocket.close, gwt.WebSocket.abort):
        ws = server.connect()
        ws.send("x")
        assert ws.recv(20) == "x"
        end(ws)
    # Each of these has a greenlet of its own; the ones before had their turn.
    with server.connect() as ws:
        ws.send("x")
        ws.recv(20)
    assert "Traceback" not in server.output


def test_a_view_that_fails_closes_with_an_error(server: Host) -> None:
    before = server.output.count("KeyError")
    with server.connect("/broken") as ws:
        with pytest.raises(gwt.WebSocketClosedError) as caught:
            ws.recv(20)
        assert caught.value.code == 1011
    # Told once, by the framework.
    eventually(lambda: server.output.count("KeyError") > before)


@pytest.mark.parametrize("app", ["flask", "django", "bottle"])
def test_the_documentation_shows_the_view_as_it_is(app: str) -> None:
    code = (APPS / f"{app}_app.py").read_text()
    [view] = [part.strip() for part in code.split("\n\n\n") if "def ws(" in part]
    assert f"```python\n{view}\n```" in (ROOT / "docs" / "wsgi.md").read_text()
