"""
One request for a session or a tunnel, as middleware and the server see it.

A value: it does nothing, and knows neither how it came nor how it is answered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import parse_qsl, unquote

from .protocol.events import SessionRequested

__all__ = ["Request"]


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked for, before it is accepted. Header names are in lower case."""

    method: str
    # "webtransport" or "websocket"; "connect" for a tunnel to `authority`, which has no path.
    protocol: str
    # The decoded path without the query, and the query as it came.
    path: str
    query_string: str
    # The Host that was asked for, with its port if it has one.
    authority: str
    origin: str | None
    headers: Mapping[str, str] = field(repr=False)
    # What the client offers, best first.
    subprotocols: tuple[str, ...]
    # (host, port)
    remote_address: Any

    @property
    def query(self) -> dict[str, str]:
        """The query's parameters; of several with one name the last."""
        return dict(parse_qsl(self.query_string, keep_blank_values=True))

    @classmethod
    def at(cls, target: str, **rest: Any) -> Self:
        """Make a request for a target as it stands on the wire: a quoted path, and a query."""
        path, _, query = target.partition("?")
        return cls(path=unquote(path), query_string=query, **rest)

    @classmethod
    def from_event(
        cls, event: SessionRequested, headers: Mapping[str, str], remote_address: Any
    ) -> Request:
        """Make a request from what the protocol tells."""
        return cls.at(
            event.path,
            method="CONNECT",
            protocol="webtransport",
            authority=event.authority,
            origin=event.origin,
            headers=headers,
            subprotocols=event.subprotocols,
            remote_address=remote_address,
        )
