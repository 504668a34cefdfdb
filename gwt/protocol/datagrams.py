"""
The queue of datagrams that wait to be sent: bounded in number and in age.

It watches over a deque that QUIC empties from the left whenever packets have room.
"""

from __future__ import annotations

from collections import deque

__all__ = ["DatagramQueue"]


class DatagramQueue:
    """Drops the oldest datagrams: they are worth the least."""

    __slots__ = ("_largest", "_max_age", "_max_length", "_queue", "_times", "dropped")

    def __init__(self, queue: deque[bytes], max_length: int, max_age: float) -> None:
        self._queue = queue
        self._max_length = max_length
        self._max_age = max_age
        # When each was first seen by before_sending(), in the same order; the newest may lack.
        self._times: deque[float] = deque()
        # No datagram in the queue is larger.
        self._largest = 0
        self.dropped = 0

    def push(self, data: bytes) -> None:
        """Append; when the queue is full the oldest goes."""
        if len(self._queue) >= self._max_length:
            self._queue.popleft()
            if self._times:
                self._times.popleft()
            self.dropped += 1
        self._queue.append(data)
        self._largest = max(self._largest, len(data))

    def before_sending(self, now: float, max_size: int) -> None:
        """Drop what has waited too long, and what does not fit any more."""
        queue, times = self._queue, self._times
        while len(times) < len(queue):
            times.append(now)
        while times and now - times[0] > self._max_age:
            times.popleft()
            queue.popleft()
            self.dropped += 1
        if self._largest > max_size:
            self._drop_larger(max_size)

    def _drop_larger(self, max_size: int) -> None:
        # A path may take smaller packets only, and a peer may choose longer connection ids. One
        # that does not fit would hold up all behind it.
        kept = [
            item for item in zip(self._queue, self._times, strict=True) if len(item[0]) <= max_size
        ]
        self.dropped += len(self._queue) - len(kept)
        self._queue.clear()
        self._times.clear()
        for data, time in kept:
            self._queue.append(data)
            self._times.append(time)
        self._largest = max_size

    def after_sending(self) -> None:
        """Forget the times of what has gone."""
        while len(self._times) > len(self._queue):
            self._times.popleft()
        if not self._queue:
            self._largest = 0
