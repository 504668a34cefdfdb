"""
permessage-deflate (RFC 7692): options, negotiation for both roles, and zlib within bounds.

Nothing of frames is here (websocket.py), nor of requests and responses (wshandshake.py). A
parameter that is unknown, repeated or malformed declines an offer, and fails an answer.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, LocalProtocolError, RemoteProtocolError

__all__ = [
    "Compression",
    "DeflateParams",
    "Deflater",
    "Inflater",
    "TooMuch",
    "as_compression",
    "compress_once",
    "confirm",
    "negotiate",
    "offer",
    "split_extensions",
]

NAME = "permessage-deflate"

# What an offer may hold, all of it together. Browsers offer one extension with one parameter.
MAX_OFFERS = 32

# What flushing leaves behind each message, which the sender cuts off (RFC 7692 7.2.1).
TAIL = b"\x00\x00\xff\xff"

# A message may hold final blocks, each of which starts a new stream (RFC 7692 7.2.3.4). Honest
# peers need one; each costs a decompressor, and two bytes suffice for one.
MAX_RESTARTS = 16

_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_PARAMETER = re.compile(
    rf"[ \t]*;[ \t]*({_TOKEN})(?:[ \t]*=[ \t]*(?:({_TOKEN})|\"((?:[^\"\\\x00-\x1f]|\\.)*)\"))?"
)
_NAME = re.compile(rf"[ \t]*({_TOKEN})")
_REST = re.compile(r"[ \t]*(,|\Z)")
_BITS = re.compile(r"8|9|1[0-5]")


@dataclass(frozen=True, slots=True)
class Compression:
    """
    How messages are compressed (permessage-deflate, RFC 7692).

    ``level`` is zlib's, 0 to 9. Messages shorter than ``threshold`` bytes are sent as they are.
    Without context takeover each message is compressed by itself, and an idle connection keeps no
    memory for it; with it, small messages that resemble one another get smaller, for up to 300 KiB
    a connection. ``max_window_bits``, 9 to 15, is the largest window, of both directions.
    """

    level: int = 6
    threshold: int = 256
    no_context_takeover: bool = True
    max_window_bits: int = 15

    def __post_init__(self) -> None:
        for field, low, high in (
            ("level", 0, 9),
            ("threshold", 0, 2**62),
            ("max_window_bits", 9, 15),
        ):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ConfigError(
                    f"{field} must be an integer from {low} to {high}, not {value!r}.",
                    field=field,
                    value=value,
                )


@dataclass(frozen=True, slots=True)
class DeflateParams:
    """What both sides agreed on: whether each keeps its context, and its window."""

    server_no_context_takeover: bool = False
    client_no_context_takeover: bool = False
    server_max_window_bits: int = 15
    client_max_window_bits: int = 15


def as_compression(value: Compression | str | None) -> Compression | None:
    """Return the options that a value of the API stands for: "deflate" is the default ones."""
    if value is None or isinstance(value, Compression):
        return value
    if value == "deflate":
        return Compression()
    raise ConfigError(
        f'compression must be None, "deflate" or a Compression, not {value!r}.',
        field="compression",
        value=value,
    )


Parameters = list[tuple[str, str | None]]


def _extension(text: str, start: int) -> tuple[str, Parameters, int] | None:
    """Read a name and its parameters; the last is where they end. None if there is no name."""
    match = _NAME.match(text, start)
    if match is None:
        return None
    name, end = match[1], match.end()
    parameters: Parameters = []
    while match := _PARAMETER.match(text, end):
        value = match[2]
        if match[3] is not None:
            value = re.sub(r"\\(.)", r"\1", match[3])
        parameters.append((match[1], value))
        end = match.end()
    return name, parameters, end


def split_extensions(values: Iterable[str]) -> tuple[str, ...] | None:
    """Split the values of Sec-WebSocket-Extensions into extensions; None if malformed."""
    extensions: list[str] = []
    for text in values:
        start = 0
        while start <= len(text):
            if found := _extension(text, start):
                end = found[2]
                extensions.append(text[start:end].strip(" \t"))
            else:
                end = start
            # Empty elements of a list do not count (RFC 9110 5.6.1).
            rest = _REST.match(text, end)
            if rest is None or len(extensions) > MAX_OFFERS:
                return None
            start = rest.end() + (not rest[1])
    return tuple(extensions)


def _understand(extension: str) -> dict[str, int | None] | None:
    """Return the parameters of a permessage-deflate; None if it is another or not as it must be."""
    found = _extension(extension, 0)
    if found is None or found[0].lower() != NAME or extension[found[2] :].strip(" \t"):
        return None
    parameters: dict[str, int | None] = {}
    for name, value in found[1]:
        if name in parameters:
            return None
        if name in ("server_no_context_takeover", "client_no_context_takeover"):
            if value is not None:
                return None
            parameters[name] = None
        elif name in ("server_max_window_bits", "client_max_window_bits"):
            if value is None and name == "server_max_window_bits":
                return None
            if value is not None and not _BITS.fullmatch(value):
                return None
            parameters[name] = None if value is None else int(value)
        else:
            return None
    return parameters


def negotiate(
    offers: Sequence[str], compression: Compression | None
) -> tuple[DeflateParams, str] | None:
    """
    Choose the first offer of a client that a server can accept.

    Returns what is agreed and the value of Sec-WebSocket-Extensions that says so, or None.
    """
    if compression is None:
        return None
    for each in offers:
        wanted = _understand(each)
        if wanted is None:
            continue
        server_bits = min(wanted.get("server_max_window_bits") or 15, compression.max_window_bits)
        if server_bits < 9:
            continue  # zlib cannot compress within 256 bytes
        params = DeflateParams(
            server_no_context_takeover="server_no_context_takeover" in wanted
            or compression.no_context_takeover,
            client_no_context_takeover="client_no_context_takeover" in wanted
            or compression.no_context_takeover,
            server_max_window_bits=server_bits,
            client_max_window_bits=min(
                wanted["client_max_window_bits"] or 15, compression.max_window_bits
            )
            if "client_max_window_bits" in wanted
            else 15,
        )
        answer = [NAME]
        if params.server_no_context_takeover:
            answer.append("server_no_context_takeover")
        if params.client_no_context_takeover:
            answer.append("client_no_context_takeover")
        if server_bits < 15 or "server_max_window_bits" in wanted:
            answer.append(f"server_max_window_bits={server_bits}")
        if params.client_max_window_bits < 15 or wanted.get("client_max_window_bits"):
            answer.append(f"client_max_window_bits={params.client_max_window_bits}")
        return params, "; ".join(answer)
    return None


def offer(compression: Compression) -> str:
    """Return what a client offers in Sec-WebSocket-Extensions."""
    bits = compression.max_window_bits
    parts = [NAME]
    if compression.no_context_takeover:
        parts += ["server_no_context_takeover", "client_no_context_takeover"]
    if bits < 15:
        parts += [f"server_max_window_bits={bits}", f"client_max_window_bits={bits}"]
    else:
        parts.append("client_max_window_bits")
    return "; ".join(parts)


def confirm(answer: Sequence[str], compression: Compression | None) -> DeflateParams | None:
    """
    Check a server's answer to ``offer``; None is no compression.

    Raises RemoteProtocolError where a client must fail the connection (RFC 7692 5.1).
    """
    if not answer:
        return None
    got = _understand(answer[0])
    if compression is None or got is None or len(answer) > 1:
        raise RemoteProtocolError("The server chose extensions that were not offered.")
    bits = compression.max_window_bits
    params = DeflateParams(
        server_no_context_takeover="server_no_context_takeover" in got,
        client_no_context_takeover="client_no_context_takeover" in got
        or compression.no_context_takeover,
        server_max_window_bits=got.get("server_max_window_bits") or 15,
        client_max_window_bits=min(got.get("client_max_window_bits") or 15, bits),
    )
    if (
        params.server_max_window_bits > bits
        or (compression.no_context_takeover and not params.server_no_context_takeover)
        or ("client_max_window_bits" in got and not got["client_max_window_bits"])
        or (got.get("client_max_window_bits") or 0) > bits
    ):
        raise RemoteProtocolError("The server chose parameters that were not offered.")
    return params


class TooMuch(Exception):
    """More would be inflated than there is room for. Never leaves the protocol floor."""


def _compressor(level: int, bits: int) -> Any:
    # zlib's memory is 4 windows and 512 << memLevel: both shrink together.
    return zlib.compressobj(level, zlib.DEFLATED, -bits, min(8, bits - 7))


def compress_once(data: bytes, level: int, bits: int) -> bytes:
    """Compress a message by itself, as every Deflater of these options does that keeps nothing."""
    compressor = _compressor(level, bits)
    out: bytes = compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)
    return out[:-4] or b"\x00"


class Deflater:
    """Compresses our messages, one after the other."""

    def __init__(self, params: DeflateParams, compression: Compression, is_client: bool) -> None:
        self._bits = params.client_max_window_bits if is_client else params.server_max_window_bits
        self._forget = (
            params.client_no_context_takeover if is_client else params.server_no_context_takeover
        )
        self._level = compression.level
        # An empty message has no bytes to gain. With 256 bytes of window zlib cannot compress at
        # all, and whoever agreed to it may still send everything as it is.
        self.threshold = max(compression.threshold, 1) if self._bits > 8 else 2**63
        self._zlib: Any = None  # the types of zlib are private

    @property
    def kind(self) -> tuple[int, ...] | None:
        """What its messages depend on, without context takeover; None with it."""
        return (self._level, self._bits, self.threshold) if self._forget else None

    def compress(self, data: bytes, *, final: bool) -> bytes:
        """Compress a part of a message; what was given so far can be inflated."""
        if self._bits < 9:
            raise LocalProtocolError("Nothing can be compressed within this window.")
        if self._zlib is None:
            self._zlib = _compressor(self._level, self._bits)
        out: bytes = self._zlib.compress(data) + self._zlib.flush(zlib.Z_SYNC_FLUSH)
        if not final:
            return out
        if self._forget:
            self._zlib = None
        # Without new data zlib flushes nothing: RFC 7692 7.2.3.6 has this byte for that.
        return out[:-4] or b"\x00"


class Inflater:
    """Inflates a peer's messages, never beyond the room that is left for them."""

    def __init__(self, params: DeflateParams, is_client: bool) -> None:
        bits = params.server_max_window_bits if is_client else params.client_max_window_bits
        # zlib's own compressor takes 9 where it is asked for 8.
        self._bits = max(bits, 9)
        self._forget = (
            params.server_no_context_takeover if is_client else params.client_no_context_takeover
        )
        self._zlib: Any = None
        self._restarts = 0

    def inflate(self, data: bytes, room: int | None) -> bytes:
        """Inflate a part of a message. Raises TooMuch and zlib.error."""
        pieces = []
        while data:
            if self._zlib is None:
                self._zlib = zlib.decompressobj(-self._bits)
            # One byte more than there is room for tells "just full" from "too much".
            piece = self._zlib.decompress(data, 0 if room is None else room + 1)
            if room is not None:
                room -= len(piece)
                if room < 0:
                    raise TooMuch
            pieces.append(piece)
            data = self._zlib.unconsumed_tail
            if self._zlib.eof:
                data = self._zlib.unused_data
                self._zlib = None
                self._restarts += 1
                if self._restarts > MAX_RESTARTS:
                    raise zlib.error("too many final blocks")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def finish(self, room: int | None) -> bytes:
        """Inflate what is left of a message. Raises TooMuch and zlib.error."""
        restarted, self._restarts = self._restarts, 0
        if restarted and self._zlib is None:
            return b""
        out = self.inflate(TAIL, room)
        if self._forget or restarted:
            self._zlib = None
        self._restarts = 0
        return out
