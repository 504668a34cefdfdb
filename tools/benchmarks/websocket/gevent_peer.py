"""What the peers on gevent share: commands that are answered between greenlets, and pywsgi."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import gevent
from control import answer_next, arguments, ready, tls_context
from gevent.pywsgi import WSGIServer

__all__ = ["answering", "serve_wsgi"]

_READ = 1


def answering(more: Callable[[dict[str, Any]], object] = lambda command: None) -> object:
    """Answer commands from now on, as long as what is returned is kept."""
    watcher = gevent.get_hub().loop.io(sys.stdin.fileno(), _READ)
    watcher.start(answer_next, more)
    return watcher


def serve_wsgi(application: Callable[..., Any], *packages: str, **options: Any) -> None:
    """Serve a WSGI application for ever, as the command line says."""
    context = tls_context(arguments().certificate)
    if context is not None:
        options["ssl_context"] = context
    server = WSGIServer(("127.0.0.1", 0), application, log=None, **options)
    server.start()
    watcher = answering()
    ready(server.server_port, "gevent", *packages)
    server.serve_forever()
    del watcher
