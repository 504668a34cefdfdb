"""
``gwt serve``: serve an application, or the demo, until SIGINT or SIGTERM.

It prints one line when it listens. A signal drains and stops the server, a second one ends it at
once; SIGTERM's exit code is 0, SIGINT's 130.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

import gevent

import gwt

from . import demo

__all__ = ["configure", "load", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Say which arguments there are."""
    parser.add_argument(
        "application",
        nargs="?",
        metavar="MODULE:ATTR",
        help="a gwt.App or a WSGI application, looked for in the current directory first; "
        "without it, the demo",
    )
    parser.add_argument(
        "--bind",
        default="127.0.0.1:8000",
        metavar="HOST:PORT",
        help="where to listen, for TCP and UDP; port 0 picks one (default: %(default)s)",
    )
    parser.add_argument(
        "--certfile", metavar="FILE", help="PEM certificate and its chain; TCP speaks TLS with it"
    )
    parser.add_argument(
        "--keyfile", metavar="FILE", help="PEM private key, if it is not in the certfile"
    )
    parser.add_argument(
        "--no-http3", dest="http3", action="store_false", help="serve TCP only, without HTTP/3"
    )


def run(args: argparse.Namespace) -> int:
    """Serve; returns when a signal has ended it."""
    app = load(args.application) if args.application else demo.make_app()

    def ready(server: gwt.Server) -> None:
        if isinstance(app, demo.Demo):
            app.attach(server)
        # What was imported stays: the collector need not look at it again, which takes as long as
        # everything else that keeps a greenlet waiting.
        gc.collect()
        gc.freeze()
        print(_announcement(server), flush=True)

    # Each WebSocket is a descriptor.
    gwt.raise_descriptor_limit()
    signals: list[int] = []
    waiting = gevent.getcurrent()

    def note(number: int) -> None:
        signals.append(number)
        if len(signals) > 1:
            # Whoever asks twice does not want to wait until everybody is gone.
            gevent.kill(waiting, SystemExit(128 + number))

    # Beside those of gwt.serve, which stop the server.
    watchers = [gevent.signal_handler(n, note, n) for n in (signal.SIGINT, signal.SIGTERM)]
    try:
        gwt.serve(
            app,
            args.bind,
            certfile=args.certfile,
            keyfile=args.keyfile,
            http3=args.http3,
            ready=ready,
        )
    finally:
        for watcher in watchers:
            watcher.cancel()
    return 130 if signal.SIGINT in signals else 0


def _announcement(server: gwt.Server) -> str:
    host, port = server.address
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    secure = server.config.certfile is not None
    words = ["listening on", f"{'https' if secure else 'http'}://{where}"]
    if server.config.http3:
        words += ["(h3)"] if secure else [f"https://{where}", "(h3)"]
    if server.config.http3 or secure:
        words += ["certificate sha-256", server.certificate_hash]
    return " ".join(words)


def load(name: str) -> gwt.App | Callable[..., Any]:
    """Return the application that "MODULE:ATTR" names; raises ConfigError in one sentence."""
    module_name, separator, attribute = name.partition(":")

    def wrong(why: str) -> gwt.ConfigError:
        return gwt.ConfigError(f"{name!r} cannot be served: {why}.", field="app", value=name)

    if not separator or not module_name or not attribute:
        raise wrong('it is not of the form "MODULE:ATTR"')
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        raise wrong(f"there is no module {exc.name!r}") from exc
    except (Exception, SystemExit) as exc:
        # Boundary to user code: the module's own.
        where = traceback.extract_tb(exc.__traceback__)[-1]
        text = f"{type(exc).__name__} in {where.filename}, line {where.lineno}"
        raise wrong(f"its module raised {text}: {exc}") from exc
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise wrong(f"there is no {part!r} in it") from None
    if not isinstance(found, gwt.App) and not callable(found):
        kind = type(found).__name__
        raise wrong(f"it is no gwt.App and no WSGI application, but of type {kind}")
    app: gwt.App | Callable[..., Any] = found
    return app
