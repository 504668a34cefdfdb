"""
The way to a TCP connection, or to another stream socket: addresses, Unix paths, a given socket.

Addresses are tried as for WebTransport, by the decisions of dial.py; each attempt that is under way
has a greenlet, which ends with the call. TLS is tls.py's, tunnels are proxy.py's.
"""

from __future__ import annotations

import os
import ssl as _stdlib_ssl
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import gevent
import gevent.socket
from gevent import ssl

from ..config import ClientConfig
from ..errors import ConfigError, HandshakeError
from ..net.descriptors import explained
from ..net.udpsocket import shown
from ..net.waiting import Deadline, Signal
from .dial import Progress, in_order, next_start, patience
from .sockets import ClientHub
from .target import Target

__all__ = ["adopt", "connect_tcp", "connect_unix"]


def adopt(given: Any, *, secure: bool) -> Any:
    """Return a gevent socket of what the caller gave, which is ours from now on."""
    if isinstance(given, ssl.SSLSocket) and not secure:
        given.settimeout(None)
        return given
    if isinstance(given, (ssl.SSLSocket, _stdlib_ssl.SSLSocket)):
        raise ConfigError(
            "sock speaks TLS already: give the socket below it, and a wss URL.",
            field="sock",
            value=given,
        )
    try:
        if given.type != gevent.socket.SOCK_STREAM:
            raise TypeError("it has no stream")
        # Whatever kind of socket it is: ours never blocks the hub.
        sock = gevent.socket.socket(given.family, given.type, given.proto, given.detach())
    except (AttributeError, TypeError, ValueError, OSError) as exc:
        raise ConfigError(
            f"sock must be a connected stream socket, not {given!r}.", field="sock", value=given
        ) from exc
    sock.settimeout(None)
    return sock


def connect_unix(path: str | bytes | os.PathLike[str], progress: Progress) -> Any:
    """Return a socket that is connected to a Unix socket; waits for its backlog."""
    progress.enter("connect", f"connecting to {path!r}")
    sock = gevent.socket.socket(gevent.socket.AF_UNIX, gevent.socket.SOCK_STREAM)
    # The limit is connect()'s, not socket.setdefaulttimeout()'s.
    sock.settimeout(None)
    try:
        sock.connect(os.fspath(path))
        return sock
    except BaseException as exc:
        sock.close()
        if isinstance(exc, (OSError, TypeError, ValueError)) and not isinstance(exc, TimeoutError):
            why = getattr(exc, "strerror", None) or exc
            raise HandshakeError(
                f"Nobody answers on the Unix socket {path!r}: {why}.", stage="connect"
            ) from exc
        raise


def connect_tcp(
    target: Target,
    config: ClientConfig,
    progress: Progress,
    options: Sequence[tuple[Any, ...]] = (),
) -> Any:
    """
    Return a socket that is connected to one of a target's addresses (RFC 8305).

    Waits for the resolver and for the fastest. `options` are arguments of setsockopt(). Raises
    HandshakeError, stage "resolve" or "connect".
    """
    progress.enter("resolve", f"resolving {target.host!r}")
    names = ClientHub.current().names
    addresses = in_order(names.resolve(target, progress.deadline))
    try:
        return _Race(target, config, progress, options).run(addresses)
    except (HandshakeError, TimeoutError):
        names.forget(target)
        raise


class _Race:
    """The addresses of one name, tried as RFC 8305 has it; the first that answers wins."""

    def __init__(
        self,
        target: Target,
        config: ClientConfig,
        progress: Progress,
        options: Sequence[tuple[Any, ...]],
    ) -> None:
        self.target = target
        self.config = config
        self.progress = progress
        self.options = options
        self.changed = Signal()
        self.winner: Any = None
        self.failures: list[tuple[str, OSError | TypeError]] = []

    def run(self, addresses: list[tuple[int, Any]]) -> Any:
        if len(addresses) == 1:
            # Nothing to race with: it needs no greenlet.
            waiting: deque[tuple[int, Any]] = deque()
            self._attempt(*addresses[0], self._begin(addresses[0][1]))
        else:
            waiting = deque(addresses)
        attempts: list[gevent.Greenlet] = []
        started = -1e9
        delay = patience(self.config.attempt_delay, None)
        try:
            while self.winner is None:
                failed = len(self.failures) >= len(attempts)
                due = next_start(started, delay, answered=False, failed=failed)
                if waiting and time.monotonic() >= due:
                    family, address = waiting.popleft()
                    where = self._begin(address)
                    started = time.monotonic()
                    attempt = gevent.Greenlet(self._attempt, family, address, where)
                    attempt.name = f"gwt-connect {where}"
                    attempts.append(attempt)
                    attempt.start()
                elif not waiting and failed:
                    raise self._none_left()
                else:
                    self._wait(due if waiting else None)
            winner, self.winner = self.winner, None
            return winner
        finally:
            gevent.killall(attempts, block=False)
            if self.winner is not None:
                self.winner.close()

    def _begin(self, address: Any) -> str:
        where = "{} port {}".format(*shown(address))
        self.progress.enter("connect", f"connecting to {where}")
        return where

    def _wait(self, due: float | None) -> None:
        try:
            left = None if due is None else max(0.0, due - time.monotonic())
            self.changed.wait(Deadline(left))
        except TimeoutError:
            if due is None:
                raise

    def _attempt(self, family: int, address: Any, where: str) -> None:
        sock = None
        try:
            sock = gevent.socket.socket(family, gevent.socket.SOCK_STREAM)
            sock.settimeout(None)
            for option in self.options:
                sock.setsockopt(*option)
            sock.connect(address)
            if self.winner is None:
                self.winner, sock = sock, None
        except (OSError, TypeError) as exc:
            self.failures.append((where, exc))
        finally:
            if sock is not None:
                sock.close()
            self.changed.notify()

    def _none_left(self) -> HandshakeError:
        texts = [f"{where}: {explained(exc)}" for where, exc in self.failures]
        error = HandshakeError(
            f"Nobody answers on TCP {'; '.join(texts)}."
            if texts
            else f"{self.target.host!r} has no address.",
            stage="connect",
        )
        error.__cause__ = self.failures[0][1] if self.failures else None
        return error
