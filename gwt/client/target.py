"""
Where to connect to: a URL taken apart, a name resolved.

resolve() waits for the resolver; the rest are pure functions.
"""

from __future__ import annotations

import ipaddress
import socket as _stdlib_socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import gevent
import gevent.socket

from ..errors import ConfigError, HandshakeError
from ..net.waiting import Deadline

__all__ = ["Target", "parse_url", "resolve"]

# What may stand in a path and a query as it is; the rest is percent-encoded.
_PATH_SAFE = "/:@!$&'()*+,;=~-._%"


@dataclass(frozen=True, slots=True)
class Target:
    """A URL, taken apart for a CONNECT request."""

    url: str
    host: str
    port: int
    # Host and, unless it is 443, port: the request's :authority.
    authority: str
    # With the query.
    path: str


def parse_url(url: str) -> Target:
    """Take an https URL apart; raises ConfigError that says what is wrong with it."""

    def wrong(why: str) -> ConfigError:
        return ConfigError(f"{url!r} is not a URL to connect to: {why}.", field="url", value=url)

    if not isinstance(url, str):
        raise wrong("it is no string")
    try:
        split = urlsplit(url)
        host, port = split.hostname, split.port
    except ValueError as exc:
        raise wrong(str(exc)) from None
    if split.scheme != "https":
        raise wrong('WebTransport needs "https://"')
    if not host:
        raise wrong("it has no host")
    if split.username is not None:
        raise wrong("user names are not supported")
    if split.fragment:
        raise wrong("a fragment has no meaning here")
    if port == 0:
        raise wrong("port 0 cannot be connected to")
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError:
            raise wrong("its host is not a name") from None
    port = 443 if port is None else port
    shown = f"[{host}]" if ":" in host else host
    path = quote(split.path or "/", safe=_PATH_SAFE)
    if split.query:
        path += "?" + quote(split.query, safe=_PATH_SAFE + "?")
    return Target(url, host, port, shown if port == 443 else f"{shown}:{port}", path)


def resolve(target: Target, deadline: Deadline) -> list[tuple[int, Any]]:
    """
    Return the (family, address) pairs of a target, best first.

    Waits for the resolver; raises HandshakeError (stage "resolve") or TimeoutError.
    """
    try:
        version = ipaddress.ip_address(target.host).version
    except ValueError:
        pass
    else:
        # Nothing to look up, so no thread of the resolver's either; but a zone is a name.
        if version == 4:
            return [(int(_stdlib_socket.AF_INET), (target.host, target.port))]
        if "%" not in target.host:
            return [(int(_stdlib_socket.AF_INET6), (target.host, target.port, 0, 0))]
    try:
        with gevent.Timeout(deadline.remaining(), TimeoutError("the name was not resolved")):
            found = gevent.socket.getaddrinfo(
                target.host, target.port, type=_stdlib_socket.SOCK_DGRAM
            )
    except TimeoutError:
        raise
    except OSError as exc:
        raise HandshakeError(
            f"The name {target.host!r} cannot be resolved: {exc.strerror or exc}.", stage="resolve"
        ) from exc
    seen: list[tuple[int, Any]] = []
    for family, _, _, _, address in found:
        if (family, address) not in seen:
            seen.append((int(family), address))
    return seen
