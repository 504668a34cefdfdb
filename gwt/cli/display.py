"""
Where what a peer sends goes: as it is into pipes and files, made harmless onto a terminal.

A terminal obeys what is written to it, and a peer is not to give it orders: control characters are
shown escaped, bytes as hexadecimal digits, and no more of either than somebody reads.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import gevent

import gwt

from . import stdio
from .prompt import Prompt

__all__ = ["Display", "brief", "escaped", "hexdump"]

# Characters, or bytes, that are shown of one message.
_MOST_SHOWN = 10_000

# Bytes of a binary message that are shown unless --binary asks for all.
_BRIEF = 16

# Bytes of a line that has no end yet, and how long it may lack one, until it is shown as it is.
_LONGEST = 4096
_LULL = 0.1

# As long as a timer is sure to take, of those that wait for ever.
_LONG = 3600.0

# Besides letters and their kind: joiners, without which some scripts cannot be read.
_HARMLESS = frozenset("\t\u00a0\u200c\u200d")


def escaped(text: str) -> str:
    """Return a text that does nothing to a terminal but to be shown there, in one line."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in _HARMLESS else char.encode("unicode_escape").decode()
        for char in text
    )


def brief(data: bytes) -> str:
    """Return how a binary message is shown to somebody who reads text."""
    more = " ..." if len(data) > _BRIEF else ""
    digits = f": {data[:_BRIEF].hex(' ')}" if data else ""
    return f"<binary {len(data)} bytes{digits}{more}>"


def hexdump(data: bytes) -> Iterator[str]:
    """Yield lines of 16 bytes in hexadecimal and, where they are ASCII, as text."""
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        yield f"{at:08x}  {row.hex(' '):<47}  |{text}|"


class Display:
    """
    Shows messages, datagrams and streams; waits while whoever reads stdout is slow.

    `source` names what did not come the usual way; it is shown on a terminal only.
    """

    def __init__(self, *, binary: bool, prompt: Prompt | None = None) -> None:
        self._binary = binary
        self._prompt = prompt

        # Whether somebody looks on.
        self.is_terminal = os.isatty(stdio.STDOUT)

        # When something was last shown, and how many are at it.
        self._last = time.monotonic()
        self._busy = 0

    def message(self, data: str | bytes, source: str = "") -> None:
        """Show a message of a WebSocket: a line, or exactly its bytes with --binary."""
        if not self.is_terminal:
            data = data.encode() if isinstance(data, str) else data
            self._put(data if self._binary else data + b"\n")
        elif isinstance(data, str):
            shown, more = data[:_MOST_SHOWN], len(data) - _MOST_SHOWN
            lines = [escaped(line) for line in shown.removesuffix("\n").split("\n")]
            self._lines(source, lines, f"... {more} more characters" if more > 0 else "")
        elif self._binary:
            more = len(data) - _MOST_SHOWN
            lines = list(hexdump(data[:_MOST_SHOWN]))
            self._lines(source, lines, f"... {more} more bytes" if more > 0 else "")
        else:
            self._lines(source, [brief(data)])

    def datagram(self, data: bytes, source: str = "") -> None:
        """Show a datagram: on a terminal as text, if it is any."""
        if self.is_terminal and not self._binary:
            try:
                return self.message(data.decode(), source)
            except UnicodeDecodeError:
                pass
        return self.message(data, source)

    def stream(self, stream: gwt.WebTransportReceiveStream, source: str = "") -> None:
        """Show a stream up to its end, as it comes; on a terminal by lines. Raises as read()."""
        if not self.is_terminal:
            for chunk in stream:
                self._put(chunk)
        elif self._binary:
            while chunk := stream.read(_LONGEST):
                self._lines(source, list(hexdump(chunk)))
        else:
            for line in _lines_of(stream):
                text = line.removesuffix(b"\r").decode(errors="backslashreplace")
                self._lines(source, [escaped(text)])

    def note(self, text: str) -> None:
        """Say something of our own that is not the end."""
        if self._prompt is not None:
            self._prompt.show("! ", f"{escaped(text)}\n")
        else:
            print(f"gwt connect: {escaped(text)}", file=sys.stderr)

    def wait_quiet(self, seconds: float) -> None:
        """Wait until nothing has come for so long, from now on."""
        self._last = time.monotonic()
        while self._busy or (left := self._last + seconds - time.monotonic()) > 0:
            gevent.sleep(_LULL if self._busy else min(left, _LONG))

    def _lines(self, source: str, lines: list[str], more: str = "") -> None:
        lines = [*lines, more] if more else lines
        mark = f"[{source}] " if source else ""
        if self._prompt is None:
            self._put("".join(f"{mark}{line}\n" for line in lines).encode(errors="replace"))
            return
        with self._at_it():
            # Each line, so that none can pass for one of ours.
            for line in lines:
                self._prompt.show(mark or "< ", f"{line}\n")

    def _put(self, data: bytes) -> None:
        with self._at_it():
            stdio.write(data)

    @contextmanager
    def _at_it(self) -> Iterator[None]:
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            self._last = time.monotonic()


def _lines_of(stream: gwt.WebTransportReceiveStream) -> Iterator[bytes]:
    """Yield the lines of a stream, without their newlines; what stays without one, all the same."""
    rest = b""
    try:
        while True:
            try:
                chunk = stream.read(_LONGEST, timeout=_LULL if rest else None)
            except TimeoutError:
                # A question, perhaps, that waits for an answer.
                yield rest
                rest = b""
                continue
            if not chunk:
                break
            *whole, rest = (rest + chunk).split(b"\n")
            yield from whole
            if len(rest) >= _LONGEST:
                yield rest
                rest = b""
    except (gwt.StreamError, gwt.SessionError):
        if rest:
            yield rest
        raise
    if rest:
        yield rest
