"""
What can be written down about connections: their secrets, and what they do, packet by packet.

Two variables of the environment ask for it: SSLKEYLOGFILE for secrets in NSS key log format, as
Wireshark reads them, QLOGDIR for one qlog file a connection. Without them nothing here costs
anything. The quiet zone only gathers lines; greenlets write them.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import sys
import time
from typing import TYPE_CHECKING, Any, TypeVar

import gevent
from gevent.hub import get_hub

from .protocol.qlog import Qlog
from .protocol.seam import QuicOptions

if TYPE_CHECKING:
    from aioquic.quic.configuration import QuicConfiguration

__all__ = ["configuration", "flush", "log_secrets"]

logger = logging.getLogger("gwt")

T = TypeVar("T", bound="Outlet")

# Lines, and events, that may wait for being written: a busy moment's worth.
_MAX_LINES = 4096
_MAX_EVENTS = 16384

# Bytes of qlog written before other greenlets have a turn, and seconds for which events gather.
_QLOG_A_TURN = 32 * 1024
_QLOG_DELAY = 0.05


def configuration(options: QuicOptions, *, version: int | None = None) -> QuicConfiguration:
    """Return aioquic's configuration of `options`, with what the environment wants traced."""
    directory = _outlet(QlogDirectory)
    return options.configuration(
        version=version,
        secrets=_outlet(KeyLog),
        qlog=None if directory is None else directory.qlog,
    )


def log_secrets(context: Any) -> None:
    """Let a context of TLS over TCP, an ssl.SSLContext, append to the same file, by OpenSSL."""
    outlet = _outlet(KeyLog)
    if outlet is None or outlet.failed:
        return
    try:
        # Ours first: OpenSSL would wait for the reader of a pipe, and let everybody read a file.
        _append(outlet.path, b"")
        context.keylog_filename = outlet.path
    except OSError as exc:
        outlet.fail(exc)


def flush() -> None:
    """Write everything that waits in this hub, now."""
    for outlet in list(_outlets().values()):
        outlet.write_all()


class Outlet:
    """What one variable asks for, in one hub; subclasses gather lines, and write some of them."""

    variable = ""
    delay = 0.0

    def __init__(self, path: str) -> None:
        self.path = path
        self.failed = False
        self._writer: gevent.Greenlet | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path}{' failed' * self.failed}>"

    def wake(self) -> None:
        """Have what waits written soon, by a greenlet that ends when nothing waits."""
        if self._writer is None or self._writer.ready():
            _waiting.add(self)
            self._writer = gevent.spawn_later(self.delay, self._run)
            self._writer.name = f"gwt-tracing {self.variable}"

    def _run(self) -> None:
        while self.write_some():
            gevent.sleep(0)
        _waiting.discard(self)

    def write_all(self) -> None:
        """Write everything that waits, without a turn for other greenlets."""
        while self.write_some():
            pass

    def write_some(self) -> bool:
        """Write a little of what waits; returns whether there was something."""
        raise NotImplementedError

    def fail(self, error: OSError) -> None:
        """Say once what went wrong, and give up: connections are not to suffer."""
        if not self.failed:
            self.failed = True
            logger.error("%s=%s: %s. No more is written.", self.variable, self.path, error)


class KeyLog(Outlet):
    """A file of secrets; to aioquic, a text file."""

    variable = "SSLKEYLOGFILE"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._lines: list[str] = []

    def write(self, line: str) -> None:
        """Keep one line; beyond the bound it is lost."""
        if not self.failed and len(self._lines) < _MAX_LINES:
            self._lines.append(line)
            self.wake()

    def flush(self) -> None:
        """Nothing: aioquic asks in the quiet zone, and a greenlet writes next turn."""

    def write_some(self) -> bool:
        """Write all lines that wait."""
        lines, self._lines = self._lines, []
        try:
            if lines:
                _append(self.path, "".join(lines).encode())
        except OSError as exc:
            self.fail(exc)
        return bool(lines)


class QlogDirectory(Outlet):
    """A directory with a file for each connection."""

    variable = "QLOGDIR"
    delay = _QLOG_DELAY

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.qlog = Qlog(_MAX_EVENTS, self.wake, time.time)

    def write_some(self) -> bool:
        """Write some events of one connection."""
        taken = self.qlog.take(_QLOG_A_TURN)
        if taken is None:
            return False
        trace, text = taken
        if trace.path is None:
            trace.path = os.path.join(self.path, f"{trace.name}.sqlog")
            if os.path.lexists(trace.path):
                # The id is of the client's choice, who may choose one twice.
                unique = secrets.token_hex(4)
                trace.path = os.path.join(self.path, f"{trace.name}_{unique}.sqlog")
        try:
            _append(trace.path, text)
        except OSError as exc:
            self.fail(exc)
            self.qlog.close()
        return True


def _append(path: str, data: bytes) -> None:
    # Opened each time: nothing stays open, and files can be moved away. Nobody else may read
    # them. A pipe that nobody reads is an error, not a wait.
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
    number = os.open(path, flags, 0o600)
    try:
        while data:
            data = data[os.write(number, data) :]
    finally:
        os.close(number)


# Outlets that have something to write, of every hub.
_waiting: set[Outlet] = set()


def _outlets() -> dict[tuple[str, str], Any]:
    hub = get_hub()
    outlets: dict[tuple[str, str], Any] | None = getattr(hub, "gwt_tracing", None)
    if outlets is None:
        outlets = hub.gwt_tracing = {}
    return outlets


def _outlet(kind: type[T]) -> T | None:
    path = os.environ.get(kind.variable)
    if not path or sys.flags.ignore_environment:
        return None
    outlets = _outlets()
    path = os.path.abspath(path)
    outlet = outlets.get((kind.variable, path))
    if outlet is None:
        outlet = outlets[kind.variable, path] = kind(path)
    return outlet


@atexit.register
def _write_waiting() -> None:
    for outlet in list(_waiting):
        outlet.write_all()
