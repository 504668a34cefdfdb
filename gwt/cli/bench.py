"""
``gwt bench``: load a WebTransport or WebSocket server, and say what it bears.

All clients connect before the window begins in which operations count. bench_load.py is the load,
bench_report.py what is said about it.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import signal
import sys
import time
from urllib.parse import urlsplit

import gevent

import gwt

from ..client.target import parse_url
from ..client.websocket import SCHEMES
from . import arguments
from .bench_load import CONNECTING, Load
from .bench_operations import MODES, NUMBER, WEBTRANSPORT_ONLY
from .bench_report import Distribution, Progress, figures, print_table

__all__ = ["configure", "run"]

_SIZES = {"upload": 1024 * 1024}
_SIZE = 64

# Beyond it an echo would have to be read while it is written.
_LARGEST_ECHO = 1024 * 1024
_LARGEST_UPLOAD = 2**40

# Between two looks at the clock, and two drawings of the bar, which cost some 3 ms.
_TICK = 0.05
_REDRAW = 0.25

# A timer that fires later than this had to wait for its hub.
_LATE = 0.005

# Descriptors for everything but WebSockets.
_SPARE = 64

_INTERRUPTED = 130


def configure(parser: argparse.ArgumentParser) -> None:
    """Say which arguments there are."""
    parser.add_argument(
        "url",
        metavar="URL",
        help="https://HOST:PORT/PATH for WebTransport, ws://... or wss://...; without a path, "
        "the demo's: /upload for uploads, else /echo",
    )
    add = parser.add_argument
    add("--mode", choices=MODES, default="echo", help=_MODES_HELP)
    add("--clients", type=int, default=10, metavar="N", help="default: %(default)s")
    add(
        "--duration",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="of the window, which begins when all clients are connected (default: %(default)g)",
    )
    add(
        "--size",
        type=int,
        metavar="BYTES",
        help=f"of each operation's payload (default: {_SIZE}, for uploads 1 MiB)",
    )
    add(
        "--rate",
        type=float,
        metavar="N",
        help="operations a second, of all clients together (default: each begins the next when "
        "the last has ended)",
    )
    add("--json", action="store_true", help="print one JSON object instead of the table")
    arguments.connecting(parser)
    add(
        "--timeout",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="for each connect, and for each wait in an operation (default: %(default)g)",
    )
    add(
        "--loss-timeout",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="after which a datagram counts as lost (default: %(default)g)",
    )


_MODES_HELP = (
    "echo: round trips on one stream a client, or of WebSocket messages; datagram: round trips of "
    "datagrams; stream: round trips, a new stream for each; upload: bodies to a server that "
    "counts their bytes; connect: connecting and closing (default: %(default)s)"
)


def run(args: argparse.Namespace) -> int:
    """Connect, measure, print; what was measured until Ctrl-C is printed, too."""
    load = Load(
        _url(args.url, args.mode),
        args.mode,
        _config(args),
        clients=args.clients,
        size=_size(args),
        timeout=args.timeout,
        loss_timeout=args.loss_timeout,
        rate=args.rate,
    )
    if load.url.lower().startswith("ws"):
        _make_room(args.clients)
    # An interrupt that Python raises in the hub would be printed there.
    watcher = gevent.signal_handler(
        signal.SIGINT, gevent.kill, gevent.getcurrent(), KeyboardInterrupt
    )
    try:
        return _run(load, args.duration, args.json)
    finally:
        watcher.cancel()


# Arguments


def _url(url: str, mode: str) -> str:
    try:
        split = urlsplit(url)
    except ValueError:
        # connect() says what is wrong with it.
        return url
    if split.scheme.lower() in ("ws", "wss") and mode in WEBTRANSPORT_ONLY:
        instead = "; echo with a large --size moves data" if mode == "upload" else ""
        raise gwt.ConfigError(
            f"--mode {mode} is for https:// URLs: a WebSocket has messages only{instead}.",
            field="mode",
            value=mode,
        )
    if not split.path:
        split = split._replace(path="/upload" if mode == "upload" else "/echo")
    return split.geturl()


def _shown(url: str) -> str:
    """Return the URL without its password, if it has one."""
    return parse_url(url, {"https": 443, **SCHEMES}, users=True).url


def _size(args: argparse.Namespace) -> int:
    size: int = _SIZES.get(args.mode, _SIZE) if args.size is None else args.size
    least = NUMBER if args.mode == "datagram" else 1
    most = _LARGEST_UPLOAD if args.mode == "upload" else _LARGEST_ECHO
    if not least <= size <= most:
        raise _wrong("size", size, f"from {least} to {most:,} bytes in mode {args.mode}")
    return size


def _config(args: argparse.Namespace) -> gwt.ClientConfig:
    if args.clients < 1:
        raise _wrong("clients", args.clients, "at least 1")
    for name in ("duration", "timeout", "loss_timeout", "rate"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise _wrong(name.replace("_", "-"), value, "a finite number above 0")
    return gwt.ClientConfig(
        connect_timeout=args.timeout,
        verify=not args.insecure,
        server_certificate_hashes=args.cert_hash,
        headers=args.header,
        origin=args.origin,
        subprotocols=args.subprotocol,
        # Compressing would be measured, not the server.
        compression=None,
        # In mode connect all clients are to connect at once, and not to queue in here.
        max_connecting=max(args.clients, CONNECTING),
    )


def _wrong(name: str, value: object, wanted: str) -> gwt.ConfigError:
    return gwt.ConfigError(f"--{name} must be {wanted}, not {value}.", field=name, value=value)


def _make_room(clients: int) -> None:
    limit = gwt.raise_descriptor_limit()
    if limit < clients + _SPARE:
        raise _wrong(
            "clients",
            clients,
            f"at most {limit - _SPARE} where this process may have {limit} descriptors",
        )


# The run


def _run(load: Load, duration: float, as_json: bool) -> int:
    window = _Window(load)
    try:
        try:
            with Progress() as progress:
                window.connect(progress)
                window.measure(progress, duration)
        except KeyboardInterrupt:
            window.interrupted = True
        finally:
            load.stop()
    except KeyboardInterrupt:
        # Whoever asks twice does not want to wait until all have left.
        window.interrupted = True
    if not len(window.latency) and not window.interrupted:
        raise load.tally.first or TimeoutError(
            f"No operation finished within {duration:g} s: a longer --duration is needed."
        )
    result = window.figures()
    if as_json:
        print(json.dumps(result), flush=True)
    else:
        print_table(result, sys.stdout)
    return _INTERRUPTED if window.interrupted else 0


class _Window:
    """What is measured of a load, and when."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.latency = Distribution()
        self.connects = Distribution()
        self.lateness = Distribution()
        self.connecting = 0.0
        self.duration = 0.0
        self.cpu = 0.0
        self.ticks = 0
        self.late = 0
        self.ended = 0
        self.interrupted = False

    def connect(self, progress: Progress) -> None:
        """Connect all clients; waits until they are."""
        load, began = self.load, time.monotonic()
        progress.begin("connecting", load.clients)

        def show() -> None:
            while True:
                gevent.sleep(_REDRAW)
                progress.show(load.tried, f"{load.tried:,} of {load.clients:,} clients")

        shower = gevent.spawn(show)
        try:
            load.connect()
        finally:
            shower.kill()
            self.connecting = time.monotonic() - began
            self.connects.take(load.tally.connect_times)

    def measure(self, progress: Progress, duration: float) -> None:
        """Let the clients work for `duration` seconds, or until none is left."""
        load = self.load
        if not load.connected:
            return
        progress.begin(load.mode, duration)
        # What there is now stays: a full collection among thousands of clients would take longer
        # than most answers.
        gc.collect()
        gc.freeze()
        try:
            load.start()
            load.forget()
            began, cpu = time.perf_counter(), time.process_time()
            try:
                self._wait(progress, began, duration)
            finally:
                self.duration = time.perf_counter() - began
                self.cpu = time.process_time() - cpu
                self.ended = load.connected - load.working
                self.latency.take(load.tally.times)
        finally:
            gc.unfreeze()

    def _wait(self, progress: Progress, began: float, duration: float) -> None:
        load, tally, drawn = self.load, self.load.tally, began
        now, end = began, began + duration
        while load.working:
            # What takes longer than the window is waited for, once.
            if now >= end and (len(self.latency) or now >= end + load.timeout):
                return
            pause = min(_TICK, end - now) if now < end else _TICK
            gevent.sleep(pause)
            before, now = now, time.perf_counter()
            self.lateness.add([round(1e9 * max(0.0, now - before - pause))])
            self.ticks += 1
            self.late += now - before - pause > _LATE
            self.latency.take(tally.times)
            if now - drawn >= _REDRAW:
                drawn = now
                rate = len(self.latency) / (now - began)
                progress.show(now - began, f"{rate:,.0f} a second, {load.working:,} clients")

    def figures(self) -> dict[str, object]:
        """Return what was measured."""
        load = self.load
        return figures(
            url=_shown(load.url),
            mode=load.mode,
            clients=load.clients,
            connected=load.connected,
            ended=self.ended,
            size=load.size,
            rate=load.rate,
            connecting=self.connecting,
            duration=self.duration,
            cpu=self.cpu,
            late=self.late / self.ticks if self.ticks else 0.0,
            latency=self.latency,
            connects=self.connects,
            lateness=self.lateness,
            lost=load.tally.lost,
            errors=load.tally.errors,
            messages=load.tally.messages,
            interrupted=self.interrupted,
        )
