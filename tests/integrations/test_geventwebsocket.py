"""Programs that were written for gevent-websocket, by its names and by ours."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from gevent.pool import Pool

import gwt
from gwt.integrations.geventwebsocket import (
    MSG_CLOSED,
    BaseProtocol,
    Resource,
    WebSocketApplication,
    WebSocketError,
    WebSocketServer,
)
from tests.helpers import eventually
from tests.helpers.hosts import serving as serving_process

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def serving(app: Any, **options: Any) -> Iterator[Any]:
    server = WebSocketServer(("127.0.0.1", 0), app, log=StringIO(), spawn=Pool(), **options)
    server.start()
    try:
        yield server
    finally:
        server.stop(timeout=1)


def connect(server: Any, path: str = "/", **options: Any) -> gwt.WebSocket:
    return gwt.connect(f"ws://127.0.0.1:{server.server_port}{path}", timeout=5, **options)


class Recording(WebSocketApplication):
    """An echo that notes what it is told."""

    seen: list[Any]

    def on_open(self) -> None:
        self.seen.append("open")

    def on_message(self, message: Any) -> None:
        self.seen.append(message)
        super().on_message(message)

    def on_close(self, reason: Any) -> None:
        self.seen.append(("close", reason))


@pytest.fixture
def recording() -> type[Recording]:
    return type("Recording", (Recording,), {"seen": []})


def page(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [])
    return [b"a page"]


@pytest.mark.parametrize(
    "host", ["pywsgi", "gwt.integrations.geventwebsocket.GeventWebSocketWorker"]
)
def test_an_old_chat_runs_as_it_was_written(host: str) -> None:
    with serving_process(host, "chat_app:app") as server:
        with server.connect("/chat") as anna, server.connect("/chat") as bert:
            for ws, name, names in ((anna, "Anna", ["Anna", "nobody"]), (bert, "Bert", None)):
                ws.send(json.dumps({"type": "name", "name": name}))
                told = json.loads(ws.recv(20))
                assert told == {"type": "names", "names": names or ["Anna", "Bert"]}
            anna.send(json.dumps({"type": "say", "what": "hello"}))
            for ws in (anna, bert):
                assert json.loads(ws.recv(20)) == {"type": "said", "by": "Anna", "what": "hello"}
            anna.close(1000, "home")
            bert.abort()
        eventually(lambda: server.output.count("somebody went") == 2)
        assert server.output.count("somebody came") == 2
        assert "somebody went: home" in server.output
        assert "a page" in server.get("/")
        with pytest.raises(gwt.SessionRejected) as caught:
            server.connect("/nowhere")
        assert caught.value.status == 404
        assert "Traceback" not in server.output


def test_an_old_loop_runs_as_it_was_written() -> None:
    with serving_process("pywsgi", "chat_app:echo") as server:
        with server.connect("/") as ws:
            for message in ("text", b"binary"):
                ws.send(message)
                assert ws.recv(20) == message
        eventually(lambda: "an OSError: True" in server.output)


@pytest.mark.parametrize("kind", [list, OrderedDict, dict])
def test_a_resource_takes_pairs_or_a_mapping(kind: Any, recording: type[Recording]) -> None:
    with serving(Resource(kind([("^/page", page), ("^/echo", recording)]))) as server:
        with connect(server, "/echo/more") as ws:
            ws.send(b"hi")
            assert ws.recv(5) == b"hi"
        eventually(lambda: recording.seen == ["open", b"hi", ("close", MSG_CLOSED)])
        with pytest.raises(gwt.SessionRejected) as caught:
            connect(server, "/page")
        assert caught.value.status == 404


def test_an_application_is_open_before_it_says_anything(recording: type[Recording]) -> None:
    with serving(Resource([("/", recording)])) as server, connect(server):
        eventually(lambda: recording.seen == ["open"])


def test_a_protocol_has_a_name_and_passes_on(recording: type[Recording]) -> None:
    class Loud(BaseProtocol):
        PROTOCOL_NAME = "loud"

        def on_message(self, message: Any) -> None:
            assert self.server is server and self.handler.active_client.ws is self.app.ws
            super().on_message(message.upper())

    recording.protocol_class = Loud
    resource = Resource([("/", recording)])
    assert resource.app_protocol("/x") == "loud" and Resource().app_protocol("/x") == ""
    with serving(resource) as server:
        for offered, chosen in ((["quiet", "loud"], "loud"), (["quiet"], None)):
            with connect(server, subprotocols=offered) as ws:
                assert ws.subprotocol == chosen
                ws.send("hi")
                assert ws.recv(5) == "HI"


def test_an_application_that_fails_is_told_of_the_close(
    recording: type[Recording], caplog: pytest.LogCaptureFixture
) -> None:
    recording.on_message = lambda self, message: 1 / 0  # type: ignore[assignment]
    with serving(Resource([("/", recording)])) as server, connect(server) as ws:
        ws.send("x")
        with pytest.raises(gwt.WebSocketClosedError) as caught:
            ws.recv(5)
        assert caught.value.code == 1011
    assert recording.seen == ["open", ("close", MSG_CLOSED)]
    assert [record.exc_info is not None for record in caplog.records] == [True]


def test_a_peer_that_goes_while_it_is_told_something_is_no_error(
    recording: type[Recording], caplog: pytest.LogCaptureFixture
) -> None:
    def answer(self: Recording, message: Any) -> None:
        self.ws.wait_closed()
        with pytest.raises(WebSocketError):
            self.ws.send("too late")
        self.ws.send("too late")

    recording.on_message = answer  # type: ignore[assignment]
    with serving(Resource([("/", recording)])) as server:
        with connect(server) as ws:
            ws.send("x")
        eventually(lambda: ("close", MSG_CLOSED) in recording.seen)
    assert not caplog.records


def test_the_server_knows_its_clients(recording: type[Recording]) -> None:
    with serving(Resource([("/", recording)])) as server:
        with connect(server) as ws:
            eventually(lambda: recording.seen == ["open"])
            [(address, client)] = server.clients.items()
            assert address == client.address == ws.local_address
            client.ws.send("from elsewhere")
            assert ws.recv(5) == "from elsewhere"
            client.ws.close(1001, message=b"moved")
            assert list(ws) == [] and (ws.close_code, ws.close_reason) == (1001, "moved")
        eventually(lambda: not server.clients)


def test_a_hook_may_keep_a_request_as_http(recording: type[Recording]) -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        assert "wsgi.websocket" not in environ
        start_response("402 Payment Required", [])
        return []

    with (
        serving(app, pre_start_hook=lambda handler: handler.path == "/") as server,
        pytest.raises(gwt.SessionRejected) as caught,
    ):
        connect(server)
    assert caught.value.status == 402


def run(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_install_is_found_by_every_kind_of_import() -> None:
    out = run(
        "import importlib.util\n"
        "from gwt.integrations import geventwebsocket as ours\n"
        "ours.install(); ours.install()\n"
        "import geventwebsocket, geventwebsocket.websocket\n"
        "from geventwebsocket import WebSocketError, WebSocketServer\n"
        "from geventwebsocket.exceptions import WebSocketError as same\n"
        "from geventwebsocket.handler import WebSocketHandler\n"
        "from geventwebsocket.protocols.base import BaseProtocol\n"
        "assert importlib.util.find_spec('geventwebsocket') is not None\n"
        "assert WebSocketHandler is ours.WebSocketHandler and WebSocketError is same\n"
        "assert geventwebsocket.websocket.MSG_SOCKET_DEAD == 'Socket is dead'\n"
        "try: from geventwebsocket.handler import nothing\n"
        "except ImportError as exc: print(exc)\n"
    )
    assert "nothing" in out


def test_importing_it_installs_nothing_and_needs_no_gunicorn() -> None:
    run(
        "import sys\n"
        "import gwt.integrations.geventwebsocket as ours\n"
        "assert not {'geventwebsocket', 'gunicorn'} & set(sys.modules)\n"
        "assert not hasattr(ours, 'nothing')\n"
    )


def test_install_comes_before_the_real_one() -> None:
    out = run(
        "import sys, types\n"
        "sys.modules['geventwebsocket'] = types.ModuleType('geventwebsocket')\n"
        "from gwt.integrations.geventwebsocket import install\n"
        "try: install()\n"
        "except RuntimeError as exc: print(exc)\n"
    )
    assert "imported already" in out
