"""
Turns of the loop: how much of one is for reading, and how many things may begin in one.

All sockets of a hub share these, so that with many of them, or with a thousand greenlets that want
the same at a time, a turn is still short. Counts and clocks only: no sockets here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from gevent import get_hub

from .timers import Timer, now
from .waiting import Deadline, Signal

__all__ = ["Pace", "ReadingTime"]

# The seconds of a turn that are for reading, with all that receivers do about it; and what a
# socket has all the same when the others have used them up.
_TIME: Final = 0.004
_LEAST: Final = 0.0005

# A turn that is so much longer than that has other work enough: reading has its time again.
_LONG: Final = 0.016


class ReadingTime:
    """What is left of a turn for reading, for all sockets of a hub."""

    def __init__(self, clock: Callable[[], float] = now) -> None:
        self._clock = clock
        self._loop: Any = get_hub().loop
        self._until: float | None = None

        # Changes whenever there is new time.
        self.turn = 0

    @classmethod
    def current(cls) -> ReadingTime:
        """Return the current hub's one; it goes with the hub."""
        hub = get_hub()
        found: ReadingTime | None = getattr(hub, "gwt_reading_time", None)
        if found is None:
            found = hub.gwt_reading_time = cls()
        return found

    def until(self) -> float:
        """Return the moment until which a socket may be read now."""
        at = self._clock()
        if self._until is None:
            self._loop.run_callback(self._over)
        elif at < self._until + _LONG:
            return max(self._until, at + _LEAST)
        self._until = at + _TIME
        self.turn += 1
        return self._until

    @property
    def spent(self) -> bool:
        """Whether this turn's time is over."""
        return self._until is not None and self._until <= self._clock() < self._until + _LONG

    def _over(self) -> None:
        self._until = None


class Pace:
    """Lets `number` greenlets begin something in a turn, the first of those who wait first."""

    def __init__(self, number: int) -> None:
        self._number = self._left = number
        self._waiting: deque[Signal] = deque()
        self._timer = Timer(self._next_turn)

    def wait(self, deadline: Deadline | None = None) -> None:
        """Return when the caller may begin; raises the builtin TimeoutError at the deadline."""
        if self._left > 0:
            self._take()
            return
        turn = Signal()
        self._waiting.append(turn)
        try:
            turn.wait(deadline)
        except BaseException:
            if turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def _take(self) -> None:
        self._left -= 1
        if self._timer.deadline is None:
            self._timer.arm(now())

    def _next_turn(self) -> None:
        self._left = self._number
        while self._waiting and self._left > 0:
            self._take()
            self._waiting.popleft().notify()
