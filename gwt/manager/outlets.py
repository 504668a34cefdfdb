"""
Outlets: what takes a broadcast's messages for one member, without waiting.

A WebSocket is one itself: it has ``kind``, ``encode_for(kind, message)``, ``offer(frame, limit)``
and ``offer_later(frame, limit)``, which return "sent", "queued", "full" or "closed",
``send_offered()``, and ``wait_room(deadline)``, which alone may wait. Where ``kind`` is None
messages are offered as they are. Other members make one, by ``make_outlet(framing)``, that may also
have ``is_closed``, ``stop()``, ``wait_sent(deadline)``, and ``unreliable``, another outlet, which
may return "dropped". A member that has nothing but a ``send()`` that waits gets a queue and, while
there is something in it, a greenlet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import gevent

from ..net.waiting import Deadline, Signal

__all__ = ["CLOSED", "DROPPED", "FRAMINGS", "FULL", "QUEUED", "SENT", "SendOutlet", "outlet_of"]

SENT, QUEUED, FULL, DROPPED, CLOSED = "sent", "queued", "full", "dropped", "closed"

# How messages are told apart, for members that have a choice.
FRAMINGS = ("messages", "stream")

# What a message that waits costs beside its own bytes.
_OVERHEAD = 64


def outlet_of(member: Any, failed: Callable[[Any, Exception], object], framing: str) -> Any:
    """
    Return the outlet of a member; `failed(member, error)` is called where its send() raises.

    Raises TypeError for what can not be sent to, ValueError for a framing that does not exist.
    """
    if framing not in FRAMINGS:
        raise ValueError(f'framing must be "messages" or "stream", not {framing!r}.')
    if hasattr(member, "make_outlet"):
        return member.make_outlet(framing)
    if hasattr(member, "offer_later"):
        return member
    if not callable(getattr(member, "send", None)):
        raise TypeError(f"{type(member).__name__} has no send(): nothing could be sent to it.")
    return SendOutlet(member, failed)


class SendOutlet:
    """A queue in front of a send() that may wait, and a greenlet while it is not empty."""

    __slots__ = ("_failed", "_greenlet", "_member", "_queue", "_queued", "_taken")

    # Messages are offered as they are.
    kind = None

    def __init__(self, member: Any, failed: Callable[[Any, Exception], object]) -> None:
        self._member = member
        self._failed = failed
        self._queue: deque[str | bytes] = deque()
        self._queued = 0
        self._taken = Signal()
        self._greenlet: gevent.Greenlet | None = None

    def offer(self, message: str | bytes, limit: int) -> str:
        """Put a message into the queue, unless more than `limit` would be in it."""
        if self._member.is_closed:
            self._queue.clear()
            return CLOSED
        size = len(message) + _OVERHEAD
        if self._queued and self._queued + size > limit:
            return FULL
        self._queue.append(message)
        self._queued += size
        if self._greenlet is None:
            self._greenlet = gevent.spawn(self._send)
            self._greenlet.name = f"gwt-room-writer {self._member.id}"
        return QUEUED

    offer_later = offer

    def send_offered(self) -> None:
        """Nothing: the greenlet does it."""

    def wait_room(self, deadline: Deadline) -> None:
        """Wait until a message was taken out of the queue, or the end; raises TimeoutError."""
        if self._queue or self._greenlet is not None:
            self._taken.wait(deadline)

    def stop(self) -> None:
        """Send nothing more: the member has left."""
        greenlet, self._greenlet = self._greenlet, None
        self._queue.clear()
        self._queued = 0
        if greenlet is not None and greenlet is not gevent.getcurrent():
            greenlet.kill(block=False)
        self._taken.notify()

    def _send(self) -> None:
        try:
            while self._queue:
                message = self._queue.popleft()
                # A message counts until it is sent.
                self._member.send(message)
                self._queued -= len(message) + _OVERHEAD
                self._taken.notify()
        except (Exception, gevent.Timeout) as exc:
            # Boundary to user code: send() of a member.
            self._queue.clear()
            self._failed(self._member, exc)
        finally:
            if self._greenlet is gevent.getcurrent():
                self._greenlet = None
            self._taken.notify()
