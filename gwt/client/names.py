"""
Names: what the resolver said of each host, for all client connections of a hub.

A name is asked for once, however many connect to it, and its answer is good for a while, since the
resolver does not say for how long. Failures are not remembered. Which address to try is dial.py's.
"""

from __future__ import annotations

import ipaddress
import socket as _stdlib_socket
import time
from collections.abc import Callable
from typing import Any

import gevent
import gevent.socket

from ..errors import HandshakeError
from ..net.waiting import Deadline, Signal
from .target import Target

__all__ = ["Names"]

# For how long an answer is good, in seconds: thousands of connects, but not a change of servers.
_GOOD_FOR = 30.0

# Answers that are remembered, those of last time first to go.
_REMEMBERED = 256


class _Lookup:
    """A question to the resolver that is under way, and its answer, for all who ask the same."""

    def __init__(self) -> None:
        self.answered = Signal()
        # None: whoever asked has gone, and somebody else has to.
        self.answer: list[tuple[int, Any]] | OSError | None = None


class Names:
    """The names that a hub's connections are made to."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lookups: dict[tuple[str, int], _Lookup] = {}
        # With the time until which it is good.
        self._answers: dict[tuple[str, int], tuple[float, list[tuple[int, Any]]]] = {}

    def __len__(self) -> int:
        """Return how many questions are under way."""
        return len(self._lookups)

    def resolve(self, target: Target, deadline: Deadline) -> list[tuple[int, Any]]:
        """
        Return the (family, address) pairs of a target, best first as RFC 6724 has it.

        Waits for gevent's resolver, which does not block the hub, in the caller's greenlet, unless
        it was asked within 30 seconds; those who ask for the same name meanwhile wait with it.
        Raises HandshakeError (stage "resolve") or TimeoutError.
        """
        try:
            return [_literal(target)]
        except ValueError:
            pass
        key = (target.host, target.port)
        known = self._answers.get(key)
        if known is not None and self._clock() < known[0]:
            return known[1]
        answer = self._ask(key, deadline)
        if isinstance(answer, OSError):
            raise HandshakeError(
                f"The name {target.host!r} cannot be resolved: {answer.strerror or answer}.",
                stage="resolve",
            ) from answer
        return answer

    def forget(self, target: Target) -> None:
        """Ask anew the next time, since nobody answered where the name points to."""
        self._answers.pop((target.host, target.port), None)

    def clear(self) -> None:
        """Forget all answers."""
        self._answers.clear()

    def _ask(self, key: tuple[str, int], deadline: Deadline) -> list[tuple[int, Any]] | OSError:
        while (lookup := self._lookups.get(key)) is not None:
            lookup.answered.wait(deadline)
            if lookup.answer is not None:
                return lookup.answer
        lookup = self._lookups[key] = _Lookup()
        try:
            with gevent.Timeout(deadline.remaining(), TimeoutError("the name was not resolved")):
                lookup.answer = _addresses(*key)
            self._remember(key, lookup.answer)
        except TimeoutError:
            raise
        except OSError as exc:
            lookup.answer = exc
        finally:
            del self._lookups[key]
            lookup.answered.notify()
        return lookup.answer

    def _remember(self, key: tuple[str, int], answer: list[tuple[int, Any]]) -> None:
        self._answers.pop(key, None)
        self._answers[key] = (self._clock() + _GOOD_FOR, answer)
        if len(self._answers) > _REMEMBERED:
            del self._answers[next(iter(self._answers))]


def _literal(target: Target) -> tuple[int, Any]:
    """Return an address that needs no resolver; raises ValueError if it is a name."""
    if ipaddress.ip_address(target.host).version == 4:
        return int(_stdlib_socket.AF_INET), (target.host, target.port)
    scope = 0
    if target.zone.isdecimal():
        scope = int(target.zone)
    elif target.zone:
        try:
            scope = _stdlib_socket.if_nametoindex(target.zone)
        except OSError as exc:
            raise HandshakeError(
                f"There is no network interface {target.zone!r}.", stage="resolve"
            ) from exc
    return int(_stdlib_socket.AF_INET6), (target.host, target.port, 0, scope)


def _addresses(host: str, port: int) -> list[tuple[int, Any]]:
    found = gevent.socket.getaddrinfo(host, port, type=_stdlib_socket.SOCK_DGRAM)
    if not found:
        raise OSError("it has no address")
    return list(dict.fromkeys((int(family), address) for family, *_, address in found))
