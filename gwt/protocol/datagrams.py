"""
The queue of datagrams that wait to be sent: bounded in number and in age.

It watches over a deque that QUIC empties from the left whenever packets have room.
"""

from __future__ import annotations

from collections import deque

__all__ = ["DatagramQueue"]


class DatagramQueue:
    """Drops the oldest datagrams: they are worth the least."""

    __slots__ = ("_max_age", "_max_length", "_queue", "_times", "dropped")

    def __init__(self, queue: deque[bytes], max_length: int, max_age: float) -> None:
        self._queue = queue
        self._max_length = max_length
        self._max_age = max_age
        # When each was first seen by before_sending(), in the same order; the newest may lack.
        self._times: deque[float] = deque()
        self.dropped = 0

    def push(self, data: bytes) -> None:
        """Append; when the queue is full the oldest goes."""
        if len(self._queue) >= self._max_length:
            self._queue.popleft()
            if self._times:
                self._times.popleft()
            self.dropped += 1
        self._queue.append(data)

    def before_sending(self, now: float, max_size: int) -> None:
        """Drop what has waited too long, and what does not fit any more."""
        queue, times = self._queue, self._times
        while len(times) < len(queue):
            times.append(now)
        # A peer may choose longer connection ids at any time, which leaves less room. Only the
        # first is looked at: QUIC waits with it, and with all behind it, until it fits.
        while times and (now - times[0] > self._max_age or len(queue[0]) > max_size):
            times.popleft()
            queue.popleft()
            self.dropped += 1

    def after_sending(self) -> None:
        """Forget the times of what has gone."""
        while len(self._times) > len(self._queue):
            self._times.popleft()
