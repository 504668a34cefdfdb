"""What the peers on gevent share: commands that are answered between greenlets, and pywsgi."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import gevent
from control import answer_next, arguments, ready, tls_context
from gevent.pywsgi import WSGIServer
from gevent.ssl import SSLContext
from profiler import Profiler

__all__ = ["answering", "serve_wsgi"]

_READ = 1


def _profile(profiler: Profiler, command: dict[str, Any]) -> None:
    profiler.command(command["file"])


def answering() -> object:
    """Answer commands from now on, as long as what is returned is kept."""
    watcher = gevent.get_hub().loop.io(sys.stdin.fileno(), _READ)
    watcher.start(answer_next, partial(_profile, Profiler()))
    return watcher


def serve_wsgi(
    application: Callable[..., Any],
    *packages: str,
    said: Mapping[str, str] = MappingProxyType({}),
    **options: Any,
) -> None:
    """Serve a WSGI application for ever, as the command line says."""
    context = tls_context(arguments().certificate, SSLContext)
    if context is not None:
        options["ssl_context"] = context
    server = WSGIServer(("127.0.0.1", 0), application, log=None, **options)
    server.start()
    watcher = answering()
    ready(server.server_port, "gevent", *packages, **said)
    server.serve_forever()
    del watcher
