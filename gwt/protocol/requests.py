"""
The CONNECT that asks for a session or a tunnel, and its answer: headers checked and built.

Pure functions over header lists. What is wrong with a peer's headers comes back as a string that
says so; the caller turns it into the stream error H3_MESSAGE_ERROR.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from ..errors import HandshakeError, SessionRejected
from . import codes
from .codes import Draft
from .events import Headers, SessionRequested

__all__ = [
    "build_request",
    "build_response",
    "choice_header",
    "chosen_subprotocol",
    "decode_headers",
    "encode_headers",
    "is_session_request",
    "is_tunnel_request",
    "parse_request",
    "parse_subprotocols",
    "parse_tunnel",
    "refusal",
]

# RFC 9110 5.6.2: what a field name consists of; HTTP/3 wants it in lower case.
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

# RFC 9114 4.2: a message with any of these is malformed.
_CONNECTION_SPECIFIC = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"te")
)

# RFC 8941 3.3.3 and 3.3.4: a string or a token, then parameters that mean nothing here.
_SF_ITEM = re.compile(
    r"""[ \t]*(?:"((?:[ !#-\[\]-~]|\\["\\])*)"|([A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*))"""
    r"""(?:;[ ]*[a-z*][a-z0-9_\-.*]*(?:=(?:"(?:[ !#-\[\]-~]|\\["\\])*"|[^",;]*))?)*[ \t]*"""
)

# RFC 9110 7.2: a host in brackets, or a name, and a port. What a name may consist of beyond this is
# the resolver's affair; a zone is of no meaning to another machine.
_PLACE = re.compile(rb"(?:\[([0-9A-Fa-f:.]{2,45})\]|([!$&-.0-9;=A-Z_a-z~]{1,255})):([0-9]{1,5})")

_SF_TOKEN = re.compile(r"[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*")

# How many subprotocols of an offer are looked at.
_MAX_SUBPROTOCOLS = 64


def is_session_request(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Return whether a request is an extended CONNECT for WebTransport."""
    found = dict(headers)
    return found.get(b":method") == b"CONNECT" and found.get(b":protocol") in codes.PROTOCOLS


def is_tunnel_request(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Return whether a request is a CONNECT of the classic kind (RFC 9114 4.4)."""
    found = dict(headers)
    return found.get(b":method") == b"CONNECT" and b":protocol" not in found


def parse_tunnel(headers: Iterable[tuple[bytes, bytes]]) -> tuple[str, int] | str:
    """Return host and port that a tunnel is to lead to, or what is wrong (RFC 9114 4.4)."""
    pseudo = {name: value for name, value in headers if name.startswith(b":")}
    for name in (b":scheme", b":path"):
        if name in pseudo:
            return f"{name.decode()} has no place in a CONNECT request"
    place = _PLACE.fullmatch(pseudo.get(b":authority", b""))
    if place is None:
        return ":authority is not a host and a port"
    port = int(place[3])
    if not 0 < port < 65536:
        return ":authority has no port that exists"
    return (place[1] or place[2]).decode("ascii").lower(), port


def parse_request(
    session_id: int, headers: Headers, draft: Draft | None = None
) -> SessionRequested | str:
    """Check a request for a session; returns the event, or what is wrong (RFC 9220 3)."""
    pseudo = {name: value for name, value in headers if name.startswith(b":")}
    for name in (b":scheme", b":authority", b":path"):
        if not pseudo.get(name):
            return f"{name.decode()} is missing"
    if pseudo[b":scheme"] != b"https":
        return ":scheme is not https"
    origins = [value for name, value in headers if name == b"origin"]
    if len(origins) > 1:
        return "origin is given twice"
    try:
        authority = pseudo[b":authority"].decode("ascii")
        path = pseudo[b":path"].decode("ascii")
        origin = origins[0].decode("ascii") if origins else None
    except UnicodeDecodeError:
        return "a pseudo-header or the origin is not ASCII"
    if not path.startswith("/") or "#" in path:
        return ":path is not a path"
    if any(c in authority for c in "/?#@ "):
        return ":authority is not a host"
    offers = [value for name, value in headers if name in codes.OFFER_HEADERS]
    offered = parse_subprotocols(offers, tokens=draft is None or draft.tokens)
    return SessionRequested(session_id, authority, path, origin, offered, headers)


def choice_header(draft: Draft, headers: Headers) -> bytes:
    """Return the header that answers an offer: draft 09 has names of its own."""
    offers = {name for name, _ in headers if name in codes.OFFER_HEADERS}
    legacy = offers and draft.offer_header not in offers
    return codes.CHOICE_HEADERS[1] if legacy else draft.choice_header


def parse_subprotocols(values: Iterable[bytes], *, tokens: bool = True) -> tuple[str, ...]:
    """
    Return the subprotocols that header values list; an ill-formed header offers none.

    Strings are what drafts 13 on have, where a token makes the whole header nothing; earlier ones
    had tokens, and their peers are understood either way.
    """
    text = ",".join(value.decode("latin-1") for value in values)
    names: list[str] = []
    position = 0
    while position < len(text):
        item = _SF_ITEM.match(text, position)
        if item is None or len(names) >= _MAX_SUBPROTOCOLS:
            return ()
        position = item.end()
        if position < len(text):
            if text[position] != ",":
                return ()
            position += 1
            if position == len(text):
                return ()
        quoted, token = item.groups()
        if quoted is None and not tokens:
            return ()
        name = token if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        if name not in names:
            names.append(name)
    return tuple(names)


def _item(name: str, quoted: bool) -> str:
    if not quoted and _SF_TOKEN.fullmatch(name):
        return name
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _subprotocol_list(names: Sequence[str], quoted: bool) -> bytes:
    return ", ".join(_item(name, quoted) for name in names).encode("ascii")


def build_request(
    draft: Draft,
    authority: str,
    path: str,
    *,
    origin: str | None = None,
    subprotocols: Sequence[str] = (),
    headers: Headers | None = None,
) -> Headers:
    """Return the headers of a request for a session in the form of a draft."""
    request: Headers = [
        (b":method", b"CONNECT"),
        (b":protocol", draft.protocol),
        (b":scheme", b"https"),
        (b":authority", authority.encode("ascii")),
        (b":path", path.encode("ascii")),
    ]
    if draft.number == 2:
        request.append(codes.DRAFT02_REQUEST)
    if origin is not None:
        request.append((b"origin", origin.encode("ascii")))
    if subprotocols:
        request.append((draft.offer_header, _subprotocol_list(subprotocols, draft.quoted)))
    return request + (headers or [])


def build_response(
    draft: Draft,
    *,
    subprotocol: str | None = None,
    headers: Headers | None = None,
    choice: bytes | None = None,
) -> Headers:
    """Return the headers that accept a session; `choice` is the header of the subprotocol."""
    response: Headers = [(b":status", b"200")]
    if draft.number == 2:
        response.append(codes.DRAFT02_RESPONSE)
    if subprotocol is not None:
        # What is answered under draft 09's name is a token, as it was there.
        quoted = draft.quoted and choice in (None, draft.choice_header)
        response.append((choice or draft.choice_header, _subprotocol_list([subprotocol], quoted)))
    return response + (headers or [])


def chosen_subprotocol(
    headers: Headers, offered: Sequence[str], *, tokens: bool = True
) -> str | None:
    """Return the subprotocol that a server chose, or None if it chose none that was offered."""
    chosen = parse_subprotocols(
        (value for name, value in headers if name in codes.CHOICE_HEADERS), tokens=tokens
    )
    return chosen[0] if len(chosen) == 1 and chosen[0] in offered else None


def refusal(status: int | None, code: int | None, headers: Headers) -> HandshakeError:
    """Return the error for a request that was answered with a status, or reset with a code."""
    if status is not None:
        return SessionRejected(status, decode_headers(headers))
    why = ": it takes no more sessions" if code == codes.H3_REQUEST_REJECTED else ""
    text = f"The server reset the request for a session with code {code or 0:#x}{why}."
    return HandshakeError(text, stage="webtransport")


def encode_headers(headers: Mapping[str, str] | Iterable[tuple[str, str]]) -> Headers:
    """
    Encode headers of an application; raises ValueError for one that HTTP/3 cannot carry.

    aioquic sends whatever it is given, and one bad header makes a peer close the connection.
    """
    items = headers.items() if isinstance(headers, Mapping) else headers
    encoded: Headers = []
    for name, value in items:
        raw_name = name.lower().encode("ascii", "replace")
        raw_value = value.strip(" \t").encode("latin-1", "replace")
        if not _NAME.fullmatch(raw_name):
            raise ValueError(f"{name!r} is not a header name.")
        if raw_name in _CONNECTION_SPECIFIC:
            raise ValueError(f"The header {name!r} does not exist in HTTP/3.")
        if _BAD_VALUE.search(raw_value):
            raise ValueError(f"The header {name!r} has a value with control characters.")
        encoded.append((raw_name, raw_value))
    return encoded


def decode_headers(headers: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return headers as text, without pseudo-headers; several of one name joined by commas."""
    decoded: dict[str, str] = {}
    for raw_name, raw_value in headers:
        if raw_name.startswith(b":"):
            continue
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        decoded[name] = f"{decoded[name]}, {value}" if name in decoded else value
    return decoded
