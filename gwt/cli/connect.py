"""
``gwt connect``: talk to a WebTransport or WebSocket server from a terminal or a pipe.

What is read from stdin goes out on one bidirectional stream, or line by line as datagrams, or as
messages of a WebSocket; what comes back, also on streams that the server opens, goes to stdout.
How it is typed is prompt.py's affair, and how it looks display.py's.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import chain
from typing import Any

import gevent
from gevent.event import AsyncResult
from gevent.pool import Group

import gwt

from . import arguments, stdio
from .display import Display, escaped
from .prompt import Prompt, is_usable

__all__ = ["configure", "run"]

# How long a server has to acknowledge the end of a session that was cut short.
_PARTING = 1.0

# How long nothing comes before the end of stdin is the end of all, where nothing else says so.
_QUIET = 2.0

# Messages that may wait to be shown, each as large as a line; and datagrams, each as a packet.
_MAX_QUEUE = 4
_MAX_DATAGRAMS = 4096

# Datagrams that are under way at a time: who receives them holds few that nobody has read yet, and
# drops others. How long is waited until it is asked again whether they have arrived.
_BURST = 64
_PAUSE = 0.002

# Codes that mean a normal end: a session's, or none; a WebSocket's, or none (RFC 6455 7.4.1); of
# connections HTTP/3's (RFC 9114 8.1), and QUIC's own.
_NORMAL = (0, None, 1000, 1005)
_NO_ERROR = (None, 0, 0x100)

# A command that is typed, or, with one slash more, a line to be sent.
_COMMAND = re.compile(r"/(/*)(ping|close|help)(?:\s+(.*))?\s*", re.DOTALL)
_HELP = "/ping  /close [CODE] [REASON]  Ctrl-D ends; //ping sends the line /ping"

_EXIT_TERMINATED = 128 + signal.SIGTERM


def configure(parser: argparse.ArgumentParser) -> None:
    """Say which arguments there are."""
    add = parser.add_argument
    add("url", metavar="URL", help="https://HOST:PORT/PATH, ws://... or wss://...")
    arguments.connecting(parser)
    add("--datagrams", action="store_true", help="send and print datagrams, one a line")
    add(
        "--binary",
        action="store_true",
        help="send stdin as it is read, in binary messages, and print nothing but what comes",
    )
    add(
        "--once",
        action="store_true",
        help="send one line (with --binary, or on a stream, all of stdin), print the one answer, "
        "and leave",
    )
    add(
        "--timeout",
        type=_seconds,
        default=10.0,
        metavar="SECONDS",
        help="for connecting, and for the answer that --once waits for (default: %(default)g)",
    )
    add(
        "--wait",
        type=_seconds,
        metavar="SECONDS",
        help="how long nothing comes, after the end of stdin, before it leaves; inf: never "
        f"(default: {_QUIET:g}, and for a stream the end of its answer)",
    )


def _seconds(text: str) -> float:
    seconds = float(text)
    if not seconds >= 0:
        raise ValueError(text)
    return seconds


# What argparse calls it when it is wrong.
_seconds.__name__ = "number of seconds"


def run(args: argparse.Namespace) -> int:
    """Connect, and carry lines until the answer's end, the server's, or Ctrl-C."""
    main = gevent.getcurrent()
    # An interrupt that Python raises in the hub would be printed there; and the terminal is to be
    # given back before a SIGTERM ends the process.
    watchers = [
        gevent.signal_handler(signal.SIGINT, gevent.kill, main, KeyboardInterrupt),
        gevent.signal_handler(signal.SIGTERM, gevent.kill, main, SystemExit(_EXIT_TERMINATED)),
    ]
    try:
        return _run(args)
    finally:
        for watcher in watchers:
            watcher.cancel()


def _run(args: argparse.Namespace) -> int:
    args.timeout = None if math.isinf(args.timeout) else args.timeout
    if args.datagrams and args.url.partition(":")[0].lower() in ("ws", "wss"):
        raise gwt.ConfigError("A WebSocket has no datagrams.", field="datagrams", value=True)
    peer = gwt.connect(
        args.url,
        verify=not args.insecure,
        server_certificate_hashes=args.cert_hash,
        headers=args.header,
        origin=args.origin,
        subprotocols=args.subprotocol,
        timeout=args.timeout,
        max_size=stdio.LONGEST_LINE,
        max_queue=_MAX_QUEUE,
        datagram_queue=_MAX_DATAGRAMS,
    )
    try:
        talk = _Talk(args)
        with peer, closing(talk):
            if isinstance(peer, gwt.WebSocket):
                _messages(peer, talk)
            elif args.datagrams:
                _datagrams(peer, talk)
            else:
                _stream(peer, talk)
    except (gwt.SessionClosed, gwt.WebSocketClosed) as exc:
        if talk.left and (isinstance(exc, gwt.SessionClosed) or exc.rcvd):
            # As we asked for.
            return 0
        lost = _lost_connection(exc)
        if lost is not None:
            # It says more.
            raise lost from exc
        if args.once or exc.code not in _NORMAL:
            raise
        # The server's good-bye is the end, not a failure.
        if exc.remote:
            print(f"gwt connect: {escaped(' '.join(str(exc).split()))}", file=sys.stderr)
    except BrokenPipeError:
        stdio.discard()
    finally:
        _part(peer)
    return 0


def _lost_connection(end: BaseException) -> gwt.ConnectionClosed | None:
    """Return why the connection is gone, if it took a session along and not in good order."""
    cause = end.__cause__
    if not isinstance(cause, gwt.ConnectionClosed) or (cause.remote and cause.code in _NO_ERROR):
        return None
    return cause


def _part(peer: Any) -> None:
    """Leave nothing behind: the process ends now, and the server is to know."""
    if isinstance(peer, gwt.WebSocket):
        peer.abort()
        return
    with suppress(TimeoutError):
        peer.connection.wait_closed(timeout=_PARTING)
    peer.connection.close()


# What all three have in common


class _Talk:
    """The arguments, where lines come from, and where what comes back goes."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.prompt = Prompt() if is_usable() and not args.binary else None
        self.display = Display(binary=args.binary, prompt=self.prompt)
        self.main = gevent.getcurrent()

        # Whether the end is our doing.
        self.left = False

    def close(self) -> None:
        """Give the terminal back."""
        if self.prompt is not None:
            self.prompt.close()

    def lines(self) -> Iterator[bytes]:
        """Yield what is to be sent line by line, without the newlines."""
        if self.prompt is None:
            yield from stdio.lines()
            return
        while (line := self.prompt.read()) is not None:
            yield line.encode(errors="surrogateescape")

    def spoken(self, ping: Callable[[], str], close: Callable[..., None]) -> Iterator[bytes]:
        """Yield lines(), but do what is commanded on a terminal instead of sending it."""
        for line in self.lines():
            match = _COMMAND.fullmatch(line.decode(errors="replace")) if self.prompt else None
            if match is None:
                yield line
            elif match[1]:
                yield line[1:]
            elif match[2] == "ping":
                self.display.note(ping())
            elif match[2] == "help":
                self.display.note(_HELP)
            else:
                code, _, reason = (match[3] or "").partition(" ")
                if code and not code.isdecimal():
                    self.display.note(f"The code of /close is a number, not {code!r}.")
                    continue
                try:
                    self.leave(close, *([int(code), reason.strip()] if code else []))
                    return
                except (ValueError, gwt.ProtocolError) as exc:
                    self.left = False
                    self.display.note(str(exc))

    def leave(self, close: Callable[..., None], *args: Any) -> None:
        """Close the peer, by our own decision."""
        self.left = True
        close(*args)

    @contextmanager
    def beside(self, function: Callable[[], None]) -> Iterator[None]:
        """Run a function in a greenlet meanwhile; what it raises is raised in the main one."""

        def body() -> None:
            try:
                function()
            except (gwt.SessionClosed, gwt.WebSocketClosed):
                # Whoever reads finds out, and has first what came before.
                pass
            except (gwt.GwtError, OSError, KeyboardInterrupt) as exc:
                gevent.kill(self.main, exc)

        greenlet = gevent.spawn(body)
        try:
            yield
        finally:
            if self.left:
                # It says good-bye, with a code and a reason perhaps.
                greenlet.join(_PARTING)
            greenlet.kill()

    def wait_answers(self) -> None:
        """After the end of stdin: wait until nothing has come for a while."""
        wait = _QUIET if self.args.wait is None else self.args.wait
        self.display.wait_quiet(wait)


# WebSockets


def _messages(websocket: gwt.WebSocket, talk: _Talk) -> None:
    """Send each line as a message, binary if it is no UTF-8; show what comes back."""
    args = talk.args

    def ping() -> str:
        pong = websocket.ping()
        if not pong.wait(args.timeout):
            return f"no pong within {args.timeout:g} s"
        return f"pong after {(pong.latency or 0) * 1000:.1f} ms"

    def send(line: bytes) -> None:
        try:
            websocket.send_text(line)
        except UnicodeDecodeError:
            websocket.send_bytes(line)

    def send_all() -> None:
        if args.binary:
            for chunk in stdio.chunks():
                websocket.send_bytes(chunk)
                gevent.sleep(0)
        else:
            for line in talk.spoken(ping, websocket.close):
                send(line)
                # Many short lines are not to keep their answers waiting.
                gevent.sleep(0)
        if not os.isatty(stdio.STDIN):
            talk.wait_answers()
        talk.leave(websocket.close)

    if args.once:
        outgoing = stdio.chunks() if args.binary else talk.spoken(ping, websocket.close)
        first = next(outgoing, None)
        if first is None:
            return
        if args.binary:
            websocket.send(chain([first], outgoing), text=False)
        else:
            send(first)
        with _no_answer("message", args.timeout):
            talk.display.message(websocket.recv(timeout=args.timeout))
        return
    with talk.beside(send_all):
        while True:
            talk.display.message(websocket.recv())


@contextmanager
def _no_answer(what: str, timeout: float | None) -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise TimeoutError(f"No {what} came back within {timeout:g} s.") from None


# Streams


def _stream(session: gwt.WebTransportSession, talk: _Talk) -> None:
    """Send stdin on a stream and show its answer, and whatever the server opens beside it."""
    args = talk.args
    stream = session.create_bidirectional_stream()
    # What ends the command: the answer's end, silence, or an error of whoever showed it.
    over: AsyncResult[None] = AsyncResult()
    printers = Group()

    def chunks() -> Iterator[bytes]:
        if talk.prompt is None:
            for chunk in stdio.chunks():
                yield chunk
                if args.once and os.isatty(stdio.STDIN):
                    return
        else:
            for line in talk.spoken(lambda: _round_trip(session), session.close):
                yield line + b"\n"
                if args.once:
                    return

    def send() -> None:
        # A peer that does not read on may still answer.
        with suppress(gwt.StreamError):
            for chunk in chunks():
                stream.write(chunk)
            stream.finish()
            stream.flush()
        if args.once:
            talk.display.wait_quiet(math.inf if args.timeout is None else args.timeout)
            over.set_exception(TimeoutError(f"No answer came within {args.timeout:g} s."))
        elif args.wait is not None or talk.prompt is not None:
            talk.wait_answers()
            over.set(None)

    def show_answer() -> None:
        try:
            talk.display.stream(stream)
            over.set(None)
        except (gwt.GwtError, OSError) as exc:
            over.set_exception(exc)

    printers.spawn(show_answer)
    if not args.once:
        printers.spawn(_show_streams, session, talk, printers)
        if talk.display.is_terminal:
            printers.spawn(_show_datagrams, session, talk)
    with talk.beside(send):
        try:
            over.get()
        except gwt.SessionClosed:
            # What had arrived by then is shown, too.
            printers.join()
            raise
        finally:
            printers.kill()


def _round_trip(session: gwt.WebTransportSession) -> str:
    return f"round trip {session.connection.stats()['rtt'] * 1000:.1f} ms"


def _show_streams(session: gwt.WebTransportSession, talk: _Talk, printers: Group) -> None:
    for incoming in session:
        printers.spawn(_show_stream, incoming, talk)


def _show_stream(incoming: gwt.WebTransportReceiveStream, talk: _Talk) -> None:
    try:
        talk.display.stream(incoming, f"stream {incoming.stream_id}")
    except (gwt.StreamError, gwt.SessionError):
        pass
    except OSError as exc:
        gevent.kill(talk.main, exc)


def _show_datagrams(session: gwt.WebTransportSession, talk: _Talk) -> None:
    for data in session.incoming_datagrams():
        talk.display.datagram(data, "datagram")


# Datagrams


def _datagrams(session: gwt.WebTransportSession, talk: _Talk) -> None:
    """Send each line as a datagram and show what comes back."""
    args = talk.args

    def outgoing() -> Iterator[bytes]:
        if args.binary:
            return stdio.chunks(max(1, session.max_datagram_size))
        return talk.spoken(lambda: _round_trip(session), session.close)

    def send() -> None:
        for number, line in enumerate(outgoing(), 1):
            try:
                session.send_datagram(line)
            except gwt.DatagramTooLarge as exc:
                talk.display.note(str(exc))
            gevent.sleep(0)
            if not number % _BURST:
                _wait_arrival(session)
        if not os.isatty(stdio.STDIN):
            talk.wait_answers()
        talk.leave(session.close)

    if args.once:
        for line in outgoing():
            session.send_datagram(line)
            with _no_answer("datagram", args.timeout):
                talk.display.datagram(session.receive_datagram(timeout=args.timeout))
            break
        return
    printers = Group()
    if talk.display.is_terminal:
        printers.spawn(_show_streams, session, talk, printers)
    try:
        with talk.beside(send):
            while True:
                talk.display.datagram(session.receive_datagram())
    finally:
        printers.kill()


def _wait_arrival(session: gwt.WebTransportSession) -> None:
    """Wait until what was sent has arrived, or is lost."""
    while not session.is_closed and session.connection.stats()["bytes_in_flight"]:
        gevent.sleep(_PAUSE)
