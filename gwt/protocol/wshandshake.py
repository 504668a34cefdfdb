"""
The opening handshake of WebSocket over HTTP/1.1 (RFC 6455 4): requests and responses.

A server's HTTP parser hands a request over as strings, so that ``check_upgrade`` looks at values;
a client's response is read here, by h11. What comes after the handshake is websocket.py's.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import h11

from ..errors import LocalProtocolError, RemoteProtocolError
from .deflate import (
    Compression,
    DeflateParams,
    as_compression,
    confirm,
    negotiate,
    offer,
    split_extensions,
)

__all__ = [
    "Agreement",
    "ClientHandshake",
    "Compression",
    "DeflateParams",
    "HandshakeDone",
    "HandshakeFailed",
    "Refusal",
    "UpgradeRequest",
    "accept_key",
    "accept_upgrade",
    "check_upgrade",
    "client_request",
]

Headers = Sequence[tuple[str, str]]

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

MAX_SUBPROTOCOLS = 64
MAX_INTERIM_RESPONSES = 8
MAX_BODY = 65536
SLICE = 4096

# How an answer begins.
HTTP = b"HTTP/"

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# What a value may hold (RFC 9110 5.5), and what a host, an origin or a target can.
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\U0010ffff]*")
_FIELDS = re.compile(rf"(?:{_TOKEN.pattern}:{_VALUE.pattern}\n)*")
_SENDABLE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_VERSION = re.compile(r"(?:HTTP/)?([0-9])\.([0-9])")
_VISIBLE = re.compile(r"[\x21-\x7e]+")
_HOST = re.compile(r"(?:\[[0-9A-Za-z:.%_~-]+\]|[0-9A-Za-z._~%!$&'()*+;=-]+)(?::[0-9]{0,5})?")
_TARGET = re.compile(r"(?:(?:https?|wss?)://[^/?#]+)?(/[^#]*)", re.IGNORECASE)

# What accept_upgrade and client_request write themselves, and what would give them a body.
_OURS = {
    "connection",
    "content-length",
    "host",
    "sec-websocket-accept",
    "sec-websocket-extensions",
    "sec-websocket-key",
    "sec-websocket-protocol",
    "sec-websocket-version",
    "transfer-encoding",
    "upgrade",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request cannot be upgraded: a whole answer, but for Date and Content-Length."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


@dataclass(frozen=True, slots=True)
class UpgradeRequest:
    """A request that may be upgraded. ``extensions`` are the offers as they were written."""

    path: str
    headers: tuple[tuple[str, str], ...]
    key: str
    subprotocols: tuple[str, ...]
    extensions: tuple[str, ...]
    origin: str | None
    host: str


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a handshake has agreed on."""

    subprotocol: str | None = None
    deflate: DeflateParams | None = None


@dataclass(frozen=True, slots=True)
class HandshakeDone:
    """The server switched protocols; ``rest`` are the bytes behind its answer: frames."""

    agreement: Agreement
    status: int
    headers: list[tuple[str, str]]
    rest: bytes


@dataclass(frozen=True, slots=True)
class HandshakeFailed:
    """No WebSocket came about; ``status`` is None if there was no proper answer."""

    status: int | None
    headers: list[tuple[str, str]]
    body: bytes
    reason: str


def accept_key(key: str) -> str:
    """Return the Sec-WebSocket-Accept that proves that a key was read."""
    digest = hashlib.sha1(key.encode("ascii") + GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode("ascii")


def _refuse(status: int, why: str, *headers: tuple[str, str]) -> Refusal:
    content = ("Content-Type", "text/plain; charset=utf-8")
    return Refusal(status, [content, *headers], f"{why}\n".encode())


def _elements(values: Iterable[str]) -> list[str]:
    """Split the values of a header that is a list (RFC 9110 5.6.1)."""
    parts = (part.strip(" \t") for value in values for part in value.split(","))
    return [part for part in parts if part]


def _is_key(key: str) -> bool:
    try:
        return len(key) == 24 and len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        return False


def check_upgrade(
    method: str, http_version: str, target: str, headers: Headers
) -> UpgradeRequest | Refusal:
    """
    Say whether a request may be upgraded to a WebSocket (RFC 6455 4.2.1).

    Never raises: what is wrong with the request is in the Refusal (400, 405, 426).
    """
    # All at once, by a character that neither of them may have.
    if not _FIELDS.fullmatch("".join([f"{name}:{value}\n" for name, value in headers])):
        return _refuse(400, "A header is malformed.")
    values: dict[str, list[str]] = {}
    for name, value in headers:
        values.setdefault(name.lower(), []).append(value.strip(" \t"))

    def one(name: str) -> str | None:
        # A header that may occur once, and occurs otherwise, counts as missing.
        found = values.get(name, ())
        return found[0] if len(found) == 1 else None

    if method != "GET":
        return _refuse(405, "A WebSocket is opened with GET.", ("Allow", "GET"))
    version = _VERSION.fullmatch(http_version)
    if version is None or (version[1], version[2]) < ("1", "1"):
        return _refuse(400, "A WebSocket is opened with HTTP/1.1.")
    upgrade = [token.lower() for token in _elements(values.get("upgrade", ()))]
    connection = [token.lower() for token in _elements(values.get("connection", ()))]
    for missing in (
        "Upgrade: websocket" if "websocket" not in upgrade else "",
        "Connection: Upgrade" if "upgrade" not in connection else "",
    ):
        if missing:
            return _refuse(
                426,
                f"The request has no header '{missing}'. A proxy may have removed it.",
                ("Upgrade", "websocket"),
                ("Connection", "Upgrade"),
            )
    if "sec-websocket-version" not in values:
        return _refuse(400, "The request has no header 'Sec-WebSocket-Version'.")
    if values["sec-websocket-version"] != ["13"]:
        return _refuse(
            426, "This server speaks version 13 of WebSocket.", ("Sec-WebSocket-Version", "13")
        )
    if "transfer-encoding" in values or any(
        length != "0" for length in values.get("content-length", ())
    ):
        return _refuse(400, "A request for a WebSocket has no body.")
    key = one("sec-websocket-key")
    if key is None or not _is_key(key):
        return _refuse(400, "Sec-WebSocket-Key must be 16 bytes in base64, once.")
    host = one("host")
    if host is None or not _HOST.fullmatch(host):
        return _refuse(400, "Host must name a host, once.")
    path = _TARGET.fullmatch(target)
    if path is None or not _VISIBLE.fullmatch(target):
        return _refuse(400, "The target of the request is malformed.")
    origin = one("origin")
    if "origin" in values and (origin is None or not _VISIBLE.fullmatch(origin)):
        return _refuse(400, "Origin is malformed.")
    subprotocols = _elements(values.get("sec-websocket-protocol", ()))
    if (
        len(subprotocols) > MAX_SUBPROTOCOLS
        or len(set(subprotocols)) < len(subprotocols)
        or not all(map(_TOKEN.fullmatch, subprotocols))
    ):
        return _refuse(400, "Sec-WebSocket-Protocol is malformed.")
    extensions = split_extensions(values.get("sec-websocket-extensions", ()))
    if extensions is None:
        return _refuse(400, "Sec-WebSocket-Extensions is malformed.")
    return UpgradeRequest(
        path[1], tuple(headers), key, tuple(subprotocols), extensions, origin, host
    )


def _write(first: str, headers: Headers, extra: Headers) -> bytes:
    lines = [first]
    for name, _ in extra:
        if name.lower() in _OURS:
            raise LocalProtocolError(f"The header {name!r} is part of the handshake.")
    for name, value in (*headers, *extra):
        if not _TOKEN.fullmatch(name) or not _SENDABLE.fullmatch(value):
            raise LocalProtocolError(f"The header {name!r} cannot be sent: {value!r}.")
        lines.append(f"{name}: {value}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def accept_upgrade(
    request: UpgradeRequest,
    *,
    subprotocol: str | None = None,
    compression: Compression | str | None = None,
    headers: Headers = (),
) -> tuple[bytes, Agreement]:
    """
    Return the whole answer 101 to a request, and what it agrees on (RFC 6455 4.2.2).

    Raises LocalProtocolError for a subprotocol that was not offered, and for headers that cannot
    be sent.
    """
    if subprotocol is not None and subprotocol not in request.subprotocols:
        raise LocalProtocolError(f"The client does not offer the subprotocol {subprotocol!r}.")
    answer = [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Accept", accept_key(request.key)),
    ]
    if subprotocol is not None:
        answer.append(("Sec-WebSocket-Protocol", subprotocol))
    params = None
    if chosen := negotiate(request.extensions, as_compression(compression)):
        params = chosen[0]
        answer.append(("Sec-WebSocket-Extensions", chosen[1]))
    data = _write("HTTP/1.1 101 Switching Protocols", answer, headers)
    return data, Agreement(subprotocol, params)


def client_request(
    host: str,
    target: str,
    *,
    origin: str | None = None,
    subprotocols: Sequence[str] = (),
    compression: Compression | str | None = None,
    headers: Headers = (),
) -> tuple[bytes, str]:
    """
    Return a request for a WebSocket, and its key (RFC 6455 4.1). ``host`` has the port, if any.

    Raises LocalProtocolError for what cannot be sent.
    """
    key = base64.b64encode(os.urandom(16)).decode("ascii")
    if not _HOST.fullmatch(host):
        raise LocalProtocolError(f"{host!r} is not a host.")
    if not _VISIBLE.fullmatch(target) or not target.startswith("/") or "#" in target:
        raise LocalProtocolError(f"{target!r} is not a path that can be asked for.")
    if len(set(subprotocols)) < len(subprotocols) or not all(map(_TOKEN.fullmatch, subprotocols)):
        raise LocalProtocolError(f"Subprotocols must be different tokens, not {subprotocols!r}.")
    request = [
        ("Host", host),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", key),
        ("Sec-WebSocket-Version", "13"),
    ]
    if origin is not None:
        request.append(("Origin", origin))
    if subprotocols:
        request.append(("Sec-WebSocket-Protocol", ", ".join(subprotocols)))
    if options := as_compression(compression):
        request.append(("Sec-WebSocket-Extensions", offer(options)))
    return _write(f"GET {target} HTTP/1.1", request, headers), key


class ClientHandshake:
    """
    Reads a server's answer to ``client_request``, however it is cut (RFC 6455 4.1).

    A header beyond ``max_header`` bytes fails; of the body of a refusal 64 KiB are kept.
    """

    def __init__(
        self,
        key: str,
        *,
        subprotocols: Sequence[str] = (),
        compression: Compression | str | None = None,
        max_header: int = 65536,
    ) -> None:
        self._key = key
        self._subprotocols = tuple(subprotocols)
        self._compression = as_compression(compression)
        self._interim = 0
        self._first = b""
        self._refused: tuple[int, list[tuple[str, str]]] | None = None
        self._body = bytearray()
        self._result: HandshakeDone | HandshakeFailed | None = None
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=max_header)
        # h11 accepts an answer 101 only where it has seen the question.
        self._http.send(
            h11.Request(
                method="GET",
                target="/",
                headers=[("Host", "x"), ("Connection", "Upgrade"), ("Upgrade", "websocket")],
            )
        )
        self._http.send(h11.EndOfMessage())

    @property
    def refused(self) -> bool:
        """Whether the answer is known to be a refusal, of which the body may still come."""
        return self._refused is not None

    def feed(self, data: bytes) -> HandshakeDone | HandshakeFailed | None:
        """Take what arrived; None if more is needed. Once there is a result it stays."""
        # h11 bounds what is incomplete, but would take a long header that is complete: it gets a
        # little at a time.
        if self._result is None and not self._speaks_http(data):
            self._result = self._failure("The server's answer is not HTTP.")
        for start in range(0, len(data), SLICE):
            if self._result is not None:
                break
            self._result = self._feed(data[start : start + SLICE])
            if isinstance(self._result, HandshakeDone):
                rest = self._result.rest + data[start + SLICE :]
                self._result = dataclasses.replace(self._result, rest=rest)
        return self._result

    def _speaks_http(self, data: bytes) -> bool:
        # h11 would wait for the end of a header.
        self._first += data[: len(HTTP) - len(self._first)]
        return HTTP.startswith(self._first)

    def feed_eof(self) -> HandshakeDone | HandshakeFailed:
        """Say that the server closed: the result is final."""
        if self._result is None:
            # A body without a length ends here, and one with a length may: both were refusals.
            self._result = self._failure("The server closed the connection during the handshake.")
        return self._result

    def _failure(self, reason: str) -> HandshakeFailed:
        status, headers = self._refused or (None, [])
        return HandshakeFailed(status, headers, bytes(self._body[:MAX_BODY]), reason)

    def _feed(self, data: bytes) -> HandshakeDone | HandshakeFailed | None:
        try:
            self._http.receive_data(data)
            while True:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    return None
                if isinstance(event, h11.InformationalResponse):
                    if event.status_code == 101:
                        return self._switched(event)
                    self._interim += 1
                    if self._interim > MAX_INTERIM_RESPONSES:
                        return self._failure("The server does not come to an answer.")
                elif isinstance(event, h11.Response):
                    self._refused = event.status_code, _decoded(event.headers)
                elif isinstance(event, h11.Data):
                    self._body += event.data
                    if len(self._body) >= MAX_BODY:
                        return self._rejected()
                else:
                    return self._rejected()
        except h11.RemoteProtocolError as error:
            return self._failure(f"The server's answer is not HTTP: {error}.")

    def _rejected(self) -> HandshakeFailed:
        status = self._refused[0] if self._refused else None
        return self._failure(f"The server answered with HTTP status {status}.")

    def _switched(self, event: h11.InformationalResponse) -> HandshakeDone | HandshakeFailed:
        headers = _decoded(event.headers)
        self._refused = event.status_code, headers
        values: dict[str, list[str]] = {}
        for name, value in headers:
            values.setdefault(name.lower(), []).append(value)
        upgrade = [token.lower() for token in _elements(values.get("upgrade", ()))]
        connection = [token.lower() for token in _elements(values.get("connection", ()))]
        if upgrade != ["websocket"] or "upgrade" not in connection:
            return self._failure("The server switched to something else than WebSocket.")
        if values.get("sec-websocket-accept") != [accept_key(self._key)]:
            return self._failure("The server did not prove that it read the key.")
        chosen = values.get("sec-websocket-protocol")
        if chosen is not None and (len(chosen) != 1 or chosen[0] not in self._subprotocols):
            return self._failure("The server chose a subprotocol that was not offered.")
        extensions = split_extensions(values.get("sec-websocket-extensions", ()))
        if extensions is None:
            return self._failure("Sec-WebSocket-Extensions is malformed.")
        try:
            params = confirm(extensions, self._compression)
        except RemoteProtocolError as error:
            return self._failure(str(error))
        agreement = Agreement(chosen[0] if chosen else None, params)
        return HandshakeDone(agreement, 101, headers, bytes(self._http.trailing_data[0]))


def _decoded(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
