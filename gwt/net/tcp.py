"""
TcpConnection: one TCP or TLS connection, read and written without waiting, by watchers of the hub.

A persistent watcher reads; no greenlet does. Everything here is the quiet zone: nothing waits,
switches greenlets or runs user code, and what the network does wrong is told to the receiver, once.
What the bytes mean is the receiver's affair. How long a writer waits is it, too: `queued` says how
much the network has not taken yet.
"""

from __future__ import annotations

import socket as _stdlib_socket
import ssl as _stdlib_ssl
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from gevent.hub import get_hub

from .timers import Timer, now
from .udpsocket import shown

__all__ = ["TcpConnection", "TcpReceiver"]

# What one wake-up reads at most. A TLS record, which is what one read returns there, has 16 KiB, so
# that with room for one nothing is ever left in OpenSSL, where no watcher would see it.
_READ = 64 * 1024
_RECORD = 16 * 1024

# What one wake-up writes at most, so that a fast reader keeps nobody else waiting.
_WRITE = 1024 * 1024

# Pieces up to this size together are sent by one system call.
_JOIN = 64 * 1024

# A piece that waits costs some 200 bytes beside its own; smaller ones are put together.
_SMALL = 512

# What `queued` is from a write that failed until its receiver is told: whoever sends on has to
# wait, or the hub that is to tell would never run.
_BROKEN = 2**62

# How long a closed connection waits for the peer's end. Closing a socket with unread bytes in it
# resets the connection, and what we sent last may not arrive.
_LINGER = 1.0

_WAITS = (BlockingIOError, InterruptedError, _stdlib_ssl.SSLWantReadError)
_FULL = (*_WAITS, _stdlib_ssl.SSLWantWriteError)
_READ_EVENT, _WRITE_EVENT = 1, 2

# What tcp_info begins with: broken, and ended by the peer.
_TCP_CLOSE, _TCP_CLOSE_WAIT = 7, 8


class TcpReceiver(Protocol):
    """Who is told what happens; none of it may wait, switch or raise."""

    def data_received(self, data: bytes) -> None:
        """Bytes came."""

    def connection_ended(self, error: OSError | None) -> None:
        """
        Nothing more will come: the peer has ended (None), or the connection is broken.

        Once; but it can break after its peer has ended.
        """

    def drained(self) -> None:
        """Everything that was written has been taken by the network."""


class TcpConnection:
    """
    A connected socket, plain or TLS, in the hub of this thread; it is ours from now on.

    start() begins to read. After close() or abort() the receiver hears nothing more.
    """

    __slots__ = (
        "_closing",
        "_ended",
        "_linger",
        "_loop",
        "_output",
        "_paused",
        "_raw",
        "_reader",
        "_reading",
        "_receiver",
        "_sock",
        "_tail",
        "_tls",
        "_writer",
        "bytes_received",
        "local_address",
        "queued",
        "remote_address",
        "when_closed",
    )

    def __init__(self, sock: Any, receiver: TcpReceiver | None = None, peer: Any = None) -> None:
        sock.setblocking(False)
        with suppress(OSError):
            # Not for Unix sockets, which have no such thing.
            sock.setsockopt(_stdlib_socket.IPPROTO_TCP, _stdlib_socket.TCP_NODELAY, 1)
        self._sock = sock
        self._tls = hasattr(sock, "pending")

        # What reads and writes without waiting; below TLS that is the socket inside of gevent's.
        self._raw = sock if self._tls else getattr(sock, "_sock", sock)
        self._receiver = receiver
        self._loop: Any = get_hub().loop
        self._reader: Any = self._loop.io(sock.fileno(), _READ_EVENT)
        self._writer: Any = None
        self._reading = self._paused = self._closing = self._ended = False
        self._linger: Timer | None = None

        # Called once the descriptor is free; whoever lent the socket has to know.
        self.when_closed: Callable[[], None] | None = None

        # Pieces that wait for the socket, and small ones behind them.
        self._output: deque[memoryview] | None = None
        self._tail: bytearray | None = None

        # Bytes that wait for the socket.
        self.queued = 0

        # Bytes that were read in all.
        self.bytes_received = 0
        self.remote_address = peer or _name(sock.getpeername)
        self.local_address = _name(sock.getsockname)

    def __repr__(self) -> str:
        state = "closed" if self._sock is None else "closing" if self._closing else "open"
        return f"<TcpConnection {state} {self.local_address}-{self.remote_address}>"

    @property
    def closed(self) -> bool:
        """Whether the socket is closed."""
        return self._sock is None

    def give_up_after(self, seconds: float) -> None:
        """
        Let the connection break once the peer has confirmed, or had room for, nothing for so long.

        Without this the kernel asks a peer that does not read for ever. Where it can (RFC 5482).
        """
        with suppress(OSError, AttributeError):
            timeout = min(int(seconds * 1000) + 1, 2**31 - 1)
            self._sock.setsockopt(
                _stdlib_socket.IPPROTO_TCP, _stdlib_socket.TCP_USER_TIMEOUT, timeout
            )

    @property
    def deserted(self) -> bool:
        """Whether the peer has ended, or is gone, as far as can be seen without reading."""
        with suppress(OSError, AttributeError):
            state: bytes = self._sock.getsockopt(
                _stdlib_socket.IPPROTO_TCP, _stdlib_socket.TCP_INFO, 1
            )
            return state[0] in (_TCP_CLOSE, _TCP_CLOSE_WAIT)
        return False

    # Reading

    def start(self, receiver: TcpReceiver | None = None) -> None:
        """Begin to read, for the receiver."""
        self._receiver = receiver or self._receiver
        self.resume()

    def pause(self) -> None:
        """Read no more for now. The peer is stopped by TCP's flow control."""
        # The watcher is stopped when it fires: mostly reading goes on before that.
        self._paused = True

    def resume(self) -> None:
        """Read again."""
        self._paused = False
        if not self._reading and self._sock is not None and not self._ended:
            self._reading = True
            self._reader.start(self._readable)
            if self._tls and self._sock.pending():
                # Whoever read before took a part of a record: the rest wakes no watcher.
                self._loop.run_callback(self._readable)

    def read_waiting(self) -> int:
        """Read what waits in the socket, at most 64 KiB, unless paused; returns how much it was."""
        before = self.bytes_received
        if self._reading and not self._paused:
            self._readable()
        return self.bytes_received - before

    def _readable(self) -> None:
        if self._paused:
            self._stop_reading()
            return
        if self._sock is None or self._ended:
            return
        # The records of TLS that wait are handed on as one: greenlets run between two wake-ups, not
        # between two records, and what comes before an error is to be answered before it.
        pieces: list[bytes] = []
        room = _READ
        ended, error = False, None
        while room > 0 and not ended:
            try:
                data = self._raw.recv(room if not self._tls else max(room, _RECORD))
            except _WAITS:
                break
            except _stdlib_ssl.SSLWantWriteError:
                # TLS has something of its own to say first.
                self._watch_writable()
                break
            except OSError as exc:
                ended, error = True, exc
                break
            if data:
                pieces.append(data)
                room -= len(data)
            ended = not data
            if not self._tls:
                break
        if pieces:
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            self.bytes_received += len(data)
            if self._receiver is not None:
                self._receiver.data_received(data)
        if ended and pieces:
            # Behind the greenlets that answer what came before.
            self._loop.run_callback(self._end, error)
        elif ended:
            self._end(error)

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._reader.stop()

    def _end(self, error: OSError | None) -> None:
        """Nothing more can be read."""
        self._stop_reading()
        if self._ended and error is None:
            return
        self._ended = True
        if error is not None:
            self._forget_output()
        if self._closing:
            if not self.queued:
                self._close()
            return
        receiver = self._receiver
        if error is not None:
            self._receiver = None
        if receiver is not None:
            receiver.connection_ended(error)

    # Writing

    def write(self, pieces: Sequence[bytes]) -> None:
        """Send bytes that come in pieces; see send()."""
        if len(pieces) > 1 and sum(map(len, pieces)) <= _JOIN:
            pieces = (b"".join(pieces),)
        for piece in pieces:
            self.send(piece)

    def send(self, data: bytes) -> bool:
        """
        Send bytes, or keep what the socket does not take until it does. Never waits.

        The caller sees to it that `queued` stays bounded. What comes after the end goes nowhere:
        False says so.
        """
        # What is closed is closing, too.
        if self._closing or not data or self.queued == _BROKEN:
            return False
        if self._output is not None:
            self._queue(data)
            return True
        # Not by _send(), since this is the way of every message.
        try:
            sent = self._raw.send(data)
        except _FULL:
            sent = 0
        except OSError as exc:
            self._broken(exc)
            return False
        if sent < len(data):
            # Made when it is needed, since an empty one is not small.
            self._output = deque((memoryview(data)[sent:],))
            self.queued = len(data) - sent
            self._watch_writable()
        return True

    def _queue(self, data: bytes) -> None:
        self.queued += len(data)
        if len(data) >= _SMALL:
            self._end_tail()
            assert self._output is not None
            self._output.append(memoryview(data))
            return
        if self._tail is None:
            self._tail = bytearray()
        self._tail += data
        if len(self._tail) >= _JOIN:
            self._end_tail()

    def _end_tail(self) -> None:
        tail, self._tail = self._tail, None
        if tail and self._output is not None:
            self._output.append(memoryview(tail))

    @property
    def broken(self) -> bool:
        """Whether a write has failed, and the receiver is going to be told."""
        return self.queued == _BROKEN

    def push(self) -> None:
        """Try again now, for who cannot wait until the loop finds that the socket has room."""
        # What follows when everything is taken is the watcher's: it tells the receiver.
        self._send_queued()

    def _send(self, data: memoryview) -> int:
        """Return how much the socket took, or -1 if the connection is broken."""
        try:
            return self._raw.send(data)  # type: ignore[no-any-return]
        except _FULL:
            return 0
        except OSError as exc:
            self._broken(exc)
            return -1

    def _broken(self, error: OSError) -> None:
        # Told in the hub: the writer's greenlet is inside of its call.
        self._forget_output()
        self.queued = _BROKEN
        self._loop.run_callback(self._end, error)

    def _watch_writable(self) -> None:
        if self._writer is None:
            self._writer = self._loop.io(self._sock.fileno(), _WRITE_EVENT)
            self._writer.start(self._writable)

    def _send_queued(self) -> bool:
        """Send what waits, up to _WRITE bytes; returns whether nothing of it is left."""
        output, room = self._output, _WRITE
        while room > 0:
            if not output:
                self._end_tail()
            if not output:
                return True
            # A TLS write that has to be repeated must be repeated with the same bytes.
            sent = self._send(output[0])
            if sent < 0:
                return False
            self.queued -= sent
            room -= sent
            if sent < len(output[0]):
                output[0] = output[0][sent:]
                if not sent:
                    return False
            else:
                output.popleft()
        return not self.queued

    def _writable(self) -> None:
        if not self._send_queued():
            return
        self._forget_output()
        if self._tls and self._reading and not self._closing:
            # TLS may have waited for this to read on.
            self._readable()
        if self._closing:
            self._shut_down()
        elif self._receiver is not None:
            self._receiver.drained()

    def _forget_output(self) -> None:
        self._output = self._tail = None
        self.queued = 0
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.stop()
            # libuv aborts the process if a watcher is closed in its own callback.
            self._loop.run_callback(writer.close)

    # The end

    def close(self, *, done: bool = False) -> None:
        """
        Send what is queued, then end; returns at once. Everything that still comes is discarded.

        The socket is closed when the peer has ended too, at most a second later; or at once, if
        the peer is known to send nothing more (`done`) and everything was taken.
        """
        if self._closing or self._sock is None:
            return
        self._closing = True
        self._receiver = None
        if done and not self.queued and not self._tls:
            self._close()
            return
        self._linger = Timer(self._close)
        self._linger.arm(now() + _LINGER)
        self.resume()
        if not self.queued:
            self._shut_down()

    def _shut_down(self) -> None:
        if self._sock is None:
            return
        if self._ended:
            self._close()
            return
        try:
            if self._tls:
                # close_notify goes out by this; the peer's is not waited for.
                with suppress(OSError, ValueError):
                    self._sock.unwrap()
            self._sock.shutdown(_stdlib_socket.SHUT_WR)
        except OSError:
            self._close()

    def abort(self) -> None:
        """Close the socket at once; what was not sent is lost."""
        self._closing = True
        self._receiver = None
        self._close()

    def _close(self) -> None:
        sock, self._sock, self._raw = self._sock, None, None
        if sock is None:
            return
        self._closing = self._ended = True
        self._receiver = None
        self._stop_reading()
        self._forget_output()
        if self._linger is not None:
            self._linger.close()
        reader, self._reader = self._reader, None
        # Not in its own callback, and the descriptor not before its watchers.
        self._loop.run_callback(_dispose, reader, sock, self.when_closed)


def _dispose(watcher: Any, sock: Any, told: Callable[[], None] | None) -> None:
    watcher.close()
    with suppress(OSError):
        sock.close()
    if told is not None:
        told()


def _name(question: Any) -> Any:
    """Return a socket's address as (host, port), or what a Unix socket has."""
    try:
        address = question()
    except OSError:
        return None
    return shown(address) if isinstance(address, tuple) else address
