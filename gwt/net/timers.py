"""
Time on a hub: the clock, and one timer that can be re-armed.

Callbacks run in the hub, so this is the quiet zone: no callback may wait, spawn or switch.
Whoever needs time takes ``clock=now`` as a parameter, which is how a test turns the clock.
No greenlet sleeps here and nothing is scheduled by name: a timer belongs to one owner.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from gevent import get_hub

__all__ = ["Timer", "in_time", "now"]

T = TypeVar("T")

now = time.monotonic


def in_time(items: Iterator[T], until: float, clock: Callable[[], float] = now) -> Iterator[T]:
    """Yield one item, and others until a moment of the clock; the iterator keeps the rest."""
    for item in items:
        yield item
        if clock() >= until:
            return


class Timer:
    """
    Call `callback` in the hub once a moment of the clock has come, never before.

    One deadline at a time; arm() replaces it. Belongs to the hub of the thread that makes it.
    """

    __slots__ = ("_callback", "_clock", "_closed", "_fires_at", "_loop", "_watcher", "deadline")

    def __init__(self, callback: Callable[[], object], *, clock: Callable[[], float] = now) -> None:
        self._callback = callback
        self._clock = clock
        self._loop: Any = get_hub().loop
        self._watcher: Any = None
        # When the watcher, if there is one, will fire.
        self._fires_at = 0.0
        self._closed = False

        # When the callback is due, on the clock; None while nothing is due.
        self.deadline: float | None = None

    def __repr__(self) -> str:
        due = "idle" if self.deadline is None else f"due in {self.deadline - self._clock():.3f} s"
        return f"<Timer {'closed' if self._closed else due}>"

    def arm(self, at: float | None) -> None:
        """Set the deadline to `at`; None cancels. A moment that has passed fires next turn."""
        if at == self.deadline or self._closed:
            return
        self.deadline = at
        if at is None:
            self._stop()
        elif self._watcher is None or at < self._fires_at:
            self._stop()
            self._start(at)
        # Else it fires too early, and then waits for the rest: deadlines of connections move
        # back with every packet, and mostly never come.

    def cancel(self) -> None:
        """Forget the deadline."""
        self.arm(None)

    def close(self) -> None:
        """Cancel, and ignore every later arm(). Idempotent."""
        self.cancel()
        self._closed = True
        # The owner's method, as a rule: it would hold the owner until the collector comes.
        self._callback = bool

    def _start(self, at: float) -> None:
        self._fires_at = at
        delay = at - self._clock()
        # A watcher's delay is fixed when it is made, and a new one is as cheap as a restart.
        # update: the loop's idea of now is as old as its turn, which would shorten the delay.
        if delay > 0:
            # libuv warns of less than a millisecond, and would cut the rest off anyway.
            delay = max(delay, self._loop.approx_timer_resolution)
        self._watcher = watcher = self._loop.timer(max(delay, 0.0))
        watcher.start(self._fire, update=True)

    def _stop(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.stop()
            watcher.close()

    def _fire(self) -> None:
        # libuv aborts the process if a watcher is closed in its own callback.
        watcher, self._watcher = self._watcher, None
        watcher.stop()
        self._loop.run_callback(watcher.close)

        assert self.deadline is not None
        if self.deadline > self._clock():
            self._start(self.deadline)
            return
        self.deadline = None
        self._callback()
