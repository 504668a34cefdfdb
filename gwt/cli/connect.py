"""
``gwt connect``: talk to a WebTransport or WebSocket server from a terminal or a pipe.

What is read from stdin goes out on one bidirectional stream, or line by line as datagrams, or as
messages of a WebSocket; what comes back, also on streams that the server opens, goes to stdout.
Nothing here blocks the hub.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress

import gevent
from gevent.event import AsyncResult
from gevent.pool import Group
from gevent.socket import wait_read, wait_write

import gwt

__all__ = ["configure", "run"]

STDIN, STDOUT = 0, 1

# POSIX, pipe(7): what is written at once when a pipe says that it is writable.
_PIPE_BUF = 4096

# How long a server has to acknowledge the end of a session that was cut short.
_PARTING = 1.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Say which arguments there are."""
    parser.add_argument("url", metavar="URL", help="https://HOST:PORT/PATH, ws://... or wss://...")
    parser.add_argument(
        "--insecure", action="store_true", help="accept any certificate the server shows"
    )
    parser.add_argument(
        "--cert-hash",
        action="append",
        default=[],
        metavar="HEX",
        help="accept the certificate with this SHA-256",
    )
    parser.add_argument(
        "--datagrams", action="store_true", help="send and print datagrams, one a line"
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="leave when the answer has come: the end of the stream, or a datagram or message for "
        "each one sent; on a terminal one line is sent",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="for connecting, and for each answer that --once waits for (default: %(default)g)",
    )


def run(args: argparse.Namespace) -> int:
    """Connect, and carry lines until the answer's end, the session's, or Ctrl-C."""
    # An interrupt that Python raises in the hub would be printed there.
    watcher = gevent.signal_handler(
        signal.SIGINT, gevent.kill, gevent.getcurrent(), KeyboardInterrupt
    )
    try:
        return _run(args)
    finally:
        watcher.cancel()


def _run(args: argparse.Namespace) -> int:
    session = gwt.connect(
        args.url,
        verify=not args.insecure,
        server_certificate_hashes=args.cert_hash,
        timeout=args.timeout,
    )
    if isinstance(session, gwt.WebSocket):
        return _run_websocket(session, args)
    try:
        with session:
            if args.datagrams:
                _datagrams(session, args.once, args.timeout)
            else:
                _stream(session, args.once)
    except gwt.SessionClosed as exc:
        # The server's good-bye is the end, not a failure.
        if exc.code:
            raise
    except BrokenPipeError:
        _seen_enough()
    finally:
        # The process ends now: the server is to know, and not to wait for a peer that is gone.
        with suppress(TimeoutError):
            session.connection.wait_closed(timeout=_PARTING)
        session.connection.close()
    return 0


def _seen_enough() -> None:
    """Whoever read our output has left; Python is not to find out again at its end."""
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), STDOUT)


# WebSockets


def _run_websocket(websocket: gwt.WebSocket, args: argparse.Namespace) -> int:
    try:
        if args.datagrams:
            raise gwt.ConfigError("A WebSocket has no datagrams.", field="datagrams", value=True)
        with websocket:
            _messages(websocket, args.once, args.timeout)
    except gwt.WebSocketClosedOK:
        # The server's good-bye is the end, not a failure.
        pass
    except BrokenPipeError:
        _seen_enough()
    finally:
        websocket.abort()
    return 0


def _messages(websocket: gwt.WebSocket, once: bool, timeout: float) -> None:
    """Send each line as a message, binary if it is no UTF-8; print what comes back, a line each."""

    def show(message: str | bytes) -> None:
        if isinstance(message, str):
            message = message.encode()
        elif os.isatty(STDOUT):
            # Whoever looks on is not to have the terminal set up by it.
            message = repr(message).encode()
        _write(message + b"\n")

    def send(line: bytes) -> None:
        try:
            websocket.send_text(line)
        except UnicodeDecodeError:
            websocket.send_bytes(line)
        # Many short lines are not to keep their answers waiting.
        gevent.sleep(0)

    if once:
        for line in _lines(once):
            send(line)
            try:
                show(websocket.recv(timeout=timeout))
            except TimeoutError:
                raise TimeoutError(f"No message came back within {timeout:g} s.") from None
        return

    def send_all() -> None:
        with suppress(gwt.WebSocketClosed):
            for line in _lines(once):
                send(line)
            if os.isatty(STDIN):
                websocket.close()

    sender = gevent.spawn(send_all)
    try:
        # Until the server closes, Ctrl-D or Ctrl-C: after the end of a pipe answers still come.
        for message in websocket:
            show(message)
    finally:
        sender.kill()


# Streams


def _stream(session: gwt.WebTransportSession, once: bool) -> None:
    """Send stdin on a stream and print its answer, and whatever the server opens beside it."""
    stream = session.create_bidirectional_stream()
    # What ends the command: the answer's end, or an error of whoever printed.
    over: AsyncResult[None] = AsyncResult()
    senders, printers = Group(), Group()

    def send() -> None:
        # A peer that does not read on may still answer; a session's end the others see too.
        with suppress(gwt.StreamError, gwt.SessionError):
            for chunk in _chunks(once):
                stream.write(chunk)
            stream.finish()

    def show_answer() -> None:
        try:
            for chunk in stream:
                _write(chunk)
            over.set(None)
        except (gwt.GwtError, OSError) as exc:
            over.set_exception(exc)

    def show(incoming: gwt.WebTransportReceiveStream) -> None:
        try:
            for chunk in incoming:
                _write(chunk)
        except (gwt.StreamError, gwt.SessionError):
            pass
        except OSError as exc:
            over.set_exception(exc)

    def show_others() -> None:
        for incoming in session:
            printers.spawn(show, incoming)

    senders.spawn(send)
    printers.spawn(show_answer)
    printers.spawn(show_others)
    try:
        over.get()
    except gwt.SessionClosed:
        # What had arrived by then is printed, too.
        printers.join()
        raise
    finally:
        senders.kill()
        printers.kill()


# Datagrams


def _datagrams(session: gwt.WebTransportSession, once: bool, timeout: float) -> None:
    """Send each line as a datagram and print what comes back, a line each."""
    if once:
        for line in _lines(once):
            session.send_datagram(line)
            try:
                _write(session.receive_datagram(timeout=timeout) + b"\n")
            except TimeoutError:
                raise TimeoutError(f"No datagram came back within {timeout:g} s.") from None
        return

    def send() -> None:
        with suppress(gwt.SessionError):
            for line in _lines(once):
                try:
                    session.send_datagram(line)
                except gwt.DatagramTooLarge as exc:
                    print(f"gwt connect: {exc}", file=sys.stderr)

    sender = gevent.spawn(send)
    try:
        # Datagrams have no end: that of the session, or Ctrl-C, is the one there is.
        while True:
            _write(session.receive_datagram() + b"\n")
    finally:
        sender.kill()


def _lines(once: bool) -> Iterator[bytes]:
    """Yield what comes from stdin line by line, without the newlines."""
    rest = b""
    for chunk in _chunks(once):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest


# Files. A descriptor shared with the shell must not be made non-blocking, so that each call waits
# until the kernel says that the next one does not block.


def _chunks(once: bool) -> Iterator[bytes]:
    """Yield what comes from stdin, as it comes; of a terminal only one line if `once`."""
    waits = _waits(STDIN)
    while True:
        if waits:
            wait_read(STDIN)
        else:
            # A long file is not to starve the rest.
            gevent.sleep(0)
        try:
            chunk = os.read(STDIN, 65536)
        except OSError as exc:
            # EIO: the terminal is gone. EBADF: there never was a stdin.
            if exc.errno not in (errno.EIO, errno.EBADF):
                raise
            return
        if not chunk:
            return
        yield chunk
        if once and os.isatty(STDIN):
            return


def _write(data: bytes) -> None:
    """Write all of it to stdout; waits while its reader is slow."""
    waits = _waits(STDOUT)
    view = memoryview(data)
    while view:
        if waits:
            wait_write(STDOUT)
        view = view[os.write(STDOUT, view[: _PIPE_BUF if waits else None]) :]


def _waits(descriptor: int) -> bool:
    """Whether the other end of a descriptor is somebody who may be slow: not so for files."""
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)
