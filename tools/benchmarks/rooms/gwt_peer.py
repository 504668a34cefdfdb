"""What the peers that are servers of gwt's share: how they run, and what they answer."""

from __future__ import annotations

import gc
import json
import os
import sys
from typing import Any

import gevent
from answers import measure, reply
from control import arguments, ready
from gevent.fileobject import FileObjectPosix
from profiler import Profiler
from ticker import Ticker

import gwt

__all__ = ["serve"]

_profiler = Profiler()
_ticker = Ticker()


def _answer(command: dict[str, Any]) -> dict[str, Any]:
    if command["do"] == "profile":
        _profiler.command(command["file"])
    elif command["do"] == "settle":
        gc.collect()
        gc.freeze()
    elif command["do"] == "ticker":
        _ticker.start()
    elif command["do"] == "lateness":
        return _ticker.stop()
    return measure(command["do"]) or {}


def _answer_all() -> None:
    with FileObjectPosix(sys.stdin.fileno(), "rb", closefd=False) as lines:
        for line in lines:
            reply(_answer(json.loads(line)))
    os._exit(0)


def serve(app: gwt.App) -> None:
    """Serve an application for ever, as the command line says."""
    certificate = arguments().certificate
    http3 = certificate is not None
    with gwt.Server(app, "127.0.0.1:0", certfile=certificate, http3=http3) as server:
        gevent.spawn(_answer_all)
        ready(server.address[1], "gevent", "wsproto")
        server.serve_forever()
