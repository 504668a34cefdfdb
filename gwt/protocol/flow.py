"""
Flow control of one WebTransport session: four counters each way (webtrans-http3-16 5).

Pure arithmetic; capsules are written and read elsewhere. Limits are cumulative and only grow.
Bytes are those of stream bodies: prefixes do not count. Index 0 is bidirectional, 1
unidirectional, as bit 1 of a stream id is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from . import codes
from .codes import Draft

__all__ = ["SessionFlow", "flow_is_on"]

# RFC 9000 4.6: more streams than this cannot be expressed as stream ids.
MAX_STREAMS = 1 << 60

_INITIAL = (
    codes.SETTING_WT_INITIAL_MAX_DATA,
    codes.SETTING_WT_INITIAL_MAX_STREAMS_BIDI,
    codes.SETTING_WT_INITIAL_MAX_STREAMS_UNI,
)


def flow_is_on(draft: Draft, local: Mapping[int, int], peer: Mapping[int, int]) -> bool:
    """Return whether both sides agreed on session flow control in a draft."""
    if draft.number < 12:
        return False
    sides = (local, peer)
    # Draft 14 5.2: there a side also says it by taking more than one session.
    by_sessions = codes.SETTING_WT_MAX_SESSIONS if draft.number == 14 else None
    return all(
        (by_sessions is not None and side.get(by_sessions, 0) > 1)
        or any(side.get(setting, 0) for setting in _INITIAL)
        for side in sides
    )


class SessionFlow:
    """What a session may send, and what its peer may."""

    __slots__ = (
        "_stream_window",
        "_window",
        "consumed",
        "max_data",
        "max_streams",
        "peer_max_data",
        "peer_max_streams",
        "received",
        "reserve",
        "sent",
        "streams_closed",
        "streams_opened",
        "streams_received",
    )

    def __init__(self, local: Mapping[int, int], peer: Mapping[int, int]) -> None:
        data, bidirectional, unidirectional = (peer.get(setting, 0) for setting in _INITIAL)

        # What the peer allows us, and what we used of it.
        self.peer_max_data = data
        self.sent = 0

        # What is kept for bytes that can be sent at once (streams.py, _room).
        self.reserve = data // 2

        self.peer_max_streams = [bidirectional, unidirectional]
        self.streams_opened = [0, 0]

        # What we allow the peer, what it used of it, and what the application is done with.
        data, bidirectional, unidirectional = (local.get(setting, 0) for setting in _INITIAL)
        self._window = self.max_data = data
        self.received = 0
        self.consumed = 0
        self._stream_window = (bidirectional, unidirectional)
        self.max_streams = [bidirectional, unidirectional]
        self.streams_received = [0, 0]
        self.streams_closed = [0, 0]

    # Sending

    def room(self) -> int:
        """Return how many bytes the peer's limit leaves."""
        return max(0, self.peer_max_data - self.sent)

    def may_open(self, unidirectional: bool) -> bool:
        """Return whether the peer's limit leaves a stream."""
        return self.streams_opened[unidirectional] < self.peer_max_streams[unidirectional]

    def raise_data(self, limit: int) -> bool:
        """Take the peer's new limit; returns False for one that does not grow: an error."""
        grows = limit > self.peer_max_data
        self.peer_max_data = max(limit, self.peer_max_data)
        return grows

    def raise_streams(self, unidirectional: bool, limit: int) -> bool:
        """Take the peer's new limit; returns False for an illegal one."""
        grows = self.peer_max_streams[unidirectional] < limit <= MAX_STREAMS
        if grows:
            self.peer_max_streams[unidirectional] = limit
        return grows

    # Receiving

    def receive(self, size: int) -> bool:
        """Count bytes that arrived; returns False for an overrun."""
        self.received += size
        return self.received <= self.max_data

    def receive_stream(self, unidirectional: bool) -> bool:
        """Count a stream that the peer opened; returns False for an overrun."""
        self.streams_received[unidirectional] += 1
        return self.streams_received[unidirectional] <= self.max_streams[unidirectional]

    def consume(self, size: int, step: int) -> int | None:
        """Count bytes that were read; returns the new limit once it grew by `step`."""
        self.consumed += size
        limit = self.consumed + self._window
        if limit - self.max_data < max(1, step):
            return None
        self.max_data = limit
        return limit

    def write_off(self, streams: Sequence[int], size: int) -> None:
        """Count streams and bytes that came and went before the session did."""
        for unidirectional, count in enumerate(streams):
            self.streams_received[unidirectional] += count
            self.streams_closed[unidirectional] += count
        self.received += size
        self.consumed += size

    def stream_limit(self, unidirectional: bool) -> int | None:
        """Return the new limit of streams when one is due: look when one came, or is over."""
        current = self.max_streams[unidirectional]
        limit = self.streams_closed[unidirectional] + self._stream_window[unidirectional]
        # Wait until the peer has fewer left than the update would grant: long-lived streams
        # must not keep the credit of short ones back for ever.
        if limit - current < max(1, current - self.streams_received[unidirectional]):
            return None
        self.max_streams[unidirectional] = limit
        return limit
