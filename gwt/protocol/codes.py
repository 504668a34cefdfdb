"""
Wire constants: settings, error codes, the table of WebTransport drafts, the code maps.

Values and pure functions over them; no state and no parsing of messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = [
    "DRAFTS",
    "Draft",
    "application_code",
    "best_draft",
    "session_draft",
    "wire_code",
]

# HTTP/3 error codes (RFC 9114 8.1, RFC 9297 5.2).
H3_DATAGRAM_ERROR = 0x33
H3_NO_ERROR = 0x100
H3_INTERNAL_ERROR = 0x102
H3_STREAM_CREATION_ERROR = 0x103
H3_FRAME_UNEXPECTED = 0x105
H3_FRAME_ERROR = 0x106
H3_EXCESSIVE_LOAD = 0x107
H3_ID_ERROR = 0x108
H3_SETTINGS_ERROR = 0x109
H3_REQUEST_REJECTED = 0x10B
H3_REQUEST_CANCELLED = 0x10C
H3_MESSAGE_ERROR = 0x10E
H3_CONNECT_ERROR = 0x10F

# WebTransport error codes (webtrans-http3-16 9.5).
WT_SESSION_GONE = 0x170D7B68
WT_BUFFERED_STREAM_REJECTED = 0x3994BD84
WT_FLOW_CONTROL_ERROR = 0x045D4487
WT_REQUIREMENTS_NOT_MET = 0x212C0D48

# QUIC transport error codes (RFC 9000 20.1).
QUIC_INTERNAL_ERROR = 0x1
QUIC_CONNECTION_REFUSED = 0x2
QUIC_INVALID_TOKEN = 0xB
QUIC_CRYPTO_ERROR = 0x100

# Codes of ours that blame no peer: for time-outs, and for a network that is gone.
NOBODYS_ERROR = (QUIC_INTERNAL_ERROR, QUIC_CONNECTION_REFUSED)

# Settings.
SETTING_QPACK_MAX_TABLE_CAPACITY = 0x1
SETTING_MAX_FIELD_SECTION_SIZE = 0x6
SETTING_QPACK_BLOCKED_STREAMS = 0x7
SETTING_ENABLE_CONNECT_PROTOCOL = 0x8
SETTING_H3_DATAGRAM = 0x33
SETTING_ENABLE_WEBTRANSPORT = 0x2B603742  # drafts 02 to 06
SETTING_WEBTRANSPORT_MAX_SESSIONS = 0xC671706A  # drafts 07 to 12
SETTING_WT_MAX_SESSIONS = 0x14E9CD29  # drafts 13 and 14
SETTING_WT_ENABLED = 0x2C7CF000  # drafts 15 and 16
SETTING_WT_INITIAL_MAX_DATA = 0x2B61
SETTING_WT_INITIAL_MAX_STREAMS_UNI = 0x2B64
SETTING_WT_INITIAL_MAX_STREAMS_BIDI = 0x2B65

# Prefixes of WebTransport streams (webtrans-http3-16 4.3, 4.4).
STREAM_TYPE_WEBTRANSPORT = 0x54
FRAME_TYPE_WEBTRANSPORT = 0x41


@dataclass(frozen=True, slots=True)
class Draft:
    """What one draft of WebTransport over HTTP/3 asks for on the wire."""

    # The number that is stored, printed, and compared: the newest draft of its group.
    number: int
    # The setting that selects it.
    setting: int
    # The :protocol of its CONNECT request.
    protocol: bytes
    # Request and response headers of the subprotocol negotiation, and their form.
    offer_header: bytes
    choice_header: bytes
    quoted: bool

    @property
    def tokens(self) -> bool:
        """Whether a peer may offer tokens, which drafts 13 on ignore."""
        return self.number < 14


_OFFER, _CHOICE = b"wt-available-protocols", b"wt-protocol"

# Best first. Draft 02 names no subprotocol headers; Chromium, which speaks it, uses the quoted
# form of the later drafts. The headers of draft 09 are only read, never sent: see
# `OFFER_HEADERS`.
DRAFTS = (
    Draft(16, SETTING_WT_ENABLED, b"webtransport-h3", _OFFER, _CHOICE, True),
    Draft(14, SETTING_WT_MAX_SESSIONS, b"webtransport", _OFFER, _CHOICE, True),
    Draft(12, SETTING_WEBTRANSPORT_MAX_SESSIONS, b"webtransport", _OFFER, _CHOICE, False),
    Draft(2, SETTING_ENABLE_WEBTRANSPORT, b"webtransport", _OFFER, _CHOICE, True),
)

# Names under which a peer may offer or choose a subprotocol.
OFFER_HEADERS = (_OFFER, b"webtransport-subprotocols-available")
CHOICE_HEADERS = (_CHOICE, b"webtransport-subprotocol")

PROTOCOLS = frozenset(draft.protocol for draft in DRAFTS)

# Draft 02's own headers, by which its peers recognise each other.
DRAFT02_REQUEST = (b"sec-webtransport-http3-draft02", b"1")
DRAFT02_RESPONSE = (b"sec-webtransport-http3-draft", b"draft02")


def _offered(draft: Draft, settings: Mapping[int, int]) -> bool:
    return settings.get(draft.setting, 0) > 0


def best_draft(settings: Mapping[int, int]) -> Draft | None:
    """Return the best draft that a server with these settings speaks, or None."""
    return next((draft for draft in DRAFTS if _offered(draft, settings)), None)


def session_draft(protocol: bytes, draft02: bool, settings: Mapping[int, int]) -> Draft:
    """
    Return the draft that a client meant by a CONNECT request.

    The newest draft has a :protocol of its own; Chromium sends draft 02's header whatever else
    it could speak; beyond that the best setting that both sides know decides.
    """
    newest, *older = DRAFTS
    if protocol == newest.protocol:
        return newest
    if not draft02:
        for draft in older:
            if _offered(draft, settings):
                return draft
    return DRAFTS[-1]


# The range of HTTP/3 error codes that carry application codes (webtrans-http3-16 4.6).
_FIRST = 0x52E4A40FA8DB
_LAST = 0x52E5AC983162


def wire_code(code: int) -> int:
    """Map a 32-bit application code to the HTTP/3 code that carries it."""
    return _FIRST + code + code // 0x1E


def application_code(code: int) -> int | None:
    """Map an HTTP/3 error code back to the application code, or None if it carries none."""
    if not _FIRST <= code <= _LAST or (code - 0x21) % 0x1F == 0:
        return None
    shifted = code - _FIRST
    return shifted - shifted // 0x1F
