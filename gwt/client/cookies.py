"""
Cookies of one connect(): what the caller gives, and what a server sets on the way.

The rules of domains, paths and secure cookies are http.cookiejar's (RFC 6265), in memory: nothing
here waits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from email.message import Message
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any
from urllib.request import Request

from ..errors import ConfigError
from .target import Target

__all__ = ["Cookies"]

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\x20-\x3a\x3c-\x7e]*")


class Cookies:
    """
    The cookies of one connect().

    Made of a mapping of names to values, for the place that is connected to, or of a CookieJar,
    which also keeps what servers set. The jars of `requests` are such.
    """

    def __init__(self, given: Mapping[str, str] | CookieJar | None) -> None:
        self._jar = given if isinstance(given, CookieJar) else CookieJar(_policy())
        self._given: dict[str, str] = {}
        if given is None or given is self._jar:
            return
        if not isinstance(given, Mapping):
            raise ConfigError(
                f"cookies must be a mapping or a CookieJar, not {given!r}.",
                field="cookies",
                value=given,
            )
        for name, value in given.items():
            if not _matches(_NAME, name) or not _matches(_VALUE, value):
                raise ConfigError(
                    f"The cookie {name!r} cannot be sent.", field="cookies", value=given
                )
            self._given[name] = value

    def forget_given(self) -> None:
        """Leave out what the caller gave: the next request goes to another place."""
        self._given = {}

    def header(self, target: Target, literal: str | None) -> str | None:
        """Return the one Cookie header of a request (RFC 6265 5.4); `literal` comes first."""
        if not self._given and not any(True for _ in self._jar):
            return literal
        request = _request(target)
        self._jar.add_cookie_header(request)
        kept = request.get_header("Cookie") or ""
        names = {each.partition("=")[0] for each in kept.split("; ")}
        parts = [literal] if literal else []
        parts += [f"{name}={value}" for name, value in self._given.items() if name not in names]
        if kept:
            parts.append(kept)
        return "; ".join(parts) or None

    def keep(self, target: Target, headers: Iterable[tuple[str, str]]) -> None:
        """Take what an answer sets."""
        set_by = [value for name, value in headers if name.lower() == "set-cookie"]
        if set_by:
            message = Message()
            for value in set_by:
                message["Set-Cookie"] = value
            response: Any = _Response(message)
            self._jar.extract_cookies(response, _request(target))


def _policy() -> DefaultCookiePolicy:
    # Without a domain a cookie is its host's alone (RFC 6265 5.3), which is not the default.
    return DefaultCookiePolicy(
        strict_domain=True, strict_ns_domain=DefaultCookiePolicy.DomainStrictNonDomain
    )


class _Response:
    """As much of a response as a jar looks at."""

    def __init__(self, message: Message) -> None:
        self._message = message

    def info(self) -> Message:
        return self._message


def _request(target: Target) -> Request:
    return Request(f"{target.scheme}://{target.authority}{target.path}")


def _matches(pattern: re.Pattern[str], text: object) -> bool:
    return isinstance(text, str) and pattern.fullmatch(text) is not None
