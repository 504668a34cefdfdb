"""
stdin and stdout by their descriptors, for a greenlet: nothing here blocks the hub.

A descriptor shared with the shell must not be made non-blocking, so that each call waits until the
kernel says that the next one does not block. What is read or written is not looked at.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import sys
from collections.abc import Iterator

import gevent
from gevent.socket import wait_read, wait_write

__all__ = [
    "LONGEST_LINE",
    "STDIN",
    "STDOUT",
    "LineTooLong",
    "chunks",
    "complete",
    "discard",
    "lines",
    "write",
]

STDIN, STDOUT = 0, 1
_STDERR = 2

# Bytes of a line. Who has longer ones wants them in pieces.
LONGEST_LINE = 16 * 1024 * 1024

# POSIX, pipe(7): what is written at once when a pipe says that it is writable.
_PIPE_BUF = 4096


class LineTooLong(OSError):
    """A line of stdin is longer than is kept of one."""


def complete() -> None:
    """Open what is closed of stdin, stdout and stderr: another file would get its number."""
    for descriptor in (STDIN, STDOUT, _STDERR):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest number that is free.
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or os.fdopen(STDOUT, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(_STDERR, "w", closefd=False)


def chunks(size: int = 65536) -> Iterator[bytes]:
    """Yield what comes from stdin, as it comes, at most `size` bytes at a time."""
    waits = _waits(STDIN)
    while True:
        if waits:
            wait_read(STDIN)
        else:
            # A long file is not to starve the rest.
            gevent.sleep(0)
        try:
            chunk = os.read(STDIN, size)
        except OSError as exc:
            # EIO: the terminal is gone. EBADF: there never was a stdin.
            if exc.errno not in (errno.EIO, errno.EBADF):
                raise
            return
        if not chunk:
            return
        yield chunk


def lines() -> Iterator[bytes]:
    """Yield what comes from stdin line by line, without the newlines; raises LineTooLong."""
    rest = bytearray()
    for chunk in chunks():
        first, *others = chunk.split(b"\n")
        rest += first
        if len(rest) > LONGEST_LINE:
            raise LineTooLong(
                f"A line of stdin is longer than {LONGEST_LINE} bytes; --binary sends pieces."
            )
        for other in others:
            yield bytes(rest)
            rest = bytearray(other)
    if rest:
        yield bytes(rest)


def write(data: bytes) -> None:
    """Write all of it to stdout; waits while its reader is slow."""
    waits = _waits(STDOUT)
    view = memoryview(data)
    while view:
        # A turn of the hub for each short line would make the writer slower than what it writes.
        if waits and not select.select([], [STDOUT], [], 0)[1]:
            wait_write(STDOUT)
        view = view[os.write(STDOUT, view[: _PIPE_BUF if waits else None]) :]


def discard() -> None:
    """Let stdout lead nowhere: its reader has left, and Python is not to find out at its end."""
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), STDOUT)


def _waits(descriptor: int) -> bool:
    """Whether the other end of a descriptor is somebody who may be slow: not so for files."""
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)
