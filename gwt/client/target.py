"""
Where to connect to: a URL taken apart. Pure functions; names are resolved in names.py.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlsplit

from ..errors import ConfigError

__all__ = [
    "Headers",
    "Target",
    "basic_authorization",
    "pairs",
    "parse_url",
    "without_user",
]

Headers = Mapping[str, str] | Iterable[tuple[str, str]]

_WEBTRANSPORT = {"https": 443}

# What may stand in a path and a query as it is; the rest is percent-encoded.
_PATH_SAFE = "/:@!$&'()*+,;=~-._%"

# A user's name and password in a URL, which no message shows.
_USER_INFORMATION = re.compile(r"(?<=//)[^/?#]*@")


@dataclass(frozen=True, slots=True)
class Target:
    """A URL, taken apart for a request."""

    # To be shown: without the password, if there is one.
    url: str
    scheme: str
    # A name, or an address without brackets; `zone` is the interface of a link-local one.
    host: str
    zone: str
    port: int
    # Host and, unless it is the scheme's, port: the request's :authority.
    authority: str
    # With the query.
    path: str
    # The Authorization header that the URL's user and password make, or None (RFC 7617).
    authorization: str | None = field(default=None, repr=False)

    @property
    def place(self) -> tuple[str, str, int]:
        """The origin (RFC 6454): what was said to one is no other's business."""
        return self.scheme, self.host, self.port


def parse_url(
    url: str, schemes: Mapping[str, int] = _WEBTRANSPORT, *, name: str = "url", users: bool = False
) -> Target:
    """
    Take a URL apart; raises ConfigError that says what is wrong with it.

    `schemes` are those that are taken, with their default ports; `name` is the option that it came
    from; `users` tells whether it may have a user and a password.
    """
    shown_url = without_user(url)

    def wrong(why: str) -> ConfigError:
        return ConfigError(
            f"{shown_url!r} is not a URL to connect to: {why}.", field=name, value=shown_url
        )

    if not isinstance(url, str):
        raise wrong("it is no string")
    try:
        split = urlsplit(url)
        host, port = split.hostname, split.port
    except ValueError as exc:
        raise wrong(str(exc)) from None
    if split.scheme not in schemes:
        raise wrong(" or ".join(f'"{each}://"' for each in schemes) + " is needed")
    default = schemes[split.scheme]
    if not host:
        raise wrong("it has no host")
    if split.username is not None and not users:
        raise wrong("user names are not supported")
    if split.fragment:
        raise wrong("a fragment has no meaning here")
    if port == 0:
        raise wrong("port 0 cannot be connected to")
    try:
        host, zone = _host(host)
    except ValueError as exc:
        raise wrong(str(exc)) from None
    port = default if port is None else port
    # RFC 6874 3: a zone means something on this machine only, so that no server hears of it.
    shown = f"[{host}]" if ":" in host else host
    path = quote(split.path or "/", safe=_PATH_SAFE)
    if split.query:
        path += "?" + quote(split.query, safe=_PATH_SAFE + "?")
    authority = shown if port == default else f"{shown}:{port}"
    basic = None
    if split.username is not None:
        basic = basic_authorization(unquote(split.username), unquote(split.password or ""))
    return Target(shown_url, split.scheme, host, zone, port, authority, path, basic)


def without_user(url: str) -> str:
    """Return a URL as messages show it: without the user and the password that it may have."""
    return _USER_INFORMATION.sub("***@", url) if isinstance(url, str) else url


def basic_authorization(user: str, password: str) -> str:
    """Return the value of an Authorization header for a user and a password (RFC 7617)."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _host(text: str) -> tuple[str, str]:
    """Return a URL's host as names and packets have it, and its zone; raises ValueError."""
    # RFC 6874 writes [fe80::1%25eth0]; everybody else leaves the 25 out.
    text, _, zone = text.partition("%")
    zone = zone.removeprefix("25") or zone
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        try:
            if not zone:
                return text.encode("idna").decode("ascii"), ""
        except UnicodeError:
            pass
        raise ValueError("its host is not a name") from None
    if address.version == 6 and address.ipv4_mapped is not None:
        # Not every machine has sockets that serve both families.
        address = address.ipv4_mapped
    if zone and not address.is_link_local:
        raise ValueError("only a link-local IPv6 address has a zone")
    # In the form that the kernel answers with, to which the source of packets is compared.
    return str(address), zone


def pairs(headers: Headers) -> list[tuple[str, str]]:
    """Return headers, however they were given, as a list."""
    return list(headers.items() if isinstance(headers, Mapping) else headers)
