"""
What a WebSocket connection tells the floor above: events, and nothing that makes them.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Closed", "Event", "Fragment", "Message", "Ping", "Pong"]


@dataclass(frozen=True, slots=True)
class Message:
    """A whole message."""

    data: str | bytes


@dataclass(frozen=True, slots=True)
class Fragment:
    """A part of a message, as it came: only while ``fragments`` is set."""

    data: str | bytes
    first: bool
    finished: bool
    text: bool


@dataclass(frozen=True, slots=True)
class Ping:
    """The peer pinged; the answer is on its way."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    """The peer answered a ping of ours after ``latency`` seconds."""

    payload: bytes
    latency: float


@dataclass(frozen=True, slots=True)
class Closed:
    """
    The end: the last event, exactly once. Codes and reasons of the close frames, None without one.

    ``rcvd_then_sent`` tells who closed first, where both did.
    """

    rcvd: tuple[int, str] | None
    sent: tuple[int, str] | None
    rcvd_then_sent: bool


Event = Message | Fragment | Ping | Pong | Closed
