"""
Who may ask: origins and hosts, decided by pure functions over header values.

The rules are those of api documentation: an `Origin` must be the server's own unless it is
listed, and a request without one is not a browser's.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

__all__ = ["host_allowed", "origin_allowed"]

_LOOPBACK = "loopback"


def _host_port(authority: str) -> tuple[str, int | None] | None:
    """Return host and port in a form that can be compared; None if it is neither."""
    try:
        split = urlsplit(f"//{authority}")
        host, port = split.hostname, split.port
    except ValueError:
        return None
    if not host or split.username is not None:
        return None
    host = host.rstrip(".")
    try:
        if ipaddress.ip_address(host).is_loopback:
            host = _LOOPBACK
    except ValueError:
        if host == "localhost" or host.endswith(".localhost"):
            host = _LOOPBACK
    # The scheme does not count, so neither does which of the two default ports it is.
    return host, None if port in (80, 443) else port


def _split_origin(origin: str) -> tuple[str, int | None] | None:
    scheme, separator, rest = origin.partition("://")
    if not separator or not scheme or "/" in rest.rstrip("/"):
        return None
    return _host_port(rest.rstrip("/"))


def origin_allowed(
    origin: str | None, authority: str, origins: str | Sequence[str] | None = None
) -> bool:
    """
    Return whether a page of `origin` may talk to `authority`.

    By default host and port must be equal, ignoring case, the scheme, and ports 80 and 443;
    loopback names equal one another. `origins` lists others, or is "*" for any.
    """
    if origin is None:
        return True
    listed = [origins] if isinstance(origins, str) else list(origins or ())
    if "*" in listed:
        return True
    if any(origin.lower().rstrip("/") == other.lower().rstrip("/") for other in listed):
        return True
    asked = _split_origin(origin)
    return asked is not None and asked == _host_port(authority)


def host_allowed(authority: str, allowed_hosts: Sequence[str] | None) -> bool:
    """
    Return whether requests may be addressed to `authority`; None allows any.

    A name that begins with a dot stands for itself and everything under it.
    """
    if allowed_hosts is None:
        return True
    try:
        host = (urlsplit(f"//{authority}").hostname or "").rstrip(".")
    except ValueError:
        return False
    for name in allowed_hosts:
        wanted = name.lower().strip("[]").rstrip(".")
        if wanted in ("*", host):
            return True
        if wanted.startswith(".") and (host == wanted[1:] or host.endswith(wanted)):
            return True
    return False
