"""
Waiting for what was sent on loopback to be in the receiving socket.

The kernel delivers when it gets to it, which on a busy machine is not before the next line of a
test. These wait for it, at most `LIMIT` seconds, and read nothing. The hub does not run meanwhile:
whatever a test counts, wake-ups or flushes, begins when it says so.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gevent.monkey import get_original

from gwt.net.udpsocket import UDP, UDP_GRO

__all__ = ["acknowledged", "arrived", "error_arrives"]

LIMIT = 5.0

# Linux, from its headers.
_SO_PEEK_OFF, _SO_MEMINFO = 42, 55

_sleep = get_original("time", "sleep")


def _wait(predicate: Callable[[], object], what: Callable[[], str]) -> None:
    deadline = time.monotonic() + LIMIT
    while not predicate():
        if time.monotonic() >= deadline:
            raise AssertionError(f"{what()} within {LIMIT:g} s")
        _sleep(0.0002)


def arrived(sock: Any, count: int) -> None:
    """Wait until `count` datagrams, those of a batch counted singly, are in a UDP socket."""
    here = 0

    def look() -> bool:
        nonlocal here
        # Each look begins behind what the last one saw.
        while here < count:
            try:
                data, ancillary, _, _ = sock.recvmsg(65_535, 128, socket.MSG_PEEK)
            except BlockingIOError:
                return False
            here += 1
            for level, kind, value in ancillary:
                if (level, kind) == (UDP, UDP_GRO):
                    segment = int.from_bytes(value[:4], sys.byteorder)
                    here += (len(data) - 1) // segment
        return True

    sock.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)
    try:
        _wait(look, lambda: f"{here} of {count} datagrams arrived")
    finally:
        sock.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, -1)


@contextmanager
def error_arrives(sock: Any) -> Iterator[None]:
    """Wait at the end of the block until one more error is in a UDP socket's queue of errors."""

    def held() -> int:
        return int(struct.unpack_from("I", sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36))[0])

    before = held()
    yield
    _wait(lambda: held() > before, lambda: "no error arrived")


def acknowledged(sock: Any) -> None:
    """Wait until the peer's system has everything that was written to a TCP socket, ends too."""

    def unacknowledged() -> int:
        packed = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
        return int(struct.unpack("i", packed)[0])

    _wait(lambda: not unacknowledged(), lambda: f"{unacknowledged()} bytes not acknowledged")
