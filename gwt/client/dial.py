"""
dial(): from a target to a connection that is ready for sessions.

A name's addresses are tried as RFC 8305 ("happy eyeballs") has it: each attempt begins a moment
after the one before, or as soon as that has failed; the first completed handshake wins. One
greenlet starts all attempts and waits for any: connections need none, and share one Signal.

What is decided about addresses and moments stands in the pure functions in_order(), patience() and
next_start(). Sessions are client.py's affair.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from .. import certificates
from ..config import ClientConfig, certificate_hash
from ..connection import ConnectionState, WebTransportConnection
from ..errors import CertificateError, HandshakeError, RequirementsNotMet
from ..net.descriptors import explained
from ..net.udpsocket import Address, shown
from ..net.waiting import Deadline, Signal
from ..protocol import codes
from ..protocol.seam import QuicOptions
from .sockets import ClientHub
from .target import Target

__all__ = ["Progress", "dial", "in_order", "next_start", "patience"]

# TLS alerts that speak of the certificate (RFC 8446 6.2).
_CERTIFICATE_ALERTS = frozenset((42, 43, 44, 45, 46, 48, 113, 116))

# RFC 7301 3.2.
_NO_APPLICATION_PROTOCOL = 120

# A name may have hundreds of addresses, and each attempt costs a packet and some memory.
_MOST_ADDRESSES = 16

# What RFC 8305 8 wants at least and at most between two attempts.
_LEAST_PATIENCE = 0.01
_MOST_PATIENCE = 2.0


@dataclass(slots=True)
class Progress:
    """How far a connect() has come: its one deadline, and what a timeout will say."""

    deadline: Deadline
    stage: str = ""
    queued: float = 0.0
    # The stage as a HandshakeError names it, and who is told when another one begins.
    name: str = "connect"
    on_enter: Callable[[str], None] | None = None
    # The version of TLS that a WebSocket got.
    tls: str | None = None

    def enter(self, name: str, text: str) -> None:
        """Begin a stage, or go on with it; `text` is what a timeout will say."""
        self.stage = text
        if name != self.name:
            self.name = name
            if self.on_enter is not None:
                self.on_enter(name)


def in_order(addresses: Sequence[tuple[int, Any]]) -> list[tuple[int, Any]]:
    """
    Return the addresses to try, families taking turns, at most 16 (RFC 8305 4).

    The resolver's order (RFC 6724) says which family begins, IPv6 where this machine has it, and
    which address goes first within a family.
    """
    families: dict[int, list[tuple[int, Any]]] = {}
    for each in addresses:
        families.setdefault(each[0], []).append(each)
    turns = zip_longest(*families.values())
    return [each for turn in turns for each in turn if each is not None][:_MOST_ADDRESSES]


def patience(delay: float, last: float | None) -> float:
    """
    Return how long an address is waited for whose last handshake took `last` seconds.

    `delay`, or twice `last`, up to 2 seconds (RFC 8305 5): a server that a thousand clients keep
    busy answers late, and would be later still if each of them knocked at two doors.
    """
    return max(delay, _LEAST_PATIENCE, min(2 * (last or 0.0), _MOST_PATIENCE))


def next_start(started: float, delay: float, *, answered: bool, failed: bool) -> float:
    """
    Return when the attempt after one that began at `started` begins (RFC 8305 5).

    At once if that has failed; after `delay` if nothing has come back; and after twice that if
    something has: the handshake is about to complete, but a path may still lose its rest.
    """
    return started if failed else started + (2 * delay if answered else delay)


def dial(
    target: Target, config: ClientConfig, progress: Progress, *, sessions: bool = True
) -> WebTransportConnection:
    """
    Return a connection that is ready for sessions; or for requests, unless `sessions` are wanted.

    Waits for a handshake slot, the resolver, a handshake, and the server's settings, within one
    deadline. Only silence and refusal make the next address be tried: once a server has answered,
    what it says ends the call, so that a wrong certificate never goes unnoticed. Raises
    HandshakeError with its stage, CertificateError, RequirementsNotMet, or TimeoutError.
    """
    hub = ClientHub.current()
    slots = hub.slots(config.max_connecting)
    progress.stage = "waiting for a free handshake slot"
    began = time.monotonic()
    acquired = slots.acquire(timeout=progress.deadline.remaining())
    progress.queued += time.monotonic() - began
    if not acquired:
        raise TimeoutError
    try:
        progress.enter("resolve", f"resolving {target.host!r}")
        addresses = in_order(hub.names.resolve(target, progress.deadline))
        try:
            return _Race(target, config, progress, hub, sessions).run(addresses)
        except (HandshakeError, TimeoutError):
            hub.names.forget(target)
            raise
    finally:
        slots.release()


@dataclass(slots=True)
class _Attempt:
    """One address, and what came of it so far."""

    address: Address
    where: str
    started: float
    connection: WebTransportConnection | None = None
    failure: HandshakeError | None = None


class _Race:
    """The attempts of one dial()."""

    def __init__(
        self,
        target: Target,
        config: ClientConfig,
        progress: Progress,
        hub: ClientHub,
        sessions: bool = True,
    ) -> None:
        self.sessions = sessions
        self.target = target
        self.config = config
        self.progress = progress
        self.hub = hub
        self.attempts: list[_Attempt] = []
        # Of all attempts.
        self.changed = Signal()
        self.hashes = [certificate_hash(value) for value in config.server_certificate_hashes]
        verify = config.verify and not self.hashes
        self.options = QuicOptions.of(
            config,
            is_client=True,
            verify=verify,
            authorities=certificates.authorities(config.cafile) if verify else None,
            cafile=None if config.cafile is None else str(config.cafile),
            server_name=config.server_name or target.host,
        )

    def run(self, addresses: list[tuple[int, Any]]) -> WebTransportConnection:
        """Return the first connection whose handshake completes, and close the others."""
        keep = None
        try:
            attempt = self._winner(deque(addresses))
            winner = attempt.connection
            assert winner is not None
            for other in self.attempts:
                self.hub.remember(other.address, None)
            self.hub.remember(attempt.address, time.monotonic() - attempt.started)
            self._close_all(but=winner)
            self._wait_ready(winner, attempt.where)
            keep = winner
        finally:
            # Also when the greenlet is killed: nobody else knows of them.
            self._close_all(but=keep)
        return keep

    def _close_all(self, *, but: WebTransportConnection | None) -> None:
        for attempt in self.attempts:
            if attempt.connection is not None and attempt.connection is not but:
                attempt.connection.close()

    def _winner(self, waiting: deque[tuple[int, Any]]) -> _Attempt:
        attempts, deadline = self.attempts, self.progress.deadline
        while True:
            for attempt in attempts:
                if self._has_won(attempt):
                    return attempt
            if deadline.expired:
                raise TimeoutError
            due = self._next_due() if waiting else None
            if due is not None and time.monotonic() >= due:
                self.hub.pace.wait(deadline)
                if not any(self._has_won(attempt) for attempt in attempts):
                    self._start(*waiting.popleft())
            elif due is None and all(each.failure for each in attempts):
                raise self._none_left()
            else:
                self._wait(due)

    def _has_won(self, attempt: _Attempt) -> bool:
        """Whether a handshake is complete; raises what a server's answer makes final."""
        connection = attempt.connection
        if connection is None or attempt.failure is not None:
            return False
        if connection.closed is None:
            return connection.state is ConnectionState.CONNECTED
        attempt.failure = _failure(connection, attempt.where, self.target.host)
        if attempt.failure.stage != "connect":
            raise attempt.failure
        return False

    def _next_due(self) -> float:
        if not self.attempts:
            return 0.0
        last = self.attempts[-1]
        return next_start(
            last.started,
            patience(self.config.attempt_delay, self.hub.handshakes.get(last.address)),
            answered=_heard(last),
            failed=last.failure is not None,
        )

    def _start(self, family: int, address: Address) -> None:
        host, port = shown(address)
        attempt = _Attempt(address, f"{host} port {port}", time.monotonic())
        self.attempts.append(attempt)
        try:
            attempt.connection = self.hub.dial(
                family, address, self.options, self.config, self.changed
            )
        except OSError as exc:
            attempt.failure = HandshakeError(
                f"No packet can be sent to {attempt.where}: {explained(exc)}.",
                stage="connect",
            )
            attempt.failure.__cause__ = exc

    def _wait(self, due: float | None) -> None:
        """Wait until something has changed, or the next attempt is due."""
        self._tell()
        left = self.progress.deadline.remaining()
        if due is not None:
            until_due = max(0.0, due - time.monotonic())
            left = until_due if left is None else min(left, until_due)
        try:
            self.changed.wait(Deadline(left))
        except TimeoutError:
            # On a hub that was busy for a while answers wait in the sockets, and go first.
            for attempt in self.attempts:
                if attempt.connection is not None:
                    attempt.connection.endpoint.drain()
            self._tell()

    def _tell(self) -> None:
        """Say how far it has come."""
        pending = " and ".join(each.where for each in self.attempts if each.failure is None)
        if self.config.client_sockets is None and any(map(_answered_otherwise, self.attempts)):
            pending += ", where something answers, but not by QUIC"
        heard = any(map(_heard, self.attempts))
        self.progress.enter(
            "tls" if heard else "connect",
            "; ".join([f"shaking hands with {pending}", *self._failures()]),
        )

    def _failures(self) -> list[str]:
        """Say in clauses what went wrong so far."""
        texts = [str(each.failure).rstrip(".") for each in self.attempts if each.failure]
        return [text[:1].lower() + text[1:] for text in texts]

    def _none_left(self) -> HandshakeError:
        first = self.attempts[0].failure
        assert first is not None
        if len(self.attempts) == 1:
            return first
        error = HandshakeError(
            f"No address of {self.target.host!r} can be reached: {'; '.join(self._failures())}.",
            stage="connect",
        )
        error.__cause__ = first
        return error

    def _wait_ready(self, connection: WebTransportConnection, where: str) -> None:
        """Wait until the server has said what it can do, and see whether that is enough."""
        if self.hashes:
            try:
                certificates.check_pinned(connection.protocol.quic.peer_certificate, self.hashes)
            except CertificateError:
                connection.close(codes.QUIC_CRYPTO_ERROR + 42, "certificate hash mismatch")
                raise
        self.progress.enter("http3", f"waiting for the HTTP/3 settings of {where}")
        while not connection.protocol.ready and connection.closed is None:
            connection.wait_change(self.progress.deadline)
        if connection.closed is not None:
            raise _failure(connection, where, self.target.host)
        missing = connection.protocol.missing_requirement() if self.sessions else None
        if missing is not None:
            connection.close(codes.WT_REQUIREMENTS_NOT_MET, "WebTransport is not supported")
            raise RequirementsNotMet(missing)


def _heard(attempt: _Attempt) -> bool:
    """Whether anything of QUIC has come back from an address."""
    return attempt.connection is not None and attempt.connection.remote_address is not None


def _answered_otherwise(attempt: _Attempt) -> bool:
    """Whether on a socket of its own an attempt got something that is no packet of its own."""
    connection = attempt.connection
    return connection is not None and connection.endpoint.stats["unrouted"] > 0


def _failure(connection: WebTransportConnection, where: str, host: str) -> HandshakeError:
    """Say why a connection ended before it was ready, with what it ended with as the cause."""
    closed = connection.closed
    assert closed is not None
    error, cause = _why(connection, where, host), connection.network_error or closed
    error.__cause__ = cause
    return error


def _why(connection: WebTransportConnection, where: str, host: str) -> HandshakeError:
    closed, unreachable = connection.closed, connection.network_error
    assert closed is not None
    if unreachable is not None:
        return HandshakeError(
            f"Nobody answers on UDP {where}: {unreachable.strerror or unreachable}.",
            stage="connect",
        )
    code, text = closed.code or 0, closed.reason or "no reason given"
    alert = code - codes.QUIC_CRYPTO_ERROR
    by = "The server" if closed.remote else "The client"
    if 0 < alert < 256 and not closed.application:
        if alert in _CERTIFICATE_ALERTS and not closed.remote:
            return CertificateError(f"The certificate of {host!r} was not accepted: {text}.")
        if alert == _NO_APPLICATION_PROTOCOL:
            return HandshakeError(
                f"The server at {where} speaks QUIC, but no HTTP/3: {text}.", stage="http3"
            )
        return HandshakeError(
            f"{by} ended the TLS handshake with alert {alert}: {text}.", stage="tls"
        )
    if code == codes.QUIC_CONNECTION_REFUSED and closed.remote and not closed.application:
        return HandshakeError(
            f"The server at {where} refused the connection: {text}.", stage="connect"
        )
    if text == "Idle timeout":
        return HandshakeError(f"The server at {where} fell silent.", stage="connect")
    return HandshakeError(f"{by} closed the connection with code {code:#x}: {text}.", stage="http3")
