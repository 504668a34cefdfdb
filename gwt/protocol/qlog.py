"""
What aioquic tells about its connections, as qlog 0.3: events kept within a bound, and their text.

Part of the seam of quic.py: `Qlog` takes the place of aioquic's QuicLogger, which keeps every
event for ever. Who writes the text to files, and when, is tracing.py's affair.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from typing import Any

from aioquic.h3.events import Headers
from aioquic.quic.logger import QuicLoggerTrace

__all__ = ["Qlog", "Trace"]


class Trace(QuicLoggerTrace):
    """The events of one connection that nobody has taken yet."""

    def __init__(self, qlog: Qlog, is_client: bool, odcid: bytes) -> None:
        super().__init__(is_client=is_client, odcid=odcid)
        self.name = f"{odcid.hex()}_{'client' if is_client else 'server'}"
        # Where the text goes, once the writer has decided.
        self.path: str | None = None
        self._qlog = qlog
        self._waiting: deque[dict[str, Any]] = deque()
        self._dropped = 0
        self._began = qlog.clock()
        self._header: dict[str, Any] | None = {
            "qlog_version": "0.3",
            "qlog_format": "JSON-SEQ",
            "title": f"gwt {self.name}",
            "trace": {
                "vantage_point": {"name": "gwt", "type": "client" if is_client else "server"},
                "common_fields": {
                    "ODCID": odcid.hex(),
                    "group_id": odcid.hex(),
                    "protocol_type": ["QUIC", "HTTP3"],
                    "time_format": "relative",
                    "reference_time": self._began * 1000,
                },
            },
        }

    def __repr__(self) -> str:
        return f"<Trace {self.name} waiting={len(self._waiting)}>"

    def log_event(self, *, category: str, event: str, data: dict[str, Any]) -> None:
        """Keep an event; when too many wait for being written, the newest goes, counted."""
        if self._qlog.closed:
            return
        if self._qlog.admit(self):
            # As it is: the frames of a packet follow while aioquic reads them.
            self._waiting.append(self._event(f"{category}:{event}", data))
        else:
            self._dropped += 1

    def _event(self, name: str, data: dict[str, Any]) -> dict[str, Any]:
        elapsed = round((self._qlog.clock() - self._began) * 1000, 3)
        return {"time": elapsed, "name": name, "data": data}

    def _encode_http3_headers(self, headers: Headers) -> list[dict[str, str]]:
        # A peer's headers need not be UTF-8, and aioquic would raise.
        return [
            {"name": name.decode("latin-1"), "value": value.decode("latin-1")}
            for name, value in headers
        ]

    @property
    def pending(self) -> bool:
        """Whether take() has something to give."""
        return bool(self._waiting or self._dropped)

    def clear(self) -> None:
        """Forget what waits."""
        self._waiting.clear()

    def take(self, most: int) -> bytes:
        """Return the text of the next events, up to `most` bytes and one event."""
        text = b""
        if self._header is not None:
            text = _record(self._header)
            self._header = None
        while self._waiting and len(text) < most:
            text += _record(self._waiting.popleft())
            self._qlog.size -= 1
        if self._dropped and not self._waiting:
            message = f"{self._dropped} events were dropped here"
            text += _record(self._event("loglevel:warning", {"message": message}))
            self._dropped = 0
        return text


def _record(content: dict[str, Any]) -> bytes:
    """Return a record of JSON text sequences (RFC 7464); nothing in it can fail."""
    return b"\x1e%s\n" % json.dumps(content, separators=(",", ":"), default=repr).encode()


class Qlog:
    """The traces of some connections, together within a bound. To aioquic: a QuicLogger."""

    def __init__(self, limit: int, wake: Callable[[], object], clock: Callable[[], float]) -> None:
        self.clock = clock
        self.closed = False
        self._limit = limit
        self._wake = wake
        # Events that wait, and the traces that have some.
        self.size = 0
        self._pending: dict[Trace, None] = {}

    def __repr__(self) -> str:
        return f"<Qlog {self.size} of {self._limit} events wait>"

    def start_trace(self, is_client: bool, odcid: bytes) -> Trace:
        """Return the trace of a new connection."""
        return Trace(self, is_client, odcid)

    def end_trace(self, trace: Trace) -> None:
        """Nothing: what a trace has goes out in any case, and nobody else keeps it."""

    def admit(self, trace: Trace) -> bool:
        """Count one event more; False if there is no room for it. Wakes the writer."""
        if trace not in self._pending:
            self._pending[trace] = None
            self._wake()
        if self.size >= self._limit:
            return False
        self.size += 1
        return True

    def take(self, most: int) -> tuple[Trace, bytes] | None:
        """
        Return a trace and the text of its next events, up to `most` bytes and one event.

        None if none wait. Not to be called from within aioquic.
        """
        trace = next(iter(self._pending), None)
        if trace is None:
            return None
        text = trace.take(most)
        if not trace.pending:
            del self._pending[trace]
        return trace, text

    def close(self) -> None:
        """Forget what waits, and take no more."""
        self.closed = True
        for trace in self._pending:
            trace.clear()
        self._pending.clear()
        self.size = 0
