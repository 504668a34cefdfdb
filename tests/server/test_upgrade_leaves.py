"""Nothing of pywsgi stays behind a WebSocket: neither objects nor frames nor its greenlet."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import gevent
import pytest
from gevent.event import Event

import gwt
from gwt import certificates
from gwt.server import upgrade
from tests.helpers import eventually


@pytest.fixture(params=["plain", "tls"])
def options(request: pytest.FixtureRequest, tmp_path: Any) -> dict[str, Any]:
    if request.param == "plain":
        return {}
    cert, key = certificates.write(tmp_path, certificates.generate())
    return {"certfile": cert, "keyfile": key}


@pytest.mark.parametrize("middleware", [False, True])
@pytest.mark.parametrize("way", ["short", "long"])
def test_a_websocket_keeps_nothing_of_its_request(options, middleware, way, monkeypatch):
    watched: dict[str, Any] = {}
    knock = upgrade.Door.knock

    def knocking(*args):
        watched["greenlet"] = weakref.ref(gevent.getcurrent())
        return knock(*args)

    monkeypatch.setattr(upgrade.Door, "knock", knocking)
    if way == "long":
        monkeypatch.setattr(upgrade.Door, "open_at_once", lambda *_: False)
    environs: list[Any] = []
    get_environ = upgrade.Handler.get_environ

    def watching(handler):
        environs.append(get_environ(handler))
        parts = {
            "handler": handler,
            "rfile": handler.rfile,
            "raw": handler.rfile.raw,
            "headers": handler.headers,
        }
        watched.update((name, weakref.ref(part)) for name, part in parts.items())
        return environs[-1]

    monkeypatch.setattr(upgrade.Handler, "get_environ", watching)
    app = gwt.App()
    if middleware:
        app.middleware(lambda request: None)
    leave = Event()

    @app.websocket("/<name>")
    def handler(ws, name):
        leave.wait()

    with gwt.Server(app, "127.0.0.1:0", http3=False, **options) as server:
        scheme = "wss" if options else "ws"
        gc.collect()
        gc.disable()
        try:
            ws = gwt.connect("{}://{}:{}/x".format(scheme, *server.address), verify=not options)
            assert len(watched) == (5 if way == "long" else 1)
            assert environs == ([{}] if way == "long" else []), "a route has no use for one"
            assert server.stats()["handlers"] == 1
            # Without the collector: there are no cycles to be broken either.
            eventually(lambda: not [name for name, ref in watched.items() if ref() is not None])
        finally:
            gc.enable()
            leave.set()
        ws.close()
